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
# Only the tests are emulated: this machine unpacks and installs everything that they need.
#
# 1. Debian packages for arm64 are unpacked into a folder, with the Python version of this machine's environment.
# 2. The Python packages come beside them, in the versions that this machine's environment has.
# 3. `byte_sums.py` runs here and in it. Its lines must be equal.
# 4. The tests run in it.
#
# The chroot is kept in ARM64_ROOT for the next run (about 1 GB). `rm -rf --one-file-system` removes it.
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
        exec chroot "$0" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
            PYTHONPATH=/annbatch:/annbatch/adapters:/packages \
            /bin/sh -c "cd /annbatch && exec \"\$@\"" sh "$@"
    ' "$root" "$@"
}

if [ ! -e "$root/.complete" ]; then
    say "Debian $suite for arm64 in $root"
    rm -rf --one-file-system "$root"
    # Its second stage would configure the packages under emulation. Unpacked is enough.
    debootstrap --foreign --arch=arm64 --variant=minbase --include=g++,python3 "$suite" "$root" "$mirror"
    for package in "$root"/var/cache/apt/archives/*.deb; do dpkg-deb --extract "$package" "$root"; done
    mkdir -p "$root/annbatch" "$root/dev/shm"
    echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
    touch "$root/.complete"
fi

say "the working tree and its packages"
find "$root/annbatch" -mindepth 1 -maxdepth 1 -exec rm -rf {} +
git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from=- |
    tar --extract --no-same-owner --directory="$root/annbatch"
"$python" -m pip freeze --exclude-editable | grep -v ' @ ' >"$root/constraints.txt"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$root/wheels" .
platforms=(--platform manylinux2014_aarch64)
for glibc in $(seq 17 36); do platforms+=(--platform "manylinux_2_${glibc}_aarch64"); done
rm -rf "$root/packages"
"$python" -m pip install --quiet --target "$root/packages" --only-binary :all: "${platforms[@]}" \
    --python-version "$version" --constraint "$root/constraints.txt" "$root"/wheels/annbatch_dlpack-*.whl \
    deflate hdf5plugin hypothesis obstore pytest pytest-timeout pytest-xdist scikit-learn

say "bytes of collections, orders and batches"
sums=$(mktemp -d)
trap 'rm -rf "$sums"' EXIT
"$python" tests/arm64/byte_sums.py >"$sums/here"
inside python3 tests/arm64/byte_sums.py >"$sums/arm64"
diff "$sums/here" "$sums/arm64" || fail "this machine (<) and arm64 (>) differ"
grep -v '^version' "$sums/arm64"

say "tests on $(inside uname -m), Python $(inside python3 -c 'import platform; print(platform.python_version())')"
inside python3 -m pytest --timeout 3600 -n "$(nproc)" "${tests[@]}"

say "done: the tests passed, and the bytes are those of $(uname -m)"
