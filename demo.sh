#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
#
# ./demo.sh [OPTION]...: moves a running guest from one QEMU to another on this host, and proves that not a
# byte of it was lost.  Runs on Debian 12 or 13.
#
#   --mode MODE        hybrid (default; before Linux 6.7 postcopy), precopy, postcopy, warm or cold
#   --memory SIZE      of the guest, 64M to 3G (default 256M)
#   --bandwidth RATE   what pre-copy may use a second, 0: all there is (default 16M: there is something to see,
#                      and the guest writes faster than that, so that hybrid comes to post-copy)
#   --build-dir DIR    use what is built there: installs and builds nothing
#
# Installs with apt what is missing, and says so; builds in build/release.  Reaching into a QEMU takes root, so
# without it the demo goes on by sudo.  Exit status 0: the guest was moved, whole.
set -uo pipefail
root=$(cd "$(dirname "$0")" && pwd) || exit 1
. "$root/tests/support/packages.sh"

usage() {
	sed -n '4,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
	exit "$1"
}

die() {
	printf '\ndemo.sh: %s\n' "$1" >&2
	exit 1
}

# bytes SIZE: 512M as a number of bytes.
bytes() {
	[[ $1 =~ ^([0-9]{1,12})([KMG]?)$ ]] || return
	case ${BASH_REMATCH[2]} in
	K) echo $((10#${BASH_REMATCH[1]} << 10)) ;;
	M) echo $((10#${BASH_REMATCH[1]} << 20)) ;;
	G) echo $((10#${BASH_REMATCH[1]} << 30)) ;;
	*) echo $((10#${BASH_REMATCH[1]})) ;;
	esac
}

mode='' memory=256M bandwidth=16M build=$root/build/release ready_built=''
given=("$@")
while [ $# -gt 0 ]; do
	case $1 in
	--help) usage 0 ;;
	--mode | --memory | --bandwidth | --build-dir) [ $# -ge 2 ] || usage 2 ;;
	*) usage 2 ;;
	esac
	case $1 in
	--mode) mode=$2 ;;
	--memory) memory=$2 ;;
	--bandwidth) bandwidth=$2 ;;
	--build-dir) build=$2 ready_built=yes ;;
	esac
	shift 2
done
case $mode in '' | hybrid | precopy | postcopy | warm | cold) ;; *) usage 2 ;; esac
size=$(bytes "$memory") && bytes "$bandwidth" >/dev/null || usage 2
mib=$((size >> 20))
[ $mib -ge 64 ] && [ $mib -le 3072 ] || usage 2

[ "$(uname -m)" = x86_64 ] || die "the demo's guest is for x86-64, and this host is not"
if [ "$(id -u)" != 0 ]; then
	echo "demo.sh: not root; going on by sudo"
	exec sudo "$root/demo.sh" "${given[@]}"
fi

# ---- what must be gone at the end, however it comes ----

dir='' children=()

clean_up() {
	trap '' INT TERM
	[ ${#children[@]} = 0 ] || kill -KILL "${children[@]}" 2>/dev/null
	wait 2>/dev/null
	[ -z "$dir" ] || rm -rf "$dir"
	# Files made by root in a user's clone would be in that user's way.
	[ -z "${SUDO_UID-}" ] || [ -n "$ready_built" ] || chown -R "$SUDO_UID:$SUDO_GID" "$root/build" 2>/dev/null
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# start COMMAND...: in the background and in a session of its own, so that Ctrl-C is ours to handle; it dies with us.
start() {
	setsid setpriv --pdeathsig KILL "$@" <&0 &
	children+=($!)
	started=$!
}

# until_true SECONDS COMMAND...: or fails at the deadline.
until_true() {
	local end=$((SECONDS + $1))
	shift
	until "$@"; do
		[ $SECONDS -lt $end ] || return 1
		sleep 0.1
	done
}

# ---- packages, build ----

step() {
	printf '\n%s\n' "$1"
}

in_quiet() {
	"$@" >"$dir/log" 2>&1 || { cat "$dir/log" >&2; return 1; }
}

dir=$(mktemp -d "${TMPDIR:-/tmp}/memferry-demo.XXXXXX") || exit 1

if [ -z "$ready_built" ]; then
	step "1. What it needs of Debian"
	packages "${needed[@]}" || die "not all packages could be installed"
	step "2. Building memferry in build/release"
	begun=$SECONDS
	cd "$root" || exit 1
	in_quiet cmake --preset release && in_quiet cmake --build --preset release --target memferry_cli guest ||
		die "the build failed"
	echo "done, $((SECONDS - begun)) s"
fi
memferry=$build/engine/cli/memferry image=$build/tests/guest/guest.elf
[ -x "$memferry" ] && [ -e "$image" ] || die "$build: memferry and its test guest are not built there"

free=$(df --output=avail -B1M /dev/shm | tail -n 1)
[ "$free" -ge $((2 * mib)) ] ||
	die "both guests' RAM lies in /dev/shm, which has $free MiB left, not $((2 * mib)): make it bigger (mount -o remount,size=...) or try --memory"
available=$(awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
[ "$available" -ge $((2 * mib + 256)) ] ||
	die "two guests of $memory need $((2 * mib + 256)) MiB of memory, and $available are free: try --memory"

# ---- two QEMUs ----

if [ -z "$mode" ]; then
	mode=hybrid
	release=$(uname -r)
	if [ "$(printf '6.7\n%s\n' "$release" | sort -V | head -n 1)" != 6.7 ]; then
		mode=postcopy
		printf '\nLinux %s cannot tell which pages a guest wrote (6.7 and newer can): moving by post-copy alone\n' "$release"
	fi
fi

# Pre-copy alone gets nowhere with a guest that writes faster than the link carries.
rate=160M
case $mode in precopy | warm) rate=4M ;; esac
guest="hot=$((mib / 8))M rate=$rate check=64M"

# start_qemu NAME ACCELERATOR OPTION...: its serial port is NAME.log, and what is written to $to_NAME it reads.
start_qemu() {
	local name=$1 accel=$2 words=$guest
	shift 2
	# A KVM without hardware behind it cannot wake a guest that sleeps.
	[ "$accel" = kvm ] && [ ! -e /sys/module/kvm_intel ] && [ ! -e /sys/module/kvm_amd ] && words+=" nap=0"
	# mem-path is a directory: QEMU makes a file in it that has no name, and that nobody needs to remove.
	start qemu-system-x86_64 -name "$name" -nodefaults -no-user-config -display none -no-reboot \
		-accel "$accel" -machine pc,memory-backend=ram -m "${mib}M" \
		-object memory-backend-file,id=ram,size="${mib}M",mem-path=/dev/shm,share=on \
		-qmp unix:"$dir/$name.qmp",server=on,wait=off \
		-chardev stdio,id=serial,signal=off -serial chardev:serial \
		-kernel "$image" -append "$words" "$@" \
		<"$dir/$name.in" >"$dir/$name.log" 2>"$dir/$name.err"
}

mkfifo "$dir/source.in" "$dir/destination.in" || exit 1
exec {to_source}<>"$dir/source.in" {to_destination}<>"$dir/destination.in"

# beats NAME: how many whole heartbeats it has printed.
beats() {
	grep -c '^HB .*wrong=[0-9]*.$' "$dir/$1.log"
}

has_beats() {
	[ "$(beats "$1")" -ge "$2" ]
}

# show NAME: lines of a guest, from standard input.
show() {
	local line
	while read -r line; do
		printf '  %-18s %s\n' "$1 guest" "${line%$'\r'}"
	done
}

# It beats, or it never will.
source_beats() {
	has_beats source 5 || ! kill -0 "$started" 2>/dev/null
}

step "3. A guest of $memory: it stamps pages, writes $rate/s, and checks all that it ever wrote"
accelerators=(tcg)
[ -c /dev/kvm ] && { exec {kvm}<>/dev/kvm; } 2>/dev/null && exec {kvm}>&- && accelerators=(kvm tcg)
accel=''
for try in "${accelerators[@]}"; do
	start_qemu source "$try"
	if [ "$try" = tcg ]; then limit=120; else limit=20; fi
	if until_true $limit source_beats && has_beats source 5; then
		accel=$try
		break
	fi
	kill -KILL "$started" 2>/dev/null
	wait "$started" 2>/dev/null
	echo "  QEMU does not get the guest to run by $try: $(tail -n 1 "$dir/source.err")"
done
[ -n "$accel" ] || die "QEMU does not run the guest"
source_pid=$started
echo "  $(qemu-system-x86_64 --version | head -n 1), $accel"
grep '^HB ' "$dir/source.log" | head -n 3 | show source
start_qemu destination "$accel" -incoming defer
until_true 30 test -S "$dir/destination.qmp" || die "the second QEMU does not start: $(cat "$dir/destination.err")"

# ---- the move ----

step "4. Moving it to the second QEMU while it runs"
receive=(receive --listen 127.0.0.1:0 --guest qemu:"$dir/destination.qmp" --insecure --run-dir "$dir/run")
send=(--guest qemu:"$dir/source.qmp" --mode "$mode" --max-bandwidth "$bandwidth" --verify full --insecure --run-dir "$dir/run")
start "$memferry" "${receive[@]}" --json >"$dir/receive.json" 2>"$dir/receive.err"
receive_pid=$started
address() {
	sed -n 's/^{"event":"listening","address":"\([^"]*\)".*/\1/p' "$dir/receive.json"
}
until_true 30 grep -q '"event":"listening"' "$dir/receive.json" || die "memferry receive does not listen: $(cat "$dir/receive.err")"

printf '  $ memferry %s\n  $ memferry send %s %s\n' "${receive[*]}" "$(address)" "${send[*]}" | sed "s|$dir/||g"
if [ "$mode" = warm ]; then
	echo '  … and after three rounds: memferry cutover'
	{
		until_true 120 grep -q '"event":"round","n":3' "$dir/receive.json" &&
			"$memferry" cutover --run-dir "$dir/run" >"$dir/cutover.log" 2>&1
	} &
	children+=($!)
fi
# In the foreground: it draws its line on this terminal, and Ctrl-C reaches it.
timeout --foreground 300 "$memferry" send "$(address)" "${send[@]}" >"$dir/send.log"
status=$?
[ $status = 0 ] || { cat "$dir/send.log"; tail -n 3 "$dir/receive.err"; die "the move failed (exit status $status)"; }
until_true 60 grep -q '"event":"report"' "$dir/receive.json" || die "memferry receive does not end: $(cat "$dir/receive.err")"
wait $receive_pid || die "memferry receive failed: $(cat "$dir/receive.err")"

# ---- what the guest says ----

until_true 60 has_beats destination 5 || die "the guest does not beat at the destination"
step "5. The guest's own heartbeat, before and after: its count n goes on"
grep '^HB ' "$dir/source.log" | grep 'wrong=' | tail -n 3 | show source
if [ -n "$(tail -c 1 "$dir/source.log")" ]; then # it moved in the middle of a line
	printf '%s|%s\n' "$(tail -n 1 "$dir/source.log")" "$(head -n 1 "$dir/destination.log")" | show both
fi
grep '^HB ' "$dir/destination.log" | head -n 3 | show destination
echo v >&$to_destination
until_true 120 grep -q '^CHECKED .*wrong=' "$dir/destination.log" || die "the guest does not answer"
echo "  … and now it checks every page:"
grep '^CHECKED ' "$dir/destination.log" | show destination
until_true 10 eval "! kill -0 $source_pid 2>/dev/null" || die "the source QEMU still lives"

# ---- the verdict ----

python3 -B "$root/tests/support/verdict.py" "$dir" "$bandwidth" || die "the guest did not come over whole"
