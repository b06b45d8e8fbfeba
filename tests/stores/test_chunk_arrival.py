"""Do batches stay the same, however chunks get into memory before they are decoded?"""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from annbatch import CorruptStoreError, Loader, create_anndata_collection, fetch
from annbatch.shards import page_cache, uncached_reads
from annbatch.shards.local_array import ShardedArray
from annbatch.shards.page_cache import announce, are_cached, room
from annbatch.shards.shard_index import Located
from annbatch.shards.uncached_reads import BLOCK_NBYTES, UncachedChunks
from annbatch.stores import chunk_arrival
from annbatch.stores.elements import DirectElements
from datagen import write_inputs
from live_threads import background_threads

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="chunks arrive when they are decoded")

CODECS: Any = ["blosc", "packed"]
OPTIONS: dict[str, dict[str, Any]] = {
    "blocks": {"chunk_size": 8, "preload_nchunks": 3},
    "rows": {"chunk_size": 1, "preload_nchunks": 50},
    "genes": {"chunk_size": 8, "preload_nchunks": 3, "var_names": ["g7", "g3", "g39"]},
}


def has_direct_reads(folder: Path) -> bool:
    file = folder / "block"
    file.write_bytes(bytes(BLOCK_NBYTES))
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("collections")
    if not has_direct_reads(folder):
        pytest.skip("the file system has no O_DIRECT")
    inputs = write_inputs(folder, sizes=(70, 50), columns=[range(40)] * 2, obs_columns=["stage"], density=0.4)
    cut = {"rows_per_store": 50, "chunk_elements": 64, "shard_elements": 256, "progress": False}
    return {codec: create_anndata_collection(inputs, folder / codec, codec=codec, **cut).path for codec in CODECS}


@pytest.fixture
def arrived(monkeypatch: pytest.MonkeyPatch) -> list[Located | None]:
    """Let nothing count as cached, and collections as larger than memory; gives what was read past the page cache."""
    found: list[Located | None] = []
    result = UncachedChunks.result
    monkeypatch.setattr(UncachedChunks, "result", lambda chunks: found.append(result(chunks)) or found[-1])
    monkeypatch.setattr(fetch, "exceed_memory", lambda arrays: True)
    monkeypatch.setattr(chunk_arrival, "are_cached", lambda chunks: False)
    return found


def batches(place: Path, **options: Any) -> list[bytes]:
    with Loader(batch_size=16, seed=2, **options).use_collection(place) as ds:
        found = [part.tobytes() for b in ds for part in (b.data.data, b.data.indices, b.data.indptr, b.index)]
    assert found
    assert not background_threads()
    return found


@pytest.mark.parametrize(("codec", "option"), [*(("blosc", option) for option in OPTIONS), ("packed", "blocks")])
def test_past_the_page_cache(
    codec: str,
    option: str,
    places: dict[str, Path],
    arrived: list[Located | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as as_usual:
        as_usual.setattr(fetch, "exceed_memory", lambda arrays: False)
        as_usual.setattr(chunk_arrival, "are_cached", lambda chunks: True)
        truth = batches(places[codec], **OPTIONS[option])
        assert not arrived
    # Small ranges, so that there are many, and few files at once.
    monkeypatch.setattr(uncached_reads, "MAX_GAP_NBYTES", 0)
    monkeypatch.setattr(fetch, "MAX_FILES", 2)
    assert batches(places[codec], **OPTIONS[option]) == truth
    assert len(arrived) > 2
    assert all(located is not None for located in arrived)


def test_into_the_page_cache(
    places: dict[str, Path], arrived: list[Located | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    announced = []
    monkeypatch.setattr(fetch, "exceed_memory", lambda arrays: False)
    monkeypatch.setattr(chunk_arrival, "announce", lambda located: announced.append(located) or announce(located))
    found = batches(places["packed"], **OPTIONS["blocks"])
    assert sum(len(located.fds) for located in announced) > 20
    monkeypatch.setattr(chunk_arrival, "are_cached", lambda chunks: True)
    announced.clear()
    assert batches(places["packed"], **OPTIONS["blocks"]) == found
    assert not announced
    assert not arrived


def test_a_file_system_without_direct_reads(
    places: dict[str, Path], arrived: list[Located | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file = os.open

    def refuse(path: Any, flags: int, *more: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no such reads")
        return open_file(path, flags, *more)

    monkeypatch.setattr(os, "open", refuse)
    found = batches(places["blosc"], **OPTIONS["blocks"])
    assert arrived
    assert not any(arrived)
    # Others were left to the system: three windows of X have two arrays.
    assert len(arrived) < 2 * 3
    monkeypatch.undo()
    assert batches(places["blosc"], **OPTIONS["blocks"]) == found


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_damage_is_reported_as_ever(
    damage: str, tmp_path: Path, places: dict[str, Path], arrived: list[Located | None], monkeypatch: Any
) -> None:
    folder = tmp_path / "copy"
    for file in filter(Path.is_file, places["blosc"].rglob("*")):
        (folder / file.relative_to(places["blosc"])).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.relative_to(places["blosc"])).write_bytes(file.read_bytes())
    shard = folder / "chunk_0.zarr" / "X" / "data" / "c" / "0"
    stored = bytearray(shard.read_bytes())
    stored[40] ^= 1
    messages = []
    for is_past in (True, False):
        monkeypatch.setattr(fetch, "exceed_memory", lambda arrays, is_past=is_past: is_past)
        ds = Loader(batch_size=16, chunk_size=4, preload_nchunks=8, shuffle=False).use_collection(folder)
        epoch = iter(ds)
        if damage == "changed":
            shard.write_bytes(stored)
        else:
            # Once its index is known.
            next(epoch)
            shard.write_bytes(bytes(stored[:8]))
        with pytest.raises(CorruptStoreError) as caught:
            list(epoch)
            list(ds)
        messages.append(str(caught.value))
        ds.close()
        stored[40] ^= 1
        shard.write_bytes(stored)
        stored[40] ^= 1
    assert messages[0] == messages[1]
    assert "X/data/c/0" in messages[0]


def test_the_page_cache_is_asked_and_filled(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 20))
    fd = os.open(file, os.O_RDONLY)
    try:
        # Of pages that are not on the disk the cache cannot let go; `os.fsync` does nothing in tests.
        os.fdatasync(fd)
        offsets = np.array([0, 500_000, -1, 900_000])
        chunks = Located(np.full(4, fd, np.int32), offsets, np.array([9000, 9000, -1, 9000]), [])
        assert are_cached([chunks, chunks])
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if are_cached([chunks]):
            pytest.skip("the file system keeps what it need not")
        announce(chunks)
        deadline = time.monotonic() + 20
        while not are_cached([chunks]) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert are_cached([chunks])
    finally:
        os.close(fd)


def test_what_is_larger_than_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a", shape=(40_000,), dtype="u2", chunks=(1000,), shards=(10_000,))
    array[:] = np.arange(40_000) % 7
    opened = ShardedArray.open(tmp_path / "a")
    assert isinstance(opened, ShardedArray)
    n_stored = sum(path.stat().st_size for path in (tmp_path / "a" / "c").iterdir())
    assert n_stored < 40_000
    for limit, is_larger in ((2 * n_stored - 1, True), (2 * n_stored, False), (1 << 60, False)):
        monkeypatch.setattr(chunk_arrival, "room", lambda limit=limit: limit)
        assert chunk_arrival.exceed_memory([DirectElements(opened)] * 2) is is_larger


def test_what_the_page_cache_can_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert 1 << 20 < room() < sys.maxsize
    limits = [tmp_path / "none", tmp_path / "max", tmp_path / "limit"]
    limits[1].write_text("max\n")
    limits[2].write_text("1000000\n")
    monkeypatch.setattr(page_cache, "_limits", lambda: limits)
    assert room() == 1_000_000
