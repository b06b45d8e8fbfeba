"""What must new cells fit to join a collection that is there?

`AppendTarget.open` reads it from the last store: genes, elements, and the obs columns with their categories, which new
stores continue. `AppendTarget.extended` gives the manifest of both together.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import zarr

from annbatch import summary
from annbatch.errors import InputError, StoreError
from annbatch.stores.collection import FORMAT, Collection
from annbatch.stores.column_join import KnownColumn
from annbatch.stores.label_columns import columns_of_group, has_value
from annbatch.stores.manifest import ElementTypes, store_number
from annbatch.stores.stored_frame import as_text
from annbatch.write.inputs.contents import Source
from annbatch.write.inputs.faults import Faults
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
    obsm: Mapping[str, int]
    """Names of the obsm arrays, and their columns."""
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
            raise InputError(
                f"{output}: only a collection that annbatch-dlpack wrote can be appended to, got {collection.format}"
            )
        return collection

    @classmethod
    def open(cls, output: Path) -> AppendTarget:
        """Read what new cells must fit.

        Raises
        ------
        InputError
            If there is no collection of ours, or something lies where a new store would go.
        """
        return cls.of(cls.check(output))

    @classmethod
    def of(cls, collection: Collection) -> AppendTarget:
        """Read what new cells must fit, of a collection that was checked; raises as `open` does."""
        root: Any = zarr.open_group(collection.store_paths[-1], mode="r")
        var = ad.io.read_elem(root["var"])
        var.index = pd.Index(as_text(var.index), dtype=object, name=var.index.name)
        schema = {
            name: KnownColumn(_empty(root["obs"][name]), _has_value(collection, name))
            for name in collection.obs_columns
        }
        layers = tuple(key.removeprefix("layers/") for key in collection.types if key.startswith("layers/"))
        dense = tuple(key for key in collection.types if isinstance(root[key], zarr.Array))
        obsm = dict(sorted(root["obsm"].arrays()))
        types = {f"obsm/{name}": ElementTypes(array.dtype, array.dtype, None) for name, array in obsm.items()}
        widths = {name: array.shape[1] for name, array in obsm.items()}
        found = cls(collection, var, schema, layers, widths, dense, {**collection.types, **types})
        if (next_path := collection.directory / f"chunk_{found.next_store}.zarr").exists():
            raise InputError(f"{next_path}: is in the way of a new store; move or remove it")
        return found

    def check_choice(
        self, layers: Sequence[str] | None, obsm: Sequence[str] | None, columns: Sequence[str] | None
    ) -> None:
        """Refuse to write other elements than the collection has; None is no choice. Pure.

        Raises
        ------
        InputError
            If other layers or obsm arrays are chosen than it has, or obs columns that it lacks.
        """
        for what, chosen, there in (("layers", layers, self.layers), ("obsm", obsm, tuple(self.obsm))):
            if chosen is not None and set(chosen) != set(there):
                raise InputError(
                    f"{what} must be those of the collection, {list(there)}, got {list(chosen)}; "
                    f"{_WAY_OUT.format(what)}"
                )
        if unknown := [name for name in columns or () if name not in self.schema]:
            got, known = summary.short(unknown), summary.short(list(self.schema))
            raise InputError(f"obs_columns must be in the collection, got {got}; there are {known}")

    def check_elements(self, sources: Sequence[Source]) -> None:
        """Refuse inputs that lack what all stores of the collection have. Pure.

        Raises
        ------
        InputError
            Names each layer and obsm array that inputs lack, or have of another shape; with the inputs.
        """
        faults = Faults()
        for name in self.layers:
            key = f"layers/{name}"
            if lacking := [source.name for source in sources if key not in source.matrices]:
                faults.add(InputError(f"{summary.some_of(lacking)}: {key} is missing, {_in_all_stores('layers')}"))
        for name, width in self.obsm.items():
            infos = [(source.name, source.obsm.get(name)) for source in sources]
            what = f"obsm {name!r}"
            if lacking := [path for path, info in infos if info is None]:
                faults.add(
                    InputError(
                        f"{summary.some_of(lacking)}: {what} is missing or not numeric, {_in_all_stores('obsm')}"
                    )
                )
            others = [(path, info.shape[1]) for path, info in infos if info is not None and info.shape[1] != width]
            if others:
                found = dict.fromkeys(n for _, n in others)
                faults.add(
                    InputError(
                        f"{summary.some_of([path for path, _ in others])}: {what} must have {width} columns, as in the "
                        f"collection, got {', '.join(map(str, found))}; {_WAY_OUT.format('obsm')}"
                    )
                )
        faults.raise_any()

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
        types = {key: types.merge(added.types[key]) for key, types in self.collection.types.items()}
        return replace(extended(self.collection, added), types=types)


def extended(old: Collection, added: Collection) -> Collection:
    """Give the manifest of a collection with more stores, whose types are yet to be said."""
    return replace(
        old,
        n_obs=old.n_obs + added.n_obs,
        stores=old.stores + added.stores,
        shuffled=old.shuffled and added.shuffled,
        seed=old.seed if old.seed == added.seed else None,
        software=added.software,
        # Its categories no longer stand together.
        grouped_by=None,
        inputs=old.inputs + added.inputs,
    )


_WAY_OUT = "reshuffle_collection({}=[…]) writes the collection with fewer"


def _in_all_stores(what: str) -> str:
    return f"which all stores of the collection have; {_WAY_OUT.format(what)}"


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
