"""Which cells and genes does a loader read?

1. `LoaderData.use_collection`, `LoaderData.use_h5ad` and `LoaderData.add_anndatas` open stores (`annbatch.sources`).
2. All stores together are one `annbatch.dataset.Dataset`: they must agree, or are joined as the options say.
3. Properties describe the data; `LoaderData.obs` reads them, and `LoaderData.write_collection` writes them.

In which order rows come, and how batches are read, is the job of `annbatch.loader`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any, Literal, Self, get_args

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd

from annbatch import scverse_names, summary
from annbatch.batch import Emit
from annbatch.batches.casts import Casting, Emitted
from annbatch.check import boolean, byte_count, distinct_names, expanded, one_of
from annbatch.dataset import Dataset
from annbatch.device.cuda import Device, open_device
from annbatch.errors import InputError
from annbatch.order.row_selection import Runs
from annbatch.remote.disk_cache import DiskCache
from annbatch.samplers import Sampler, Sequential
from annbatch.sources import Opening, Sources
from annbatch.stores.anndata_store import DenseMatrix
from annbatch.stores.collection import Collection
from annbatch.stores.file_index import FileIndex
from annbatch.stores.gene_join import How
from annbatch.stores.gene_selection import Absent, GeneOptions, VarNames
from annbatch.summary import Summary
from annbatch.transform import Transform, Transforms
from annbatch.warn import warn

Decode = Literal["auto", "cpu", "gpu"]


class LoaderData(Summary):
    """The data of a loader: opened stores, of which it reads some rows, genes and elements.

    The parameters are those of `annbatch.Loader`, which owns the defaults.

    Raises
    ------
    TypeError, ValueError
        If an argument does not have the right type or range.
    InputError
        If there is no such device.
    """

    def __init__(
        self,
        *,
        sampler: Sampler,
        rows: npt.ArrayLike | None,
        dtype: npt.DTypeLike | None,
        casting: Casting,
        var_names: VarNames | Mapping[str, VarNames] | None,
        var_key: str | None,
        absent: Absent,
        join: How,
        transform: Transform | Sequence[Transform] | None,
        layers: Sequence[str],
        obsm: Sequence[str],
        names: bool,
        classes: Sequence[str],
        modalities: Sequence[str] | None,
        cache_dir: str | os.PathLike[str] | None,
        cache_limit: str | int,
        device: str,
        decode: Decode,
    ) -> None:
        self.sampler = sampler
        self._rows: npt.ArrayLike | Runs | None = rows
        self.dtype = None if dtype is None else np.dtype(dtype)
        if self.dtype is not None and self.dtype.kind not in "biuf":
            raise TypeError(f"dtype must be boolean, integer or floating, got {self.dtype}")
        one_of("casting", casting, get_args(Casting))
        self.casting: Casting = casting
        genes = GeneOptions.of(var_names, var_key, absent, join)
        self.var_names, self.var_key, self.absent = genes.var_names, genes.var_key, genes.absent
        self.join: How = join
        self.layers = distinct_names("layers", layers)
        self.obsm = distinct_names("obsm", obsm)
        self.classes = distinct_names("classes", classes)
        self.names = boolean("names", names)
        self._transforms = Transforms.of(transform, self.layers, self.dtype)
        self.transform = transform
        self.modalities = None if modalities is None else distinct_names("modalities", modalities)
        self.cache_dir = None if cache_dir is None else Path(expanded(cache_dir))
        self._index = None if self.cache_dir is None else FileIndex(self.cache_dir / "h5ad-index")
        self.cache_limit = byte_count("cache_limit", cache_limit)
        self.device = device if device == "cpu" else open_device(device).name
        one_of("decode", decode, get_args(Decode))
        if device == "cpu" and decode != "auto":
            raise InputError(f"decode must be 'auto' if device is 'cpu', got {decode!r}")
        self._decode: Decode = decode
        self._sources = Sources()
        self._dataset: Dataset | None = None

    def add_anndatas(self, adatas: Sequence[ad.AnnData], labels: Sequence[str] | None = None) -> Self:
        """Add AnnData objects whose X is stored by rows, in a zarr store or an ``.h5ad`` file, or is in memory.

        X can be a `anndata.io.sparse_dataset` (CSR) on a zarr store, a zarr array, the X of
        ``ad.read_h5ad(path, backed="r")``, which is read as `use_h5ad` reads it, or a CSR matrix or an array in memory.

        Rows are numbered through the objects in the given order. Several calls are the same as one call with all
        objects. Messages number the objects through all calls, starting with ``adatas[0]``.

        Parameters
        ----------
        adatas
            The objects. If their genes differ, see ``join``.
        labels
            obs columns that batches carry, the same in all calls. None means all, except columns that are of different
            kinds in different objects. In objects that lack a column, its values are missing. A warning names the
            columns in both cases.

        Returns
        -------
        Loader
            This loader.

        Raises
        ------
        InputError
            If there is nothing to add, or an object breaks one of the rules above. The error names the object and
            the element.
        OutputError
            If the folder of the cache cannot be made.
        """
        self._use(self._sources.with_anndatas(adatas, labels, self._opening()))
        return self

    @scverse_names.refusing_their_options
    def use_collection(self, path: Any, labels: Sequence[str] | None = None) -> Self:
        """Read a collection that annbatch or scverse annbatch wrote.

        Parameters
        ----------
        path
            A `Collection`; its directory; its URL in an object store (``s3://``, ``gs://``, ``az://``, ``https://``);
            or an obstore store, or a zarr store, whose root it is.
        labels
            obs columns that batches carry, the same in all calls; None means all, as in `add_anndatas`. For a
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
            If a file of the collection is missing, or does not have its recorded size.
        InputError
            If a label is not an obs column.
        OutputError
            If the folder of the cache cannot be made.
        ImportError
            If obstore is needed to read it, and is not installed.

        Examples
        --------
        >>> from annbatch import Loader
        >>> ds = Loader(batch_size=32).use_collection("collection", labels=["cell_type"])
        >>> ds.n_obs, ds.n_vars, len(ds)
        (120, 6, 4)
        """
        self._use(self._sources.with_collection(path, labels, self._opening()))
        return self

    def use_h5ad(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        labels: Sequence[str] | None = None,
    ) -> Self:
        """Read ``.h5ad`` files in place, without converting them.

        X, layers and obsm may be CSR or dense. Rows that are uncompressed, or were written with the HDF5 filters gzip,
        lzf, zstd, blosc, shuffle and fletcher32, are read straight from the file, without HDF5. h5py reads the rest, in
        one thread at a time: other filters, and chunks that hold parts of rows. The ``repr`` and the log report this,
        with the reason.

        If a file changes or disappears, an error names it at the beginning of an epoch or with the next window.

        Cells are in the order of the files. A small ``chunk_size`` and a large ``preload_nchunks`` mix them best.

        If opening the files takes more than a few seconds, worker processes open some of them. They end before this
        method returns.

        Parameters
        ----------
        paths
            Path of a file, or of several. Rows are numbered through the files in this order. If their genes differ, see
            ``join``.
        labels
            obs columns that batches carry, the same in all calls; None means all. Columns are read into memory: name
            only those that you need.

        Returns
        -------
        Loader
            This loader.

        Raises
        ------
        MissingInputError
            If there is no such file.
        InputError
            If there is no path, a file holds no AnnData, an element is missing or stored by columns (CSC), or HDF5
            lacks a filter. The error names the file and the element.
        StoreError
            If a file cannot be read, or its parts contradict each other.

        Examples
        --------
        >>> from annbatch import Loader
        >>> ds = Loader(batch_size=32, chunk_size=4, preload_nchunks=16)
        >>> ds = ds.use_h5ad(["a.h5ad", "b.h5ad"], labels=["cell_type"])
        >>> batch = next(iter(ds))
        """
        self._use(self._sources.with_h5ads(paths, labels, self._opening()))
        return self

    def write_collection(self, path: str | os.PathLike[str], **options: Any) -> Collection:
        """Write the rows of all stores, shuffled, as a collection, which `use_collection` reads fastest.

        The collection has what this loader's batches have: the joined or selected genes, and the same layers, elements
        of obsm and labels.

        Parameters
        ----------
        path
            Directory to make.
        **options
            Options of `create_anndata_collection`, such as ``codec`` or ``memory_limit``. They take precedence over
            those that follow from this loader: ``join``, ``var_names``, ``layers``, ``obsm``, ``obs_columns`` and
            ``dense``.

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
        >>> from annbatch import Loader
        >>> ds = Loader(batch_size=32).use_h5ad(["a.h5ad", "b.h5ad"])
        >>> ds = Loader(batch_size=32).use_collection(
        ...     ds.write_collection("shuffled", progress=False)
        ... )
        """
        dataset = self._opened()
        if self._rows is not None:
            raise InputError(
                "write_collection writes all rows, and this loader has only some: call it on a loader without rows= "
                "that is not a part of a split"
            )
        if dataset.modalities:
            raise InputError(
                "write_collection writes data without modalities, and these have some; use "
                "annbatch.reshuffle_collection to shuffle a collection anew"
            )
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
        # Imported here: only those who write need it.
        from annbatch.write import create_anndata_collection

        return create_anndata_collection(self._sources.inputs(), path, **(chosen | options))

    def obs(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Read obs without the counts.

        Columns are read a slice of rows at a time; only the requested columns are read.

        Parameters
        ----------
        columns
            Names of obs columns, whether or not batches carry them. None means all, as in `add_anndatas`; ``[]`` means
            only the names of the cells.

        Returns
        -------
        DataFrame
            (n_obs, n_columns), indexed by the names of the cells: the rows of this loader, or of this part of a split,
            in the order of their global row numbers. With ``shuffle=False`` the order is that of the batches, and so
            that of ``rows`` if row numbers were given. Categories are those of all stores.

        Raises
        ------
        InputError
            If a column is missing, or of different kinds in different stores, or a store has no names.
        """
        chosen = None if columns is None else distinct_names("columns", columns)
        return self._opened().obs(chosen, self._runs(), in_order=self._is_ordered)

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Global row numbers of this loader, (n_obs,), as in ``batch["index"]``: the rows of `obs`, in its order."""
        runs = self._runs()
        if runs is None:
            return np.arange(self._opened().n_obs)
        rows = runs.find(np.arange(len(runs)))
        return rows if runs.order is None else rows[runs.order]

    @property
    def n_vars(self) -> int:
        """Number of genes, the columns of ``data``.

        Raises
        ------
        InputError
            If each modality has its own; see `mod`.
        """
        return self._of_genes().n_vars

    @property
    def var(self) -> pd.DataFrame:
        """The var of the genes that batches have, (n_vars, …).

        If all stores have the same genes, it is that of the first store. Otherwise it has the columns in which no two
        stores contradict each other about a gene.

        Raises
        ------
        InputError
            If each modality has its own; see `mod`.
        """
        return self._of_genes().var

    @property
    def has_function(self) -> bool:
        """Whether ``transform`` has a function of the user's, which may change the type of values."""
        return bool(self._transforms.functions)

    @property
    def mod(self) -> Mapping[str, Dataset]:
        """The modalities by name, as in ``ds.mod["rna"].var`` and ``ds.mod["rna"].n_vars``; empty if there are none."""
        return self._opened().modalities

    @property
    def decode(self) -> Decode:
        """Where chunks are decoded, ``"cpu"`` or ``"gpu"``; before there are stores, the option as it was given."""
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
        """Categories of each label column; ``categories["cell_type"][code]`` is the category of a code.

        Columns of numbers or booleans are not in it.
        """
        return {
            column.name: column.categories
            for column in self._opened().carried
            if column.categories is not None and not column.is_boolean
        }

    def emitted(self, emit: Emit) -> dict[str, Emitted]:
        """Return the type of each element in batches of the form ``emit``. Adapters call this before they begin.

        Raises
        ------
        InputError
            If ``casting`` does not allow the type of ``emit``. The error names the store and the element.
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

    def _facts(self) -> dict[str, str]:
        dataset = self._dataset
        if dataset is None:
            return {"stores": "none yet"}
        facts = {f"n_vars of {name}": f"{part.n_vars:,}" for name, part in dataset.modalities.items()}
        facts = facts or {"n_vars": f"{self.n_vars:,}"}
        facts["stores"] = f"{len(dataset.stores):,}"
        facts["labels"] = summary.names(
            column.name if column.categories is None else f"{column.name} ({len(column.categories):,} categories)"
            for column in dataset.columns
        )
        if slow := dataset.slow_paths(of_files=True):
            facts["slow"] = "; ".join(slow)
        return facts | {name: summary.names(getattr(self, name)) for name in ("layers", "obsm") if getattr(self, name)}

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__ | {"_sources": self._sources.for_others()}
        if self._dataset is None:
            return state
        # pickle may not take a function; the stores have been opened with what it returned.
        if isinstance(self.var_names, dict):
            parts = self._dataset.modalities
            if any(callable(one) for one in self.var_names.values()):
                kept = {name: parts[name].mask if callable(one) else one for name, one in self.var_names.items()}
                state["var_names"] = kept
        elif callable(self.var_names):
            state["var_names"] = self._dataset.mask
        return state

    def _opening(self) -> Opening:
        elements = ("X", *(f"layers/{name}" for name in self.layers), *(f"obsm/{name}" for name in self.obsm))
        return Opening(elements, self._cache, self._index, self.modalities)

    def _dataset_of(self, sources: Sources) -> Dataset:
        modalities = list(sources.modalities)
        self._transforms.check_modalities(modalities)
        genes = GeneOptions(self.var_names, self.var_key, self.absent, self.join).by_modality(modalities)
        labels, digests = sources.labels, sources.digests
        if not modalities:
            options = self.dtype, self.casting, genes[""], labels, digests
            return Dataset.of(sources.stores, *options, self._dataset, self._index)
        parts = {
            name: replaced(Dataset.of(one.stores, self.dtype, self.casting, genes[name]), measured=one.mask)
            for name, one in sources.modalities.items()
        }
        return Dataset.joint(sources.stores, parts, labels, digests)

    def _use(self, sources: Sources) -> None:
        before = self._dataset
        dataset = self._dataset_of(sources).with_obs(self.classes, names=self.names, before=before)
        dataset.check_columns(self.sampler.columns, "columns of the sampler")
        if self._decode == "gpu" and (why := dataset.undecodable()):
            raise InputError(f"decode='gpu' is not possible: {why}")
        for text in dataset.differences(before):
            warn(text)
        self._dataset, self._sources = dataset, sources
        dataset.report_paths()
        if self.device != "cpu":
            dataset.report_decoding(self._decode)

    def _open_device(self) -> Device:
        """Open the device on which batches are made, in this process."""
        return open_device(self.device)

    def _cache(self) -> DiskCache | None:
        return None if self.cache_dir is None else DiskCache(self.cache_dir, self.cache_limit)

    def _opened(self) -> Dataset:
        if self._dataset is None:
            raise InputError("a Loader needs stores before it is used: call use_collection, use_h5ad or add_anndatas")
        return self._dataset

    def _of_genes(self) -> Dataset:
        """Return what was opened; raises InputError if each modality has genes of its own."""
        dataset = self._opened()
        if dataset.modalities:
            name = next(iter(dataset.modalities))
            raise InputError(f"var and n_vars differ by modality: use ds.mod[{name!r}].var and ds.mod[{name!r}].n_vars")
        return dataset

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
