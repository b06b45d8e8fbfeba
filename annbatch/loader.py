"""How does a user get shuffled batches from stores?

1. `Loader.use_collection`, `Loader.use_h5ad` or `Loader.add_anndatas` opens the stores (`annbatch.loader_data`).
2. A schedule says which rows make each window (`annbatch.order.schedule`, `annbatch.samplers`).
3. A fetcher reads windows into batches (`annbatch.fetch`), one or more of them ahead (`annbatch.prefetch`).
4. The batches of each window are handed over one by one, and counted, so that a run can resume where it stopped
   (`annbatch.order.state`).
5. `Loader.replace`, `Loader.split` and `Loader.folds` derive loaders that share the opened stores.
"""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace as replaced
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy.typing as npt

from annbatch import scverse_names
from annbatch.batch import Batch, Emit
from annbatch.batches.casts import Casting
from annbatch.buffers import SlabPool
from annbatch.check import available_cores, boolean, integer, least_rows
from annbatch.counters import Counters
from annbatch.dataset import Dataset
from annbatch.device.window_memory import WindowMemoryPool
from annbatch.epoch import Epoch, Start
from annbatch.fetch import Carried, Fetcher
from annbatch.loader_data import Decode, LoaderData
from annbatch.order.consumers import Partition
from annbatch.order.mixing import LEAST_ROWS, Mixing, advice, measure_windows
from annbatch.order.permutation import MAX_WORD
from annbatch.order.row_selection import Runs
from annbatch.order.schedule import Schedule, Settings
from annbatch.order.splits import Part, describe, describe_fold, folds, split
from annbatch.order.state import Position, load, save
from annbatch.samplers import Sampler, Sequential, Shuffled
from annbatch.stats import Stats
from annbatch.stores.gene_join import How
from annbatch.stores.gene_selection import Absent, VarNames
from annbatch.transform import Transform
from annbatch.warn import warn

WHOLE = Partition(0, 1)
"""The partition of a consumer that is alone."""

_OPENING_OPTIONS = ("layers", "obsm", "modalities", "cache_dir", "cache_limit")
"""Options that change what is opened, or how."""


class Loader(LoaderData):
    """Stream shuffled mini-batches of cells from AnnData stores that need not fit in memory.

    Which cells each batch holds depends only on the stores, ``rows``, the sampler, ``seed``, the epoch, ``batch_size``,
    ``chunk_size``, ``preload_nchunks`` and ``drop_last``. All options are keyword-only.

    Parameters
    ----------
    batch_size
        Rows in a batch.
    chunk_size
        Rows in a *block*, which is read contiguously. Larger blocks are read faster; smaller ones mix rows better where
        stores are not shuffled.
    preload_nchunks
        Number of blocks that are read together and shuffled among themselves. They are a *window*: ``chunk_size *
        preload_nchunks`` rows, rounded up to a multiple of ``batch_size``.
    shuffle
        Whether blocks, and the rows of each window, come in random order. Must not be False if there is a ``sampler``.
    seed
        Seed of that order, 0 <= seed < 2**64.
    drop_last
        Whether to drop the rows at the end of an epoch that do not fill a batch, on each consumer. A number of rows, at
        least 2, drops only smaller last batches: ``drop_last=2`` drops a last batch of one row, which batch
        normalisation cannot take. With n consumers, fewer than n times that many rows are dropped. Samplers that make
        whole batches drop those that cannot be shared out equally.
    return_index
        Whether batches carry the global row numbers, ``batch["index"]``.
    sampler
        Which rows an epoch has, and in which batches: one from `annbatch.samplers`, or your own. None means every row
        once, as ``shuffle`` says.
    rows
        Rows of the stores to use: a boolean mask, or distinct global row numbers. None means all. Only the chunks that
        hold these rows are read. With ``shuffle=False`` or `annbatch.samplers.Sequential`, row numbers are used in the
        given order; otherwise their order does not matter.
    dtype
        Type of the values of X and layers. None means the type that they had before they were written. Adapters request
        a type of their own.
    casting
        Which casts to ``dtype``, or to the type that an adapter requests, are allowed, in NumPy's terms. The default
        allows only casts that cannot lose values. float32, the default of adapters, is always allowed: wider floats are
        rounded. An integer that float32, or float64, cannot represent raises an error, unless ``casting`` is
        ``"same_kind"`` or ``"unsafe"``.
    var_names
        Genes of X and layers: names, in the requested order; a boolean mask of all genes; or a function that takes var
        and returns such a mask, such as ``lambda var: var["highly_variable"]``. None means all genes. For a collection
        with modalities, a dict of these; modalities that it does not name have all genes: ``{"rna": names}``.
    var_key
        Column of var that holds ``var_names``, such as ``"gene_ids"``. None means the index of var.
    absent
        What to do with ``var_names`` that a store lacks. ``"error"``: raise an error. ``"zero"``: give them zeros in
        the store's rows, with a warning if other stores have them; `var` then has a boolean column ``"absent"`` that
        marks the genes that no store has. It is always an error if no store has any of them.
    join
        Which genes to use if the stores differ. ``"same"``: refuse stores whose sets of genes differ; their order may
        differ. ``"outer"``: the genes of all stores, with zeros where a store lacks one. ``"inner"``: those that all
        stores have. Genes are in the order of first appearance. ``var_names`` selects from these. With ``"same"``,
        ``var_names`` that all stores have are accepted even if the stores differ in other genes.
    transform
        What to do with each batch: `LogNormalize`, `Binarize`, a function that takes a `Batch` and returns one
        (``batch.replace(data=…)``), or a list of these with functions last. The threads that read ahead call functions,
        for several batches at a time. With a ``device``, they are called when a batch is requested.
    layers, obsm
        Layers, and elements of obsm, that batches carry in addition to ``data``. For a collection with modalities,
        prefix names with the modality: ``layers=["rna:counts"]``.
    names
        Whether batches carry the names of the cells: ``batch["names"]``, also the index of ``batch["labels"]``. Only
        the names of a window's rows are in memory.
    classes
        obs columns of integers, booleans, text or categories to use as classes. ``batch.codes`` then holds int32 codes
        into `categories` (missing -1), and ``batch["labels"]`` categories. Batches carry these columns even if they are
        not among the labels. The values of an integer column are read once, when first needed, and kept as codes of one
        to four bytes a row; its categories are the values that occur, in ascending order.
    modalities
        For a collection with modalities: those to read, in this order. None means all.
    partition
        Which of several consumers this loader is, such as ``Partition(rank, world_size)``. All consumers get the same
        number of batches. None means that it is alone, or that an adapter finds its rank.
    threads
        Threads that read and decode. None means as many as this process may use cores.
    prefetch
        Windows to read ahead while the caller works with one. 0 reads in the caller's thread.
    cache_dir
        Local folder in which to keep what is read from object stores, for the next epoch and other processes. It also
        keeps an index of ``.h5ad`` files, which then open faster. Processes may share the folder. None keeps nothing.
    cache_limit
        Maximum size of cached objects, such as ``"20GB"``, or in bytes. The least recently used are removed first. The
        index of ``.h5ad`` files does not count.
    device
        Where the matrices of batches are: ``"cpu"`` for NumPy arrays, or a CUDA device (``"cuda"``, ``"cuda:1"``, …)
        for CuPy arrays with the same contents, bit for bit. CuPy arrays are made on the stream that is current in CuPy
        when a batch is requested; on that stream they may be used and dropped at any time. Codes and index remain NumPy
        arrays.
    decode
        Where chunks are decoded if ``device`` is a CUDA device. ``"cpu"``; or ``"gpu"``, for local stores whose inner
        chunks are packed, or zstd with or without numcodecs' shuffle, as ``create_anndata_collection`` writes them with
        ``codec="packed"`` and ``codec="zstd"``. zstd needs nvCOMP. ``"auto"`` uses the device if it can decode all
        sparse matrices, and the logger ``annbatch`` reports the choice. nvCOMP's behaviour on damaged zstd frames is
        undefined: use ``"cpu"`` for zstd stores that you do not trust.

    Raises
    ------
    TypeError, ValueError
        If an argument does not have the type or range given above.
    InputError
        If there is no such device, or CuPy is not installed.

    Examples
    --------
    >>> from annbatch import Loader
    >>> ds = Loader(batch_size=32).use_collection("collection", labels=["cell_type"])
    >>> for batch in ds:
    ...     x, codes = batch["data"], batch.codes["cell_type"]
    >>> x.shape, codes.dtype, sorted(ds.categories["cell_type"])
    ((24, 6), dtype('int32'), ['B', 'NK', 'T'])
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
        self._options = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.batch_size = integer("batch_size", batch_size, 1)
        self.chunk_size = integer("chunk_size", chunk_size, 1)
        self.preload_nchunks = integer("preload_nchunks", preload_nchunks, 1)
        self.shuffle = boolean("shuffle", shuffle)
        if sampler is not None and not isinstance(sampler, Sampler):
            raise TypeError(f"sampler must have the members columns, bind and describe, got {type(sampler).__name__}")
        if sampler is not None and not shuffle:
            raise ValueError("shuffle must not be False if there is a sampler: the sampler decides the order")
        self.seed = integer("seed", seed, 0, MAX_WORD)
        self.drop_last = least_rows("drop_last", drop_last, self.batch_size)
        self.return_index = boolean("return_index", return_index)
        super().__init__(
            sampler=sampler if sampler is not None else Shuffled() if shuffle else Sequential(),
            rows=rows,
            dtype=dtype,
            casting=casting,
            var_names=var_names,
            var_key=var_key,
            absent=absent,
            join=join,
            transform=transform,
            layers=layers,
            obsm=obsm,
            names=names,
            classes=classes,
            modalities=modalities,
            cache_dir=cache_dir,
            cache_limit=cache_limit,
            device=device,
            decode=decode,
        )
        self.threads = None if threads is None else integer("threads", threads, 1)
        self.prefetch = integer("prefetch", prefetch, 0)
        if partition is not None and not isinstance(partition, Partition):
            raise TypeError(f"partition must be a Partition, got {type(partition).__name__}")
        self.partition = partition
        self._split: dict[str, Any] | None = None
        self._schedule: Schedule | None = None
        self._schedule_of: Dataset | None = None
        self._position = Position()
        self._live: weakref.ref[Epoch] | None = None
        self._counters = Counters()
        self._slabs = SlabPool()
        self._staging: WindowMemoryPool | None = None
        self._is_mixing_known = False
        self._pid = os.getpid()

    def replace(self, **options: Any) -> Self:
        """Return a loader of the same rows with other options.

        It shares the opened stores, unless ``layers``, ``obsm``, ``modalities``, ``cache_dir`` or ``cache_limit``
        change, and starts at the beginning of epoch 0. Both loaders can be iterated at the same time. On Python 3.13,
        ``copy.replace(ds, …)`` does the same.

        Parameters
        ----------
        **options
            Options of `Loader`; all others are those of this loader. ``shuffle`` replaces a sampler, and a ``sampler``
            replaces ``shuffle=False``. A part of a split remains that part, unless there are new ``rows``.

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
        >>> from annbatch import Loader
        >>> ds = Loader(batch_size=32).use_collection("collection")
        >>> in_order = ds.replace(shuffle=False, batch_size=64)
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
        """Split the rows into parts that do not overlap, and return a loader for each.

        The loaders have the options of this one and share its opened stores. With ``shuffle=False``, a part keeps the
        order of the row numbers given for it, or else of this loader's ``rows``.

        Parts by fraction consist of random runs of neighbouring rows, each at most a thousandth of all rows and at most
        512 rows long. They are read nearly as fast as the whole. If a collection was shuffled when it was written, they
        are as random as single rows. ``stratify`` moves as many single rows between parts as necessary.

        Parameters
        ----------
        parts
            The parts by name, each given by a fraction of the rows; or, with ``by``, a list of categories; or a mask or
            global row numbers, as in ``batch["index"]``. One value may be None: that part gets the remaining rows.
        by
            obs column whose categories ``parts`` lists, for example to hold out donors; or several columns, whose
            categories are tuples.
        stratify
            obs column, or several. Each part by fraction gets its share of every class, up to one row. Rows whose class
            is missing count as a class of their own.
        seed
            Seed of the parts by fraction, 0 <= seed < 2**64. The same seed gives the same parts.

        Returns
        -------
        dict of str to Loader
            The loaders, in the order of ``parts``.

        Raises
        ------
        InputError
            If parts overlap or are empty, or a value is not a fraction, a category or a row. The error names the part.
            Also if a column is missing or holds floats.

        Examples
        --------
        >>> from annbatch import Loader
        >>> ds = Loader(batch_size=32).use_collection("collection")
        >>> parts = ds.split({"train": 0.8, "val": 0.1, "test": 0.1}, stratify="cell_type")
        >>> parts = ds.split({"train": None, "test": ["donor 3", "donor 4"]}, by="donor")
        >>> parts["train"].n_obs, parts["test"].n_obs
        (72, 48)
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
        """Split the rows for cross-validation.

        Each row is in the test part of one fold, and in the training parts of the others.

        Parameters
        ----------
        n_folds
            Number of folds, at least 2.
        by
            obs column, or several, whose categories stay together, for example donors. As in scikit-learn's
            ``GroupKFold``, categories are assigned from the largest to the smallest, each to the fold that has the
            fewest rows so far. Rows whose category is missing stay together, too.
        stratify
            obs column, or several. Each fold gets an equal share of every class, up to one row, as in `split`.
        seed
            Seed of the folds, 0 <= seed < 2**64. With ``by`` nothing is random.

        Returns
        -------
        list of dict of str to Loader
            For each fold ``{"train": …, "test": …}``.

        Raises
        ------
        InputError
            If there are fewer groups or rows than folds, or a column is missing, or holds floats.

        Examples
        --------
        >>> from annbatch import Loader
        >>> ds = Loader(batch_size=32).use_collection("collection")
        >>> [(fold["train"].n_obs, fold["test"].n_obs) for fold in ds.folds(5, by="donor")]
        [(96, 24), (96, 24), (96, 24), (96, 24), (96, 24)]
        """
        n_folds, seed = integer("n_folds", n_folds, 2), integer("seed", seed, 0, MAX_WORD)
        whole = self._opened().divisible(self._runs(), by, stratify, is_ordered=self._is_ordered)
        return [
            {name: self._part(rows, describe_fold(i, n_folds, name, whole, seed)) for name, rows in parts.items()}
            for i, parts in enumerate(folds(n_folds, whole, seed))
        ]

    def _part(self, rows: Runs, description: dict[str, Any]) -> Self:
        """Return a loader of some of the rows, which shares the opened stores."""
        part = copy.copy(self)
        part._rows, part._split = rows, description
        part._schedule, part._slabs, part._position, part._live = None, SlabPool(), Position(), None
        part._staging = None
        return part

    @property
    def n_obs(self) -> int:
        """Number of rows in ``rows``, in this part of a split, or in all stores."""
        return self._scheduled().n_rows

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if (text := scverse_names.missing_attribute(name)) is not None:
                raise AttributeError(text, name=name, obj=self)
            # Raises once more what led here, which may come from inside a property.
            return super().__getattribute__(name)

    def __len__(self) -> int:
        return self.n_batches()

    def __getitem__(self, number: Any) -> NoReturn:
        """Raise TypeError: torch's ``DataLoader`` would ask for single rows this way."""
        raise TypeError(
            f"{type(self).__name__} yields whole batches and must be iterated over; for torch's DataLoader, write "
            f"DataLoader(annbatch_torch.TorchLoader(ds), batch_size=None)"
        )

    def n_batches(self, partition: Partition | None = None) -> int:
        """Return the number of batches in a whole epoch.

        Parameters
        ----------
        partition
            The consumer that gets them; None means the loader's own partition.
        """
        return self._scheduled().n_batches(partition or self.partition or WHOLE)

    def set_epoch(self, epoch: int) -> None:
        """Make the next ``iter`` start epoch ``epoch`` (>= 0) from its beginning."""
        self._position = Position(integer("epoch", epoch, 0, MAX_WORD))

    @property
    def next_epoch(self) -> int:
        """The epoch that the next ``iter`` starts or continues."""
        return self._position.epoch + self._position.begun

    @property
    def at_end(self) -> bool:
        """Whether all batches of the epoch have been handed over; after `load_state_dict`, of the state's epoch."""
        position = self._position
        if not position.parts:
            return False
        return self._scheduled().turns(position, position.parts[-1][0]).at_end

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the run: after the last batch that was handed over.

        The state is small and can be written as JSON. It is the same on all ranks that have had the same number of
        batches. Batches that were read ahead do not count. If an iterator was left early, the position is after the
        last batch that it gave.

        Returns
        -------
        dict
            For `load_state_dict`.

        Examples
        --------
        >>> from annbatch import Loader
        >>> ds = Loader(batch_size=32).use_collection("collection")
        >>> batches = iter(ds)
        >>> first = next(batches)
        >>> state = ds.state_dict()
        >>> resumed = Loader(batch_size=32).use_collection("collection")
        >>> resumed.load_state_dict(state)
        >>> bool((next(iter(resumed)).index == next(batches).index).all())
        True
        """
        return save(self._position, self._fingerprint())

    def load_state_dict(self, state: Mapping[str, Any], partition: Partition | None = None) -> None:
        """Make the next ``iter`` continue where a state was taken, with the batch that would have come next.

        Later epochs follow as usual. If the state was taken after the last batch of an epoch, the rest of that epoch is
        empty. With a different number of consumers, the rest of the epoch is dealt out anew: together they get exactly
        the rows that no consumer has had.

        Parameters
        ----------
        state
            What `state_dict` returned.
        partition
            The consumer that loads it. None means the loader's own partition, or that it is alone.

        Raises
        ------
        InputError
            If the state belongs to other data or settings, or to another worker process of a ``DataLoader``. The error
            names what differs.
        """
        own = self._fingerprint()
        self._opened().check_state_files(state, own.get("files", []))
        position = load(state, own, partition or self.partition or WHOLE)
        self._scheduled().turns(position, position.parts[-1][0] if position.parts else 1)
        self._position = position

    def stats(self) -> Stats:
        """Return the speed of the running or last epoch, and what it waited for.

        The loader always counts. You can call this at any time, from any thread.

        Returns
        -------
        Stats
            All zeros before the first batch was requested.

        Examples
        --------
        >>> from annbatch import Loader
        >>> ds = Loader(batch_size=32).use_collection("collection")
        >>> ds.stats().cells, sum(len(batch.index) for batch in ds), ds.stats().cells
        (0, 120, 120)
        """
        return Stats.of(self._counters, self._slabs.peak_bytes)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches(Emit())

    def batches(self, emit: Emit, partition: Partition | None = None) -> Epoch:
        """Return the next epoch, or the rest of one, with batches in the form of ``emit``. Adapters call this.

        The epoch begins when its first batch is requested; before that, nothing happens. It then closes the iterator
        of the previous epoch, which raises RuntimeError from then on.

        Parameters
        ----------
        emit
            The form of the batches.
        partition
            The consumer that gets the batches. None means the loader's own partition, or that it is alone.
        """
        self._scheduled()
        consumer = partition or self.partition or WHOLE
        if consumer.index == 0:
            self._warn_of_poor_mixing()
        return Epoch(partial(self._begin, emit, consumer))

    def _mixing(self) -> list[Mixing]:
        """Measure how well windows mix rows, by source file and by the first label; obs is read for it."""
        dataset = self._opened()
        rows = range(dataset.n_obs) if self._rows is None else self.rows
        return measure_windows(self._scheduled(), dataset.mixed_columns(), rows)

    def _warn_of_poor_mixing(self) -> None:
        """Warn, once, if windows of stores that may lie as they were written mix poorly."""
        if self._is_mixing_known or self._pid != os.getpid() or not isinstance(self.sampler, Shuffled):
            return
        self._is_mixing_known = True
        is_remote = any(table.is_remote for table in self._opened().tables)
        if is_remote or not self._sources.are_unshuffled or self.n_obs < LEAST_ROWS:
            return
        found = self._mixing()
        if any(one.is_poor for one in found):
            warn(advice(found, self.chunk_size * self.preload_nchunks))

    def _begin(self, emit: Emit, partition: Partition, epoch: Epoch) -> Start:
        """Start an epoch for an iterator, in place of the one that is at work, if any."""
        dataset, schedule = self._opened(), self._scheduled()
        dataset.check_files()
        position = Position(self.next_epoch) if self._position.begun else replaced(self._position)
        position.begin(partition)
        turns = schedule.turns(position, partition.count)
        allocate = emit.allocate
        if self.device != "cpu":
            device = self._open_device()
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

    def close(self) -> None:
        """Stop the running iterator and its threads, if any, and free memory. The loader can be iterated again."""
        self._stop()
        if self._staging is not None:
            self._staging.clear()
        self._slabs.clear()

    def _facts(self) -> dict[str, str]:
        facts = {"batch_size": str(self.batch_size), "sampler": type(self.sampler).__name__}
        # A sampler with columns would have to read them first.
        if self._dataset is not None and (self._schedule_of is self._dataset or not self.sampler.columns):
            with suppress(ValueError, TypeError):
                facts |= {"n_obs": f"{self.n_obs:,}", "n_batches": f"{len(self):,}"}
        return facts | super()._facts()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        own = {"_live": None, "_slabs": SlabPool(), "_staging": None, "_counters": Counters()}
        state = super().__getstate__() | own
        if state["var_names"] is not self.var_names:
            state["_options"] = self._options | {"var_names": state["var_names"]}
        return state

    def _stop(self) -> None:
        live = self._live() if self._live is not None else None
        if live is not None:
            live.close()

    def _scheduled(self) -> Schedule:
        """Return the order of the epochs. It is made when first needed, since stores may be added one by one."""
        dataset = self._opened()
        if self._schedule is None or self._schedule_of is not dataset:
            settings = Settings(
                self.sampler, self.batch_size, self.chunk_size, self.preload_nchunks, self.seed, self.drop_last
            )
            classes = {name: dataset.classes(name) for name in self.sampler.columns}
            self._schedule = Schedule(settings, dataset.store_rows, classes, self._runs(), dataset.fingerprint())
            self._schedule_of = dataset
        return self._schedule

    def _fingerprint(self) -> dict[str, Any]:
        # Named only where they were asked for: states of earlier versions remain valid.
        optional = {"split": self._split, "class_columns": sorted(self.classes) or None}
        return self._scheduled().fingerprint | {name: value for name, value in optional.items() if value is not None}
