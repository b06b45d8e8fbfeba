"""Do several stores make one dataset?

1. They must agree: the same genes, the same elements of the same kind and width, label columns of one kind.
2. What follows from all of them together: the united categories, the type of the values, the columns selected.
3. `Dataset.classes` and `Dataset.divisible` read obs columns as classes, and `Dataset.obs` a table of them, when
   somebody asks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from annbatch.batch import Emit
from annbatch.batches.casts import Casting, Emitted, check_casts, emitted, stored_type
from annbatch.batches.device_decoding import needs_nvcomp, why_not
from annbatch.device.nvcomp import missing
from annbatch.errors import InputError
from annbatch.order.row_selection import Runs, digest
from annbatch.order.row_table import Classes, joint, names_of
from annbatch.order.splits import Divisible
from annbatch.plan.window import plan_readings
from annbatch.shards.file_stamp import FileStamp
from annbatch.stores.anndata_store import Matrix, SparseMatrix, Store
from annbatch.stores.cell_names import CellNames
from annbatch.stores.class_columns import as_classes, check_kind, classes_of_integers
from annbatch.stores.common_type import common_type, float32_holds
from annbatch.stores.file_index import FileIndex
from annbatch.stores.gene_selection import Genes
from annbatch.stores.label_columns import Column
from annbatch.stores.obs_access import SRC_PATH, Obs
from annbatch.stores.obs_rows import all_rows, open_columns, open_names, read_columns, read_obs
from annbatch.stores.store_genes import JoinedGenes, StoreGenes
from annbatch.stores.united_columns import Merged, differences, merge_columns
from annbatch.transform import ValueKernel

_log = logging.getLogger("annbatch")


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Stores whose rows, one store after the other, are the rows of one table."""

    stores: tuple[Store, ...]
    """In the order in which rows are numbered."""
    columns: tuple[Column, ...]
    """The label columns."""
    dtypes: dict[str, np.dtype[Any]]
    """Per element: type of the values that are handed over unless somebody asks for another."""
    merged: Merged
    """What of obs became label columns, and what did not."""
    genes: JoinedGenes | None
    """The genes of X and layers; None where modalities have them."""
    collections: tuple[str, ...]
    """What tells the collections among the sources from others."""
    class_columns: tuple[str, ...] = ()
    """Names of the obs columns that are carried as classes."""
    names: tuple[CellNames, ...] | None = None
    """The names of each store's cells; None if batches do not carry them."""
    opened: dict[str, Column] = field(default_factory=dict)
    """Columns that were asked for by name."""
    read: dict[str, Classes] = field(default_factory=dict)
    """The classes that have been read."""
    modalities: Mapping[str, Dataset] = field(default_factory=dict)
    """The matrices and genes of each modality, of the same rows; empty where the stores themselves have them."""
    of_stores: StoreGenes | None = None
    """The genes of the stores before they were joined."""
    measured: str | None = None
    """Of a modality: the label column that says which rows have it; None if all have."""

    @classmethod
    def of(
        cls,
        stores: Sequence[Store],
        dtype: np.dtype[Any] | None,
        casting: Casting,
        genes: Genes,
        labels: Sequence[str] | None = None,
        collections: Iterable[str] = (),
        before: Dataset | None = None,
        index: FileIndex | None = None,
    ) -> Dataset:
        """Check that the stores agree.

        ``labels`` are obs columns that must not be left out. Where the first stores are those of ``before``, what is
        known of these is not looked at again. An ``index`` may know how the genes of ``.h5ad`` files are joined.

        Raises
        ------
        InputError
            If they do not, have no rows, lack one of the ``genes``, or hold values that ``dtype`` may not hold.
        """
        first = stores[0]
        if not any(store.shape[0] for store in stores):
            raise InputError(f"the stores must hold at least one row, got none in {[store.name for store in stores]}")
        dtypes = {}
        for element in first.matrices:
            _check_element(element, stores)
            cast_to = None if element.startswith("obsm/") else dtype
            if cast_to is not None:
                check_casts(element, stores, cast_to, casting)
            matrices = [store.matrices[element] for store in stores]
            dtypes[element] = cast_to or common_type((m.dtype, float32_holds(stored_type(m))) for m in matrices)
        before = before if before is not None and _begin_with(stores, before.stores) else None
        merged = _merged(stores, labels, before)
        own = [(store.name, store.var) for store in stores]
        if before is None or before.of_stores is None:
            of_stores = StoreGenes.of(own, None if index is None else index.lists([var for _, var in own]))
        else:
            new = own[len(before.stores) :]
            of_stores = before.of_stores.with_stores(new) if new else before.of_stores
        joined = of_stores.joined(genes)
        found = cls(tuple(stores), merged.columns, dtypes, merged, joined, tuple(collections), of_stores=of_stores)
        if before is None or len(before.stores) < len(stores):
            return found
        # What somebody asked for of the same stores need not be read again.
        return replace(found, opened=before.opened, read=before.read)

    @classmethod
    def joint(
        cls,
        stores: Sequence[Store],
        modalities: Mapping[str, Dataset],
        labels: Sequence[str] | None = None,
        collections: Iterable[str] = (),
    ) -> Dataset:
        """Put the modalities of the same rows together; ``stores`` have the label columns.

        Raises
        ------
        InputError
            If there are no rows.
        """
        if not any(store.shape[0] for store in stores):
            raise InputError(f"the stores must hold at least one row, got none in {[store.name for store in stores]}")
        merged = _merged(stores, labels, None)
        return cls(tuple(stores), merged.columns, {}, merged, None, tuple(collections), modalities=modalities)

    @property
    def parts(self) -> Mapping[str, Dataset]:
        """What has matrices: each modality, or under ``""`` the dataset itself."""
        return self.modalities or {"": self}

    @property
    def n_obs(self) -> int:
        """Rows in all stores."""
        return sum(store.shape[0] for store in self.stores)

    def with_obs(self, class_columns: tuple[str, ...], *, names: bool, before: Dataset | None) -> Dataset:
        """Give the same stores with columns carried as classes, and with the names of their cells.

        Names of the first stores are not opened again where they are those of ``before``, which has opened them.

        Raises
        ------
        InputError
            If a column is not there, or cannot be classes, or a store has no names.
        """
        self.check_columns(class_columns, "classes")
        known = {column.name for column in self.columns}
        opened: tuple[CellNames, ...] = ()
        if names:
            if before is not None and before.names is not None and _begin_with(self.stores, before.stores):
                opened = before.names
            opened += open_names(self.tables[len(opened) :], self.store_rows[len(opened) :])
        return replace(
            self,
            columns=(*self.columns, *(self._column(name, "classes") for name in class_columns if name not in known)),
            class_columns=class_columns,
            names=opened if names else None,
        )

    @property
    def carried(self) -> list[Column]:
        """The columns that batches carry."""
        return [self._shown(column) for column in self.columns]

    @property
    def tables(self) -> list[Obs]:
        """The obs of each store."""
        return [store.obs for store in self.stores]

    @property
    def store_rows(self) -> tuple[int, ...]:
        """Rows in each store."""
        return tuple(store.shape[0] for store in self.stores)

    @property
    def var(self) -> pd.DataFrame:
        """(n_vars, …) var of the genes that are yielded; where all stores have the same, that of the first."""
        return pd.DataFrame() if self.genes is None else self.genes.var

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """(n_joined,) which genes are yielded, in whatever order; None if all are."""
        return None if self.genes is None or self.genes.selection is None else self.genes.selection.lookup >= 0

    @property
    def chosen_names(self) -> list[str]:
        """Names of the genes that are yielded, without those that no store has."""
        assert self.genes is not None
        if self.genes.selection is None:
            return [str(name) for name in self.genes.names]
        columns = self.genes.selection.columns
        return [str(name) for name in self.genes.names[columns[columns >= 0]]]

    @property
    def n_vars(self) -> int:
        """Columns of X, of those selected."""
        return 0 if self.genes is None else self.genes.n

    def classes(self, by: str | Sequence[str]) -> Classes:
        """Read an obs column as classes of all rows, or several as one class of tuples.

        Raises
        ------
        InputError
            If there is no such column, or it holds floats.
        """
        if isinstance(by, str):
            if by not in self.read:
                self.read[by] = self._read(by)
            return self.read[by]
        return joint([self.classes(name) for name in by])

    def mixed_columns(self) -> dict[str, Callable[[NDArray[np.int64]], NDArray[Any]]]:
        """Give what tells how well rows are mixed: the class of some rows, by source file and by a label.

        The source file is that in `SRC_PATH`, where all stores have it, or the store. The label is the first one whose
        categories are classes of many rows.
        """
        found: dict[str, Callable[[NDArray[np.int64]], NDArray[Any]]] = {}
        ends = np.cumsum(self.store_rows)
        if all(SRC_PATH in table.column_names for table in self.tables):
            found["source file"] = partial(self._codes_of, self._column(SRC_PATH, "mixing"))
        elif len(self.stores) > 1:
            found["source file"] = lambda rows: np.searchsorted(ends, rows, "right")
        for column in self.columns:
            if (
                column.name != SRC_PATH
                and column.categories is not None
                and len(column.categories) <= self.n_obs // 100
            ):
                found[f"obs[{column.name!r}]"] = partial(self._codes_of, column)
                break
        return found

    def _codes_of(self, column: Column, rows: NDArray[np.int64]) -> NDArray[Any]:
        plan = plan_readings(rows, np.array([0, len(rows)]), np.cumsum([0, *self.store_rows]))
        ((codes,),) = read_columns([column], iter([plan]))
        return codes

    def check_columns(self, names: Sequence[str], asked_by: str) -> None:
        """Raise InputError if a store lacks one of these obs columns, or it cannot be classes."""
        for name in names:
            check_kind(self._column(name, asked_by))

    def obs(self, columns: Sequence[str] | None, rows: Runs | None, *, in_order: bool) -> pd.DataFrame:
        """Read a table of obs; see `annbatch.Loader.obs`."""
        return read_obs(self.tables, self.store_rows, columns, rows, in_order=in_order, shown=self._shown)

    def divisible(
        self,
        rows: Runs | None,
        by: str | Sequence[str] | None,
        stratify: str | Sequence[str] | None,
        *,
        is_ordered: bool,
    ) -> Divisible:
        """Give rows, None means all, with the columns by which they are to be split.

        Raises
        ------
        InputError
            If both columns are named, or one is not there, or holds floats.
        """
        if by is not None and stratify is not None:
            raise InputError(f"only one of by and stratify may be given, got by={by!r} and stratify={stratify!r}")

        def classes(columns: str | Sequence[str] | None, name: str) -> Classes | None:
            if columns is None:
                return None
            found = self.classes(columns if isinstance(columns, str) else names_of(columns, name))
            return found if rows is None else found.select(rows)

        return Divisible(
            np.arange(self.n_obs) if rows is None else rows.find(np.arange(len(rows))),
            self.n_obs,
            None if rows is None else rows.order,
            is_ordered,
            classes(by, "by"),
            classes(stratify, "stratify"),
        )

    def _column(self, name: str, asked_by: str) -> Column:
        """Give an obs column, which is opened if batches do not carry it."""
        if name not in self.opened:
            carried = [column for column in self.columns if column.name == name]
            (self.opened[name],) = carried or open_columns(self.tables, self.store_rows, [name], asked_by).columns
        return self.opened[name]

    def _shown(self, column: Column) -> Column:
        """Give a column as batches carry it."""
        if column.name not in self.class_columns:
            return column
        return as_classes(column, self.classes(column.name) if column.categories is None else None, self.store_rows)

    def _read(self, name: str) -> Classes:
        column = self._column(name, "columns of classes")
        check_kind(column)
        pieces = (piece for (piece,) in read_columns([column], all_rows(self.store_rows)))
        if column.categories is None:
            return classes_of_integers(name, pieces)
        dtype = np.min_scalar_type(-len(column.categories) - 1)
        return Classes(name, np.concatenate([piece.astype(dtype) for piece in pieces]), column.categories)

    def emitted(self, emit: Emit, casting: Casting, kernels: Mapping[str, ValueKernel]) -> dict[str, Emitted]:
        """Say in which type each element comes, see `annbatch.batches.casts.emitted`; not those of modalities."""
        return emitted(self.stores, self.dtypes, emit, casting, kernels)

    def fingerprint(self) -> dict[str, Any]:
        """Say what tells these stores from others: rows and stored elements of each, and the genes."""
        parts = list(self.parts.values())
        joined = [part.genes for part in parts if part.genes is not None]
        sizes = [
            [store.shape[0], *(_n_elements(part.stores[i].matrices["X"]) for part in parts)]
            for i, store in enumerate(self.stores)
        ]
        genes = ("\0".join(map(str, one.names)) for one in joined)
        names = "\0\0".join([*self.modalities, *genes]).encode()
        # Named only where there are some: states of earlier versions remain valid.
        files = [stamp.digest() for stamp in self._files]
        named = {"files": files} if files else {}
        return {
            "n_obs": self.n_obs,
            "n_vars": sum(len(one.names) for one in joined),
            "stores": digest(np.array(sizes, np.int64)),
            "var_names": digest(np.frombuffer(names, np.uint8)),
            "collections": list(self.collections),
            **named,
        } | self._fingerprint_of_joins()

    def _fingerprint_of_joins(self) -> dict[str, Any]:
        """Say where the genes of each store go; nothing where all stores have the same, as in earlier versions."""
        maps = [part.genes.columns for part in self.parts.values() if part.genes is not None]
        tables = [table for one in maps if one is not None for table in (one.lookup, one.bounds, one.lists)]
        return {"genes": digest(np.concatenate(tables, dtype=np.int64))} if tables else {}

    def differences(self, before: Dataset | None) -> list[str]:
        """Say what a user should know of stores that differ, and was not told ``before``."""
        found = differences(self.merged, before.merged if before else None)
        for name, part in self.parts.items():
            known = before.parts.get(name) if before else None
            if part.genes is not None:
                found += part.genes.differences(known.genes if known else None)
        return found

    @property
    def _files(self) -> list[FileStamp]:
        """The HDF5 files among the stores, in the order of the stores."""
        return [stamp for part in self.parts.values() for store in part.stores for stamp in store.files]

    def check_files(self) -> None:
        """Raise StoreError if one of the HDF5 files is gone, or has changed since it was opened."""
        for stamp in self._files:
            stamp.check()

    def check_state_files(self, state: Any, own: Sequence[str]) -> None:
        """Check that the HDF5 files of a state are these, or copies of them.

        Parameters
        ----------
        state
            What a user gave; anything else about it is checked by `annbatch.order.state.load`.
        own
            The ``files`` of this dataset's fingerprint.

        Raises
        ------
        InputError
            If they are others; names the first of them.
        """
        paths, saved = [stamp.path for stamp in self._files], None
        with suppress(AttributeError, KeyError, TypeError):
            saved = state["fingerprint"]["files"]
        if not isinstance(saved, list) or not paths:
            return
        if len(saved) != len(paths):
            raise InputError(
                f"state must belong to the same files: it belongs to {len(saved)}, the loader has {len(paths)}"
            )
        for path, then, now in zip(paths, saved, own, strict=True):
            if then != now:
                raise InputError(
                    f"{path}: must be the file with which the state was saved, or a copy: its size and checksum were "
                    f"{then}, and are {now}; pass the files in the same order"
                )

    def slow_paths(self, *, of_files: bool = False) -> list[str]:
        """Say which elements, or those of HDF5 files, zarr or h5py reads, and why; the others are read directly."""
        slow: dict[tuple[str, str], list[str]] = {}
        for name, matrix in (each for part in self.parts.values() for each in part.named_matrices()):
            if matrix.slow is not None and (matrix.file is not None or not of_files):
                reader = "zarr" if matrix.file is None else "h5py"
                slow.setdefault((reader, matrix.slow), []).append(name)
        found = []
        for (reader, why), names in slow.items():
            more = f" and {len(names) - 1} more" if names[1:] else ""
            found.append(f"{reader}, not the direct path, reads {names[0]}{more}: {why}")
        return found

    def report_paths(self) -> None:
        """Log once which elements are not read directly, and why."""
        for sentence in self.slow_paths():
            _log.info("%s", sentence)

    def undecodable(self) -> str | None:
        """Say why a device cannot decode the sparse matrices; None if it can."""
        # Each element has a form of its own, and each modality elements of its own.
        sparse = [
            [each for each in part.named_matrices() if isinstance(each[1], SparseMatrix)]
            for part in self.parts.values()
        ]
        reasons = [why_not(matrices) for matrices in sparse if matrices] or [why_not([])]
        why = next((why for why in reasons if why is not None), None)
        joins = [part.genes is not None and part.genes.join is not None for part in self.parts.values()]
        if why is None and any(joins):
            why = "the stores have different genes, which are joined on the CPU"
        if why is None and needs_nvcomp([matrix for matrices in sparse for _, matrix in matrices]):
            return missing()
        return why

    def named_matrices(self) -> list[tuple[str, Matrix]]:
        """Give the matrices of all stores, with what messages call them; not those of modalities."""
        return [(f"{store.name} {element}", one) for store in self.stores for element, one in store.matrices.items()]

    def report_decoding(self, wanted: str) -> None:
        """Log whether chunks are decoded on the device, and if not, why."""
        why = "decode is 'cpu'" if wanted == "cpu" else self.undecodable()
        if why is None:
            _log.info("chunks are decoded on the device")
        else:
            _log.info("chunks are decoded on the CPU: %s", why)


def _n_elements(matrix: Matrix) -> int:
    return matrix.data.size if isinstance(matrix, SparseMatrix) else matrix.values.size


def _begin_with(stores: Sequence[Store], first: Sequence[Store]) -> bool:
    return len(first) <= len(stores) and all(one is other for one, other in zip(stores, first, strict=False))


def _merged(stores: Sequence[Store], labels: Sequence[str] | None, before: Dataset | None) -> Merged:
    of_stores = [(store.name, store.shape[0], store.columns) for store in stores]
    return merge_columns(of_stores, labels or (), () if before is None else before.merged.columns)


def _check_element(element: str, stores: Sequence[Store]) -> None:
    first = stores[0].matrices[element]
    for store in stores:
        matrix = store.matrices[element]
        is_wider = element.startswith("obsm/") and matrix.shape[1] != first.shape[1]
        if type(matrix) is not type(first) or is_wider:
            raise InputError(
                f"{element} must be of one kind and width in all stores, got a {type(first).__name__} of "
                f"{first.shape[1]} columns in {stores[0].name} and a {type(matrix).__name__} of {matrix.shape[1]} in "
                f"{store.name}"
            )
