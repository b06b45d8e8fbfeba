"""How does a user get shuffled batches from stores?

1. `Loader.add_anndatas` or `Loader.use_collection` opens the stores.
2. A sampler says which rows make each window (`annbatch.samplers`).
3. A fetcher reads windows into batches (`annbatch.fetch`), one or more of them ahead (`annbatch.prefetch`).
4. The batches of each window are handed over one by one.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import anndata as ad
import numpy as np
import pandas as pd

from annbatch.batch import Batch, Emit
from annbatch.collection import Collection
from annbatch.errors import InputError
from annbatch.fetch import Fetcher
from annbatch.labels import Column, merge_columns
from annbatch.prefetch import Prefetch
from annbatch.samplers import MAX_WORD, BlockSampler, Partition, Stream
from annbatch.store import Store, open_anndata, open_path

_log = logging.getLogger("annbatch")


class Loader:
    """Stream shuffled mini-batches of cells from AnnData stores that need not fit in memory.

    The order of the rows depends on the stores, ``seed``, the epoch, ``batch_size``, ``chunk_size``,
    ``preload_nchunks`` and ``shuffle``, and on nothing else.

    Parameters
    ----------
    batch_size
        Rows in a batch.
    chunk_size
        Rows that are read contiguously. Larger is faster; smaller mixes better where stores are not shuffled.
    preload_nchunks
        How many such blocks are read, and shuffled among themselves, together. ``chunk_size * preload_nchunks``
        rows, rounded up to a multiple of ``batch_size``, are a *window*.
    shuffle
        Whether blocks, and the rows of a window, come in random order.
    seed
        Seed of that order, 0 <= seed < 2**64.
    drop_last
        Whether to leave out the rows at the end of an epoch that do not fill a batch (on every consumer).
    return_index
        Whether batches carry the global row numbers.
    partition
        Which of several consumers this loader is: ``Partition(rank, world_size)``. All get equally many batches.
    threads
        Threads that read and decode; by default as many as this process may use cores.
    prefetch
        How many windows are read ahead while the user works with one; 0 reads in the caller's thread.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of the type or in the range given above.

    Examples
    --------
    >>> with Loader(batch_size=4096).use_collection("store", labels=["cell_type"]) as ds:  # doctest: +SKIP
    ...     for batch in ds:
    ...         x, codes = batch["data"], batch.codes["cell_type"]
    """

    def __init__(
        self,
        *,
        batch_size: int,
        chunk_size: int = 512,
        preload_nchunks: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        return_index: bool = True,
        partition: Partition = Partition(0, 1),  # noqa: B008 (immutable)
        threads: int | None = None,
        prefetch: int = 1,
    ) -> None:
        self.batch_size = _integer("batch_size", batch_size, 1)
        self.chunk_size = _integer("chunk_size", chunk_size, 1)
        self.preload_nchunks = _integer("preload_nchunks", preload_nchunks, 1)
        self.shuffle = _boolean("shuffle", shuffle)
        self.seed = _integer("seed", seed, 0, MAX_WORD)
        self.drop_last = _boolean("drop_last", drop_last)
        self.return_index = _boolean("return_index", return_index)
        self.threads = None if threads is None else _integer("threads", threads, 1)
        self.prefetch = _integer("prefetch", prefetch, 0)
        if not isinstance(partition, Partition):
            raise TypeError(f"partition must be a Partition, got {type(partition).__name__}")
        self.partition = partition
        self._stores: list[Store] = []
        self._columns: tuple[Column, ...] = ()
        self._epoch = 0
        self._live: weakref.ref[Epoch] | None = None

    def add_anndatas(self, adatas: Sequence[ad.AnnData], labels: Sequence[str] | None = None) -> Self:
        """Add AnnData objects whose X is a `anndata.io.sparse_dataset` on a zarr store, or a CSR matrix in memory.

        Rows are numbered through the objects in the order passed.

        Parameters
        ----------
        adatas
            The objects; all must have the same var names.
        labels
            Which obs columns batches carry; None means all that the objects share.

        Returns
        -------
        Loader
            This loader.

        Raises
        ------
        InputError
            If there is nothing to add, or an object breaks one of the rules above; names the object and the element.
        """
        adatas = list(adatas)
        if not adatas:
            raise InputError("adatas must hold at least one AnnData, got none")
        for i, adata in enumerate(adatas):
            if not isinstance(adata, ad.AnnData):
                raise InputError(f"adatas[{i}] must be an AnnData, got {type(adata).__name__}")
        return self._add([open_anndata(adata, labels, f"adatas[{i}]") for i, adata in enumerate(adatas)])

    def use_collection(self, path: str | os.PathLike[str], labels: Sequence[str] | None = None) -> Self:
        """Read the collection at ``path``, one of ours or one that scverse annbatch wrote.

        Parameters
        ----------
        path
            Directory of the collection.
        labels
            Which obs columns batches carry; None means all.

        Returns
        -------
        Loader
            This loader.

        Raises
        ------
        StoreError
            If there is no complete, readable collection at ``path``.
        InputError
            If a label is not an obs column.
        """
        collection = Collection.open(path)
        return self._add([open_path(store, labels) for store in collection.store_paths])

    @property
    def n_obs(self) -> int:
        """Rows in all stores."""
        return sum(store.shape[0] for store in self._stores)

    @property
    def n_vars(self) -> int:
        """Columns of every store."""
        return self._opened()[0].shape[1]

    @property
    def var(self) -> pd.DataFrame:
        """The var of the (first) store: (n_vars, …)."""
        return self._opened()[0].var

    @property
    def categories(self) -> Mapping[str, pd.Index[Any]]:
        """What the codes mean: ``categories["cell_type"][code]``; numeric columns are not in it."""
        return {column.name: column.categories for column in self._columns if column.categories is not None}

    def __len__(self) -> int:
        return self._sampler().n_batches(self.partition)

    def set_epoch(self, epoch: int) -> None:
        """Let the next ``iter`` give epoch ``epoch`` (>= 0)."""
        self._epoch = _integer("epoch", epoch, 0, MAX_WORD)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches(Emit())

    def batches(self, emit: Emit) -> Epoch:
        """Start the next epoch, with batches in the form that ``emit`` asks for: what adapters call.

        An iterator that is still at work is closed; asking it for more raises RuntimeError.
        """
        self.close()
        stores = self._opened()
        sampler = self._sampler()
        fetcher = Fetcher(
            stores,
            self._columns,
            emit,
            np.result_type(*(store.dtype for store in stores)),
            self.batch_size,
            self.threads or available_cores(),
            self.prefetch + 1,
            return_index=self.return_index,
        )
        epoch = Epoch(sampler, fetcher, self._epoch, self.partition, self.prefetch)
        self._epoch += 1
        self._live = weakref.ref(epoch)
        return epoch

    def close(self) -> None:
        """Stop the iterator at work, if any, and its threads. The loader can be iterated again."""
        live = self._live() if self._live is not None else None
        if live is not None:
            live.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_live": None}

    def _add(self, stores: list[Store]) -> Self:
        stores = self._stores + stores
        first = stores[0]
        for store in stores[1:]:
            if store.shape[1] != first.shape[1]:
                raise InputError(
                    f"all stores must have the same n_vars: {first.name} has {first.shape[1]}, "
                    f"{store.name} has {store.shape[1]}"
                )
            differs = np.flatnonzero(store.var.index != first.var.index)
            if len(differs):
                i = int(differs[0])
                raise InputError(
                    f"all stores must have the same var names: var {i} is {first.var.index[i]!r} in {first.name} and "
                    f"{store.var.index[i]!r} in {store.name}"
                )
        if not any(store.shape[0] for store in stores):
            raise InputError(f"the stores must hold at least one row, got none in {[store.name for store in stores]}")
        for why in {store.slow for store in stores if store.slow}:
            names = [store.name for store in stores if store.slow == why]
            _log.info("zarr reads %s%s: %s", names[0], f" and {len(names) - 1} more" if names[1:] else "", why)
        self._columns = merge_columns({store.name: store.columns for store in stores})
        self._stores = stores
        return self

    def _opened(self) -> list[Store]:
        if not self._stores:
            raise InputError("a Loader needs stores before it is used: call add_anndatas or use_collection")
        return self._stores

    def _sampler(self) -> BlockSampler:
        return BlockSampler(
            tuple(store.shape[0] for store in self._opened()),
            self.batch_size,
            self.chunk_size,
            self.preload_nchunks,
            self.shuffle,
            self.seed,
            self.drop_last,
        )


class Epoch(Iterator[Batch]):
    """The batches of one epoch; closing or dropping it leaves no thread behind."""

    def __init__(
        self, sampler: BlockSampler, fetcher: Fetcher, epoch: int, partition: Partition, prefetch: int
    ) -> None:
        work = partial(_fetch_window, sampler, sampler.stream(epoch), fetcher, epoch, partition)
        self._fetcher = fetcher
        self._windows = Prefetch(work, sampler.n_windows(partition), prefetch)
        self._batches: deque[Batch] = deque()
        self._closed = False

    def __next__(self) -> Batch:
        if self._closed:
            raise RuntimeError("this iterator was closed: its loader was closed, or a new epoch was started")
        try:
            while not self._batches:
                self._batches.extend(next(self._windows))
        except BaseException as e:
            self._stop()
            # After its end an iterator keeps raising StopIteration; after an error it may not go on as if nothing were.
            self._closed = not isinstance(e, StopIteration)
            raise
        return self._batches.popleft()

    def close(self) -> None:
        """Stop reading and end the threads."""
        self._closed = True
        self._stop()

    def __del__(self) -> None:
        if hasattr(self, "_windows"):
            self._stop()

    def _stop(self) -> None:
        self._batches.clear()
        self._windows.close()
        self._fetcher.close()


def _fetch_window(
    sampler: BlockSampler, stream: Stream, fetcher: Fetcher, epoch: int, partition: Partition, number: int
) -> list[Batch]:
    """Plan and read one window; refers to no iterator, so that an abandoned one can be collected."""
    return fetcher.fetch(sampler.window(stream, epoch, number, partition))


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _integer(name: str, value: int, low: int, high: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < low or (high is not None and value >= high):
        rule = f">= {low}" if high is None else f"in [{low}, {high})"
        raise ValueError(f"{name} must be {rule}, got {value}")
    return int(value)


def _boolean(name: str, value: bool) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)
