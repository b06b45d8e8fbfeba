"""Is every byte of a collection what was written, and does it make sense?

1. `verify_store` compares each file of a store with its recorded size and checksum.
2. It then reads the matrices, a block of rows at a time: as many rows as the manifest says, ``indptr`` from 0 to the
   number of elements and never falling, column numbers in range and ascending within each row. Modalities are checked
   one after the other, and must have the same cells.

Stores of other programs have no records, so that only step 2 is done for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anndata as ad
import numpy as np

from annbatch.errors import CorruptStoreError, InputError, naming
from annbatch.shards.codecs import numcodecs_are_known
from annbatch.stores.collection import Collection, verify_files
from annbatch.stores.manifest import StoreEntry
from annbatch.stores.refusals import refuse_executable
from annbatch.stores.stored_frame import as_text
from annbatch.write.inputs.matrix_rows import Matrix, cut_rows, matrix_of
from annbatch.write.shuffle.row_kernels import first_bad_row

_BLOCK_ELEMENTS = 2**22


@numcodecs_are_known()
def verify_store(
    collection: Collection, store: StoreEntry, report: Callable[[int], object] = lambda rows: None
) -> None:
    """Check one store of a collection; ``report`` is told of rows of X as they are done.

    Raises
    ------
    CorruptStoreError
        If anything differs from what was written, or contradicts itself; names the file or element, rule and value.
    StoreError
        If it cannot be opened.
    """
    verify_files(replace(collection, stores=(store,), n_obs=store.n_obs))
    if not collection.modalities:
        _verify_elements(collection, store, report)
        return
    names = _names(collection, store)
    for number, modality in enumerate(collection.modalities):
        view = collection.modality(modality)
        part = view.stores[collection.stores.index(store)]
        differs = np.flatnonzero(_names(view, part) != names)
        if len(differs):
            row = int(differs[0])
            raise CorruptStoreError(
                f"{collection.path}/{part.name}/obs: must have the cells of the store in their order, got another name "
                f"than {names[row]!r} in row {row}"
            )
        _verify_elements(view, part, report if number == 0 else lambda rows: None)


def _names(collection: Collection, store: StoreEntry) -> Any:
    path = f"{collection.path}/{store.name}"
    root: Any = collection.group(store)
    with naming(f"{path}/obs"):
        obs: Any = root["obs"]
        refuse_executable(obs, f"{path}/obs")
        names = as_text(ad.io.read_elem(obs[obs.attrs["_index"]]))
    if len(names) != store.n_obs:
        raise CorruptStoreError(f"{path}/obs: must have the {store.n_obs} rows of the manifest, got {len(names)}")
    return names


def _verify_elements(collection: Collection, store: StoreEntry, report: Callable[[int], object]) -> None:
    """Check the matrices of one AnnData store."""
    path = f"{collection.path}/{store.name}"
    root: Any = collection.group(store)
    with naming(path):
        keys = ["X", *(f"layers/{name}" for name in root.get("layers", ()))]
        found = {key: root[key] for key in keys}
        obs: Any = root["obs"]
        n_names = int(obs[obs.attrs["_index"]].shape[0])
    if n_names != store.n_obs:
        raise CorruptStoreError(f"{path}/obs: must have the {store.n_obs} rows of the manifest, got {n_names}")
    for key, element in found.items():
        where = f"{path}/{key}"
        with naming(where):
            try:
                matrix = matrix_of(element, where)
                if matrix.shape != (store.n_obs, collection.n_vars):
                    wanted = (store.n_obs, collection.n_vars)
                    raise CorruptStoreError(f"{where}: must have the shape {wanted}, got {matrix.shape}")
                if key == "X" and store.nnz is not None and matrix.nnz != store.nnz:
                    raise CorruptStoreError(f"{where}: must have {store.nnz} elements, got {matrix.nnz}")
                _verify_matrix(matrix, where, report if key == "X" else lambda rows: None)
            except InputError as e:
                raise CorruptStoreError(str(e)) from e


def _verify_matrix(matrix: Matrix, where: str, report: Callable[[int], object]) -> None:
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
        bad = first_bad_row(starts[start : stop + 1] - starts[start], indices, matrix.shape[1])
        if bad >= 0:
            row = start + bad
            columns = indices[starts[row] - starts[start] : starts[row + 1] - starts[start]].tolist()
            raise CorruptStoreError(
                f"{where}: column numbers must ascend within a row and be in [0, {matrix.shape[1]}), row {row} has "
                f"{str(columns[:8])[:-1]}{', …' if len(columns) > 8 else ''}]"
            )
        report(stop - start)
