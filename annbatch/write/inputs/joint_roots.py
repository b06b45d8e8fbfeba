"""How does an input look whose rows are the cells that several modalities share?

1. `ModalityOrigin` is one modality of an input, opened as a `ModalityRoot`: with the rows that
   `annbatch.write.inputs.cell_join` has chosen, and the names of the joint cells.
2. `JointOrigin` is what the modalities of an input have in common, opened as a `JointRoot`: names, and the columns of
   MuData's own obs. Its matrix is empty.

Builds take both for AnnData.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import zarr
from zarr.abc.store import Store as ZarrStore

from annbatch.errors import InputError, naming
from annbatch.stores.hdf5_filters import ensure_readable
from annbatch.stores.modality import MEASURED
from annbatch.stores.stored_frame import stored_frame
from annbatch.write.inputs.cell_join import RowFile
from annbatch.write.inputs.chosen_rows import choose_rows
from annbatch.write.inputs.matrix_rows import Matrix, matrix_of
from annbatch.write.inputs.opened_input import Root
from annbatch.write.inputs.opening import Origin
from annbatch.write.inputs.text_file import TextFile

_NO_GENE = "none"


@dataclass(frozen=True, slots=True)
class ModalityOrigin(Origin):
    """One modality of an input, with the rows of the joint cells."""

    inner: Origin | None = None
    """The AnnData."""
    n_own: int = 0
    """Its rows."""
    own: RowFile | None = None
    """(n_obs,) its rows, see `annbatch.write.inputs.cell_join.CellRows.own`; None if all stay, as they are."""
    joint: RowFile | None = None
    """(all inputs' n_obs,) joint row of each row of all inputs."""
    first: int = 0
    """First row of this input among those of all inputs."""
    n_obs: int = 0
    """Rows of this input."""
    names: TextFile | None = None
    """Names of the joint cells of all inputs."""
    marked: bool = False
    """Whether the obs column `MEASURED` says which cells it has."""
    directory: Path = Path()
    """Where it may keep temporary files."""

    def local(self, directory: Path, checkpoint: Callable[[], None]) -> Origin:
        """Give itself: what it is made of is local."""
        return self

    @contextmanager
    def open(self) -> Iterator[Root]:
        """Open it; raises as `Origin.open` does."""
        assert self.inner is not None
        with self.inner.open() as root:
            yield ModalityRoot(root, self)


class ModalityRoot:
    """The chosen rows of an opened input."""

    def __init__(self, root: Root, origin: ModalityOrigin) -> None:
        self._root, self._origin = root, origin
        self._rows = None if origin.own is None else origin.own.mapped()
        self.index_name = root.index_name

    @property
    def column_names(self) -> list[Any]:
        """Names of the obs columns."""
        own = self._root.column_names
        return [*own, MEASURED] if self._origin.marked and MEASURED not in own else own

    def obs_names(self) -> npt.NDArray[Any]:
        """Give the names of the joint cells, (n_obs,) str objects."""
        origin = self._origin
        assert origin.names is not None
        assert origin.joint is not None
        start, stop = origin.first, origin.first + origin.n_obs
        return origin.names.read(start, stop)[origin.joint.mapped()[start:stop] - start]

    def check_column(self, name: Any) -> int:
        """Give the length of an obs column; raises StoreError if it cannot be one, InputError if it is wrong."""
        if name != MEASURED or not self._origin.marked:
            found = self._root.check_column(name)
            _check_length(found, self._origin.n_own, f"{self._origin.name}: obs column {name!r}")
        return self._origin.n_obs

    def column(self, name: Any) -> pd.Series[Any]:
        """Read one obs column, (n_obs,); missing where a cell is."""
        rows = self._rows
        if name == MEASURED and self._origin.marked:
            return self._measured()
        column = self._root.column(name)
        if rows is None:
            return column
        if (rows < 0).any():
            column = _nullable(column)
        return column.reset_index(drop=True).reindex(pd.Index(np.asarray(rows))).reset_index(drop=True)

    def _measured(self) -> pd.Series[Any]:
        """Say which cells it has: of an input that knows, those that it had before."""
        rows = self._rows
        if MEASURED in self._root.column_names:
            known = self._root.column(MEASURED)
            if not pd.api.types.is_bool_dtype(known.dtype) or known.isna().any():
                raise InputError(
                    f"{self._origin.name}: obs column {MEASURED!r} must hold booleans, because it marks the cells "
                    f"of the modality, got {known.dtype}; rename it"
                )
            held = known.to_numpy(bool)
        else:
            held = np.ones(self._origin.n_own, bool)
        if rows is None:
            return pd.Series(held)
        found = np.zeros(len(rows), bool)
        kept = np.asarray(rows) >= 0
        found[kept] = held[np.asarray(rows)[kept]]
        return pd.Series(found)

    def var(self, raw: bool) -> pd.DataFrame:
        """Read var, or that of raw."""
        return self._root.var(raw)

    def names(self, group: str) -> list[Any]:
        """Names of what is in ``layers``, ``obsm`` or the like."""
        return self._root.names(group)

    def element(self, key: str) -> Any:
        """Give an element; None if it is not there."""
        found = self._root.element(key)
        if found is None or self._rows is None:
            return found
        where = f"{self._origin.name}: {key}"
        try:
            matrix = matrix_of(found, where)
        except InputError:
            # Whoever wants it says what is wrong with it.
            return found
        _check_length(matrix.shape[0], self._origin.n_own, where)
        starts = self._origin.directory / re.sub(r"[^\w.-]", lambda c: f"%{ord(c[0]):x}", key)
        return choose_rows(matrix, self._rows, where, starts)


def _check_length(found: int, n_own: int, where: str) -> None:
    """Raise InputError unless something has a row for each cell of its input, of which some are chosen."""
    if found != n_own:
        raise InputError(f"{where} must have {n_own} rows, got {found}")


def _nullable(column: pd.Series[Any]) -> pd.Series[Any]:
    """Give a column in a type that can miss values."""
    if not isinstance(column.dtype, np.dtype) or column.dtype.kind not in "biu":
        return column
    values, mask = column.to_numpy(), np.zeros(len(column), bool)
    boolean = column.dtype.kind == "b"
    return pd.Series(pd.arrays.BooleanArray(values, mask) if boolean else pd.arrays.IntegerArray(values, mask))


@dataclass(frozen=True, slots=True)
class BorrowedColumn:
    """An obs column of a modality, or of MuData itself, that the joint obs has."""

    origin: Origin
    """The AnnData of the modality; of MuData itself, what `open_whole` opens."""
    name: str
    """Its own name."""
    rows: RowFile
    """(n_joint,) the row of each joint cell, -1 where there is none."""
    is_whole: bool
    """Whether it is one of MuData itself."""
    n_own: int
    """Its rows in the input."""


@dataclass(frozen=True, slots=True)
class JointOrigin(Origin):
    """What the modalities of an input have in common."""

    columns: tuple[tuple[str, BorrowedColumn], ...] = ()
    """By the names under which they are written."""
    first: int = 0
    """First row of this input among those of all inputs."""
    n_obs: int = 0
    """Its rows."""
    names: TextFile | None = None
    """Names of the joint cells of all inputs."""

    def local(self, directory: Path, checkpoint: Callable[[], None]) -> Origin:
        """Give itself: what it is made of is local."""
        return self

    @contextmanager
    def open(self) -> Iterator[Root]:
        """Open it."""
        yield JointRoot(self)


class JointRoot:
    """What the modalities of an input have in common, as a `Root`."""

    index_name = None

    def __init__(self, origin: JointOrigin) -> None:
        self._origin = origin
        self._columns: Mapping[str, BorrowedColumn] = dict(origin.columns)

    @property
    def column_names(self) -> list[Any]:
        """Names of the obs columns."""
        return list(self._columns)

    def obs_names(self) -> npt.NDArray[Any]:
        """Read the names of the cells, (n_obs,) str objects."""
        origin = self._origin
        assert origin.names is not None
        return origin.names.read(origin.first, origin.first + origin.n_obs)

    def check_column(self, name: Any) -> int:
        """Give the number of rows; raises StoreError if it cannot be a column, InputError if its length is wrong."""
        borrowed = self._columns[name]
        with _opened(borrowed) as root:
            found = root.check_column(borrowed.name)
        _check_length(found, borrowed.n_own, f"{self._origin.name}: obs column {name!r}")
        return self._origin.n_obs

    def column(self, name: Any) -> pd.Series[Any]:
        """Read one column, (n_obs,)."""
        borrowed = self._columns[name]
        rows = np.asarray(borrowed.rows.mapped())
        with _opened(borrowed) as root:
            column = root.column(borrowed.name)
        column = _nullable(column) if (rows < 0).any() else column
        return column.reset_index(drop=True).reindex(pd.Index(rows)).reset_index(drop=True)

    def var(self, raw: bool) -> pd.DataFrame:
        """Give one gene, of which no cell has anything."""
        return self.no_genes()

    @staticmethod
    def no_genes() -> pd.DataFrame:
        """Give the var of a matrix without values."""
        return pd.DataFrame(index=pd.Index([_NO_GENE], dtype=object))

    def names(self, group: str) -> list[Any]:
        """There are none."""
        return []

    def element(self, key: str) -> Any:
        """Give an empty X; None for all else."""
        if key != "X":
            return None
        n_obs, nothing = self._origin.n_obs, np.empty(0, np.float32)
        return Matrix("csr", (n_obs, 1), nothing.dtype, nothing, np.empty(0, np.int32), np.zeros(n_obs + 1, np.int64))


class WholeRoot:
    """The own obs of MuData."""

    def __init__(self, group: Any) -> None:
        with naming("obs"):
            self._obs = stored_frame(group, "obs", lambda: 0)
        self._obsm = [str(name) for name in group.get("obsm", ())]

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return self._obs.column_names

    def obs_names(self) -> npt.NDArray[Any]:
        """Read the names of the cells."""
        return self._obs.index()

    def names(self, group: str) -> list[str]:
        """Names of what is in ``obsm``."""
        return self._obsm

    def check_column(self, name: str) -> int:
        """Give the length of a column; raises StoreError if it cannot be one."""
        return self._obs.check(name)

    def column(self, name: str) -> pd.Series[Any]:
        """Read one column."""
        with naming(f"obs column {name!r}"):
            return pd.Series(self._obs.column(name))


@contextmanager
def open_whole(origin: Origin) -> Iterator[Any]:
    """Open MuData's own obs: that of a file or store, or an AnnData that has it."""
    if isinstance(origin.given, str):
        with open_mudata(origin.given) as group:
            yield WholeRoot(group)
    elif isinstance(origin.given, ZarrStore):
        yield WholeRoot(zarr.open_group(origin.given, mode="r"))
    else:
        with origin.open() as root:
            yield root


@contextmanager
def _opened(column: BorrowedColumn) -> Iterator[Any]:
    with open_whole(column.origin) if column.is_whole else column.origin.open() as root:
        yield root


@contextmanager
def open_mudata(path: str) -> Iterator[h5py.Group | zarr.Group]:
    """Open an HDF5 file or a zarr directory."""
    if Path(path).is_dir():
        yield zarr.open_group(path, mode="r")
        return
    ensure_readable(path, Path(path).stat().st_mtime_ns)
    with h5py.File(path, mode="r") as file:
        yield file
