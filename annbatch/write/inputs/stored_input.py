"""What does an AnnData file or store hold, whatever version of AnnData, or other program, wrote it?

`StoredInput` finds cells, obs columns, var and matrices where each version puts them: what `anndata.read_h5ad` and
`anndata.read_zarr` read as the same element has the same key here. What is decoded runs no code of the store's.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd

from annbatch import summary
from annbatch.errors import InputError, naming
from annbatch.stores.refusals import refuse_executable
from annbatch.stores.root_group import COLLECTION
from annbatch.stores.stored_frame import StoredFrame, attribute, is_array, stored_frame
from annbatch.write.inputs.matrix_rows import FieldRows, Matrix, matrix_of

_KEYS_OF_ANNDATA_0_6 = {"raw/X": "raw.X", "raw/var": "raw.var"}


class StoredInput:
    """AnnData in an HDF5 file or a zarr group."""

    def __init__(self, group: Any, path: str) -> None:
        encoding = attribute(group, "encoding-type", "anndata")
        if encoding == COLLECTION:
            raise InputError(
                f"{path}: must be AnnData, got a collection; pass the chunk_….zarr folders in it, or call "
                f"reshuffle_collection"
            )
        if encoding != "anndata" or "obs" not in group:
            raise InputError(
                f"{path}: must be an AnnData file, got one with encoding-type {encoding!r} and the keys "
                f"{summary.short(sorted(group))}"
            )
        self._group = group
        self._path = path
        self._obs = self._frame("obs", 0)

    @property
    def column_names(self) -> list[str]:
        """Names of the obs columns."""
        return self._obs.column_names

    @property
    def index_name(self) -> str | None:
        """Name of the obs index, if it has one."""
        return self._obs.index_name

    def obs_names(self) -> npt.NDArray[Any]:
        """Read the names of the cells, (n_obs,) str objects."""
        return self._obs.index()

    def check_column(self, name: str) -> int:
        """Give the length of an obs column; raises StoreError if it cannot be one."""
        return self._obs.check(name)

    def column(self, name: str) -> pd.Series[Any]:
        """Read one obs column, (n_obs,)."""
        with naming(f"obs column {name!r}"):
            return pd.Series(self._obs.column(name))

    def var(self, raw: bool) -> pd.DataFrame:
        """Read var, or that of raw."""
        frame = self._frame("raw/var" if raw else "var", 1)
        for name in frame.column_names:
            frame.check(name)
        index = pd.Index(frame.index(), dtype=object, name=frame.index_name)
        return pd.DataFrame({name: frame.column(name) for name in frame.column_names}, index=index)

    def names(self, group: str) -> list[str]:
        """Names of what is in ``layers``, ``obsm`` or the like."""
        if group == "raw":
            # It may be one that cannot be read, as long as nobody wants it.
            return ["X"] if self._key("raw/X") in self._group else []
        found = self._group.get(group, ())
        names = [str(name) for name in (found.dtype.names or () if is_array(found) else found)]
        if group == "uns" and is_array(self._group["obs"]):
            # AnnData before 0.7 keeps the categories of columns there.
            return [name for name in names if not name.endswith("_categories")]
        return names

    def element(self, key: str) -> Any:
        """Give an element unread; None if it is not there."""
        group, _, name = key.partition("/")
        if group == "obsm" and is_array(self._group.get(group)):
            return _field(self._group[group], name)
        key = self._key(key)
        if key not in self._group or attribute(self._group[key], "encoding-type") == "null":
            return None
        found = self._group[key]
        if not isinstance(found, h5py.Group | h5py.Dataset):
            refuse_executable(found, f"{self._path}/{key}")
        return found

    def _frame(self, key: str, axis: int) -> StoredFrame:
        def n_rows() -> int:
            x = key.replace("var", "X").replace("obs", "X")
            return matrix_of(self.element(x), f"{self._path}: {x}").shape[axis]

        return stored_frame(self._group, self._key(key), n_rows)

    def _key(self, key: str) -> str:
        old = _KEYS_OF_ANNDATA_0_6.get(key, key)
        return old if old in self._group else key


def _field(records: Any, name: str) -> Matrix | None:
    """Give one array of obsm as AnnData 0.5 has it, a field of records; None if it is not there."""
    if name not in (records.dtype.names or ()):
        return None
    dtype = records.dtype[name]
    width = int(np.prod(dtype.shape, dtype=np.int64))
    return Matrix("dense", (records.shape[0], width), dtype.base, FieldRows(records, name, width))
