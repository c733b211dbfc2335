#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# memcheck.sh PROGRAM [ARG ...]: under valgrind, where a use of what was never set and a leak are failures.
if ! command -v valgrind >/dev/null; then
	echo "SKIP: valgrind is not installed"
	exit 77
fi
exec valgrind --quiet --error-exitcode=1 --leak-check=full --errors-for-leak-kinds=definite \
	--child-silent-after-fork=yes "$@"
