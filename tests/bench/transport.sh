#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
#
# transport.sh TRANSPORT_BENCH [ROUNDS]
#
# Our RDMA lane next to perftest's ib_write_bw and ib_read_lat, in turns, over $MEMFERRY_TEST_HOST:
# on a host with an RDMA device, or in the machine that tests/vm/run starts.
set -euo pipefail
bench=$1 rounds=${2:-3}
host=${MEMFERRY_TEST_HOST:?set it to an address of an RDMA device}

command -v ib_write_bw >/dev/null || { echo "SKIP: ib_write_bw is not installed (package perftest)"; exit 77; }

# perftest TOOL ARGUMENT ...: the line of figures, from a pair of it.
perftest() {
	local server
	"$@" -R -F >/dev/null 2>&1 &
	server=$!
	until "$@" -R -F "$host" 2>/dev/null | awk '$1 ~ /^[0-9]+$/ && NF >= 5' | grep .; do
		kill -0 "$server" || return # it listens a moment after its start
	done
	wait "$server"
}

uname -r
for ((round = 1; round <= rounds; round++)); do
	echo "round $round: ours"
	"$bench" verbs "$host"
	for size in 65536 1048576; do
		echo "round $round: ib_write_bw $size B (bytes, iterations, peak, average MiB/s, Mpps)"
		perftest ib_write_bw -s $size -D 3
	done
	echo "round $round: ib_read_lat 4096 B (bytes, iterations, min, max, median, … us)"
	perftest ib_read_lat -s 4096 -n 2000
done
