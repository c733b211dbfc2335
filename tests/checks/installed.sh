#!/bin/bash
# SPDX-License-Identifier: BSD-2-Clause
# installed.sh BUILD CC: installs into a new folder, looks at what is there, moves the folder, and
# builds and runs a program against it the way a user would.
set -euo pipefail
build=$1 cc=$2
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
need "$lib/libmemferry.so"
need "$lib/libmemferry.so.0"
need "$lib/pkgconfig/memferry.pc"
for header in adapter error guests kvm_vm region session; do
	need "include/memferry/$header.h"
done
extra=$(cd "$prefix" && find . ! -type d ! -name 'libmemferry.so*' ! -name memferry.pc \
	! -path './include/memferry/*.h' ! -path './bin/memferry' ! -path './share/man/*' \
	! -path './share/doc/*')
[ -z "$extra" ] || { echo "installed, but nobody asked for it: $extra"; missing=1; }
[ "$missing" = 0 ]

cat >"$work/program.c" <<'C'
#include <memferry/guests.h>
#include <memferry/session.h>
#include <stdio.h>

int main(void)
{
	struct mf_adapter guest;
	struct mf_error err = { 0 };
	int ret = mf_guest_open("no-such-kind:", MF_SOURCE, &guest, &err);
	printf("%s, %s: %s\n", mf_mode_name(MF_MODE_HYBRID), mf_error_name(ret), err.msg);
	return ret < 0 ? 0 : 1;
}
C
export PKG_CONFIG_PATH=$prefix/$lib/pkgconfig
read -ra flags <<<"$(pkg-config --cflags --libs memferry)"
"$cc" -std=c17 -Wall -Wextra -Wpedantic -Werror -o "$work/program" "$work/program.c" "${flags[@]}"
LD_LIBRARY_PATH=$prefix/$lib "$work/program"
"$prefix/bin/memferry" --version
echo "ok: installed tree, version $(pkg-config --modversion memferry)"
