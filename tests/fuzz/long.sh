#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
#
# tests/fuzz/long.sh SECONDS [NAME ...]: fuzzes each target (or these) for so long, one after another, in the preset `fuzz`
# as it was built.  What reaches new code is added to the corpus, which is to be committed; what breaks a target
# is left in build/fuzz/tests/fuzz/found and named.  Exit status 1: something was.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2
seconds=${1:?how many seconds for each target?}
shift
corpus=$PWD/tests/fuzz/corpus found=$PWD/build/fuzz/tests/fuzz/found log=$PWD/build/fuzz/tests/fuzz/long.log
[ $# -gt 0 ] || { mapfile -t names < <(ls "$corpus") && set -- "${names[@]}"; }
# Libraries for InfiniBand would take the signals that libFuzzer waits for.
export HFI_NO_BACKTRACE=1 IPATH_NO_BACKTRACE=1 UBSAN_OPTIONS=print_stacktrace=1
broken=0

# cpu: seconds that the children have used.
cpu() {
	awk '{ print int(($16 + $17) / 100) }' "/proc/$$/stat"
}

printf '%-12s %14s %8s %8s %6s\n' target executions CPU-s inputs status
for name; do
	mkdir -p "$found/$name"
	dictionary=()
	[ ! -e "tests/fuzz/$name.dict" ] || dictionary=("-dict=tests/fuzz/$name.dict")
	program=build/fuzz/tests/fuzz/fuzz_$name
	before=$(cpu)
	setarch -R "$program" "-max_total_time=$seconds" -max_len=2048 -timeout=60 -error_exitcode=1 \
		-print_final_stats=1 "${dictionary[@]}" "-artifact_prefix=$found-$name-" \
		"$found/$name" "$corpus/$name" >"$log" 2>&1
	status=$?
	printf '%-12s %14s %8s %8s %6s\n' "$name" \
		"$(awk '/number_of_executed_units/ { print $2 }' "$log")" $(($(cpu) - before)) \
		"$(find "$found/$name" -type f | wc -l)" $status
	if [ $status != 0 ]; then
		grep -E 'ERROR|runtime error|Assertion|Test unit written' "$log"
		broken=1
		continue
	fi
	# Only what reaches another branch: how often it is taken makes too many files.
	setarch -R "$program" -merge=1 -use_counters=0 -max_len=2048 "$corpus/$name" "$found/$name" \
		>"$log" 2>&1 || { tail -n 5 "$log"; broken=1; }
done
exit $broken
