#!/usr/bin/env bash
# Compares collections, orders and batches of emulated arm64 with those of this machine, byte for byte, and runs tests there.
#
#   make test-arm64
#   make test-arm64 ARGS="tests/shards/test_kernels.py -k packed"    # these tests alone
#
# It needs root, and on Debian or Ubuntu
#
#   apt-get install debootstrap qemu-user-static binfmt-support
#
# 1. A Debian chroot for arm64 is made, with the Python version of this machine's environment.
# 2. Its packages get the versions that this machine's environment has.
# 3. `byte_sums.py` runs here and in it. Its lines must be equal.
# 4. The tests run in it.
#
# The chroot is kept in ARM64_ROOT for the next run (about 2 GB). `rm -rf --one-file-system` removes it.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=$(realpath --no-symlinks "${VENV:-.venv}")/bin/python
root=${ARM64_ROOT:-/var/tmp/annbatch-arm64}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
if [ $# -gt 0 ]; then
    tests=("$@")
else
    tests=(
        tests/shards/test_kernels.py tests/shards/test_codecs.py tests/shards/test_packed.py tests/shards/test_select.py
        tests/shards/test_shards.py tests/stores/test_h5ad.py
        tests/plan tests/order tests/samplers
        tests/loading/test_loader.py tests/loading/test_resume.py tests/loading/test_transform.py
        tests/batches
        tests/write/test_write_create.py tests/write/test_write_contents.py tests/write/test_write_codec.py
        tests/write/test_write_order.py tests/write/test_write_types.py tests/write/test_write_narrow.py
    )
fi

fail() { printf 'test-arm64: %s\n' "$1" >&2; exit 1; }
say() { printf '\n=== %s (%d s)\n' "$1" "$SECONDS"; }

[ "$(id -u)" = 0 ] || fail "a chroot needs root"
for program in debootstrap qemu-aarch64-static unshare; do
    command -v "$program" >/dev/null || fail "$program is missing: apt-get install debootstrap qemu-user-static binfmt-support"
done

# Debian's release with the Python version of this environment, so that both can have the same packages.
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $version in
    3.11) suite=bookworm ;;
    3.13) suite=trixie ;;
    *) fail "Debian has no release with Python $version: make test-arm64 PYTHON=python3.11 VENV=.venv311" ;;
esac
root=$root-$suite

# Runs a command in the chroot, in /annbatch. What it mounts is unmounted when it ends.
inside() {
    # shellcheck disable=SC2016 # the inner shell expands these
    unshare --mount bash -euc '
        mount -t proc proc "$0/proc"
        mount -t tmpfs tmpfs "$0/dev/shm"
        exec chroot "$0" /usr/bin/env -i PATH=/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
            PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_DISABLE_PIP_VERSION_CHECK=1 \
            /bin/sh -c "cd /annbatch && exec \"\$@\"" sh "$@"
    ' "$root" "$@"
}

if [ ! -e "$root/.complete" ]; then
    say "a Debian chroot ($suite, arm64) in $root"
    rm -rf --one-file-system "$root"
    debootstrap --arch=arm64 --variant=minbase --include=ca-certificates,g++,python3,python3-dev,python3-venv \
        "$suite" "$root" "$mirror"
    mkdir -p "$root/annbatch" "$root/dev/shm"
    touch "$root/.complete"
fi
# As this machine reaches the package index.
cp /etc/resolv.conf /etc/hosts "$root/etc/"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"

say "the working tree and its packages"
find "$root/annbatch" -mindepth 1 -maxdepth 1 -exec rm -rf {} +
git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from=- |
    tar --extract --no-same-owner --directory="$root/annbatch"
"$python" -m pip freeze --exclude-editable | grep -v ' @ ' >"$root/annbatch/constraints.txt"
[ -x "$root/venv/bin/python" ] || inside python3 -m venv /venv
inside python -m pip install --quiet --no-compile --constraint constraints.txt --editable . \
    deflate hdf5plugin hypothesis obstore pytest pytest-timeout pytest-xdist

say "bytes of collections, orders and batches"
sums=$(mktemp -d)
trap 'rm -rf "$sums"' EXIT
"$python" tests/arm64/byte_sums.py >"$sums/here"
inside python tests/arm64/byte_sums.py >"$sums/arm64"
diff "$sums/here" "$sums/arm64" || fail "this machine (<) and arm64 (>) differ"
grep -v '^version' "$sums/arm64"

say "tests on $(inside uname -m), Python $(inside python -c 'import platform; print(platform.python_version())')"
inside python -m pytest --timeout 3600 "${tests[@]}"

say "done: the tests passed, and the bytes are those of $(uname -m)"
