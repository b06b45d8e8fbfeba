"""May several threads share an iterator?"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from annbatch import Loader
from contracts import check_shared_by_threads
from live_threads import background_threads

N = 120


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_every_batch_goes_to_one_of_them(prefetch):
    ds = Loader(batch_size=2, chunk_size=4, preload_nchunks=4, prefetch=prefetch, threads=2)
    ds.add_anndatas([ad.AnnData(sp.csr_matrix(np.eye(N, dtype=np.float32)))])
    for epoch in range(4):
        check_shared_by_threads(ds, N)
        assert ds.next_epoch == epoch + 1


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
