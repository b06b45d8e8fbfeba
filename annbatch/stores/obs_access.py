"""How is a part of obs opened when somebody asks for it?

A `Store` has one of these: `ObsInMemory` for an AnnData, `ObsInStore` for a group on a disk or in an object store,
`ObsInFile` for an ``.h5ad`` file, and `JointObs` for what is spread over the obs of MuData and those of its modalities.
They open columns and names without reading more than they must.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import anndata as ad
import pandas as pd
import zarr

from annbatch import summary
from annbatch.errors import InputError, StoreError, naming
from annbatch.shards.file_stamp import FileStamp
from annbatch.stores.cell_names import CellNames, NamesInMemory, NamesInStore
from annbatch.stores.hdf5_files import open_hdf5
from annbatch.stores.hdf5_filters import ensure_filters
from annbatch.stores.label_columns import StoreColumn, columns_of_file, columns_of_frame, columns_of_group
from annbatch.stores.modality import FOLDER, own_names
from annbatch.stores.refusals import refuse_executable
from annbatch.stores.stored_frame import StoredFrame, as_text, is_array, stored_frame

SRC_PATH = "src_path"
"""The obs column that says from which input of a build a cell comes."""


@dataclass(frozen=True, slots=True, eq=False)
class ObsInMemory:
    """The obs of an AnnData object; one that is lazy is read column by column."""

    store: str
    """What messages call the store."""
    table: Any
    """A DataFrame, or a lazy table."""
    index: pd.Index[Any]
    """(n_obs,) the names."""

    @classmethod
    def of(cls, adata: ad.AnnData, store: str) -> ObsInMemory:
        """Take the obs of an AnnData as it is now."""
        table = adata.obs
        # Columns that are added to, or taken from, the object later make no difference.
        return cls(store, table.copy(deep=False) if isinstance(table, pd.DataFrame) else table, adata.obs_names)

    is_remote = False

    @property
    def column_names(self) -> list[str]:
        """Names of its columns."""
        return [str(name) for name in self.table.columns]

    def columns(self, names: Sequence[str] | None, asked_by: str = "labels") -> dict[str, StoreColumn]:
        """Describe columns; None means all. Raises InputError if one is not there."""
        return columns_of_frame(self.table, names, self.store, asked_by)

    def names(self) -> CellNames:
        """Give the names of the cells."""
        return NamesInMemory(self.index)


@dataclass(frozen=True, slots=True, eq=False)
class ObsInStore:
    """The obs of a stored AnnData."""

    store: str
    """What messages call the store."""
    group: zarr.Group
    recorded: Mapping[str, int]
    """Keys of the group's store, and checksums."""

    @property
    def is_remote(self) -> bool:
        """Whether it lies in an object store."""
        return isinstance(self.group.store, zarr.storage.ObjectStore)

    @property
    def column_names(self) -> list[str]:
        """Names of its columns."""
        return [str(name) for name in self.group.attrs.get("column-order", ())]  # type: ignore[union-attr]

    def columns(self, names: Sequence[str] | None, asked_by: str = "labels") -> dict[str, StoreColumn]:
        """Describe columns; None means all. Raises InputError if one is not there."""
        return columns_of_group(self.group, names, self.store, self.recorded, asked_by)

    def names(self) -> CellNames:
        """Open the names of the cells.

        Raises
        ------
        InputError
            If the store has none.
        """
        where = self.group.attrs.get("_index")
        if not isinstance(where, str) or where not in self.group:
            raise InputError(f"{self.store}: obs must have an index with the names of the cells, got none")
        label = None if where == "_index" else where
        with naming(f"{self.store} obs/{where}"):
            found: Any = self.group[where]
            if not is_array(found) and "values" in found:
                found = found["values"]
            if is_array(found):
                return NamesInStore(f"{self.store} obs/{where}", found, label)
            return NamesInMemory(pd.Index(as_text(ad.io.read_elem(found)), name=label))


class KeptObs(Protocol):
    """What of the obs of ``.h5ad`` files was read before, as `annbatch.stores.file_index.FileIndex` keeps it."""

    def columns(self, stamp: FileStamp, names: Sequence[str]) -> dict[str, Any]:
        """Give those columns of a file that are kept."""

    def cell_names(self, stamp: FileStamp) -> pd.Index[Any] | None:
        """Give the index of a file's obs; None if it is not kept."""

    def keep(self, stamp: FileStamp, columns: Mapping[str, Any], names: pd.Index[Any] | None = None) -> None:
        """Keep columns of a file, and the index."""


@dataclass(frozen=True, slots=True, eq=False)
class ObsInFile:
    """The obs of an ``.h5ad`` file. Whole columns are read, those that are asked for."""

    store: str
    """What messages call the file."""
    stamp: FileStamp
    """The file."""
    n_obs: int
    """Its rows."""
    column_names: list[str]
    """Names of its columns."""
    labels: Mapping[str, StoreColumn]
    """Those that are in memory."""
    kept: KeptObs | None
    """Gives what was read before, so that the file need not be opened."""

    is_remote = False

    def columns(self, names: Sequence[str] | None, asked_by: str = "labels") -> dict[str, StoreColumn]:
        """Give columns; None means all. Those that are named are kept, if something keeps them.

        Raises
        ------
        InputError
            If a column is not there.
        StoreError
            If the file has changed, or cannot be read.
        """
        wanted = self.column_names if names is None else list(names)
        rest = [name for name in wanted if name not in self.labels]
        if not rest:
            return {name: self.labels[name] for name in wanted}
        self.stamp.check()
        known = {} if self.kept is None else self.kept.columns(self.stamp, rest)
        new: dict[str, Any] = {}
        with ExitStack() as stack:
            obs = None if known.keys() >= set(rest) else stack.enter_context(self._frame())

            def read(name: str) -> Any:
                if obs is None or name in known:
                    return known.pop(name)
                values = obs.column(name)
                if names is not None:
                    new[name] = values
                return values

            described = columns_of_file(self.column_names, read, rest, self.store, asked_by)
        if self.kept is not None and new:
            self.kept.keep(self.stamp, new)
        return {name: self.labels[name] if name in self.labels else described[name] for name in wanted}

    def names(self) -> CellNames:
        """Give the names of the cells, and keep them, if something keeps them; raises StoreError as `columns` does."""
        self.stamp.check()
        found = None if self.kept is None else self.kept.cell_names(self.stamp)
        if found is None:
            with self._frame() as obs:
                found = pd.Index(obs.index(), name=obs.index_name)
            if self.kept is not None:
                self.kept.keep(self.stamp, {}, found)
        return NamesInMemory(found)

    @contextmanager
    def _frame(self) -> Iterator[StoredFrame]:
        with naming(f"{self.store} obs"), open_hdf5(self.stamp) as root:
            # HDF5 says what filter it lacks only when it reads.
            ensure_filters(root["obs"], f"{self.store} obs")
            yield stored_frame(root, "obs", lambda: self.n_obs, f"{self.store} obs")


@dataclass(frozen=True, slots=True, eq=False)
class JointObs:
    """The obs of MuData with those of its modalities, whose columns are called ``"rna:cell_type"`` and the like."""

    whole: ObsInStore
    """MuData's own obs."""
    parts: Mapping[str, ObsInStore]
    """By modality, whose rows are the same cells."""
    shown: tuple[str, ...]
    """The modalities whose columns are among all columns; those of others may be named."""

    @property
    def store(self) -> str:
        """What messages call the store."""
        return self.whole.store

    @property
    def is_remote(self) -> bool:
        """Whether it lies in an object store."""
        return self.whole.is_remote

    @property
    def column_names(self) -> list[str]:
        """Names of its columns, those of all modalities among them."""
        own = self.whole.column_names
        return [*own, *(name for part in self.parts for name in self._of(part) if name not in own)]

    def columns(self, names: Sequence[str] | None, asked_by: str = "labels") -> dict[str, StoreColumn]:
        """Describe columns; None means all. Raises InputError if one is not there."""
        own, known = self.whole.column_names, self.column_names
        if names is None:
            names = list(dict.fromkeys([*own, *(name for part in self.shown for name in self._of(part))]))
        if unknown := [name for name in names if name not in known]:
            raise InputError(
                f"{self.store}: {asked_by} must be obs columns, got {unknown[0]!r}; there are {summary.short(known)}"
            )
        found = self.whole.columns([name for name in names if name in own], asked_by)
        others = [name for name in names if name not in own]
        for modality, part in self.parts.items():
            described = part.columns(own_names(others, modality), asked_by)
            found |= {f"{modality}:{name}": column for name, column in described.items()}
        return {name: found[name] for name in names}

    def names(self) -> CellNames:
        """Open the names of the cells; raises InputError if there are none."""
        return self.whole.names()

    def _of(self, modality: str) -> list[str]:
        return [f"{modality}:{name}" for name in self.parts[modality].column_names]


Obs = ObsInMemory | ObsInStore | ObsInFile | JointObs


def columns_there(obs: Obs, names: Sequence[str] | None) -> dict[str, StoreColumn]:
    """Describe those of the columns that an obs has; None means all."""
    held = obs.column_names
    return obs.columns(None if names is None else [name for name in names if name in held])


def check_asked(tables: Sequence[Obs], names: Sequence[str], asked_by: str) -> None:
    """Raise InputError if a column is in none of the tables; names those of the first."""
    for name in names:
        if not any(name in table.column_names for table in tables):
            tables[0].columns([name], asked_by)


def joint_obs_of(
    root: zarr.Group, store: str, recorded: Mapping[str, int], modalities: Sequence[str], shown: Sequence[str]
) -> JointObs:
    """Give the obs of MuData and those of its modalities; raises StoreError if they are none."""
    parts: dict[str, ObsInStore] = {}
    for name in modalities:
        with naming(f"{store}/{FOLDER}/{name}"):
            part: Any = root[f"{FOLDER}/{name}"]
            parts[name] = obs_of(part, f"{store}/{FOLDER}/{name}", recorded)
    return JointObs(obs_of(root, store, recorded), parts, tuple(shown))


def obs_of(root: zarr.Group, store: str, recorded: Mapping[str, int]) -> ObsInStore:
    """Give the obs of a stored AnnData; raises StoreError if it is none."""
    obs = root["obs"]
    if not isinstance(obs, zarr.Group):
        raise StoreError(f"{store} obs: must be a group of columns, got an array")
    refuse_executable(obs, f"{store} obs")
    within = f"{obs.path}/"
    return ObsInStore(store, obs, {key: crc for key, crc in recorded.items() if key.startswith(within)})
