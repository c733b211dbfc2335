#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
#
# kvm.sh CONF_TRACKER CONF_ADAPTER CONF_KVM [KVM_MOVES [MONITOR]]
#
# All that is tested on /dev/kvm, one after the other; each has its say.
here=$(cd "$(dirname "$0")" && pwd)
status=0
[ -w /dev/kvm ] || { echo "SKIP: the machine has no /dev/kvm"; exit 77; }
run() {
	echo "== $*"
	"$@" || { echo "FAILED: $* ($?)"; status=1; }
}
run "$1" kvmlog
run "$1" kvmring
run "$2" kvm
run "$3"
[ -z "${4-}" ] || run "$4"
[ -z "${5-}" ] || run "$here/../monitor/two_monitors.sh" "$5"
exit $status
