"""Does the kernel that unpacks blocks on a device, compiled for the host, give what the format's page says?

Its threads run phase by phase, in ascending order in one block and in descending order in the next.
"""

from __future__ import annotations

import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import host_device
from annbatch.batches.on_device import C_TYPES
from annbatch.device.cuda import Kernel
from annbatch.shards.packed_encoder import packed
from annbatch.shards.packed_layout import BLOCK, Layout
from fuzz_decoder import CANARY, MARGIN, guarded
from host_device import compiled
from packed_reader import read_block

pytestmark = pytest.mark.skipif(host_device.COMPILER is None, reason="no C++ compiler")

THREADS_PROGRAM = Path(host_device.__file__).with_name("unpack_threads.cpp")
DTYPES = [np.dtype(f"u{size}") for size in (1, 2, 4, 8)]


def kernel_of(dtype: np.dtype[Any]) -> Kernel:
    return Kernel("unpack_blocks", (("VALUE", C_TYPES[dtype.str[1:]]),))


@pytest.fixture(scope="module")
def kernels():
    return compiled([kernel_of(dtype) for dtype in DTYPES])


@cache
def buffers() -> list[np.ndarray]:
    return [guarded(1 << 16) for _ in range(2)]


def unpack(kernels, dtype, stored, sources, descriptors, bases, *, delta) -> tuple[np.ndarray, int]:
    """Run the kernel on bytes and on an output that both end where no byte may be touched."""
    memory, out = buffers()
    memory, out = memory[memory.size - len(stored) :], out[out.size - MARGIN - BLOCK * dtype.itemsize * len(sources) :]
    memory[:], out[:] = np.frombuffer(stored, np.uint8), CANARY
    tables = (
        np.array(sources, np.int64),
        np.array(descriptors, np.int64) | delta << 32,
        np.array(bases).astype(np.int64),
    )
    broken = np.zeros(1, np.int64)
    addresses = [table.ctypes.data for table in tables]
    where = memory.ctypes.data, len(stored)
    kernels[kernel_of(dtype)](
        len(sources), [*where, *addresses, len(sources), out.ctypes.data + MARGIN, broken.ctypes.data]
    )
    assert (out[:MARGIN] == CANARY).all()
    return out[MARGIN:].view(dtype), int(broken[0])


def descriptor_of(width: int, extra: int, patch_nbytes: int, n_extras: int, n_patches: int) -> int:
    return width | (extra | patch_nbytes << 4) << 8 | n_extras << 16 | n_patches << 24


def parts_of(descriptor: int, itemsize: int) -> int | None:
    """How many bytes a block takes; None if the page forbids its descriptor."""
    width, sizes, n_extras, n_patches = descriptor.to_bytes(4, "little")
    extra, patch_nbytes = sizes & 15, sizes >> 4
    nbytes = 32 * width + (32 if extra else 0) + -(-n_extras * extra // 8) + n_patches * (1 + patch_nbytes)
    is_sound = width <= 8 * itemsize and extra in (0, 2, 4) and patch_nbytes <= itemsize and (extra or not n_extras)
    is_sound = is_sound and (not n_patches or width + extra < 8 * itemsize) and nbytes <= BLOCK * itemsize
    return nbytes if is_sound else None


def cut(stored: np.ndarray, n: int, dtype: np.dtype[Any]) -> tuple[bytes, np.ndarray, np.ndarray, np.ndarray]:
    """The bytes behind a chunk's table, and where in them each block begins, with its descriptor and base."""
    layout = Layout(n, dtype.itemsize)
    descriptors = stored[layout.descriptors : layout.bases].view("<u4")
    bases = stored[layout.bases : layout.checksums].view(dtype)
    nbytes = [parts_of(int(descriptor), dtype.itemsize) for descriptor in descriptors]
    assert None not in nbytes
    return stored[layout.blocks :].tobytes(), np.cumsum([0, *nbytes[:-1]]), descriptors, bases


KINDS = {"even": (0.0, 0), "few, high": (0.02, 40), "many, low": (0.25, 2), "many": (0.3, 5)}
"""How many numbers are larger than others, and by at most how many bits."""


def numbers_of(bits: int, kind: str, dtype: np.dtype[Any], n: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers of as many bits, but for exceptions."""
    share, most = KINDS[kind]
    numbers = rng.integers(0, 2**bits - 1, n, dtype=np.uint64, endpoint=True)
    numbers[rng.random(n) < share] <<= np.uint64(rng.integers(0, most, endpoint=True))
    return numbers.astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_those_that_were_packed(kernels, dtype):
    """Every width, with extras and patches and without, and blocks that are not full."""
    rng = np.random.default_rng(dtype.itemsize)
    seen = set()
    for bits in range(8 * dtype.itemsize + 1):
        for kind, n in [*((kind, 700) for kind in KINDS), ("many", int(rng.choice([1, 255, 257])))]:
            numbers = numbers_of(bits, kind, dtype, n, rng)
            for delta, values in ((False, numbers), (True, np.cumsum(numbers, dtype=dtype))):
                stored, sources, descriptors, bases = cut(packed(values, delta=delta), n, dtype)
                found, broken = unpack(kernels, dtype, stored, sources, descriptors, bases, delta=delta)
                assert broken == 0
                np.testing.assert_array_equal(found[:n], values, f"{bits} {kind} {n} {delta}")
                seen |= {("width", int(one) & 255) for one in descriptors}
                seen |= {("extra", int(one) >> 8 & 15) for one in descriptors if int(one) >> 16 & 255}
                seen |= {("patch", int(one) >> 12 & 15) for one in descriptors if int(one) >> 24}
    assert {("width", width) for width in range(8 * dtype.itemsize + 1)} <= seen
    assert {("extra", 2), ("extra", 4), ("patch", 1)} <= seen


def test_blocks_come_in_any_order_and_twice(kernels):
    dtype, n = np.dtype("u2"), 2048
    values = np.sort(np.random.default_rng(0).integers(0, 30_000, n)).astype(dtype)
    stored, sources, descriptors, bases = cut(packed(values, delta=True), n, dtype)
    order = [5, 0, 0, 7, 3]
    found, broken = unpack(kernels, dtype, stored, sources[order], descriptors[order], bases[order], delta=True)
    assert broken == 0
    np.testing.assert_array_equal(found, values.reshape(-1, BLOCK)[order].ravel())


def any_block(dtype: np.dtype[Any], rng: np.random.Generator) -> tuple[int, bytes]:
    """A descriptor that is sound or nearly so, or arbitrary, and bytes of its size; most flags and places are sound."""
    size = dtype.itemsize
    if rng.random() < 0.1:
        descriptor = int(rng.integers(2**32))
        return descriptor, rng.bytes(parts_of(descriptor, size) or int(rng.integers(1, BLOCK * size)))
    width, extra = int(rng.integers(0, 8 * size + 2)), int(rng.choice([0, 2, 4, 2, 4, 6]))
    n_extras = int(rng.integers(0, 100)) if extra or rng.random() < 0.05 else 0
    n_patches = int(rng.choice([0, 1, int(rng.integers(40))]))
    descriptor = descriptor_of(width, extra, int(rng.integers(0, size + 2)), n_extras, n_patches)
    stored = bytearray(rng.bytes(parts_of(descriptor, size) or int(rng.integers(1, BLOCK * size))))
    at = 32 * width
    if extra and rng.random() < 0.9:
        flags = np.zeros(BLOCK, np.uint8)
        flags[rng.choice(BLOCK, n_extras, replace=False)] = 1
        stored[at : at + 32] = np.packbits(flags, bitorder="little").tobytes()[: max(0, len(stored) - at)]
    at += (32 if extra else 0) + -(-n_extras * extra // 8)
    if rng.random() < 0.9:
        places = np.sort(rng.choice(BLOCK, n_patches, replace=False)).astype(np.uint8)
        stored[at : at + n_patches] = places.tobytes()[: max(0, len(stored) - at)]
    return descriptor, bytes(stored)


@pytest.mark.parametrize("n", [400, pytest.param(30_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hostile_blocks(kernels, dtype, n):
    """What the page allows is unpacked as its reader does, all else is reported, and no byte outside is touched."""
    rng = np.random.default_rng(n + dtype.itemsize)
    verdicts = []
    for _ in range(n):
        descriptor, stored = any_block(dtype, rng)
        base, delta = int(rng.integers(2**63)), bool(rng.random() < 0.5)
        nbytes = parts_of(descriptor, dtype.itemsize)
        at = int(rng.choice([-1, 1, 2**40, -(2**63), 2**63 - 1])) if rng.random() < 0.1 else 0
        found, broken = unpack(kernels, dtype, stored, [at], [descriptor], [base], delta=delta)
        expected = None
        if nbytes is not None and 0 <= at <= len(stored) - nbytes:
            with suppress(ValueError):
                expected = read_block(stored[at:], tuple(descriptor.to_bytes(4, "little")), dtype.itemsize)
        verdicts.append(expected is not None)
        assert broken == (expected is None)
        if expected is not None:
            steps = np.cumsum(expected) + np.arange(BLOCK) if delta else expected
            np.testing.assert_array_equal(found, ((steps + base) % 2 ** (8 * dtype.itemsize)).astype(dtype))
    assert 0.2 < np.mean(verdicts) < 0.9


@pytest.mark.slow
@pytest.mark.parametrize("has_barriers", [True, False])
def test_threads_that_run_at_once_do_not_race(tmp_path, has_barriers):
    """ThreadSanitizer finds nothing, and finds what is wrong where no phase ends with a barrier."""
    kernels, program = tmp_path / "kernels.cu", tmp_path / "program"
    source = host_device.SOURCE.read_text(encoding="utf-8")
    kernels.write_text(source if has_barriers else source.replace("__syncthreads(), ", ""))
    flags = ["-std=c++17", "-O1", "-fsanitize=thread", f'-DKERNELS="{kernels}"', "-pthread"]
    built = subprocess.run(
        [str(host_device.COMPILER), *flags, str(THREADS_PROGRAM), "-o", str(program)], capture_output=True, check=False
    )
    if built.returncode:
        pytest.skip("the compiler has no ThreadSanitizer")
    rng = np.random.default_rng(0)
    dtype, n = np.dtype("u2"), 40 * BLOCK
    ascending = np.sort(rng.integers(0, 30_000, (40, BLOCK)), axis=1).ravel()
    exceptional = np.where(rng.random(n) < 0.03, rng.integers(0, 60_000, n), rng.geometric(0.5, n))
    for values, delta in ((ascending.astype(dtype), True), (exceptional.astype(dtype), False)):
        stored, sources, descriptors, bases = cut(packed(values, delta=delta), n, dtype)
        tables = np.concatenate([[len(stored), 40], sources, descriptors.astype(np.int64) | delta << 32, bases])
        (tmp_path / "blocks").write_bytes(tables.astype(np.int64).tobytes() + values.tobytes() + stored)
        for n_threads in (5, 256):
            command = [str(program), str(n_threads), str(tmp_path / "blocks")]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (done.returncode == 0) == has_barriers, done.stderr
            assert ("data race" in done.stderr) != has_barriers
