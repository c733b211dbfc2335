#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
#
# transport.sh TRANSPORT_BENCH [ROUNDS]
#
# Our RDMA lane next to perftest's ib_write_bw and ib_read_lat, in turns, over $MEMFERRY_TEST_HOST:
# on a host with an RDMA device, or in the machine that tests/vm/run starts.  What counts is the
# ratio of the medians: writes at 0.95 of theirs and more, reads at 1.1 of theirs and less.
set -euo pipefail
bench=$1 rounds=${2:-5}
host=${MEMFERRY_TEST_HOST:?set it to an address of an RDMA device}

for tool in ib_write_bw ib_read_lat; do
	command -v $tool >/dev/null || { echo "SKIP: $tool is not installed (package perftest)"; exit 77; }
done
figures=$(mktemp -d)
trap 'rm -rf "$figures"' EXIT

# perftest COLUMN TOOL ARGUMENT ...: one figure, from a pair of it.
perftest() {
	local column=$1 server
	shift
	"${pin[@]}" "$@" -R -F >/dev/null 2>&1 &
	server=$!
	until "${pin[@]}" "$@" -R -F "$host" 2>/dev/null | awk -v column="$column" '
		$1 ~ /^[0-9]+$/ && NF >= 5 { print $column; found = 1 } END { exit !found }'; do
		kill -0 "$server" || return # it listens a moment after its start
	done
	wait "$server"
}

# ours write|read SIZE: one figure.
ours() {
	"${pin[@]}" "$bench" verbs "$host" "$1" "$2" | awk '{ print $1 == "write" ? $4 : $5 }'
}

theirs() {
	case $1 in
	write) perftest 4 ib_write_bw -s "$2" -D 3 ;;
	read) perftest 5 ib_read_lat -s "$2" -n 2000 ;;
	esac
}

median() {
	sort -n "$1" | awk '{ a[NR] = $1 } END { print NR % 2 ? a[(NR + 1) / 2] : (a[NR / 2] + a[NR / 2 + 1]) / 2 }'
}

# Soft-RoCE is a device that runs on our processors.  In the machine of tests/vm it gets the second
# one, kept from falling asleep, and what is measured the first: or else who meets whom where decides.
pin=()
if [ -d /run/vm ]; then
	echo 2 >/sys/devices/virtual/workqueue/cpumask
	chrt -i 0 taskset -c 1 bash -c 'while :; do :; done' &
	awake=$!
	trap 'kill $awake; rm -rf "$figures"' EXIT
	pin=(taskset -c 0)
fi

uname -r
jobs=("write 65536" "write 1048576" "read 4096")
for ((round = 1; round <= rounds; round++)); do
	for job in "${jobs[@]}"; do
		order=(ours theirs)
		((round % 2)) || order=(theirs ours)
		for who in "${order[@]}"; do
			figure=$($who $job)
			echo "$figure" >>"$figures/$who $job"
			echo "round $round: $job B, $who: $figure"
		done
	done
done
for job in "${jobs[@]}"; do
	a=$(median "$figures/ours $job") b=$(median "$figures/theirs $job")
	unit=MiB/s
	[ "${job%% *}" = write ] || unit=us
	awk -v job="$job" -v a="$a" -v b="$b" -v unit=$unit \
		'BEGIN { printf "%s B, medians: ours %s, perftest %s %s, RATIO %.3f\n", job, a, b, unit, a / b }'
done
