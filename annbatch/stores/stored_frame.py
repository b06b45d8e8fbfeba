"""How is an obs or var stored, whatever version of AnnData, or other program, wrote it?

`stored_frame` finds out which of these layouts it is. Columns are read one at a time, and become what
`anndata.read_h5ad` and `anndata.read_zarr` make of them.

1. AnnData 0.8 and later: a group with an element for each column; a categorical holds its own categories.
2. AnnData 0.7: a group with an array for each column. One of codes has an attribute, ``categories``: a reference (HDF5)
   or a path (zarr) to an array of ``__categories``.
3. AnnData 0.5 and 0.6: one array with a field for each column. The categories of column ``NAME`` are
   ``uns/NAME_categories``.
4. Other programs: a group without attributes, each of whose arrays is a column.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import anndata as ad
import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import zarr

from annbatch.errors import StoreError
from annbatch.stores.refusals import refuse_executable

Group: TypeAlias = "h5py.Group | zarr.Group"

_COLUMN_ARRAYS = frozenset({"", "array", "string-array"})
"""Encodings of columns that are arrays."""
_COLUMN_GROUPS = frozenset({"categorical", "nullable-integer", "nullable-boolean", "nullable-string-array"})
"""Encodings of columns that are groups."""
_NAMES_OF_THE_INDEX = {"obs": ("obs_names", "row_names"), "var": ("var_names", "col_names")}
"""What AnnData takes for the index of a group without attributes."""


class StoredFrame(Protocol):
    """An obs or var in a file or a store."""

    column_names: list[str]
    """Names of the columns, in order."""
    index_name: str | None
    """Name of the index, if it has one."""

    def index(self) -> npt.NDArray[Any]:
        """Read the index, (n_rows,) str objects."""

    def column(self, name: str) -> Any:
        """Read a column, (n_rows,): a NumPy or a pandas array.

        Raises
        ------
        StoreError
            If it cannot be one.
        """

    def check(self, name: str) -> int:
        """Give the length of a column without reading its values; raises StoreError if it cannot be a column."""


def stored_frame(root: Group, key: str, n_rows: Callable[[], int], where: str | None = None) -> StoredFrame:
    """Find out how a data frame is stored.

    Parameters
    ----------
    root
        The AnnData.
    key
        ``"obs"``, ``"var"``, ``"raw/var"`` or what older versions call it.
    n_rows
        Gives the number of rows, for frames that do not name them.
    where
        What messages call the frame; None means ``key``.

    Raises
    ------
    StoreError
        If a name leads out of the frame, or decoding it might run what is stored.
    """
    where = where or key
    if key not in root:
        return GroupFrame(None, [], None, where, n_rows)
    found: Any = root[key]
    if is_array(found):
        _refuse_executable(found, where)
        return FieldsFrame(found, root.get("uns", {}) if key in ("obs", "var") else {}, where)
    if "_index" in found.attrs:
        if "column-order" not in found.attrs:
            raise StoreError(f"{where} must have the attribute column-order, because it has _index")
        columns = [str(name) for name in attribute(found, "column-order")]
        index = str(attribute(found, "_index"))
        for name in (*columns, index):
            _refuse_ways_out(name, where)
        return GroupFrame(found, columns, index, where, n_rows)
    if "encoding-type" in found.attrs:
        raise StoreError(f"{where} must have the attribute _index, because it has encoding-type")
    columns = [str(name) for name in found]
    known = [name for name in _NAMES_OF_THE_INDEX[key.rpartition("/")[2]] if name in columns]
    index_of_other = known[0] if known else None
    return GroupFrame(found, [name for name in columns if name != index_of_other], index_of_other, where, n_rows)


class GroupFrame:
    """A group with an element for each column."""

    def __init__(
        self, group: Group | None, columns: list[str], index: str | None, where: str, n_rows: Callable[[], int]
    ) -> None:
        self._group = group
        self._index = index
        self._where = where
        self._n_rows = n_rows
        self.column_names = columns
        named = group is not None and "_index" in group.attrs and index != "_index"
        self.index_name = index if named else None

    def index(self) -> npt.NDArray[Any]:
        """Read the index, (n_rows,) str objects."""
        if self._index is None:
            return as_text(range(self._n_rows()))
        return as_text(self._read(self._index, self._node(self._index)))

    def column(self, name: str) -> Any:
        """Read a column, (n_rows,)."""
        node = self._node(name)
        if _is_plain(node):
            # As AnnData reads it, without looking up its encoding.
            return node[()]
        if self._encoding(name, node) == "categorical" and isinstance(node, h5py.Group):
            categories = pd.Index(np.atleast_1d(ad.io.read_elem(node["categories"])))
            return pd.Categorical.from_codes(node["codes"][()], categories, ordered=bool(attribute(node, "ordered")))
        return self._read(name, node)

    def check(self, name: str) -> int:
        """Give the length of a column; raises StoreError if it cannot be one."""
        node = self._node(name)
        encoding, where = self._encoding(name, node), f"{self._where} column {name!r}"
        return _length(node if is_array(node) else node["codes" if encoding == "categorical" else "values"], where)

    def _node(self, name: str) -> Any:
        assert self._group is not None
        try:
            return self._group[name]
        except KeyError as e:
            raise StoreError(f"{self._where} column {name!r} is listed in column-order, but missing") from e

    def _encoding(self, name: str, node: Any) -> str:
        encoding: str = attribute(node, "encoding-type", "")
        known = _COLUMN_ARRAYS if is_array(node) else _COLUMN_GROUPS
        if encoding not in known:
            kind = "an array" if is_array(node) else "a group"
            where = f"{self._where} column {name!r}"
            raise StoreError(f"{where} is {kind} and must have an encoding of {sorted(known)}, got {encoding!r}")
        return encoding

    def _read(self, name: str, node: Any) -> Any:
        assert self._group is not None
        dtype = _categories_of(self._group, name, node)
        _refuse_executable(node, f"{self._where}/{name}")
        values: Any = ad.io.read_elem(node)
        if dtype is not None:
            return pd.Categorical.from_codes(values, dtype.categories, ordered=dtype.ordered)
        # AnnData reads an array of one fixed-length string as that string.
        return np.atleast_1d(values).astype(object) if isinstance(values, str) else values


def _is_plain(node: Any) -> bool:
    """Say whether a column is a dataset of numbers or booleans that mean nothing else."""
    is_dataset = isinstance(node, h5py.Dataset) and node.ndim == 1 and node.dtype.kind in "biuf"
    return is_dataset and "categories" not in node.attrs


def categories_of(frame: Group, name: str) -> pd.CategoricalDtype | None:
    """Give the categories that an array of a data frame names, as AnnData 0.7 wrote it; None if it names none.

    Raises
    ------
    StoreError
        If they are no array of the same store.
    """
    return _categories_of(frame, name, frame[name])


def _categories_of(frame: Group, name: str, node: Any) -> pd.CategoricalDtype | None:
    if not is_array(node) or "categories" not in node.attrs:
        return None
    place: Any = attribute(node, "categories")
    if isinstance(place, str):
        _refuse_ways_out(place, f"column {name!r}: categories")
    found: Any = frame[place]
    if not is_array(found):
        raise StoreError(f"column {name!r}: categories must be an array, got {place!r}, which is a group")
    _refuse_executable(found, f"column {name!r}: categories")
    ordered = bool(attribute(found, "ordered", False))
    return pd.CategoricalDtype(pd.Index(np.atleast_1d(ad.io.read_elem(found))), ordered=ordered)


@dataclass(frozen=True, slots=True)
class _Field:
    """One field of an array of records, as an array."""

    of: Any
    name: str

    def read(self) -> npt.NDArray[Any]:
        """Read it; text becomes str objects."""
        values = np.asarray(self.of[self.name] if isinstance(self.of, h5py.Dataset) else self.of[...][self.name])
        if values.dtype.kind == "U":
            return values.astype(object)
        if values.dtype.kind in "SO":
            decoded = [v.decode() if isinstance(v, bytes) else v for v in values.tolist()]
            return np.array(decoded, dtype=object)
        return values


class FieldsFrame:
    """One array with a field for each column, the first of which is the index."""

    def __init__(self, array: Any, uns: Any, where: str) -> None:
        if array.dtype.names is None:
            raise StoreError(f"{where} must be a group, or an array with a field for each column, got {array.dtype}")
        self._array = array
        self._uns = uns
        self._where = where
        self.index_name: str | None = str(array.dtype.names[0])
        self.column_names = [str(name) for name in array.dtype.names[1:]]

    def index(self) -> npt.NDArray[Any]:
        """Read the index, (n_rows,) str objects."""
        return as_text(_Field(self._array, str(self.index_name)).read())

    def column(self, name: str) -> Any:
        """Read a column, (n_rows,)."""
        self.check(name)
        values = _Field(self._array, name).read()
        known = f"{name}_categories"
        if values.dtype.kind not in "iu" or known not in self._uns:
            return values
        _refuse_executable(self._uns[known], f"uns/{known}")
        categories = np.atleast_1d(ad.io.read_elem(self._uns[known]))
        # obs and var share uns, and may have columns of one name: those of the other have more codes, AnnData supposes.
        if (values >= len(categories)).any():
            return values
        return pd.Categorical.from_codes(values, pd.Index(categories))

    def check(self, name: str) -> int:
        """Give the length of a column; raises StoreError if it cannot be one."""
        dtype = self._array.dtype[name]
        if dtype.shape or dtype.names is not None:
            raise StoreError(f"{self._where} column {name!r} must have one dimension, got {dtype}")
        return int(self._array.shape[0])


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """Read an attribute; fixed-length strings, as HDF5.jl and R write them, become text as they do in AnnData."""
    value = node.attrs.get(name, default)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray) and value.dtype.kind == "S":
        return [v.decode() for v in value.tolist()]
    return value


def as_text(labels: Any) -> npt.NDArray[Any]:
    """Give labels as (n,) str objects."""
    return np.array([str(label) for label in labels], dtype=object)


def is_array(element: Any) -> bool:
    """Say whether an element is an array on disk, and not a group."""
    return isinstance(element, h5py.Dataset | zarr.Array)


def _length(array: Any, where: str) -> int:
    if array.ndim != 1:
        raise StoreError(f"{where} must have one dimension, got {array.ndim}")
    if array.dtype.names is not None or array.dtype.kind not in "biufOSUT":
        raise StoreError(f"{where} must hold strings, categories, numbers or booleans, got {array.dtype}")
    return int(array.shape[0])


def _refuse_ways_out(name: str, where: str) -> None:
    """Refuse what leads to the table itself or out of it: reading it would never end."""
    if not all(part.strip(".") for part in name.split("/")):
        raise StoreError(f"{where} must have columns with names, got {name!r}")


def _refuse_executable(node: Any, where: str) -> None:
    if not isinstance(node, h5py.Group | h5py.Dataset):
        refuse_executable(node, where)
