#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
#
# ./test.sh [--quick]: builds memferry and runs every test, on Debian 12 or 13.
#
#   release   optimised: everything, with two processes and real guests; valgrind's memcheck over the
#             pure parts, clang-tidy and cppcheck over all of it (Debian 12's versions)
#   dev       address and undefined-behaviour sanitizers: unit, conformance, fault, library, checks, and
#             a part of the integration tests
#   tsan      thread sanitizer: unit, conformance, most of fault, and that part
#   fuzz      libFuzzer with both sanitizers of dev: each parser for some seconds, from its corpus on
#   clang     built by clang: unit, conformance
#   other     the other Debian's compiler and libraries (12 on 13, 13 on 12), in a root of its own
#             under ${MEMFERRY_CACHE:-~/.cache/memferry}: unit, conformance
#
# --quick: release only, and only unit, conformance and checks.
#
# Installs with apt what is missing, and says so; needs root for that and for tests that reach into
# other processes, so without root it goes on by sudo.  A skip that tests/expected-skips does not
# allow is a failure.  Ends with "N passed, N failed, N skipped"; exit status 0: none failed.
set -uo pipefail
cd "$(dirname "$0")" || exit 1

cache=${MEMFERRY_CACHE:-$HOME/.cache/memferry}
quick='' inside=''
case ${1-} in
'') ;;
--quick) quick=yes ;;
--inside) inside=yes ;; # this script within the other Debian's root
*) sed -n '3,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; [ "$1" = --help ]; exit $(($? * 2)) ;;
esac

if [ "$(id -u)" != 0 ]; then
	echo "test.sh: not root; going on by sudo"
	exec sudo MEMFERRY_CACHE="$cache" CI="${CI-}" "$PWD/test.sh" "$@"
fi

. /etc/os-release
case ${VERSION_CODENAME-} in
bookworm) other=trixie ;;
trixie) other=bookworm ;;
*) echo "test.sh: this is ${PRETTY_NAME-unknown}; it runs on Debian 12 and 13"; exit 1 ;;
esac

. tests/support/packages.sh # `needed` is what the other Debian's root gets as well
check_packages=(g++ git)
[ "$VERSION_CODENAME" = bookworm ] && check_packages+=(clang-format)
full_packages=(clang libclang-rt-dev valgrind debootstrap busybox-static cpio xz-utils # the last three for tests/vm
	spin                                                   # tests/model
	iperf3 libfabric-bin perftest                          # perf/versus
	slurmctld slurmd slurm-client munge openmpi-bin)       # launchers for memferry-perf mesh
[ "$VERSION_CODENAME" = bookworm ] && full_packages+=(clang-tidy cppcheck)

mkdir -p build
tally=$PWD/build/tally
: >"$tally"
failed_stages=()
# A few, for tests of guests on huge pages; given back at the end.  Where the kernel has none to
# give, those tests skip.  Tests that ask for more of them take this lock, and so does this.
huge_pages=/proc/sys/vm/nr_hugepages huge_pages_before=''
with_huge_pages() {
	(flock 9 && "$@") 9>>/tmp/memferry-test-hugepages.lock 2>/dev/null
}
reserve_huge_pages() {
	[ "$(cat $huge_pages)" -ge 64 ] || { cat $huge_pages && echo 64 >$huge_pages; }
}
give_back_huge_pages() {
	echo "$huge_pages_before" >$huge_pages
}

clean_up() {
	[ -z "$huge_pages_before" ] || with_huge_pages give_back_huge_pages
	# Files made by root in a user's clone would be in that user's way.
	[ -z "${SUDO_UID-}" ] || chown -R "$SUDO_UID:$SUDO_GID" build
}
trap clean_up EXIT

# stage NAME COMMAND [ARG ...]: runs it, says its result and time.
stage() {
	local name=$1 start=$SECONDS lines
	shift
	printf '\n==== %s\n' "$name"
	lines=$(wc -l <"$tally")
	if "$@"; then
		printf '==== %s: ok, %d s\n' "$name" $((SECONDS - start))
		return
	fi
	printf '==== %s: FAILED, %d s\n' "$name" $((SECONDS - start))
	failed_stages+=("$name")
	[ "$(wc -l <"$tally")" -gt "$lines" ] || echo "0 1 0" >>"$tally" # it came to no tests
}

build() {
	cmake --preset "$1" -DMF_WERROR=ON >build/"$1".log ||
		{ cat build/"$1".log; return 1; }
	cmake --build --preset "$1" -- --quiet
}

# run PRESET [CTEST ARGUMENT ...]: builds, tests, judges.  The report decides: ctest calls a skip a pass.
run() {
	local preset=$1 junit=$PWD/build/$1/junit.xml still=()
	shift
	build "$preset" || return
	rm -f "$junit"
	# Sanitizers want their shadow where address randomisation may put other things.
	case $preset in
	dev | tsan | fuzz) setarch -R true 2>/dev/null && still=(setarch -R) ;;
	esac
	"${still[@]}" ctest --preset "$preset" --output-junit "$junit" \
		--test-output-size-passed 100000 --test-output-size-failed 200000 "$@"
	PRESET=$preset python3 -B tests/checks/report.py "$junit" tests/expected-skips "$tally"
}

# Where this host gets its Debian from: the other one comes from there too.
mirror() {
	local filter
	for filter in 'Origin: Debian' 'Component: main'; do
		apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' "$filter" |
			awk -v release="$VERSION_CODENAME" '$1 == release && !seen++ { print $2 }' |
			grep . && return
	done
	echo "test.sh: apt knows no mirror of Debian $VERSION_CODENAME" >&2
	return 1
}

# in_root COMMAND [ARG ...]: within the other root; the mounts end with the command.
in_root() {
	unshare -m --propagation private bash -c '
		root=$1
		shift
		for d in dev proc sys; do mount --rbind "/$d" "$root/$d" || exit; done
		mount -t tmpfs tmpfs "$root/tmp" || exit
		exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LANG=C.UTF-8 \
			CI="${CI-}" DEBIAN_FRONTEND=noninteractive "$@"' in_root "$root" "$@"
}

make_root() {
	local from proxy
	from=$(mirror) || return
	eval "$(apt-config shell proxy Acquire::http::Proxy)"
	[ -z "${proxy-}" ] || export http_proxy="$proxy"
	rm -rf --one-file-system "$root.new"
	echo "making a root of Debian $other in $root"
	debootstrap --variant=minbase "$other" "$root.new" "$from" >"$root.log" 2>&1 ||
		{ tail -n 5 "$root.log"; return 1; }
	echo "deb $from $other main" >"$root.new/etc/apt/sources.list"
	# How to reach the mirror is this host's business: proxies, and what its clock allows.
	apt-config dump | grep -E '^Acquire::(http|https|Check-)' >"$root.new/etc/apt/apt.conf.d/50host"
	mv "$root.new" "$root"
}

other_debian() {
	root=$cache/root-$other
	mkdir -p "$cache" || return
	if ! unshare -m true 2>/dev/null; then
		python3 -B tests/checks/report.py --stage other-debian "unshare -m is refused" \
			tests/expected-skips "$tally"
		return
	fi
	exec {lock}>"$root.lock" # the root is shared by all clones
	flock "$lock"
	[ -d "$root" ] || retry make_root || return
	cp -L /etc/resolv.conf /etc/hosts "$root/etc/" # names are this host's, localhost among them
	if [ "${needed[*]}" != "$(cat "$root/etc/memferry-packages" 2>/dev/null)" ]; then
		echo "installing there: ${needed[*]}"
		retry in_root apt-get -qq update &&
			retry in_root apt-get -qq -y --no-install-recommends install "${needed[@]}" \
				>"$root.log" 2>&1 || { tail -n 5 "$root.log"; return 1; }
		echo "${needed[*]}" >"$root/etc/memferry-packages"
	fi
	rm -rf "$root/src"
	mkdir "$root/src"
	tar --exclude=./build --exclude=./.git -c . | tar -x --no-same-owner -C "$root/src" || return
	in_root /src/test.sh --inside
	local status=$?
	cat "$root/src/build/tally" >>"$tally"
	exec {lock}>&-
	return $status
}

huge_pages_before=$(with_huge_pages reserve_huge_pages)

if [ -n "$inside" ]; then
	run release -L '^(unit|conf.*)$'
	exit
fi

if [ -n "$quick" ]; then
	stage packages packages "${needed[@]}" "${check_packages[@]}"
	stage release run release -L '^(unit|conf.*|check)$'
else
	stage packages packages "${needed[@]}" "${check_packages[@]}" "${full_packages[@]}"
	stage release run release
	stage dev run dev
	stage tsan run tsan
	stage fuzz run fuzz
	stage clang run clang
	stage "other: Debian $other" other_debian
fi

echo
[ ${#failed_stages[@]} = 0 ] || printf 'failed: %s\n' "${failed_stages[@]}"
awk -v s="$SECONDS" '{ p += $1; f += $2; k += $3 }
	END { printf "%d min %d s\n%d passed, %d failed, %d skipped\n", s / 60, s % 60, p, f, k; exit f > 0 }' "$tally"
