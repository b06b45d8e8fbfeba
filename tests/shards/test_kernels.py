from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import annbatch
from annbatch.counters import BYTES_READ, N_COUNTS, READ_NS
from annbatch.native import place_of
from annbatch.shards.checksum import CRC32C, crc32c
from annbatch.shards.decode_kernels import Status, read_stored
from annbatch.shards.scatter_kernels import copy_types, native_types, read_pieces, scatter_buffer
from edge_values import TYPES, edge_values
from forked import in_a_fork
from fuzz_decoder import fuzz

# To itself, and to what a loader hands over; to narrower integers and to other kinds, one of each.
CASTS = [(stored, wanted) for stored in TYPES for wanted in dict.fromkeys([stored, *map(np.dtype, ("i4", "i8", "f4"))])]
CASTS += [
    (np.dtype(stored), np.dtype(wanted))
    for stored, wanted in map(str.split, ("i8 u1", "u8 f8", "f4 f8", "u2 ?", "i4 f2"))
]


@given(st.binary(max_size=300), st.integers(0, 15), st.integers(0, 60))
def test_crc32c_is_that_of_google(data: bytes, start: int, repeat: int) -> None:
    data = (data * (repeat + 1))[start:]
    assert crc32c(np.frombuffer(data, np.uint8).copy()) == google_crc32c.value(data)


def test_crc32c_around_the_lengths_where_it_changes_its_way() -> None:
    block = np.random.default_rng(0).integers(0, 256, 20_000, np.uint8)
    for size in [*range(40), *range(6136, 6154), *range(12280, 12300), 20_000]:
        for start in (0, 1, 7):
            part = block[start:][:size]
            assert crc32c(part) == google_crc32c.value(part.tobytes()), (start, size)


TABLES = """
import google_crc32c, numpy as np
from annbatch.shards import checksum
assert checksum._INSTRUCTION is None
block = np.random.default_rng(0).integers(0, 256, 20_000, np.uint8)
for size in (*range(40), 6143, 6144, 6145, 20_000):
    assert checksum.crc32c(block[:size]) == google_crc32c.value(block[:size].tobytes()), size
"""


def test_crc32c_without_the_processors_instruction() -> None:
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    subprocess.run([sys.executable, "-c", TABLES], env=environment, check=True)


@pytest.mark.parametrize(("stored", "wanted"), CASTS, ids=str)
def test_native_types_cast_as_numpy_does(stored: np.dtype, wanted: np.dtype) -> None:
    types = native_types(stored, wanted)
    if types is None:
        assert np.float16 in (stored, wanted) or wanted.kind == "b" or stored.kind == "f"
        return
    values = edge_values(stored)
    with np.errstate(all="ignore"):
        expected = values.astype(wanted)
    out = np.zeros(values.size, wanted)
    assert scatter(values.view(types[0]), [0], [values.size], out.view(types[1])) == Status.OK
    assert out.tobytes() == expected.tobytes() or np.array_equal(out, expected, equal_nan=True)


def test_few_types_are_compiled() -> None:
    pairs = {native_types(stored, wanted) for stored in TYPES for wanted in TYPES} - {None}
    assert len(pairs) < 50  # of 144
    assert native_types(np.dtype("i4"), np.dtype("i4")) == native_types(np.dtype("f4"), np.dtype("f4"))
    assert copy_types(np.dtype("f8")) == (np.dtype("u8"), np.dtype("u8"))


def scatter(source: np.ndarray, src: list[int], length: list[int], out: np.ndarray, limit: int = -1) -> int:
    dst = out.ctypes.data + np.cumsum([0, *length[:-1]], dtype=np.int64) * out.itemsize
    return scatter_buffer(source, np.array(src), np.array(length), dst, limit, np.empty(0, out.dtype))


@given(st.data())
def test_pieces_go_to_their_places(data: st.DataObject) -> None:
    source = np.arange(1000, 1100).astype("u2")
    src = data.draw(st.lists(st.integers(0, 100), min_size=1, max_size=20))
    length = [data.draw(st.integers(0, 100 - start)) for start in src]
    out = np.full(sum(length) + 1, -1, "f4")
    assert scatter(source, src, length, out) == Status.OK
    expected = np.concatenate([source[s : s + n] for s, n in zip(src, length, strict=True)])
    assert (out[:-1] == expected).all()
    assert out[-1] == -1


@pytest.mark.parametrize(
    ("src", "length"), [(-1, 1), (0, -1), (0, 11), (11, 0), (10, 1), (5, 2**63 - 1), (2**62, 2**62)]
)
def test_a_piece_beyond_the_chunk_is_refused(src: int, length: int) -> None:
    out = np.zeros(4, "f4")
    assert scatter(np.ones(10, "u2"), [src], [length], out) == Status.PIECE
    assert not out.any()


@pytest.mark.parametrize("dtype", ["u2", "u4", "i4", "i8"])
def test_a_value_that_is_no_column_is_refused(dtype: str) -> None:
    source = np.array([0, 5, 9, 10, 3], dtype)
    out = np.zeros(5, "i8")
    assert scatter(source, [0], [3], out, limit=10) == Status.OK
    assert scatter(source, [1], [3], out, limit=10) == Status.LIMIT
    assert scatter(source, [1], [3], out, limit=11) == Status.OK
    assert scatter(source, [0], [1], out, limit=0) == Status.LIMIT
    if dtype.startswith("i"):
        source[4] = -1
        assert scatter(source, [0], [5], out, limit=2**31 - 1) == Status.LIMIT


def test_reading_reports_short_and_failed_reads(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    raw = np.zeros(64 * 4, np.uint8)
    fd, counts = os.open(path, os.O_RDONLY), np.zeros(N_COUNTS, np.int64)
    try:
        assert read_stored(fd, 10, 50, raw, 0, counts) == (Status.OK, 50)
        assert raw[64:114].tolist() == list(range(10, 60))
        assert counts[BYTES_READ] == 50
        assert counts[READ_NS] > 0
        assert read_stored(fd, 60, 41, raw, 0, counts)[0] == Status.SHORT
        assert read_stored(fd, 0, 100, raw, CRC32C.address, counts)[0] == Status.CHECKSUM
        assert read_stored(fd, -1, 10, raw, 0, counts)[0] == Status.SIZE
        assert read_stored(fd, 0, 129, raw, 0, counts)[0] == Status.SIZE
        assert read_stored(fd, 0, 4, raw, CRC32C.address, counts)[0] == Status.SIZE
        assert read_stored(-1, 0, 10, raw, 0, counts)[0] == Status.READ
        out = np.zeros(5, "u2")
        one, bounds, fill = np.ones(1, np.int64), np.array([0, 1]), np.array([7, 8], np.uint8)
        to, fds = out.ctypes.data * one, np.array([fd], "i4")
        assert read_pieces(fds, 10 * one, bounds, 2 * one, 5 * one, to, fill, counts) == (Status.OK, -1)
        assert out.tobytes() == bytes(range(14, 24))
        assert read_pieces(fds, 95 * one, bounds, one, 5 * one, to, fill, counts) == (Status.SHORT, 0)
        assert read_pieces(fds, -one, bounds, one, 3 * one, to, fill, counts) == (Status.OK, -1)
        assert out.tobytes() == bytes([7, 8] * 3 + [*out.tobytes()[6:]])
        for wrong in ([0, 2], [-1, 1], [1, 0]):
            assert read_pieces(fds, 10 * one, np.array(wrong), one, one, to, fill, counts) == (Status.PIECE, 0)
    finally:
        os.close(fd)


def test_every_status_has_its_text() -> None:
    assert len({status.text for status in Status}) == len(Status)


CALLS = (
    "import numpy as np; from annbatch.shards.checksum import crc32c; "
    "from annbatch.shards.packed_kernels import plan_runs; one = np.ones(1, np.int64); "
    "results = crc32c(np.frombuffer(b'123456789', np.uint8)), plan_runs(one.astype(np.int32), one, one)[1]; "
)
"""A program that calls a routine and a kernel."""


def test_a_damaged_cache_costs_a_compilation(tmp_path: Path) -> None:
    code = f"{CALLS}print(*results)"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def run() -> list[str]:
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
        ).stdout.split()

    assert run() == [str(0xE3069283), "1"]
    entries = [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".nbi", ".nbc")]
    assert {(path.name.split(".")[1].split("-")[0], path.suffix) for path in entries} == {
        (name, suffix) for name in ("CRC32C", "plan_runs") for suffix in (".nbi", ".nbc")
    }
    for path in entries:
        path.write_bytes(path.read_bytes()[:-7])
    assert run() == [str(0xE3069283), "1"]


def test_an_unwritable_cache_is_done_without(tmp_path: Path) -> None:
    # A copy of the package in a folder that cannot be written to, and a home that is a file.
    package = tmp_path / "annbatch"
    shutil.copytree(Path(annbatch.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "shards" / "__pycache__").write_text("a file where the folder would be")
    blocked = tmp_path / "home"
    blocked.write_text("")
    code = (
        f"{CALLS}import annbatch; from annbatch.shards.checksum import CRC32C; "
        "caches = [one._compiled._cache.__class__.__name__ for one in (CRC32C, plan_runs)]; "
        "print(annbatch.__file__, *caches, *results)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment |= {"HOME": str(blocked), "PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": str(blocked)}
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    ).stdout.split()
    assert shown == [str(package / "__init__.py"), "NullCache", "NullCache", str(0xE3069283), "1"]


def _fuzz(count: int, seed: int) -> None:
    assert "DECODE" in in_a_fork(lambda: fuzz(count, seed))


def test_damaged_chunks_do_no_harm() -> None:
    _fuzz(3000, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_many_damaged_chunks_do_no_harm(seed: int) -> None:
    _fuzz(60_000, seed)


def test_routines_take_no_arrays_with_gaps() -> None:
    whole = np.arange(12, dtype=np.int64)
    assert place_of(whole[3:], np.int64) == whole.ctypes.data + 24
    for wrong in (whole[::2], whole[::-1], whole.reshape(3, 4).T):
        with pytest.raises(ValueError, match="contiguous arrays of int64, got int64 with strides"):
            place_of(wrong)
    with pytest.raises(ValueError, match="contiguous arrays of .*int32.*, got int64"):
        place_of(whole, np.int32)
    with pytest.raises(ValueError, match="contiguous"):
        crc32c(np.arange(8, dtype=np.uint8)[::2])
