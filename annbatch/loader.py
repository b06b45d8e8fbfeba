"""How does a user get shuffled batches from stores?

1. `Loader.use_collection`, `Loader.use_h5ad` or `Loader.add_anndatas` opens the stores.
2. A schedule says which rows make each window (`annbatch.order.schedule`, `annbatch.samplers`).
3. A fetcher reads windows into batches (`annbatch.fetch`), one or more of them ahead (`annbatch.prefetch`).
4. The batches of each window are handed over one by one, and counted, so that a run can go on where it stopped
   (`annbatch.order.state`).
"""

from __future__ import annotations

import copy
import os
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace as replaced
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, get_args

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd

from annbatch import scverse_names, summary
from annbatch.batch import Batch, Emit
from annbatch.batches.casts import Casting, Emitted
from annbatch.buffers import SlabPool
from annbatch.check import available_cores, boolean, byte_count, distinct_names, expanded, integer, least_rows, one_of
from annbatch.counters import Counters
from annbatch.dataset import Dataset
from annbatch.device.cuda import open_device
from annbatch.device.window_memory import WindowMemoryPool
from annbatch.epoch import Epoch, Start
from annbatch.errors import InputError
from annbatch.fetch import Carried, Fetcher
from annbatch.order.consumers import Partition
from annbatch.order.mixing import LEAST_ROWS, MOST_WINDOWS, Mixing, measure
from annbatch.order.permutation import MAX_WORD
from annbatch.order.row_selection import Runs
from annbatch.order.schedule import Schedule, Settings
from annbatch.order.splits import Part, describe, describe_fold, folds, split
from annbatch.order.state import Position, load, save
from annbatch.remote.disk_cache import DiskCache
from annbatch.samplers import Sampler, Sequential, Shuffled
from annbatch.sources import Opening, Sources
from annbatch.stats import Stats
from annbatch.stores.anndata_store import DenseMatrix
from annbatch.stores.collection import Collection
from annbatch.stores.file_index import FileIndex
from annbatch.stores.gene_join import How
from annbatch.stores.gene_selection import Absent, Genes, VarNames, Wanted
from annbatch.summary import Summary
from annbatch.transform import Transform, Transforms

Decode = Literal["auto", "cpu", "gpu"]

WHOLE = Partition(0, 1)
"""The partition of a consumer that is alone."""

_OPENING_OPTIONS = ("layers", "obsm", "modalities", "cache_dir", "cache_limit")
"""Options on which it depends what is opened."""


class Loader(Summary):
    """Stream shuffled mini-batches of cells from AnnData stores that need not fit in memory.

    What batches hold depends on the stores, ``rows``, the sampler, ``seed``, the epoch, ``batch_size``, ``chunk_size``,
    ``preload_nchunks`` and ``drop_last``, and on nothing else.

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
        Whether blocks, and the rows of a window, come in random order. Says nothing where there is a ``sampler``.
    seed
        Seed of that order, 0 <= seed < 2**64.
    drop_last
        Whether to leave out the rows at the end of an epoch that do not fill a batch (on every consumer), or how many
        rows, from 2 on, the last batch must have: ``drop_last=2`` leaves out a last batch of one row, which batch
        normalisation cannot take. Of n consumers, fewer than n times that many rows are left out. Samplers that make
        whole batches of their own leave out those that do not go round.
    return_index
        Whether batches carry the global row numbers.
    sampler
        Which rows come in an epoch, and in which batches: one of `annbatch.samplers`, or a sampler of one's own. None
        means every row once, as ``shuffle`` says.
    rows
        Which rows of the stores there are at all: a mask or row numbers, each once. None means all. Only the chunks
        that hold them are read. With ``shuffle=False`` (or `annbatch.samplers.Sequential`) row numbers come in the
        order in which they are given; else they are a set.
    dtype
        Type of the values of X and layers, whatever their own; None gives back the type that they had before they
        were written. Adapters ask for a type of their own.
    casting
        Which casts ``dtype``, here and of an adapter, may ask for, in NumPy's terms; the default refuses those that can
        lose values. Adapters' default, float32, is allowed in any case: it rounds wider floats, and an integer that it
        does not hold is an error unless ``casting`` is ``"same_kind"`` or ``"unsafe"``.
    var_names
        Which genes X and layers have: names, in the order in which they shall come; a boolean mask of all genes; or a
        function that is given var and returns such a mask, like ``lambda var: var["highly_variable"]``. None means all.
        Of a collection with modalities a dict of these, for the modalities that are not to have all their genes:
        ``{"rna": names}``.
    var_key
        The column of var in which ``var_names`` are looked up, like ``"gene_ids"``; None means var's index.
    absent
        What becomes of ``var_names`` that a store lacks: ``"error"`` refuses them, ``"zero"`` gives them zeros in its
        rows, with a warning if other stores have them. `var` then has a boolean column ``"absent"`` of those that are
        in no store. That none of them is in a store is an error in any case.
    join
        Which genes there are where stores differ: ``"same"`` refuses stores that have not all the same genes, in
        whatever order; ``"outer"`` takes those of all stores, with zeros where a store lacks one; ``"inner"`` takes
        those that all stores have. They come in the order of first appearance. ``var_names`` chooses from them; names
        that all stores have are taken whatever else these have.
    transform
        What becomes of each batch: `LogNormalize`, `Binarize`, a function that is given a `Batch` and returns one
        (``batch.replace(data=…)``), or a list of these, the functions last. Functions are called by the threads that
        read ahead, for several batches at a time; with a ``device``, where a batch is asked for.
    layers, obsm
        Which layers, and which elements of obsm, batches carry beside ``data``. Of a collection with modalities, with
        the name of the modality in front: ``layers=["rna:counts"]``.
    names
        Whether batches carry the names of cells: ``batch["names"]``, which is then the index of ``batch["labels"]``,
        too. The names of a window's rows are read with it.
    classes
        obs columns of integers, booleans, text or categories that come as classes: ``batch.codes`` then holds int32
        codes (missing -1) into `categories`, and ``labels`` categories. Batches carry them whether or not they are
        among ``labels``. Integers are read once, when they are first needed, and kept as codes of one to four bytes a
        row; their categories are the values that occur, ascending.
    modalities
        Of a collection with modalities: which of them batches have, in this order; None means all. Others are not read.
    partition
        Which of several consumers this loader is: ``Partition(rank, world_size)``. All get equally many batches. None
        means that it is alone, or that an adapter finds it out.
    threads
        Threads that read and decode; by default as many as this process may use cores.
    prefetch
        How many windows are read ahead while the user works with one; 0 reads in the caller's thread.
    cache_dir
        A local folder in which to keep what is read from object stores, for the next epoch and the next process, and
        what `use_h5ad` found out about files, so that they open faster the next time. Several processes may share it.
        None keeps nothing.
    cache_limit
        What objects may take of the disk there, like ``"20GB"`` or in bytes; what was used least recently goes first.
        What is kept of ``.h5ad`` files does not count.
    device
        Where the matrices of batches are: ``"cpu"``, as NumPy arrays, or ``"cuda"``, ``"cuda:1"``, …, as CuPy arrays
        with the same contents, bit for bit. Those are made on the stream that is current in CuPy when a batch is asked
        for; on that stream they may be used and dropped at any time. Codes and index stay NumPy arrays.
    decode
        With such a device, where chunks are decoded: ``"cpu"``, or ``"gpu"``, which takes local stores whose inner
        chunks are packed, or zstd, shuffled by numcodecs or not, as ``create_anndata_collection`` writes them with
        ``codec="packed"`` and ``codec="zstd"``. zstd needs nvCOMP. ``"auto"`` takes the device if it can decode all
        sparse matrices, and says through `logging` what it took. What damaged zstd frames do in nvCOMP is not defined:
        read zstd stores that you do not trust with ``"cpu"``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of the type or in the range given above.
    InputError
        If there is no such device, or CuPy is not installed.

    Examples
    --------
    >>> with Loader(batch_size=4096).use_collection("store", labels=["cell_type"]) as ds:  # doctest: +SKIP
    ...     for batch in ds:
    ...         x, codes = batch["data"], batch.codes["cell_type"]
    """

    @scverse_names.refusing_their_options
    def __init__(
        self,
        *,
        batch_size: int,
        chunk_size: int = 512,
        preload_nchunks: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool | int = False,
        return_index: bool = True,
        sampler: Sampler | None = None,
        rows: npt.ArrayLike | None = None,
        dtype: npt.DTypeLike | None = None,
        casting: Casting = "safe",
        var_names: VarNames | Mapping[str, VarNames] | None = None,
        var_key: str | None = None,
        absent: Absent = "error",
        join: How = "same",
        transform: Transform | Sequence[Transform] | None = None,
        layers: Sequence[str] = (),
        obsm: Sequence[str] = (),
        names: bool = False,
        classes: Sequence[str] = (),
        modalities: Sequence[str] | None = None,
        partition: Partition | None = None,
        threads: int | None = None,
        prefetch: int = 1,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_limit: str | int = "20GB",
        device: str = "cpu",
        decode: Decode = "auto",
    ) -> None:
        self._options = {name: value for name, value in locals().items() if name != "self"}
        self.batch_size = integer("batch_size", batch_size, 1)
        self.chunk_size = integer("chunk_size", chunk_size, 1)
        self.preload_nchunks = integer("preload_nchunks", preload_nchunks, 1)
        self.shuffle = boolean("shuffle", shuffle)
        if sampler is not None and not isinstance(sampler, Sampler):
            raise TypeError(f"sampler must have columns, bind and describe, got {type(sampler).__name__}")
        if sampler is not None and not shuffle:
            raise ValueError("shuffle must not be False where a sampler decides the order")
        self.sampler: Sampler = sampler if sampler is not None else Shuffled() if shuffle else Sequential()
        self.seed = integer("seed", seed, 0, MAX_WORD)
        self.drop_last = least_rows("drop_last", drop_last, self.batch_size)
        self.return_index = boolean("return_index", return_index)
        self.dtype = None if dtype is None else np.dtype(dtype)
        if self.dtype is not None and self.dtype.kind not in "biuf":
            raise TypeError(f"dtype must be boolean, integer or floating, got {self.dtype}")
        one_of("casting", casting, get_args(Casting))
        self.casting: Casting = casting
        self.var_names: Wanted | dict[str, Wanted]
        if isinstance(var_names, Mapping):
            self.var_names = Genes.by_modality(var_names, var_key, absent)
            self.var_key, self.absent = var_key, absent
        else:
            genes = Genes.of(var_names, var_key, absent, join)
            self.var_names, self.var_key, self.absent = genes.wanted, genes.key, genes.absent
        one_of("join", join, get_args(How))
        self.join: How = join
        self.layers = distinct_names("layers", layers)
        self.obsm = distinct_names("obsm", obsm)
        self.classes = distinct_names("classes", classes)
        self.names = boolean("names", names)
        self._transforms = Transforms.of(transform, self.layers, self.dtype)
        self.transform = transform
        self.modalities = None if modalities is None else distinct_names("modalities", modalities)
        self.threads = None if threads is None else integer("threads", threads, 1)
        self.prefetch = integer("prefetch", prefetch, 0)
        if partition is not None and not isinstance(partition, Partition):
            raise TypeError(f"partition must be a Partition, got {type(partition).__name__}")
        self.partition = partition
        self.cache_dir = None if cache_dir is None else Path(expanded(cache_dir))
        self.cache_limit = byte_count("cache_limit", cache_limit)
        self.device = device if device == "cpu" else open_device(device).name
        one_of("decode", decode, get_args(Decode))
        if device == "cpu" and decode != "auto":
            raise InputError(f"decode must be 'auto' where device is 'cpu', got {decode!r}")
        self._decode: Decode = decode
        self._staging: WindowMemoryPool | None = None
        self._rows: npt.ArrayLike | Runs | None = rows
        self._split: dict[str, Any] | None = None
        self._sources = Sources()
        self._dataset: Dataset | None = None
        self._schedule: Schedule | None = None
        self._slabs = SlabPool()
        self._position = Position()
        self._live: weakref.ref[Epoch] | None = None
        self._counters = Counters()
        self._is_mixing_known = False
        self._pid = os.getpid()

    def add_anndatas(self, adatas: Sequence[ad.AnnData], labels: Sequence[str] | None = None) -> Self:
        """Add AnnData objects whose X is stored by rows, in a zarr store or an ``.h5ad`` file, or is in memory.

        X is a `anndata.io.sparse_dataset` (CSR) on a zarr store, a zarr array, what ``ad.read_h5ad(path, backed="r")``
        gives, which is read as `use_h5ad` reads it, or a CSR matrix or an array in memory.

        Rows are numbered through the objects in the order passed. Several calls add up to one call with all objects;
        messages number the objects through all calls, from ``adatas[0]`` on.

        Parameters
        ----------
        adatas
            The objects. If they have different genes, see ``join``.
        labels
            Which obs columns batches carry, the same ones in all calls; None means all, without those that are of
            different kinds in different objects. They are missing in the rows of objects that lack them. A warning
            names both.

        Returns
        -------
        Loader
            This loader.

        Raises
        ------
        InputError
            If there is nothing to add, or an object breaks one of the rules above; names the object and the element.
        OutputError
            If the folder of the cache cannot be made.
        """
        self._use(self._sources.with_anndatas(adatas, labels, self._opening()))
        return self

    def use_collection(self, path: Any, labels: Sequence[str] | None = None) -> Self:
        """Read the collection at ``path``, one of ours or one that scverse annbatch wrote.

        Parameters
        ----------
        path
            The collection, or its directory; or its URL in an object store (``s3://``, ``gs://``, ``az://``,
            ``https://``); or an obstore store, or a zarr store, whose root it is.
        labels
            Which obs columns batches carry, the same ones in all calls; None means all, as in `add_anndatas`. Of a
            collection with modalities, ``"rna:cell_type"`` is a column of the modality's own obs.

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
        OutputError
            If the folder of the cache cannot be made.
        ImportError
            If it takes obstore to read it, which is not installed.
        """
        self._use(self._sources.with_collection(path, labels, self._opening()))
        return self

    def use_h5ad(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        labels: Sequence[str] | None = None,
    ) -> Self:
        """Read ``.h5ad`` files as they are, without a conversion.

        X, layers and obsm may be CSR or dense. Rows are read from where they lie in the file, without HDF5, if they are
        uncompressed or went through the filters gzip, lzf, zstd, blosc, shuffle and fletcher32. h5py reads everything
        else, in one thread at a time: other filters, and chunks that hold parts of rows. The ``repr`` says so and why,
        and `logging`, too. If a file changes or disappears, an error names it at the beginning of an epoch, or with the
        next window.

        Cells lie in the order of the files. A small ``chunk_size`` and a large ``preload_nchunks`` mix them best.

        Parameters
        ----------
        paths
            The path of a file, or of several; rows are numbered through the files in this order. If they have different
            genes, see ``join``.
        labels
            Which obs columns batches carry, the same ones in all calls; None means all. Columns are read into memory:
            name those that you need.

        Returns
        -------
        Loader
            This loader.

        Raises
        ------
        MissingInputError
            If there is no such file.
        InputError
            If there is no path, a file holds no AnnData, or an element is not there or stored by columns (CSC), or HDF5
            lacks a filter; names the file and the element.
        StoreError
            If a file cannot be read, or its parts do not fit together.

        Examples
        --------
        >>> ds = Loader(batch_size=256, chunk_size=32, preload_nchunks=256)  # doctest: +SKIP
        >>> ds.use_h5ad(["donors_1.h5ad", "donors_2.h5ad"], labels=["cell_type"])  # doctest: +SKIP
        """
        self._use(self._sources.with_h5ads(paths, labels, self._opening()))
        return self

    def write_collection(self, path: str | os.PathLike[str], **options: Any) -> Collection:
        """Write the rows of all stores, shuffled, as a collection: what `use_collection` reads fastest.

        The collection has what this loader's batches have: the joined or selected genes, layers, elements of obsm and
        labels.

        Parameters
        ----------
        path
            Directory to make.
        **options
            Options of `create_anndata_collection`, such as ``codec`` or ``memory_limit``, also instead of what follows
            from this loader: ``join``, ``var_names``, ``layers``, ``obsm``, ``obs_columns`` and ``dense``.

        Returns
        -------
        Collection
            The collection.

        Raises
        ------
        InputError
            If this loader has only some of the rows, or modalities, or was sent to another process; and as
            `create_anndata_collection` does.
        OutputExistsError, OutputError
            As `create_anndata_collection` does.

        Examples
        --------
        >>> ds.write_collection("cells")  # doctest: +SKIP
        >>> ds = Loader(batch_size=4096).use_collection("cells")  # doctest: +SKIP
        """
        dataset = self._opened()
        if self._rows is not None:
            raise InputError(
                "write_collection writes all rows, and this loader has some: call it without rows, or split"
            )
        if dataset.modalities:
            raise InputError("write_collection writes data without modalities; reshuffle_collection mixes a collection")
        chosen: dict[str, Any] = {"join": self.join, "layers": self.layers, "obsm": self.obsm}
        if self._sources.labels is not None:
            chosen["obs_columns"] = [column.name for column in dataset.columns]
        if self.var_names is not None:
            # Names that are selected may be missing in some stores, whatever else these have.
            chosen["join"] = "outer"
            chosen["var_names"] = dataset.chosen_names
        chosen["dense"] = [
            element
            for element, matrix in dataset.stores[0].matrices.items()
            if isinstance(matrix, DenseMatrix) and not element.startswith("obsm/")
        ]
        # What builds is not loaded by those who only read.
        from annbatch.write import create_anndata_collection

        return create_anndata_collection(self._sources.inputs(), path, **(chosen | options))

    def obs(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Read obs without the counts.

        Columns are read a slice of rows at a time; what is not asked for is not read.

        Parameters
        ----------
        columns
            Names of obs columns, whether or not batches carry them; None means all, as in `add_anndatas`. ``[]`` gives
            the names of the cells alone.

        Returns
        -------
        DataFrame
            (n_obs, n_columns), indexed by the names of the cells: all rows of this loader, or of this part of a split,
            in the order of their global row numbers. With ``shuffle=False`` it is the order of the batches, so that of
            ``rows`` where row numbers were given. Categories are those of all stores.

        Raises
        ------
        InputError
            If a column is not there, or of different kinds in different stores, or a store has no names.
        """
        chosen = None if columns is None else distinct_names("columns", columns)
        return self._opened().obs(chosen, self._runs(), in_order=self._is_ordered)

    def replace(self, **options: Any) -> Self:
        """Give a loader of the same rows with other options.

        It shares the opened stores (they are opened anew if ``layers``, ``obsm``, ``modalities``, ``cache_dir`` or
        ``cache_limit`` change), and stands at the beginning of epoch 0. Both loaders may be iterated at the same time.
        On Python 3.13 ``copy.replace(ds, …)`` does the same.

        Parameters
        ----------
        **options
            Options of `Loader`; all others are those of this loader. ``shuffle`` takes the place of a sampler, and a
            ``sampler`` that of ``shuffle=False``. A part of a split remains that part, unless there are new ``rows``.

        Returns
        -------
        Loader
            The new loader.

        Raises
        ------
        TypeError, ValueError
            As `Loader` does.
        InputError
            If an option does not fit the stores.

        Examples
        --------
        >>> whole = ds.replace(shuffle=False, batch_size=512)  # doctest: +SKIP
        """
        if options.get("sampler") is not None:
            options.setdefault("shuffle", True)
        elif "shuffle" in options:
            options["sampler"] = None
        loader = type(self)(**(self._options | options))
        if "rows" not in options:
            loader._rows, loader._split = self._rows, self._split
        if self._dataset is not None:
            is_same = all(getattr(loader, name) == getattr(self, name) for name in _OPENING_OPTIONS)
            loader._dataset = self._dataset
            loader._use(self._sources if is_same else self._sources.reopened(loader._opening()))
        return loader

    __replace__ = replace

    def split(
        self,
        parts: Mapping[str, Part],
        *,
        by: str | Sequence[str] | None = None,
        stratify: str | Sequence[str] | None = None,
        seed: int = 0,
    ) -> dict[str, Self]:
        """Split the rows into parts that do not overlap, each with a loader of its own.

        The loaders have the settings of this one, and share its opened stores. With ``shuffle=False`` a part keeps the
        order of row numbers that it was given, and of this loader's ``rows`` otherwise. Parts by fraction are random
        runs of neighbouring rows (a thousandth of all rows, at most 512), so that they are read nearly as fast as the
        whole: of a collection that was shuffled when it was written, that is as random as single rows are. ``stratify``
        moves as many single rows between parts as it takes.

        Parameters
        ----------
        parts
            Name of each part to what it shall hold: fractions of the rows; or, with ``by``, lists of categories; or
            masks or global row numbers, as in ``index``. One of them may be None: it gets what the others leave.
        by
            Name of an obs column whose categories are dealt to parts, say to hold donors out; or names of several,
            whose categories are tuples.
        stratify
            Name of an obs column, or names of several, of whose classes each part by fraction gets its share, up to
            one row. Rows whose class is missing are a class here.
        seed
            Seed of the parts by fraction, 0 <= seed < 2**64: the same one gives the same parts.

        Returns
        -------
        dict of str to Loader
            The loaders, in the order of ``parts``.

        Raises
        ------
        InputError
            If parts overlap or are empty, or something is no fraction, category or row; names the part. If a column is
            not there, or holds floats.

        Examples
        --------
        >>> parts = ds.split({"train": 0.8, "valid": 0.1, "test": 0.1}, stratify="cell_type")  # doctest: +SKIP
        >>> parts = ds.split({"train": None, "test": ["donor 3", "donor 7"]}, by="donor")  # doctest: +SKIP
        """
        seed = integer("seed", seed, 0, MAX_WORD)
        whole = self._opened().divisible(self._runs(), by, stratify, is_ordered=self._is_ordered)
        found = split(parts, whole, seed)
        return {name: self._part(rows, describe(parts, name, whole, seed)) for name, rows in found.items()}

    def folds(
        self,
        n_folds: int,
        *,
        by: str | Sequence[str] | None = None,
        stratify: str | Sequence[str] | None = None,
        seed: int = 0,
    ) -> list[dict[str, Self]]:
        """Split the rows for cross-validation: each row is in the test part of one fold, and in training of the others.

        Parameters
        ----------
        n_folds
            Number of folds, at least 2.
        by
            Name of an obs column, or names of several, whose categories stay together, say donors: the largest goes
            first, each to the fold that has the fewest rows so far, as in scikit-learn's ``GroupKFold``. Rows whose
            category is missing stay together, too.
        stratify
            Name of an obs column, or names of several, of whose classes each fold gets an equal share, up to one row,
            as in `split`.
        seed
            Seed of the folds, 0 <= seed < 2**64. With ``by`` there is nothing random.

        Returns
        -------
        list of dict of str to Loader
            For each fold ``{"train": …, "test": …}``.

        Raises
        ------
        InputError
            If there are fewer groups or rows than folds, or a column is not there, or holds floats.

        Examples
        --------
        >>> for fold in ds.folds(5, by="donor"):  # doctest: +SKIP
        ...     fit(fold["train"]), score(fold["test"])
        """
        n_folds, seed = integer("n_folds", n_folds, 2), integer("seed", seed, 0, MAX_WORD)
        whole = self._opened().divisible(self._runs(), by, stratify, is_ordered=self._is_ordered)
        return [
            {name: self._part(rows, describe_fold(i, n_folds, name, whole, seed)) for name, rows in parts.items()}
            for i, parts in enumerate(folds(n_folds, whole, seed))
        ]

    def _part(self, rows: Runs, description: dict[str, Any]) -> Self:
        """Give a loader of some of the rows, which shares the opened stores."""
        part = copy.copy(self)
        part._rows, part._split = rows, description
        part._schedule, part._slabs, part._position, part._live = None, SlabPool(), Position(), None
        part._staging = None
        return part

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """(n_obs,) global row numbers of this loader, as in ``index`` of batches: the rows of `obs`, in its order."""
        runs = self._runs()
        if runs is None:
            return np.arange(self._opened().n_obs)
        rows = runs.find(np.arange(len(runs)))
        return rows if runs.order is None else rows[runs.order]

    @property
    def n_obs(self) -> int:
        """Rows that there are: those of ``rows``, or of this part of a split, or of all stores."""
        return self._scheduled().n_rows

    @property
    def n_vars(self) -> int:
        """Columns of ``data``; raises InputError where each modality has its own, see `mod`."""
        return len(self.var)

    @property
    def var(self) -> pd.DataFrame:
        """The var of the genes that batches have, (n_vars, …).

        Where all stores have the same genes, it is that of the first store. Else it has the columns in which no two
        stores contradict each other about a gene.

        Raises InputError where each modality has its own, see `mod`.
        """
        dataset = self._opened()
        if dataset.modalities:
            name = next(iter(dataset.modalities))
            raise InputError(f"var and n_vars are those of a modality here: mod[{name!r}].var, mod[{name!r}].n_vars")
        return dataset.var

    @property
    def has_function(self) -> bool:
        """Whether ``transform`` has a function of the user's, which may change the type of values."""
        return bool(self._transforms.functions)

    @property
    def mod(self) -> Mapping[str, Dataset]:
        """The modalities: ``ds.mod["rna"].var`` and ``ds.mod["rna"].n_vars``; empty if there are none."""
        return self._opened().modalities

    @property
    def decode(self) -> Decode:
        """Where chunks are decoded: ``"cpu"`` or ``"gpu"``; before there are stores, as it was asked for."""
        if self.device == "cpu":
            return "cpu"
        if self._decode != "auto" or self._dataset is None:
            return self._decode
        return "cpu" if self._dataset.undecodable() else "gpu"

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the obs columns whose codes batches carry."""
        return tuple(column.name for column in self._opened().carried)

    @property
    def categories(self) -> Mapping[str, pd.Index[Any]]:
        """What the codes mean: ``categories["cell_type"][code]``; columns of numbers or booleans are not in it."""
        return {
            column.name: column.categories
            for column in self._opened().carried
            if column.categories is not None and not column.is_boolean
        }

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if (text := scverse_names.missing_attribute(name)) is not None:
                raise AttributeError(text, name=name, obj=self)
            # Raises once more what led here, which may come from inside a property.
            return super().__getattribute__(name)

    def __len__(self) -> int:
        return self.n_batches()

    def __getitem__(self, number: Any) -> NoReturn:
        """Refuse: torch's ``DataLoader`` asks datasets for single rows so.

        Raises
        ------
        TypeError
            Says what a ``DataLoader`` takes.
        """
        raise TypeError(
            f"{type(self).__name__} gives whole batches, and is iterated over; for torch's DataLoader write "
            f"DataLoader(annbatch_torch.TorchLoader(ds), batch_size=None)"
        )

    def n_batches(self, partition: Partition | None = None) -> int:
        """Say how many batches a whole epoch has for one of the consumers; None means the loader's own partition."""
        return self._scheduled().n_batches(partition or self.partition or WHOLE)

    def set_epoch(self, epoch: int) -> None:
        """Let the next ``iter`` give epoch ``epoch`` (>= 0), from its beginning."""
        self._position = Position(integer("epoch", epoch, 0, MAX_WORD))

    @property
    def next_epoch(self) -> int:
        """The epoch that the next ``iter`` gives, or goes on in."""
        return self._position.epoch + self._position.begun

    @property
    def at_end(self) -> bool:
        """Whether all batches of the epoch have been handed over; after `load_state_dict`, whether they had been."""
        position = self._position
        if not position.parts:
            return False
        return self._scheduled().turns(position, position.parts[-1][0]).at_end

    def state_dict(self) -> dict[str, Any]:
        """Say where the run stands: behind the batch that was handed over last.

        The state is small, consists of what JSON holds, and is the same on every rank that has had equally many
        batches. What was read ahead does not count. An iterator that was left early still stands where it was left.

        Returns
        -------
        dict
            For `load_state_dict`.
        """
        return save(self._position, self._fingerprint())

    def load_state_dict(self, state: Mapping[str, Any], partition: Partition | None = None) -> None:
        """Let the next ``iter`` go on where a state was taken: with the batch that would have come next.

        After that, epochs follow as usual. Behind the last batch of an epoch what is left of it is empty. With another
        number of consumers the rest of the epoch is dealt anew: they get exactly the rows that nobody has had.

        Parameters
        ----------
        state
            What `state_dict` gave.
        partition
            Which of several consumers loads it; None means the loader's own partition, or that it is alone.

        Raises
        ------
        InputError
            If the state is of other data or settings, or that of another worker process of a ``DataLoader``; names what
            differs.
        """
        position = load(state, self._fingerprint(), partition or self.partition or WHOLE)
        self._scheduled().turns(position, position.parts[-1][0] if position.parts else 1)
        self._position = position

    def stats(self) -> Stats:
        """Say what the running epoch did so far, or the last one: how fast it was, and what it waited for.

        Counting is always on. It can be asked for at any time, from any thread.

        Returns
        -------
        Stats
            All zeros before the first batch was asked for.

        Examples
        --------
        >>> print(ds.stats())  # doctest: +SKIP
        """
        return Stats.of(self._counters, self._slabs.peak_bytes)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches(Emit())

    def batches(self, emit: Emit, partition: Partition | None = None) -> Epoch:
        """Give the next epoch, or what is left of one, with batches as ``emit`` asks for them: what adapters call.

        It begins when its first batch is asked for. Until then nothing has happened; from then on an iterator that was
        at work before is closed, and asking it for more raises RuntimeError.

        Parameters
        ----------
        emit
            What batches shall look like.
        partition
            Which of several consumers asks; None means the loader's own partition, or that it is alone.
        """
        self._scheduled()
        consumer = partition or self.partition or WHOLE
        if consumer.index == 0:
            self._warn_of_poor_mixing()
        return Epoch(partial(self._begin, emit, consumer))

    def _mixing(self) -> list[Mixing]:
        """Measure how well windows mix rows, by source file and by the first label; obs is read for it."""
        dataset, schedule, position = self._opened(), self._scheduled(), Position()
        position.begin(WHOLE)
        turns = schedule.turns(position, 1)
        numbers = np.unique(np.linspace(0, turns.n_windows - 1, MOST_WINDOWS).astype(np.int64)).tolist()
        windows = [turns.window(number, 0).rows for number in numbers]
        rows = range(dataset.n_obs) if self._rows is None else self.rows
        return [measure(name, codes_of, windows, rows) for name, codes_of in dataset.mixed_columns().items()]

    def _warn_of_poor_mixing(self) -> None:
        """Warn, once, if windows of stores that may lie as they were written mix poorly."""
        if self._is_mixing_known or self._pid != os.getpid() or not isinstance(self.sampler, Shuffled):
            return
        self._is_mixing_known = True
        is_remote = any(table.is_remote for table in self._opened().tables)
        if is_remote or not self._sources.are_unshuffled or self.n_obs < LEAST_ROWS:
            return
        found = self._mixing()
        if not any(one.is_poor for one in found):
            return
        window = self.chunk_size * self.preload_nchunks
        warnings.warn(
            f"the stores lie as they were written, and a window of {window:,} rows mixes them poorly: it has "
            f"{'; '.join(map(str, found))}. Smaller blocks mix better, such as chunk_size=16 and preload_nchunks="
            f"{-(-window // 16)}. A shuffled collection mixes best and reads faster: ds.write_collection(path), once, "
            f"and then use_collection(path)",
            UserWarning,
            stacklevel=4,
        )

    def _begin(self, emit: Emit, partition: Partition, epoch: Epoch) -> Start:
        """Let an iterator take over from the one that is at work, if any."""
        dataset, schedule = self._opened(), self._scheduled()
        dataset.check_files()
        position = Position(self.next_epoch) if self._position.begun else replaced(self._position)
        position.begin(partition)
        turns = schedule.turns(position, partition.count)
        allocate = emit.allocate
        if self.device != "cpu":
            device = open_device(self.device)
            if self._staging is None or self._staging.device is not device:
                self._staging = WindowMemoryPool(device, self.prefetch + 2)
            allocate = device.page_locked
        if self._slabs.allocate != allocate:
            self._slabs = SlabPool(allocate=allocate)
        threads = self.threads or available_cores()
        counters = Counters(position.epoch, threads)
        fetcher = Fetcher(
            {
                name: Carried(
                    part.stores,
                    self._emitted_of(name, part, emit),
                    None if part.genes is None else part.genes.selection,
                    None if part.genes is None else part.genes.columns,
                    part.measured,
                )
                for name, part in dataset.parts.items()
            },
            dataset.carried,
            emit,
            self.batch_size,
            threads,
            self._slabs,
            self.prefetch + 2,
            return_index=self.return_index,
            cell_names=dataset.names,
            staging=self._staging,
            decodes_on_device=self.decode == "gpu",
            transforms=self._transforms,
            counters=counters,
        )
        self._stop()
        self._slabs.begin_peak()
        self._position = position
        self._counters = counters
        self._live = weakref.ref(epoch)
        return Start(turns, partition.index, position, fetcher, self.prefetch)

    def emitted(self, emit: Emit) -> dict[str, Emitted]:
        """Say in which type each element comes in batches of such a form: what adapters ask before they begin.

        Raises
        ------
        InputError
            If ``casting`` does not allow the type that ``emit`` asks for; names the store and the element.
        """
        if self._dataset is None:
            return {}
        return {
            f"{name}:{element}" if name else element: values
            for name, part in self._dataset.parts.items()
            for element, values in self._emitted_of(name, part, emit).items()
        }

    def _emitted_of(self, modality: str, part: Dataset, emit: Emit) -> dict[str, Emitted]:
        return part.emitted(emit, self.casting, self._transforms.of_modality(modality))

    def close(self) -> None:
        """Stop the iterator at work, if any, and its threads, and free memory. The loader can be iterated again."""
        self._stop()
        if self._staging is not None:
            self._staging.clear()
        self._slabs.clear()

    def _facts(self) -> dict[str, str]:
        facts = {"batch_size": str(self.batch_size), "sampler": type(self.sampler).__name__}
        dataset = self._dataset
        if dataset is None:
            return facts | {"stores": "none yet"}
        # A sampler with columns would have to read them first.
        if self._schedule is not None or not self.sampler.columns:
            with suppress(ValueError, TypeError):
                facts |= {"n_obs": f"{self.n_obs:,}", "n_batches": f"{len(self):,}"}
        if dataset.modalities:
            facts |= {f"n_vars of {name}": f"{len(part.var):,}" for name, part in dataset.modalities.items()}
        else:
            facts["n_vars"] = f"{self.n_vars:,}"
        facts["stores"] = f"{len(dataset.stores):,}"
        facts["labels"] = summary.names(
            column.name if column.categories is None else f"{column.name} ({len(column.categories):,} categories)"
            for column in dataset.columns
        )
        if slow := dataset.slow_paths(of_files=True):
            facts["slow"] = "; ".join(slow)
        return facts | {name: summary.names(getattr(self, name)) for name in ("layers", "obsm") if getattr(self, name)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        sources = self._sources.for_others()
        own = {"_live": None, "_slabs": SlabPool(), "_staging": None, "_counters": Counters()}
        state = self.__dict__ | own | {"_sources": sources}
        if self._dataset is not None:
            # pickle may not take a function; the stores have been opened with what it gave.
            kept: Any = self.var_names
            if isinstance(kept, dict):
                parts = self._dataset.modalities
                kept = {name: parts[name].mask if callable(one) else one for name, one in kept.items()}
            elif callable(kept):
                kept = self._dataset.mask
            if kept is not self.var_names:
                state |= {"var_names": kept, "_options": self._options | {"var_names": kept}}
        return state

    def _stop(self) -> None:
        live = self._live() if self._live is not None else None
        if live is not None:
            live.close()

    def _opening(self) -> Opening:
        elements = ("X", *(f"layers/{name}" for name in self.layers), *(f"obsm/{name}" for name in self.obsm))
        return Opening(elements, self._cache, self._index, self.modalities)

    def _dataset_of(self, sources: Sources) -> Dataset:
        wanted, modalities = self.var_names, list(sources.modalities)
        self._transforms.check_modalities(modalities)
        if not modalities:
            if isinstance(wanted, dict):
                raise InputError("var_names must be no dict for data without modalities")
            genes = Genes(wanted, self.var_key, self.absent, self.join)
            before = self._dataset
            options = self.dtype, self.casting, genes, sources.labels, sources.digests
            return Dataset.of(sources.stores, *options, before)
        by_modality = wanted if isinstance(wanted, dict) else {}
        if wanted is not by_modality and wanted is not None:
            raise InputError(f"var_names must be a dict by modality, of {modalities}, got {summary.short(wanted)}")
        if unknown := [name for name in by_modality if name not in modalities]:
            raise InputError(f"var_names must be a dict by modality, of {modalities}, got {unknown}")
        parts = {}
        for name, one in sources.modalities.items():
            genes = Genes(None, join=self.join)
            if name in by_modality:
                genes = Genes(by_modality[name], self.var_key, self.absent, self.join)
            parts[name] = replaced(Dataset.of(one.stores, self.dtype, self.casting, genes), measured=one.mask)
        return Dataset.joint(sources.stores, parts, sources.labels, sources.digests)

    def _use(self, sources: Sources) -> None:
        before = self._dataset
        dataset = self._dataset_of(sources).with_obs(self.classes, names=self.names)
        dataset.check_columns(self.sampler.columns, "columns of the sampler")
        if self._decode == "gpu" and (why := dataset.undecodable()):
            raise InputError(f"decode 'gpu' cannot be had: {why}")
        for text in dataset.differences(before):
            warnings.warn(text, UserWarning, stacklevel=3)
        self._dataset, self._sources = dataset, sources
        dataset.report_paths()
        if self.device != "cpu":
            dataset.report_decoding(self._decode)
        self._schedule = None

    def _cache(self) -> DiskCache | None:
        return None if self.cache_dir is None else DiskCache(self.cache_dir, self.cache_limit)

    def _index(self) -> FileIndex | None:
        return None if self.cache_dir is None else FileIndex(self.cache_dir / "h5ad-index")

    def _opened(self) -> Dataset:
        if self._dataset is None:
            raise InputError("a Loader needs stores before it is used: call use_collection, use_h5ad or add_anndatas")
        return self._dataset

    def _runs(self) -> Runs | None:
        rows = self._rows
        if rows is None:
            return None
        if not isinstance(rows, Runs):
            return Runs.of(rows, self._opened().n_obs, ordered=self._is_ordered)
        return rows if self._is_ordered else replaced(rows, order=None)

    @property
    def _is_ordered(self) -> bool:
        """Whether the order in which rows are named counts."""
        return isinstance(self.sampler, Sequential)

    def _scheduled(self) -> Schedule:
        """Give the order of the epochs; it is made when it is needed first, since stores may be added one by one."""
        dataset = self._opened()
        if self._schedule is None:
            settings = Settings(
                self.sampler, self.batch_size, self.chunk_size, self.preload_nchunks, self.seed, self.drop_last
            )
            classes = {name: dataset.classes(name) for name in self.sampler.columns}
            self._schedule = Schedule(settings, dataset.store_rows, classes, self._runs(), dataset.fingerprint())
        return self._schedule

    def _fingerprint(self) -> dict[str, Any]:
        # Named only where they were asked for: states of earlier versions remain valid.
        optional = {"split": self._split, "class_columns": sorted(self.classes) or None}
        return self._scheduled().fingerprint | {name: value for name, value in optional.items() if value is not None}
