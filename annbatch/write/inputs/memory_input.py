"""How is AnnData in memory read as an input, and how is it known that it is still the same?

1. `MemoryRoot` gives what `annbatch.write.inputs.opened_input.Root` promises. obs and var may be lazy, and are read
   then; matrices may be backed by a file, which is read a piece at a time.
2. `stamp_of` says in a few numbers what is in it, so that a build that goes on notices what has changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import zarr

from annbatch.errors import InputError
from annbatch.shards.checksum import crc32c
from annbatch.shards.file_stamp import FileStamp
from annbatch.stores.hdf5_links import files_behind
from annbatch.stores.lazy_tables import in_memory
from annbatch.stores.stored_frame import as_text

_PARTS = ("layers", "obsm")


class MemoryRoot:
    """An AnnData object; its matrices may be backed by a file."""

    def __init__(self, adata: ad.AnnData) -> None:
        if not isinstance(adata, ad.AnnData):
            raise InputError(f"load must return AnnData, got {type(adata).__name__}")
        self._adata = adata
        self._obs: Any = adata.obs

    @property
    def column_names(self) -> list[Any]:
        """Names of the obs columns."""
        return list(self._obs.columns)

    @property
    def index_name(self) -> Any:
        """Name of the obs index, None if it has none."""
        return self._obs.index.name

    def obs_names(self) -> npt.NDArray[Any]:
        """Give the names of the cells, (n_obs,) str objects."""
        return as_text(self._adata.obs_names)

    def check_column(self, name: Any) -> int:
        """Give the length of an obs column."""
        return int(self._adata.n_obs)

    def column(self, name: Any) -> pd.Series[Any]:
        """Give one obs column, (n_obs,)."""
        return pd.Series(in_memory(self._obs, [name])[name].array)

    def var(self, raw: bool) -> pd.DataFrame:
        """Give var, or that of raw, with names as str."""
        frame = in_memory((self._adata.raw if raw else self._adata).var).copy()
        frame.index = pd.Index(as_text(frame.index), dtype=object, name=frame.index.name)
        return frame

    def names(self, group: str) -> list[Any]:
        """Names of what is in ``layers``, ``obsm`` or the like."""
        if group == "raw":
            return [] if self._adata.raw is None else ["X"]
        # anndata 0.13 lists X among the layers, under None.
        return [name for name in getattr(self._adata, group) if name is not None]

    def element(self, key: str) -> Any:
        """Give an element unread; None if it is not there."""
        group, _, name = key.partition("/")
        if group == "raw":
            return _unread(None if self._adata.raw is None else self._adata.raw.X)
        if not name:
            return _unread(self._adata.X)
        own = next((own for own in self.names(group) if str(own) == name), None)
        return None if own is None else _unread(getattr(self._adata, group)[own])


def _unread(found: Any) -> Any:
    if _is_sparse(found) and found.format not in ("csr", "csc"):
        found = found.tocsr()
    # What is backed by a file is read from there.
    return getattr(found, "group", found)


def _is_sparse(found: Any) -> bool:
    return bool(sp.issparse(found))


def stamp_of(adata: ad.AnnData) -> list[Any]:
    """Give a JSON value that differs if any of what a build may carry does: X, raw, layers, obsm, obs and var."""
    root = MemoryRoot(adata)
    raw = adata.raw
    elements = [adata.X, None if raw is None else raw.X]
    names = [[part, repr(name)] for part in _PARTS for name in root.names(part)]
    elements += [getattr(adata, part)[name] for part in _PARTS for name in root.names(part)]
    tables = [adata.obs, adata.var, *([] if raw is None else [raw.var])]
    return [
        [int(n) for n in adata.shape],
        names,
        [_of_element(_unread(element)) for element in elements],
        [_of_table(in_memory(table)) for table in tables],
    ]


def _of_element(element: Any) -> Any:
    if isinstance(element, pd.DataFrame):
        return _of_table(element)
    form = element.format if _is_sparse(element) else "dense"
    if form != "dense":
        parts = [element.data, element.indices, element.indptr]
    elif isinstance(element, np.ndarray) and element.dtype.kind in "biufcSU":
        parts = [element]
    elif isinstance(element, h5py.Group | h5py.Dataset):
        own = FileStamp.of(Path(element.file.filename))
        others = [FileStamp.of(path) for path in files_behind(element) if path != own.path.absolute()]
        return [
            *(element.file.filename, element.name, own.nbytes, own.mtime_ns),
            *([str(one.path), one.nbytes, one.mtime_ns] for one in others),
        ]
    elif isinstance(element, zarr.Group | zarr.Array):
        return [str(element.store_path)]
    else:
        # It is no matrix, and not carried.
        return type(element).__name__
    return [form, [[str(part.dtype), list(part.shape), _crc(part)] for part in parts]]


def _of_table(table: pd.DataFrame) -> list[Any]:
    columns = [[repr(name), _of_column(table.iloc[:, i])] for i, name in enumerate(table.columns)]
    return [repr(table.index.name), _of_column(table.index.to_series()), columns]


def _of_column(column: pd.Series[Any]) -> list[Any]:
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        categories = _of_column(dtype.categories.to_series())
        return ["category", bool(dtype.ordered), categories, _crc(column.cat.codes.to_numpy())]
    try:
        return [str(dtype), _crc(pd.util.hash_array(column.to_numpy(), categorize=False))]
    except (TypeError, ValueError):
        # Lists, values of several types, or numbers that pandas cannot hash.
        return [str(dtype), crc32c(np.frombuffer(repr(column.tolist()).encode(), np.uint8))]


def _crc(part: npt.NDArray[Any]) -> int:
    found: int = crc32c(np.ascontiguousarray(part).reshape(-1).view(np.uint8))
    return found
