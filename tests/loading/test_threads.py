"""May several threads share an iterator?"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from zarr.core.sync import sync

from annbatch import Loader, epoch
from annbatch.testing.adapter_rules import check_threads
from live_threads import background_threads
from stores import opened, write_store

N = 120


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_every_batch_goes_to_one_of_them(prefetch):
    ds = Loader(batch_size=2, chunk_size=4, preload_nchunks=4, prefetch=prefetch, threads=2)
    ds.add_anndatas([ad.AnnData(sp.csr_matrix(np.eye(N, dtype=np.float32)))])
    for number in range(4):
        check_threads(ds, N)
        assert ds.next_epoch == number + 1


def test_closing_while_others_ask():
    """They get what was begun, then an error; nobody waits for ever, and no batch is counted that nobody got."""
    ds = Loader(batch_size=2, chunk_size=4, preload_nchunks=4)
    ds.add_anndatas([ad.AnnData(sp.csr_matrix(np.eye(N, dtype=np.float32)))])
    for _ in range(5):
        ds.set_epoch(0)
        batches, begun = iter(ds), threading.Barrier(4)

        def work(batches: Iterator[object] = batches, begun: threading.Barrier = begun) -> int:
            begun.wait()
            n = 0
            with suppress(StopIteration), pytest.raises(RuntimeError, match="was closed"):
                while True:
                    next(batches)
                    n += 1
            return n

        with ThreadPoolExecutor(3) as pool:
            found = [pool.submit(work) for _ in range(3)]
            begun.wait()
            ds.close()
            n_batches = sum(one.result() for one in found)
        state = ds.state_dict()
        assert state["epoch"] * len(ds) + sum(n for _, n in state["parts"]) == n_batches
        assert not background_threads()


async def _collect() -> None:
    """Collect in the thread in which zarr reads, once a loader's thread waits for that one."""
    time.sleep(0.2)
    gc.collect()


def test_the_collector_drops_an_iterator_where_its_threads_wait(monkeypatch):
    """An exception's traceback, say, may keep an iterator in a cycle until the collector runs: anywhere."""
    monkeypatch.setattr(epoch, "_PATIENCE_S", 0.5)
    x = sp.csr_matrix(np.eye(N, dtype=np.float32))
    obs = pd.DataFrame(index=[f"c{row}" for row in range(N)])
    ds = Loader(batch_size=2, chunk_size=2, preload_nchunks=1, prefetch=20)
    ds.add_anndatas([opened(write_store(zarr.storage.MemoryStore(), x, obs, zarr_format=2))])
    gc.collect()
    gc.disable()
    try:
        batches = iter(ds)
        next(batches)
        cycle = [batches]
        cycle.append(cycle)
        del batches, cycle, ds
        sync(_collect(), timeout=30)
        deadline = time.monotonic() + 20
        while background_threads() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not background_threads()
    finally:
        gc.enable()
