"""How does a command give its result: as text, or as JSON?"""

from __future__ import annotations

import json
from typing import Any

import click

from annbatch import summary
from annbatch.errors import OutputError
from annbatch.stores.collection import Collection
from annbatch.stores.modality import ModalityEntry


def print_text(text: str) -> None:
    """Write to standard output."""
    try:
        click.echo(text)
    except BrokenPipeError:
        # Whoever read it wants no more; click ends the program.
        raise
    except OSError as e:
        raise OutputError(e.errno, f"standard output cannot be written ({e.strerror}); the work itself is done") from e


def show(collection: Collection, as_json: bool) -> None:
    """Write what is in a collection, and where it came from, to standard output."""
    nbytes = sum(file.nbytes for store in collection.stores for file in store.files.values())
    found = {
        "path": str(collection.path),
        "n_obs": collection.n_obs,
        "n_vars": collection.n_vars,
        "stores": len(collection.stores),
        "bytes": nbytes,
        "nnz": sum(nnz for nnz in _nnz(collection) if nnz is not None),
        "types": {key: types.to_json() for key, types in collection.types.items()},
        "obs_columns": list(collection.obs_columns),
        "modalities": {name: _of_modality(one) for name, one in collection.modalities.items()},
        "shuffled": collection.shuffled,
        "seed": collection.seed,
        "grouped_by": collection.grouped_by,
        "software": collection.software,
        "inputs": [entry.to_json() for entry in collection.inputs],
    }
    if as_json:
        print_text(json.dumps(found))
        return
    stores = f"{len(collection.stores):,} store{'s' if len(collection.stores) > 1 else ''}"
    print_text(
        f"{collection.path}: {collection.n_obs:,} cells × {collection.n_vars:,} genes in {stores}, "
        f"{summary.size(nbytes)}, {found['nnz']:,} values"
    )
    for name, modality in collection.modalities.items():
        masked = ", of some of the cells" if modality.masked else ""
        print_text(f"  {name}: {modality.n_vars:,} features{masked}; obs: {', '.join(modality.obs_columns)}")
    for key, types in collection.types.items():
        print_text(f"  {key}: stored as {types.stored}, was {types.original}")
    order = f"shuffled with seed {collection.seed}" if collection.shuffled else "in the order of the inputs"
    by = collection.grouped_by or ()
    grouped = f", grouped by {by if isinstance(by, str) else ' and '.join(by)}" if by else ""
    print_text(f"  rows: {order}{grouped}")
    print_text(f"  obs: {', '.join(collection.obs_columns)}")
    for entry in collection.inputs:
        if not entry.n_obs:
            print_text(f"  {entry.name}: no cells, skipped")
            continue
        lost = f"{entry.genes_lost:,} genes, {entry.elements_lost:,} values"
        counts = "" if entry.counts_lost is None else f", {entry.counts_lost:,} counts"
        print_text(f"  {entry.name}: {entry.n_obs:,} cells; lost {lost}{counts}")
        if entry.x is not None:
            print_text(f"    X: {entry.x}")
        if entry.renamed:
            print_text(f"    renamed: {', '.join(f'{own} to {new}' for own, new in entry.renamed.items())}")
        if entry.left_out:
            print_text(f"    left out: {', '.join(entry.left_out)}")
        if entry.cells_lost:
            cells = ", ".join(f"{n:,} of {name}" for name, n in entry.cells_lost.items())
            print_text(f"    cells left out: {cells}")


def _nnz(collection: Collection) -> list[int | None]:
    """Give the stored elements of X of each store, and modality."""
    if not collection.modalities:
        return [store.nnz for store in collection.stores]
    return [nnz for modality in collection.modalities.values() for nnz in modality.nnz]


def _of_modality(modality: ModalityEntry) -> dict[str, Any]:
    obs_columns = list(modality.obs_columns)
    return {"n_vars": modality.n_vars, "obs_columns": obs_columns, "masked": modality.masked}
