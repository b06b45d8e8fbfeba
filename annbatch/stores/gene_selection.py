"""Which columns of X and layers does a loader yield?

1. `GeneOptions` checks the options of a loader, and returns `Genes` for each modality: names, a boolean mask, or a
   function of var.
2. `Genes.find` looks that up in the var of a store. It gives a column number for each gene, -1 for one that the store
   lacks, and the var of these genes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from annbatch import summary
from annbatch.check import distinct_names, one_of
from annbatch.errors import InputError
from annbatch.stores.gene_join import How

Mask = NDArray[np.bool_] | pd.Series
VarNames = Sequence[str] | Mask | Callable[[pd.DataFrame], Any]
Wanted = tuple[str, ...] | Mask | Callable[[pd.DataFrame], Any] | None
Absent = Literal["error", "zero"]

ABSENT = "absent"
"""The column of a loader's var that says which genes are in no store."""


@dataclass(frozen=True, slots=True, eq=False)
class Genes:
    """The genes that a user asked for."""

    wanted: Wanted
    """Names, a mask of the store's genes, or what gives a mask from var; None means all genes."""
    key: str | None = None
    """Column of var in which names are looked up; None means the index."""
    absent: Absent = "error"
    """What becomes of names that are not there."""
    join: How = "same"
    """Which genes stores that differ have together."""

    @classmethod
    def of(cls, wanted: VarNames | None, key: str | None, absent: Absent, join: How = "same") -> Genes:
        """Check what a user gave.

        Raises
        ------
        TypeError, ValueError
            If names are not text or not distinct, or an option is given that does not go with the others.
        """
        one_of("absent", absent, get_args(Absent))
        one_of("join", join, get_args(How))
        if key is not None and not isinstance(key, str):
            raise TypeError(f"var_key must be the name of a column of var, got {key!r}")
        found: Any = wanted
        is_named = wanted is not None and not callable(wanted) and not _is_mask(wanted)
        if is_named:
            found = distinct_names("var_names", found)
            if not found:
                raise ValueError("var_names must name at least one gene, got none")
        elif wanted is not None and not callable(wanted):
            found = copy(wanted) if hasattr(wanted, "dtype") else np.array(wanted)
            if found.ndim != 1:
                raise ValueError(f"var_names must be a mask of one dimension, got the shape {found.shape}")
        for option, is_default in (("var_key", key is None), ("absent='zero'", absent == "error")):
            if not is_named and not is_default:
                kind = "None" if wanted is None else "a function" if callable(wanted) else "a mask"
                raise ValueError(f"{option} needs names in var_names, got {kind}")
        return cls(found, key, absent, join)

    def find(self, var: pd.DataFrame, store: str) -> tuple[NDArray[np.int64], pd.DataFrame] | None:
        """Look the genes up in the var of a store.

        Parameters
        ----------
        var
            (n_vars, …) var of the store.
        store
            What error messages call it.

        Returns
        -------
        positions, var
            (n_wanted,) column of each gene, -1 for those that are absent; (n_wanted, …) the genes' var. None if all
            genes are wanted.

        Raises
        ------
        InputError
            If there is no such column of var, a gene that may not be absent is, a name is not unique, or a mask does
            not fit.
        """
        if self.wanted is None:
            return None
        if isinstance(self.wanted, tuple):
            return self._named(self.wanted, var, store)
        is_function = callable(self.wanted) and not isinstance(self.wanted, pd.Series)
        mask: Any = self.wanted(var.copy()) if is_function else self.wanted  # type: ignore[operator]
        name = "what var_names returned" if is_function else "var_names"
        positions = np.flatnonzero(_aligned(mask, var, name, store))
        if not len(positions):
            raise InputError(f"{name} must choose at least one gene of {store}, got none")
        return positions, var.iloc[positions]

    def _named(self, wanted: tuple[str, ...], var: pd.DataFrame, store: str) -> tuple[NDArray[np.int64], pd.DataFrame]:
        if self.key is not None and self.key not in var.columns:
            raise InputError(f"var_key must be a column of var, got {self.key!r}; {store} has {list(var.columns)}")
        labels = _labels(var.index if self.key is None else var[self.key])
        is_repeated = labels.duplicated()
        if twice := sorted(set(wanted).intersection(labels[is_repeated])):
            where, remedy = "var names", "; adata.var_names_make_unique() makes them unique"
            if self.key is not None:
                where, remedy = f"var[{self.key!r}]", ""
            raise InputError(
                f"{store}: {where} must be unique to select genes by name, got {twice[0]!r} more than once{remedy}"
            )
        first = np.flatnonzero(~is_repeated)
        found = labels[first].get_indexer(pd.Index(wanted, dtype=object))
        positions = np.where(found < 0, -1, first[found]).astype(np.int64)
        is_absent = positions < 0
        if is_absent.any() and (self.absent == "error" or is_absent.all()):
            missing = [name for name, lacks in zip(wanted, is_absent, strict=True) if lacks]
            remedy = _remedy(wanted, var, self.key, all_absent=bool(is_absent.all()))
            raise InputError(
                f"var_names must be genes of the stores, got {missing[0]!r} ({len(missing)} unknown); {remedy}"
            )
        return positions, self._annotated(var, wanted, positions, store)

    def _annotated(
        self, var: pd.DataFrame, wanted: tuple[str, ...], positions: NDArray[np.int64], store: str
    ) -> pd.DataFrame:
        """Give the var of the genes; that of absent ones holds their names, and else nothing."""
        if self.absent == "error":
            return var.iloc[positions]
        if ABSENT in var.columns:
            raise InputError(f"{store}: var must have no column {ABSENT!r}, because absent='zero' adds one; rename it")
        is_absent = positions < 0
        found = var.reset_index(drop=True).reindex(positions)
        index = var.index.to_numpy(object)[positions]
        index[is_absent] = np.array(wanted, object)[is_absent]
        found.index = pd.Index(index, name=var.index.name)
        if self.key is not None and is_absent.any():
            found[self.key] = list(wanted)
        return found.assign(**{ABSENT: is_absent})


@dataclass(frozen=True, slots=True, eq=False)
class GeneOptions:
    """The options of a loader that say which genes it yields."""

    var_names: Wanted | dict[str, Wanted]
    """What was asked for, or a dict of that by modality."""
    var_key: str | None
    absent: Absent
    join: How

    @classmethod
    def of(
        cls,
        var_names: VarNames | Mapping[str, VarNames] | None,
        var_key: str | None,
        absent: Absent,
        join: How,
    ) -> GeneOptions:
        """Check the options of a loader.

        Raises
        ------
        TypeError, ValueError
            As `Genes.of` does; ``var_key`` and ``absent`` are for the modalities that have names.
        """
        if not isinstance(var_names, Mapping):
            genes = Genes.of(var_names, var_key, absent, join)
            return cls(genes.wanted, var_key, absent, join)
        found = {name: Genes.of(one, None, "error").wanted for name, one in var_names.items()}
        named: list[VarNames | None] = [one for one in found.values() if isinstance(one, tuple)]
        for one in named or [None]:
            Genes.of(one, var_key, absent, join)
        return cls(found, var_key, absent, join)

    def by_modality(self, modalities: Sequence[str]) -> dict[str, Genes]:
        """Return the genes of each modality; under ``""`` those of data without modalities.

        Raises
        ------
        InputError
            If ``var_names`` is a dict and there are no modalities, or the other way round, or names another modality.
        """
        wanted = self.var_names
        if not modalities:
            if isinstance(wanted, dict):
                raise InputError(
                    f"var_names must not be a dict for data without modalities, got one for {list(wanted)}"
                )
            return {"": Genes(wanted, self.var_key, self.absent, self.join)}
        if wanted is not None and not isinstance(wanted, dict):
            got = summary.short(wanted)
            raise InputError(f"var_names must be a dict by modality, of {list(modalities)}, got {got}")
        chosen = wanted or {}
        if unknown := [name for name in chosen if name not in modalities]:
            raise InputError(f"var_names must be a dict by modality, of {list(modalities)}, got {unknown}")
        return {
            name: Genes(chosen[name], self.var_key, self.absent, self.join)
            if name in chosen
            else Genes(None, join=self.join)
            for name in modalities
        }


def _is_mask(values: Any) -> bool:
    """Say whether what was given for names holds booleans."""
    dtype = getattr(values, "dtype", None)
    if dtype is not None:
        return pd.api.types.is_bool_dtype(dtype)
    return isinstance(values, (list, tuple)) and bool(values) and all(isinstance(v, (bool, np.bool_)) for v in values)


def _aligned(mask: Any, var: pd.DataFrame, name: str, store: str) -> NDArray[np.bool_]:
    """Give a mask of the genes of a store; a pandas Series is aligned by the genes' names, as pandas does."""
    if isinstance(mask, pd.Series) and not mask.index.equals(var.index):
        if not (mask.index.is_unique and var.index.is_unique and set(mask.index) == set(var.index)):
            raise InputError(f"the index of {name} must be the var names of {store}")
        mask = mask.reindex(var.index)
    values = mask if isinstance(mask, pd.Series) else pd.Series(mask)
    if not pd.api.types.is_bool_dtype(values.dtype):
        raise InputError(f"{name} must be a boolean mask of the genes of {store}, got values of {values.dtype}")
    if values.isna().any():
        raise InputError(f"{name} must be a boolean mask of the genes of {store}, got missing values")
    if len(values) != len(var):
        raise InputError(f"{name} must have a value for each of the {len(var)} genes of {store}, got {len(values)}")
    return values.to_numpy(bool)


def _labels(values: pd.Index | pd.Series) -> pd.Index:
    """Give names as text; missing ones are equal to no name."""
    plain = values.to_numpy(object)
    is_missing = pd.isna(plain)
    return pd.Index([None if lacks else str(v) for v, lacks in zip(plain, is_missing, strict=True)], dtype=object)


def _remedy(wanted: tuple[str, ...], var: pd.DataFrame, key: str | None, *, all_absent: bool) -> str:
    """Say what to do about absent genes: another column may hold the names."""
    places: list[Any] = [None, *var.columns]
    for place in places:
        values = var.index if place is None else var[place]
        is_text = not pd.api.types.is_numeric_dtype(values.dtype)
        if place != key and is_text and set(wanted) <= set(_labels(values)):
            return "leave out var_key: they are var names" if place is None else f"use var_key={place!r}"
    if all_absent:
        where = "var names" if key is None else f"var[{key!r}]"
        held = ", ".join(map(repr, _labels(var.index if key is None else var[key])[:3]))
        return f"the {where} are {held}, …"
    return "absent='zero' gives zeros for them"
