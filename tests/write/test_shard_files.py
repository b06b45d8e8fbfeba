"""Are shards, filled a piece of rows at a time, what zarr writes of all rows at once?"""

from __future__ import annotations

import errno
import inspect
import math
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr

from annbatch.shards.codecs import numcodecs_are_known
from annbatch.stores.manifest import FileEntry, checksum
from annbatch.write.array_layout import Codec
from annbatch.write.output import shard_files
from annbatch.write.output.shard_files import Encode, ShardFiles, blosc, packing, shuffled_zstd
from annbatch.write.output.store_writer import ZSTD_LEVEL, _codecs

CHUNK, PER_SHARD = 2, 3
CODECS: dict[str, tuple[Codec, bool]] = {
    "blosc": ("blosc", False),
    "zstd": ("zstd", False),
    "zstd of differences": ("zstd", True),
    "packed": ("packed", False),
    "packed differences": ("packed", True),
}
# numcodecs before 0.16 lets zarr shuffle bytes as values of one byte, whatever the metadata say.
BLOSC_TAKES_SIZES = "typesize" in inspect.signature(numcodecs.Blosc.__init__).parameters


def encoder(name: str, dtype: np.dtype[Any]) -> Encode:
    codec, ascends = CODECS[name]
    if codec == "packed":
        return packing(delta=ascends)
    return shuffled_zstd(dtype.itemsize, ZSTD_LEVEL, delta=ascends) if codec == "zstd" else blosc("lz4", 5)


def array_in(folder: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> zarr.Array[Any]:
    codec, ascends = CODECS[name]
    return zarr.open_group(folder, mode="a", zarr_format=3).create_array(
        "X/data",
        shape=shape,
        dtype=dtype,
        chunks=(CHUNK, *shape[1:]),
        shards=(CHUNK * PER_SHARD, *shape[1:]),
        **_codecs(dtype, ("lz4", 5), codec, ascends=ascends),
    )


def written(
    array: zarr.Array[Any], encode: Encode, rows: np.ndarray[Any, Any], sizes: Sequence[int]
) -> dict[str, FileEntry]:
    with ThreadPoolExecutor(2) as workers:
        files = ShardFiles(array, encode, workers, workers)
        with ExitStack() as stack:
            stack.callback(files.abandon)
            at = 0
            for size in sizes:
                piece = rows[at : at + size].copy()
                files.append(piece)
                # Nothing refers to it any more.
                piece[:] = 1
                at += size
            return files.finish()


@pytest.mark.parametrize("n_rows", [0, 1, 6, 11, 12])
@pytest.mark.parametrize("name", CODECS)
def test_the_bytes_are_those_of_zarr(name: str, n_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shard_files, "_CHUNKS_PER_TASK", 2)
    monkeypatch.setattr(shard_files, "_TASKS_AHEAD", 1)
    rows = (np.arange(n_rows) * 977 % 60_000).astype(np.uint16)
    codec, ascends = CODECS[name]
    if ascends:
        rows.sort()
    with numcodecs_are_known():
        array_in(tmp_path / "zarr", name, rows.shape, rows.dtype)[:] = rows
        for i, sizes in enumerate([[n_rows], [1] * n_rows, [0, 3, 0, 8, 1], [5, 7]]):
            array = array_in(tmp_path / str(i), name, rows.shape, rows.dtype)
            entries = written(array, encoder(name, rows.dtype), rows, sizes)
            np.testing.assert_array_equal(array[:], rows)
            n_shards = math.ceil(n_rows / (CHUNK * PER_SHARD))
            assert list(entries) == [f"X/data/c/{shard}" for shard in range(n_shards)]
            for key, entry in entries.items():
                assert checksum(tmp_path / str(i) / key) == entry
                if codec != "blosc" or BLOSC_TAKES_SIZES:
                    assert (tmp_path / str(i) / key).read_bytes() == (tmp_path / "zarr" / key).read_bytes()


@pytest.mark.parametrize("name", ["blosc", "zstd"])
def test_rows_of_several_columns(name: str, tmp_path: Path):
    rows = np.arange(21, dtype=">f4").reshape(7, 3)
    with numcodecs_are_known():
        array = array_in(tmp_path, name, rows.shape, np.dtype("<f4"))
        entries = written(array, encoder(name, rows.dtype), rows, [3, 4])
        np.testing.assert_array_equal(array[:], rows)
    assert list(entries) == ["X/data/c/0/0", "X/data/c/1/0"]


def test_differences_may_wrap(tmp_path: Path):
    rows = np.array([5, 200, 3, 255, 0], np.uint8)
    with numcodecs_are_known():
        array = array_in(tmp_path, "zstd of differences", rows.shape, rows.dtype)
        written(array, encoder("zstd of differences", rows.dtype), rows, [5])
        np.testing.assert_array_equal(array[:], rows)


@pytest.mark.parametrize("n", [10, 12])
def test_other_numbers_of_rows_than_announced_are_refused(n: int, tmp_path: Path):
    array = array_in(tmp_path, "blosc", (11,), np.dtype("u2"))
    with pytest.raises(ValueError, match=f"^X/data: must get the 11 rows announced, got {n}$"):
        written(array, blosc("lz4", 5), np.arange(n, dtype=np.uint16), [n])


def test_what_is_abandoned_is_closed(tmp_path: Path):
    array = array_in(tmp_path, "blosc", (11,), np.dtype("u2"))
    with ThreadPoolExecutor(1) as workers:
        files = ShardFiles(array, blosc("lz4", 5), workers, workers)
        files.abandon()
        files.append(np.arange(3, dtype=np.uint16))
        assert files._file is not None
        files.abandon()
        assert files._file.closed


def test_pending_work_is_given_up(tmp_path: Path):
    array, task = array_in(tmp_path, "blosc", (11,), np.dtype("u2")), Future[list[bytes]]()
    with ThreadPoolExecutor(1) as workers:
        files = ShardFiles(array, blosc("lz4", 5), workers, workers)
        files._pending.append(task)
        files.abandon()
    assert task.cancelled()


def test_a_disk_that_does_not_keep_what_it_took_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "odd")

    array = array_in(tmp_path, "blosc", (4,), np.dtype("u2"))
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="odd"):
        written(array, blosc("lz4", 5), np.arange(4, dtype=np.uint16), [4])
