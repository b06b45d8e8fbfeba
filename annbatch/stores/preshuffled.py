"""What is in a directory that scverse annbatch preshuffled?

Such a collection has no manifest. `find_stores` reads what is known of it from the stores themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count as count_up
from itertools import takewhile
from typing import Any

import anndata as ad
import zarr

from annbatch.errors import StoreError
from annbatch.stores.location import Folder
from annbatch.stores.manifest import THEIR_STORE, StoreEntry, store_number

PRESHUFFLED = "annbatch-preshuffled"
"""``encoding-type`` of the root group."""


@dataclass(frozen=True, slots=True, eq=False)
class FoundStores:
    """The stores of a preshuffled collection."""

    stores: tuple[StoreEntry, ...]
    """In numeric order; without files, since no checksums are recorded."""
    n_vars: int
    """Columns of every store."""
    var_names: Iterable[str]
    """Names of the genes of the first store."""
    obs_columns: tuple[str, ...]
    """Names of the obs columns of the first store."""


def is_preshuffled(folder: Folder) -> bool:
    """Return whether the root group of a folder says that scverse annbatch preshuffled it.

    Raises
    ------
    StoreError
        If the folder cannot be reached.
    """
    try:
        found: object = json.loads(folder.read("zarr.json"))["attributes"]["encoding-type"]
    except StoreError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return found == PRESHUFFLED


def find_stores(folder: Folder) -> FoundStores:
    """Find the stores of a preshuffled collection, and read their shapes.

    Raises
    ------
    StoreError
        If there are none, they differ in their number of genes, or they cannot be read.
    """
    try:
        root = folder.group("")
        if folder.can_list:
            names = sorted((name for name in root.group_keys() if THEIR_STORE.fullmatch(name)), key=store_number)
        else:
            names = list(takewhile(root.__contains__, (f"dataset_{i}" for i in count_up())))
        if not names:
            raise StoreError(f"{folder}: has the encoding-type {PRESHUFFLED!r} but no dataset_{{i}} groups")
        stores, n_vars = [], set()
        for name in names:
            x: Any = root[f"{name}/X"]
            is_dense = isinstance(x, zarr.Array)
            rows, columns = x.shape if is_dense else x.attrs["shape"]
            stores.append(StoreEntry(name, int(rows), None if is_dense else int(x["data"].shape[0]), {}))
            n_vars.add(int(columns))
        if len(n_vars) != 1:
            raise StoreError(f"{folder}: all stores must have the same n_vars, got {sorted(n_vars)}")
        var: Any = root[f"{names[0]}/var"]
        obs: Any = root[f"{names[0]}/obs"]
        return FoundStores(
            tuple(stores),
            n_vars.pop(),
            ad.io.read_elem(var[var.attrs["_index"]]),
            tuple(str(name) for name in obs.attrs["column-order"]),
        )
    except StoreError:
        raise
    except Exception as e:
        raise StoreError(f"{folder}: cannot be read as a collection of scverse annbatch: {e}") from e
