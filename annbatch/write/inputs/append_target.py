"""What must new cells fit to join a collection that is there?

`AppendTarget.open` reads it from the last store: genes, elements, and the obs columns with their categories, which new
stores continue. `AppendTarget.extended` gives the manifest of both together.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import zarr

from annbatch.errors import InputError, StoreError
from annbatch.stores.collection import FORMAT, Collection
from annbatch.stores.label_columns import columns_of_group, has_value
from annbatch.stores.manifest import ElementTypes, store_number
from annbatch.stores.stored_frame import as_text
from annbatch.write.inputs.column_join import KnownColumn
from annbatch.write.inputs.text_file import TextFile


@dataclass(frozen=True, slots=True)
class AppendTarget:
    """A collection that gets more stores."""

    collection: Collection
    var: pd.DataFrame
    """(n_vars, …)."""
    schema: Mapping[str, KnownColumn]
    """The obs columns, and their categories as the last store has them, which has all."""
    layers: tuple[str, ...]
    """Names of the layers."""
    obsm: tuple[str, ...]
    """Names of the obsm arrays."""
    dense: tuple[str, ...]
    """Keys of X and layers that are dense."""
    types: Mapping[str, ElementTypes]
    """Types of X, layers and obsm arrays."""

    @classmethod
    def check(cls, output: Path) -> Collection:
        """Open the collection, and say whether it may be appended to.

        Raises
        ------
        InputError
            If it is none of ours.
        """
        try:
            collection = Collection.open(output)
        except StoreError as e:
            raise InputError(f"{output}: only a complete collection can be appended to: {e}") from e
        if collection.format != FORMAT or not collection.stores:
            raise InputError(f"{output}: only a collection of this program can be appended to, got {collection.format}")
        return collection

    @classmethod
    def open(cls, output: Path) -> AppendTarget:
        """Read what new cells must fit.

        Raises
        ------
        InputError
            If there is no collection of ours, or something lies where a new store would go.
        """
        collection = cls.check(output)
        root: Any = zarr.open_group(collection.store_paths[-1], mode="r")
        var = ad.io.read_elem(root["var"])
        var.index = pd.Index(as_text(var.index), dtype=object, name=var.index.name)
        schema = {
            name: KnownColumn(_empty(root["obs"][name]), _has_value(collection, name))
            for name in collection.obs_columns
        }
        layers = tuple(key.removeprefix("layers/") for key in collection.types if key.startswith("layers/"))
        dense = tuple(key for key in collection.types if isinstance(root[key], zarr.Array))
        obsm = {f"obsm/{name}": array.dtype for name, array in root["obsm"].arrays()}
        types = {**collection.types, **{key: ElementTypes(dtype, dtype, None) for key, dtype in obsm.items()}}
        found = cls(collection, var, schema, layers, tuple(root["obsm"]), dense, types)
        if (next_path := output / f"chunk_{found.next_store}.zarr").exists():
            raise InputError(f"{next_path}: is in the way of a new store and belongs to no collection")
        return found

    @property
    def next_store(self) -> int:
        """Number of the next store."""
        return store_number(self.collection.stores[-1].name) + 1

    def names(self, directory: Path) -> list[TextFile]:
        """Copy the names of all cells into ``directory``."""
        directory.mkdir(exist_ok=True)
        target = TextFile(directory / f"{self.next_store}.text")
        for path in (target.path, target.path.with_name(f"{target.path.name}.ends")):
            path.unlink(missing_ok=True)
        for path in self.collection.store_paths:
            obs: Any = zarr.open_group(path, mode="r")["obs"]
            target.append(as_text(ad.io.read_elem(obs[obs.attrs["_index"]])))
        return [target]

    def extended(self, added: Collection) -> Collection:
        """Give the manifest of the collection with the stores of ``added``."""
        old = self.collection
        return replace(
            old,
            n_obs=old.n_obs + added.n_obs,
            stores=old.stores + added.stores,
            types={key: types.merge(added.types[key]) for key, types in old.types.items()},
            shuffled=old.shuffled and added.shuffled,
            seed=old.seed if old.seed == added.seed else None,
            software=added.software,
            # Its categories no longer stand together.
            grouped_by=None,
            inputs=old.inputs + added.inputs,
        )


def _has_value(collection: Collection, name: str) -> bool:
    """Say whether an obs column has a value in any store; text that no categories were made of has."""
    for path in collection.store_paths:
        obs: Any = zarr.open_group(path, mode="r")["obs"]
        is_text = obs[name].attrs["encoding-type"] == "string-array"
        if is_text or has_value(columns_of_group(obs, [name], str(path), {})[name]):
            return True
    return False


def _empty(element: Any) -> pd.Series[Any]:
    """Give a column without rows of the same type."""
    encoding = element.attrs["encoding-type"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The 'future.infer_string' option is deprecated")
        if encoding == "categorical":
            categories = ad.io.read_elem(element["categories"])
            return pd.Series(pd.Categorical([], categories, ordered=bool(element.attrs["ordered"])))
    if encoding == "nullable-integer":
        return pd.Series(pd.arrays.IntegerArray(np.empty(0, element["values"].dtype), np.empty(0, bool)))
    if encoding == "nullable-boolean":
        return pd.Series(pd.arrays.BooleanArray(np.empty(0, bool), np.empty(0, bool)))
    return pd.Series(np.empty(0, element.dtype if encoding == "array" else object))
