#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
#
# two_monitors.sh MONITOR
#
# Two processes, a guest between them, for each tracker; over RDMA as well where MEMFERRY_TEST_HOST names the address of a
# device.  The destination's exit status is the guest's verdict.
set -euo pipefail
monitor=$1
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT

[ -r /dev/kvm ] && [ -w /dev/kvm ] || { echo "SKIP: no usable /dev/kvm"; exit 77; }
grep -qwE 'vmx|svm' /proc/cpuinfo ||
	{ echo "SKIP: this /dev/kvm works without hardware assistance (vmx, svm)"; exit 77; }

move() {
	local host=$1 transport=$2 tracker=$3 mode=$4 address="" i
	echo "== $mode by $tracker over $transport"
	"$monitor" destination "$host:0" --transport "$transport" --tracker "$tracker" \
		>"$work/destination" 2>&1 &
	for ((i = 0; i < 300; i++)); do
		address=$(sed -n 's/^listening: //p' "$work/destination")
		[ -z "$address" ] || break
		sleep 0.1
	done
	if ! "$monitor" source "$address" --transport "$transport" --tracker "$tracker" --mode "$mode" \
		>"$work/source" 2>&1 || ! wait $!; then
		cat "$work/source" "$work/destination"
		exit 1
	fi
	grep -h -e rounds -e RIGHT "$work/source" "$work/destination"
	grep -q "tracker \"$tracker\"" "$work/source"
}

move 127.0.0.1 tcp kvmlog precopy
move 127.0.0.1 tcp kvmring hybrid
# Since Linux 6.7.
case $(uname -r) in
[1-5].* | 6.[0-6].*) ;;
*) move 127.0.0.1 tcp pagemap precopy ;;
esac
if [ -n "${MEMFERRY_TEST_HOST:-}" ]; then
	move "$MEMFERRY_TEST_HOST" verbs kvmlog precopy
	move "$MEMFERRY_TEST_HOST" verbs kvmring precopy
fi
