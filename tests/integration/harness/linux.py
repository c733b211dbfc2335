# SPDX-License-Identifier: BSD-2-Clause
"""A Linux guest: Debian's kernel, fetched once, and an initial RAM disk made of a static busybox and a script."""
import gzip
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path

# Keeps a counter, and a job whose every result must be the same: digests of a file that stays and of one that is
# written anew each time; a process besides it churns memory.
INIT = b"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t tmpfs -o size=80% tmpfs /tmp
cd /tmp
head -c 16777216 /dev/urandom >kept
want=$(md5sum <kept)
(while :; do cp kept churn; rm churn; done) &
n=0 bad=0
while :; do
	n=$((n + 1))
	[ "$(md5sum <kept)" = "$want" ] || bad=$((bad + 1))
	yes $n | head -c 2097152 >fresh
	[ "$(md5sum <fresh)" = "$(yes $n | head -c 2097152 | md5sum)" ] || bad=$((bad + 1))
	echo "LX n=$n bad=$bad"
done
"""


class Missing(Exception):
    """Something that this guest needs is not to be had here."""


def _run(*argv, **options):
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, **options)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise Missing(f"{argv[0]} {argv[1]}: {lines[-1]}")
    return done.stdout


def kernel():
    """Of Debian's kernel package, kept in ${MEMFERRY_CACHE:-~/.cache/memferry}."""
    cache = Path(os.environ.get("MEMFERRY_CACHE") or Path.home() / ".cache/memferry")
    for tool in "apt-get", "apt-cache", "dpkg-deb":
        if not shutil.which(tool):
            raise Missing(f"no {tool} to fetch a kernel with")
    names = [line.split()[1] for line in _run("apt-cache", "depends", "linux-image-amd64").splitlines()
             if line.split()[:1] == ["Depends:"]]
    if not names:
        raise Missing("apt knows no linux-image-amd64")
    kept = cache / f"{names[0]}.vmlinuz"
    if kept.exists():
        return kept
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as directory:
        os.chmod(directory, 0o777)  # apt fetches as a user of its own
        _run("apt-get", "-qq", "download", names[0], cwd=directory)
        package = next(Path(directory).glob("*.deb"))
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as unpack:
            with tarfile.open(fileobj=unpack.stdout, mode="r|") as files:
                for file in files:
                    if "/boot/vmlinuz-" in file.name:
                        fresh = Path(directory, "vmlinuz")
                        fresh.write_bytes(files.extractfile(file).read())
                        fresh.replace(kept)  # others may do the same at the same time
    if not kept.exists():
        raise Missing(f"{names[0]} contains no kernel")
    return kept


def _is_static(path):
    with open(path, "rb") as file:
        return b"ld-linux" not in file.read(4096)


def _entry(name, mode, data=b"", device=(0, 0)):
    """Of a cpio archive in the form newc."""
    name = name.encode() + b"\0"
    fields = 1, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0
    head = b"070701" + b"".join(b"%08X" % f for f in fields) + name
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def initrd(directory):
    busybox = shutil.which("busybox")
    if not busybox or not _is_static(busybox):
        raise Missing("no static busybox (Debian: busybox-static)")
    entries = [_entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "proc", "tmp", "dev")]
    entries += [
        _entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        _entry("dev/urandom", stat.S_IFCHR | 0o666, device=(1, 9)),
        _entry("dev/null", stat.S_IFCHR | 0o666, device=(1, 3)),
        _entry("bin/busybox", stat.S_IFREG | 0o755, Path(busybox).read_bytes()),
        _entry("init", stat.S_IFREG | 0o755, INIT),
        _entry("TRAILER!!!", 0),
    ]
    path = Path(directory, "initrd")
    path.write_bytes(gzip.compress(b"".join(entries), 1))
    return path
