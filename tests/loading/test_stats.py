"""Does a loader say truly what its epochs read, decoded and waited for, on every path?"""

from __future__ import annotations

import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annbatch import Loader, Stats, create_anndata_collection
from annbatch.buffers import SlabPool
from annbatch.counters import Counters
from annbatch.stores import chunk_arrival
from datagen import write_inputs
from epochs import each_batch
from stores import named_stores

SMALL: dict[str, Any] = {"batch_size": 8, "chunk_size": 4, "preload_nchunks": 4, "threads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stats")


@pytest.fixture(scope="module")
def inputs(folder: Path) -> list[Path]:
    return write_inputs(folder, sizes=(130, 53))


def collection(folder: Path, inputs: list[Path], codec: str) -> Path:
    path = folder / codec
    if not path.exists():
        create_anndata_collection(inputs, path, codec=codec, chunk_elements=512, progress=False)
    return path


def files_of(collection: Path) -> list[Path]:
    """The chunks of X."""
    return [path for name in ("data", "indices") for path in collection.glob(f"*.zarr/X/{name}/c/*")]


@pytest.mark.parametrize("codec", ["blosc", "zstd", "packed"])
def test_an_epoch_reads_every_byte_of_its_chunks_and_decodes_them(folder, inputs, codec):
    path = collection(folder, inputs, codec)
    with Loader(**SMALL | {"preload_nchunks": 10**4}).use_collection(path) as ds:
        assert ds.stats() == Stats()
        batches = list(ds)
        found = ds.stats()
    nnz = sum(batch["data"].nnz for batch in batches)
    stored = sum(file.stat().st_size for file in files_of(path))
    assert (found.cells, found.batches, found.epoch) == (183, len(batches), 0)
    # Counts of the test cells are uint16, and so are their column numbers; packed blocks are decoded whole.
    assert 4 * nnz <= found.bytes_decoded <= 4 * nnz + 2 * 2 * 512 * 2
    # Beside the chunks, their index, indptr and labels are read; a file that the manifest records, once more.
    assert stored < found.bytes_read < 2 * stored + 2**15
    assert found.requests == found.retries == found.cache_hits == found.cache_misses == 0
    assert found.read_seconds > 0
    assert found.decode_seconds > 0
    assert found.plan_seconds > 0
    assert found.zarr_seconds == found.request_seconds == found.transform_seconds == found.device_seconds == 0
    assert found.peak_slab_bytes >= sum(batch["data"].data.nbytes for batch in batches)
    assert 0 < found.first_batch_seconds <= found.wait_seconds <= found.seconds
    assert found.threads == 2


def test_what_is_read_past_the_page_cache_is_counted(folder, inputs, monkeypatch):
    path = collection(folder, inputs, "blosc")
    monkeypatch.setattr(chunk_arrival, "room", lambda: 0)
    with Loader(**SMALL | {"preload_nchunks": 10**4}).use_collection(path, labels=[]) as ds:
        list(ds)
        found = ds.stats()
    assert found.bytes_read > sum(file.stat().st_size for file in files_of(path))
    assert found.read_seconds > 0


def test_of_chunks_that_zarr_reads_the_time_is_known(folder):
    adatas, *_ = named_stores(folder / "big", "v3 big endian", sizes=(60,))
    with Loader(**SMALL).add_anndatas(adatas) as ds:
        nnz = sum(batch["data"].nnz for batch in ds)
        found = ds.stats()
    assert found.zarr_seconds > 0
    # Chunks that several windows share are read for each of them.
    assert found.bytes_decoded >= 8 * nnz
    assert found.waits_for is not None


def test_a_running_epoch_is_counted_and_a_new_one_begins_at_zero(folder, inputs):
    path = collection(folder, inputs, "blosc")
    with Loader(**SMALL).use_collection(path, labels=[]) as ds:
        for number, _ in enumerate(each_batch(ds, len(ds)), 1):
            assert ds.stats().batches == number
        whole = ds.stats()
        next(iter(ds))
        running = ds.stats()
        assert (running.epoch, running.batches, running.cells) == (1, 1, 8)
        assert pickle.loads(pickle.dumps(ds)).stats() == Stats()
        assert ds.replace(seed=1).stats() == Stats()
    assert whole.cells == 183
    assert whole.bytes_read > running.bytes_read
    # What a user does between batches counts as time, not as waiting.
    with Loader(**SMALL).use_collection(path, labels=[]) as ds:
        for _ in each_batch(ds, len(ds)):
            time.sleep(0.004)
        slow = ds.stats()
    assert slow.seconds > 0.004 * (slow.batches - 1)
    assert slow.wait_seconds <= slow.seconds - 0.004 * (slow.batches - 1)


def test_functions_of_the_user_have_a_stage_of_their_own(folder, inputs):
    def slow(batch):
        time.sleep(0.01)
        return batch

    with Loader(**SMALL, transform=slow).use_collection(collection(folder, inputs, "blosc"), labels=[]) as ds:
        n_batches = len(list(ds))
        found = ds.stats()
    assert 0.01 * n_batches <= found.transform_seconds
    assert found.waits_for == "transform"


def test_an_error_in_a_kernel_leaves_the_counts(folder, inputs, tmp_path):
    path = collection(tmp_path, inputs, "blosc")
    with Loader(**SMALL).use_collection(path, labels=[]) as ds:
        for file in files_of(path):
            os.truncate(file, 10)
        with pytest.raises(ValueError, match="index"):
            list(ds)
        assert ds.stats().cells == 0


def test_peak_memory_is_that_of_slabs_in_use():
    pool = SlabPool(max_idle_bytes=2**30)
    kept = [pool.take(2**20) for _ in range(3)]
    one = pool.peak_bytes // 3
    assert pool.peak_bytes == 3 * one >= 3 * 2**20
    kept.clear()
    pool.take(2**20)
    assert pool.peak_bytes == 3 * one
    kept.append(pool.take(2**20))
    pool.begin_peak()
    assert pool.peak_bytes == one
    kept += [pool.take(2**20), pool.take(2**20)]
    assert pool.peak_bytes == 3 * one


def test_what_the_caller_waits_for():
    cases = {
        "nothing": Stats(seconds=10, wait_seconds=0.1, decode_seconds=30, threads=4),
        "decoding": Stats(seconds=10, wait_seconds=5, decode_seconds=30, read_seconds=8, plan_seconds=6, threads=4),
        "files": Stats(seconds=10, wait_seconds=5, decode_seconds=10, read_seconds=28, plan_seconds=6, threads=4),
        "planning": Stats(seconds=10, wait_seconds=5, decode_seconds=30, plan_seconds=9, threads=4),
        "object store": Stats(seconds=10, wait_seconds=5, decode_seconds=30, request_seconds=9, threads=4),
        "zarr": Stats(seconds=10, wait_seconds=None, zarr_seconds=30, decode_seconds=2, threads=4, workers=2),
        "device": Stats(seconds=10, wait_seconds=9, device_seconds=8, decode_seconds=9, threads=4),
    }
    for wanted, stats in cases.items():
        assert (stats.waits_for or "nothing") == wanted
        assert f"waits for {wanted}" in " ".join(str(stats).split())
        assert wanted in stats._repr_html_()
    assert Stats().waits_for is None
    assert Stats().cells_per_second == Stats().wait_share == 0
    assert cases["zarr"].wait_share is None


def test_threads_add_without_losing_anything():
    counters = Counters()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(100):
            pool.submit(counters.run, "decode", lambda: counters.add(requests=1))
    assert counters["requests"] == 100
    assert counters["decode"] > 0
    assert np.isclose(counters["read"], 0)
