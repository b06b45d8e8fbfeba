"""How fast could any loader be on this store, if decoding were all that it did?

Threads read and decode every inner chunk of X once, in storage order, each into a scratch of its own that stays in the
cache: no plan, no cast, no copy to a batch. It is the decoder that the Loader's direct path uses, checksums included
where the store has them, asked for no elements.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import local

import numpy as np

from annbatch.plan.chunk_pieces import Pieces
from annbatch.shards.codecs import Workspace
from annbatch.shards.local_array import ShardedArray
from harness.contenders.registry import Matrix
from harness.environments import Unavailable

BYTES_A_TASK = 1 << 23
"""Decoded bytes of one call into the decoder."""


def decode_epoch(collection: str, threads: int | None) -> Callable[[], Iterator[Matrix]]:
    """Give a function that decodes all of X of a collection once and yields one matrix without values.

    Raises
    ------
    Unavailable
        If there is no native decoder for the store.
    """
    arrays = []
    n_rows = 0
    for store in sorted(path for path in Path(collection).iterdir() if (path / "X" / "data").is_dir()):
        for name in ("data", "indices"):
            array = ShardedArray.open(store / "X" / name)
            if isinstance(array, str):
                raise Unavailable(f"{store} X/{name}: {array}")
            arrays.append(array)
        indptr = ShardedArray.open(store / "X" / "indptr")
        if isinstance(indptr, str):
            raise Unavailable(f"{store} X/indptr: {indptr}")
        n_rows += indptr.shape[0] - 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads or cores)
    of_thread = local()
    nothing = np.zeros(0, np.int64)

    def decode(array: ShardedArray, first: int, stop: int) -> None:
        if not hasattr(of_thread, "workspace"):
            of_thread.workspace = Workspace()
        bounds = np.zeros(stop - first + 1, np.int64)
        chunks = np.arange(first, stop)
        array.scatter(
            of_thread.workspace, Pieces(chunks, (0, len(chunks)), bounds, nothing, nothing, nothing), array.dtype
        )

    def epoch() -> Iterator[Matrix]:
        tasks = []
        for array in arrays:
            n_chunks = -(-array.shape[0] // array.chunk_elements)
            step = max(1, BYTES_A_TASK // (array.chunk_elements * array.dtype.itemsize))
            for first in range(0, n_chunks, step):
                tasks.append(pool.submit(decode, array, first, min(first + step, n_chunks)))
        for task in tasks:
            task.result()
        empty = np.empty(0, np.int32)
        yield Matrix(empty, empty, n_rows)

    return epoch
