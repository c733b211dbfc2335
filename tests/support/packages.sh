# SPDX-License-Identifier: BSD-2-Clause
# What ./demo.sh and ./test.sh share: what memferry needs of Debian, and how it gets there.  Sourced by bash.

# Same names in Debian 12 and 13.
needed=(gcc libc6-dev cmake ninja-build pkg-config python3 libcmocka-dev libfabric-dev libjansson-dev
	libprotobuf-c-dev protobuf-c-compiler libssl-dev libxxhash-dev libibverbs-dev librdmacm-dev libhwloc-dev libseccomp-dev
	openssl qemu-system-x86 iproute2 gnuplot-nox)

# Networks fail for moments: three tries.
retry() {
	local try
	for try in 1 2 3; do
		"$@" && return
		[ "$try" = 3 ] || { echo "${0##*/}: failed, trying again: $*"; sleep $((try * 5)); }
	done
	return 1
}

apt() {
	DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=600 \
		-o Dpkg::Use-Pty=0 "$@"
}

# packages NAME ...: installs those that are missing, and says which.
packages() {
	local missing=() package
	for package in "$@"; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
			missing+=("$package")
	done
	[ ${#missing[@]} -gt 0 ] || { echo "nothing to install"; return 0; }
	echo "installing: ${missing[*]}"
	retry apt update && retry apt install -y --no-install-recommends "${missing[@]}" >/dev/null
}
