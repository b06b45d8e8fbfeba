"""How does a user get shuffled batches from stores?

1. `Loader.add_anndatas` or `Loader.use_collection` opens the stores.
2. A sampler says which rows make each window (`annbatch.samplers`).
3. A fetcher reads windows into batches (`annbatch.fetch`), one or more of them ahead (`annbatch.prefetch`).
4. The batches of each window are handed over one by one.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, get_args

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd

from annbatch.batch import Batch, Emit
from annbatch.buffers import SlabPool
from annbatch.check import boolean, integer, names, one_of
from annbatch.collection import Collection
from annbatch.dataset import Casting, Dataset
from annbatch.epoch import Epoch
from annbatch.errors import InputError
from annbatch.fetch import Fetcher
from annbatch.samplers import MAX_WORD, BlockSampler, Partition
from annbatch.store import Store, Wanted, open_anndata, open_path


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
    dtype
        Type of the values of X and layers, whatever their own; None gives back the type that they had before they
        were written. Adapters ask for a type of their own.
    casting
        Which casts ``dtype`` may ask for, in NumPy's terms; the default refuses those that can lose values.
    var_names
        Yield only these genes, in this order; None means all.
    layers, obsm
        Which layers, and which elements of obsm, batches carry beside ``data``.
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
        dtype: npt.DTypeLike | None = None,
        casting: Casting = "safe",
        var_names: Sequence[str] | None = None,
        layers: Sequence[str] = (),
        obsm: Sequence[str] = (),
        partition: Partition = Partition(0, 1),
        threads: int | None = None,
        prefetch: int = 1,
    ) -> None:
        self.batch_size = integer("batch_size", batch_size, 1)
        self.chunk_size = integer("chunk_size", chunk_size, 1)
        self.preload_nchunks = integer("preload_nchunks", preload_nchunks, 1)
        self.shuffle = boolean("shuffle", shuffle)
        self.seed = integer("seed", seed, 0, MAX_WORD)
        self.drop_last = boolean("drop_last", drop_last)
        self.return_index = boolean("return_index", return_index)
        self.dtype = None if dtype is None else np.dtype(dtype)
        if self.dtype is not None and self.dtype.kind not in "biuf":
            raise TypeError(f"dtype must be boolean, integer or floating, got {self.dtype}")
        one_of("casting", casting, get_args(Casting))
        self.casting: Casting = casting
        self.var_names = None if var_names is None else names("var_names", var_names)
        self.layers = names("layers", layers)
        self.obsm = names("obsm", obsm)
        self.threads = None if threads is None else integer("threads", threads, 1)
        self.prefetch = integer("prefetch", prefetch, 0)
        if not isinstance(partition, Partition):
            raise TypeError(f"partition must be a Partition, got {type(partition).__name__}")
        self.partition = partition
        self._dataset: Dataset | None = None
        self._slabs = SlabPool()
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
        wanted = self._wanted(labels)
        return self._add([open_anndata(adata, wanted, f"adatas[{i}]") for i, adata in enumerate(adatas)])

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
        CorruptStoreError
            If a file of the collection is missing, or has another size than it was written with.
        InputError
            If a label is not an obs column.
        """
        collection = Collection.open(path)
        collection.check_sizes()
        wanted = self._wanted(labels)
        return self._add([open_path(store, wanted) for store in collection.store_paths])

    @property
    def n_obs(self) -> int:
        """Rows in all stores."""
        return self._opened().n_obs

    @property
    def n_vars(self) -> int:
        """Columns of ``data``."""
        return len(self.var)

    @property
    def var(self) -> pd.DataFrame:
        """The var of the (first) store, or of the genes selected: (n_vars, …)."""
        return self._opened().var

    @property
    def categories(self) -> Mapping[str, pd.Index[Any]]:
        """What the codes mean: ``categories["cell_type"][code]``; numeric columns are not in it."""
        return {column.name: column.categories for column in self._opened().columns if column.categories is not None}

    def __len__(self) -> int:
        return self._sampler().n_batches(self.partition)

    def set_epoch(self, epoch: int) -> None:
        """Let the next ``iter`` give epoch ``epoch`` (>= 0)."""
        self._epoch = integer("epoch", epoch, 0, MAX_WORD)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches(Emit())

    def batches(self, emit: Emit) -> Epoch:
        """Start the next epoch, with batches in the form that ``emit`` asks for: what adapters call.

        An iterator that is still at work is closed; asking it for more raises RuntimeError.
        """
        self._stop()
        dataset = self._opened()
        sampler = self._sampler()
        fetcher = Fetcher(
            dataset.stores,
            dataset.columns,
            emit,
            dataset.dtypes,
            self.batch_size,
            dataset.selection,
            self.threads or available_cores(),
            self._slabs,
            self.prefetch + 2,
            return_index=self.return_index,
        )
        epoch = Epoch(sampler, fetcher, self._epoch, self.partition, self.prefetch)
        self._epoch += 1
        self._live = weakref.ref(epoch)
        return epoch

    def close(self) -> None:
        """Stop the iterator at work, if any, and its threads, and free memory. The loader can be iterated again."""
        self._stop()
        self._slabs.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_live": None, "_slabs": SlabPool()}

    def _stop(self) -> None:
        live = self._live() if self._live is not None else None
        if live is not None:
            live.close()

    def _add(self, stores: list[Store]) -> Self:
        before = () if self._dataset is None else self._dataset.stores
        self._dataset = Dataset.of((*before, *stores), self.dtype, self.casting, self.var_names)
        self._dataset.report_paths()
        return self

    def _wanted(self, labels: Sequence[str] | None) -> Wanted:
        elements = ("X", *(f"layers/{name}" for name in self.layers), *(f"obsm/{name}" for name in self.obsm))
        return Wanted(None if labels is None else names("labels", labels), elements)

    def _opened(self) -> Dataset:
        if self._dataset is None:
            raise InputError("a Loader needs stores before it is used: call add_anndatas or use_collection")
        return self._dataset

    def _sampler(self) -> BlockSampler:
        return BlockSampler(
            tuple(store.shape[0] for store in self._opened().stores),
            self.batch_size,
            self.chunk_size,
            self.preload_nchunks,
            self.shuffle,
            self.seed,
            self.drop_last,
        )


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
