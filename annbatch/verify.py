"""Is every byte of a collection what was written, and does it make sense?

1. `verify_store` compares each file of a store with its recorded size and checksum.
2. It then reads the matrices, a block of rows at a time: as many rows as the manifest says, ``indptr`` from 0 to the
   number of elements and never falling, column numbers in range and, as the format says, ascending within each row.
3. It reads the tables: all columns of obs, with a value for each row and codes that have a category; the elements of
   obsm; and var, whose names must be those of the manifest.

Modalities are checked one after the other, and must have the same cells. Stores of other programs have no records, so
that only steps 2 and 3 are done for them; their column numbers may come in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt

from annbatch import summary
from annbatch.errors import CorruptStoreError, InputError, naming
from annbatch.shards.codecs import numcodecs_are_known
from annbatch.stores.collection import FORMAT, Collection, digest_names, verify_files
from annbatch.stores.manifest import StoreEntry
from annbatch.stores.obs_access import obs_of
from annbatch.stores.obs_rows import all_rows, open_columns, read_columns
from annbatch.stores.refusals import refuse_executable
from annbatch.stores.stored_frame import as_text
from annbatch.write.inputs.matrix_rows import Matrix, cut_rows, matrix_of
from annbatch.write.shuffle.row_kernels import first_bad_row

_BLOCK_ELEMENTS = 2**22

Report = Callable[[int], object]
"""Is told of rows as they are done."""


@numcodecs_are_known()
def verify_store(collection: Collection, store: StoreEntry, report: Report = lambda rows: None) -> None:
    """Check one store of a collection; ``report`` is told of rows of X as they are done.

    Raises
    ------
    CorruptStoreError
        If anything differs from what was written, or contradicts itself; names the file or element, rule and value.
    StoreError
        If it cannot be opened, or something in it cannot be read.
    """
    verify_files(replace(collection, stores=(store,), n_obs=store.n_obs))
    if not collection.modalities:
        _verify_anndata(collection, store, report)
        return
    names = _verify_obs(collection, store)
    for number, modality in enumerate(collection.modalities):
        view = collection.modality(modality)
        part = view.stores[collection.stores.index(store)]
        differs = np.flatnonzero(_verify_anndata(view, part, report if number == 0 else lambda rows: None) != names)
        if len(differs):
            row = int(differs[0])
            raise CorruptStoreError(
                f"{collection.path}/{part.name}/obs: must have the cells of the store in their order, got another name "
                f"than {names[row]!r} in row {row}"
            )


def _verify_anndata(collection: Collection, store: StoreEntry, report: Report) -> npt.NDArray[Any]:
    """Check one AnnData store; give the names of its cells."""
    _verify_matrices(collection, store, report)
    names = _verify_obs(collection, store)
    _verify_obsm(collection, store)
    _verify_var(collection, store)
    return names


def _verify_matrices(collection: Collection, store: StoreEntry, report: Report) -> None:
    """Check X and layers."""
    path = f"{collection.path}/{store.name}"
    root: Any = collection.group(store)
    with naming(path):
        found = {key: root[key] for key in ["X", *(f"layers/{name}" for name in root.get("layers", ()))]}
    if collection.types and found.keys() != collection.types.keys():
        wanted, held = sorted(collection.types), sorted(found)
        raise CorruptStoreError(f"{path}: must have the matrices of the manifest, {wanted}, got {held}")
    for key, element in found.items():
        where = f"{path}/{key}"
        with naming(where):
            try:
                matrix = matrix_of(element, where)
                if matrix.format not in ("csr", "dense"):
                    raise CorruptStoreError(f"{where}: must be stored by rows (CSR) or dense, got {matrix.format}")
                if matrix.shape != (store.n_obs, collection.n_vars):
                    wanted_shape = (store.n_obs, collection.n_vars)
                    raise CorruptStoreError(f"{where}: must have the shape {wanted_shape}, got {matrix.shape}")
                if key == "X" and store.nnz is not None and matrix.nnz != store.nnz:
                    raise CorruptStoreError(f"{where}: must have {store.nnz} elements, got {matrix.nnz}")
                _verify_matrix(
                    matrix, where, report if key == "X" else lambda rows: None, ascends=collection.format == FORMAT
                )
            except InputError as e:
                raise CorruptStoreError(str(e)) from e


def _verify_matrix(matrix: Matrix, where: str, report: Report, *, ascends: bool) -> None:
    if matrix.format == "dense":
        step = max(1, _BLOCK_ELEMENTS // max(1, matrix.shape[1]))
        for start in range(0, matrix.shape[0], step):
            report(len(matrix.data[start : start + step]))
        return
    starts = matrix.row_starts(where)
    for start, stop in cut_rows(starts, slice(0, matrix.shape[0]), _BLOCK_ELEMENTS):
        part = slice(int(starts[start]), int(starts[stop]))
        # Values are read for their checksums alone.
        indices, _ = np.asarray(matrix.indices[part]), matrix.data[part]
        edges = starts[start : stop + 1] - starts[start]
        if ascends:
            bad = first_bad_row(edges, indices, matrix.shape[1])
        else:
            wrong = np.flatnonzero((indices < 0) | (indices >= matrix.shape[1]))
            bad = int(np.searchsorted(edges, wrong[0], "right")) - 1 if len(wrong) else -1
        if bad >= 0:
            row = start + bad
            columns = indices[starts[row] - starts[start] : starts[row + 1] - starts[start]].tolist()
            raise CorruptStoreError(
                f"{where}: column numbers must {'ascend within a row and ' if ascends else ''}be in "
                f"[0, {matrix.shape[1]}), row {row} has "
                f"{str(columns[:8])[:-1]}{', …' if len(columns) > 8 else ''}]"
            )
        report(stop - start)


def _verify_obs(collection: Collection, store: StoreEntry) -> npt.NDArray[Any]:
    """Check the names of the cells and all columns of obs; give the names, (n_obs,) str objects."""
    path = f"{collection.path}/{store.name}"
    with naming(f"{path}/obs"):
        obs = obs_of(collection.group(store), path, collection.recorded(store))
        names = as_text(ad.io.read_elem(obs.group[str(obs.group.attrs["_index"])]))
    if len(names) != store.n_obs:
        raise CorruptStoreError(f"{path}/obs: must have the {store.n_obs} rows of the manifest, got {len(names)}")
    if lacking := [name for name in collection.obs_columns if name not in obs.column_names]:
        raise CorruptStoreError(f"{path}/obs: must have the columns of the manifest, lacks {summary.short(lacking)}")
    try:
        found = open_columns([obs], [store.n_obs], None, "columns")
        for _ in read_columns(found.columns, all_rows([store.n_obs])):
            pass
    except InputError as e:
        raise CorruptStoreError(str(e)) from e
    if found.disputed:
        raise CorruptStoreError("; ".join(found.disputed.values()))
    return names


def _verify_obsm(collection: Collection, store: StoreEntry) -> None:
    path = f"{collection.path}/{store.name}"
    with naming(f"{path}/obsm"):
        held: Any = collection.group(store).get("obsm", {})
        names = list(held)
    for name in names:
        where = f"{path}/obsm/{name}"
        with naming(where):
            element = held[name]
            refuse_executable(element, where)
            is_matrix = element.attrs.get("encoding-type") == "csr_matrix" or getattr(element, "ndim", 0) == 2
            try:
                # Tables, and what loaders refuse, are read whole.
                found: Any = matrix_of(element, where) if is_matrix else ad.io.read_elem(element)
                if found.shape[0] != store.n_obs:
                    raise CorruptStoreError(f"{where}: must have {store.n_obs} rows, got {found.shape[0]}")
                if is_matrix:
                    _verify_matrix(found, where, lambda rows: None, ascends=False)
            except InputError as e:
                raise CorruptStoreError(str(e)) from e


def _verify_var(collection: Collection, store: StoreEntry) -> None:
    where = f"{collection.path}/{store.name}/var"
    with naming(where):
        var: Any = collection.group(store)["var"]
        refuse_executable(var, where)
        names = ad.io.read_elem(var).index
    if len(names) != collection.n_vars:
        raise CorruptStoreError(f"{where}: must have the {collection.n_vars} genes of the manifest, got {len(names)}")
    if (digest := digest_names(names)) != collection.var_digest:
        raise CorruptStoreError(
            f"{where}: must have the names of the manifest in their order, whose SHA-256 is {collection.var_digest}, "
            f"got {digest}"
        )
