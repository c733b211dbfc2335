#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# installed.sh BUILD CC: installs into a new folder, looks at what is there, moves the folder, and
# builds and runs the documentation's example against it the way a user would.
set -euo pipefail
build=$1 cc=$2 root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cmake --install "$build" --prefix "$work/first" >"$work/log" || { cat "$work/log"; exit 1; }

mv "$work/first" "$work/prefix" # nothing may remember where it was installed
prefix=$work/prefix
missing=0
need() {
	[ -e "$prefix/$1" ] || { echo "not installed: $1"; missing=1; }
}
lib=$(cd "$prefix" && dirname "$(find . -name libmemferry.so.0 | head -n 1)")
need bin/memferry
need bin/memferry-perf
need "$lib/libmemferry.so"
need "$lib/libmemferry.so.0"
need "$lib/pkgconfig/memferry.pc"
need "lib/systemd/system/memferry-receive@.service"
need lib/sysusers.d/memferry.conf
grep -q "^ExecStart=$work/first/bin/memferry receive " "$prefix/lib/systemd/system/memferry-receive@.service"
for header in adapter error guests kvm_vm region session; do
	need "include/memferry/$header.h"
done
extra=$(cd "$prefix" && find . ! -type d ! -name 'libmemferry.so*' ! -name memferry.pc \
	! -path './include/memferry/*.h' ! -path './bin/memferry' ! -path './bin/memferry-perf' ! -path './share/man/*' \
	! -path './share/doc/*' ! -path './lib/systemd/system/memferry-receive@.service' \
	! -path './lib/sysusers.d/memferry.conf')
[ -z "$extra" ] || { echo "installed, but nobody asked for it: $extra"; missing=1; }
[ "$missing" = 0 ]

export PKG_CONFIG_PATH=$prefix/$lib/pkgconfig
read -ra flags <<<"$(pkg-config --cflags --libs memferry)"
export LD_LIBRARY_PATH=$prefix/$lib
"$cc" -std=gnu17 -Wall -Wextra -Wpedantic -Werror -o "$work/monitor" "$root/docs/examples/monitor.c" \
	"${flags[@]}" -pthread

# The example does what its head says: a guest goes from one monitor to another.
if [ "$(id -u)" = 0 ]; then
	stdbuf -oL "$work/monitor" receive 127.0.0.1:0 >"$work/receive" 2>&1 &
	receiver=$!
	trap 'kill $receiver 2>/dev/null || :; rm -rf "$work"' EXIT
	for _ in $(seq 300); do
		address=$(sed -n 's/^listening on //p' "$work/receive")
		[ -z "$address" ] || break
		sleep 0.1
	done
	timeout 60 "$work/monitor" send "$address" || { cat "$work/receive"; exit 1; }
	status=0
	wait "$receiver" || status=$?
	cat "$work/receive"
	[ "$status" = 0 ]
	grep -q 'met 0 wrong pages' "$work/receive"
else
	echo "the example was built; running it needs root"
fi
"$prefix/bin/memferry" --version
"$prefix/bin/memferry-perf" --version
echo "ok: installed tree, version $(pkg-config --modversion memferry)"
