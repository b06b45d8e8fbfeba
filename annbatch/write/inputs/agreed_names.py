"""Under which names are the elements of all inputs written?

1. `agree_on_names` gives each obs column, layer, obsm array and index one name for all inputs: its own, if a collection
   can hold that. `with_written_names` does so for the columns of the joined var.
2. `in_written_names` puts these names where the caller may have used the inputs' own.
3. `changes` says what of each input is renamed and what is left out; `warn_of_changes` warns of it, or refuses it.
   `warn_of_unkept` warns of what is always left out.

All but the warning is pure.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Protocol

import pandas as pd

from annbatch import summary
from annbatch.errors import InputError
from annbatch.warn import warn
from annbatch.write.inputs.contents import Element, Source, obsm_fault
from annbatch.write.inputs.element_names import TABLE_NAMES, output_names, warn_renamed

_LAYERS, _OBSM = "layers/", "obsm/"


def agree_on_names(sources: Sequence[Source]) -> list[Source]:
    """Name the elements so that a name means the same in all inputs; what was described has its own names until now."""
    columns = _written(chain.from_iterable(source.columns for source in sources), "obs", TABLE_NAMES)
    layers = [key for source in sources for key in source.matrices if key.startswith(_LAYERS)]
    keys = {
        prefix + str(own): prefix + written
        for prefix, names in (
            (_LAYERS, [key.removeprefix(_LAYERS) for key in layers]),
            (_OBSM, chain.from_iterable(source.obsm for source in sources)),
        )
        for own, written in _written(names, prefix.rstrip("/")).items()
    }
    own_keys = {written: own for own, written in keys.items() if written != own}
    return [
        replace(
            source,
            columns={columns[own]: own for own in source.columns.values()},
            matrices={keys.get(key, key): info for key, info in source.matrices.items()},
            obsm={keys[f"{_OBSM}{own}"].removeprefix(_OBSM): info for own, info in source.obsm.items()},
            own_keys=own_keys,
        )
        for source in sources
    ]


def with_written_names(var: pd.DataFrame, sources: Sequence[Source]) -> pd.DataFrame:
    """Give the joined var with columns that a collection can hold."""
    return var.rename(columns=_written_var(sources))


class Chosen(Protocol):
    """Options that name elements."""

    @property
    def obs_columns(self) -> Sequence[str] | None:
        """Names of obs columns; None for all."""

    @property
    def layers(self) -> Sequence[str] | None:
        """Names of layers; None for all that are shared."""

    @property
    def obsm(self) -> Sequence[str] | None:
        """Names of obsm arrays; None for all that are shared."""

    @property
    def dense(self) -> Sequence[str]:
        """Keys of X and layers."""

    @property
    def obs_as_strings(self) -> Sequence[str]:
        """Names of obs columns."""

    @property
    def groupby(self) -> Sequence[str]:
        """Names of obs columns."""


def in_written_names(chosen: Chosen, sources: Sequence[Source]) -> dict[str, Any]:
    """Give the options with the names that are written, where they are the inputs' own; others as they are."""
    columns = {own: name for source in sources for name, own in source.columns.items()}
    keys = {own: key for source in sources for key, own in source.own_keys.items()}

    def written(part: str, names: Sequence[str] | None) -> list[str] | None:
        return None if names is None else [keys.get(part + name, part + name).removeprefix(part) for name in names]

    return {
        "obs_columns": None if chosen.obs_columns is None else [columns.get(name, name) for name in chosen.obs_columns],
        "obs_as_strings": [columns.get(name, name) for name in chosen.obs_as_strings],
        "groupby": tuple(columns.get(name, name) for name in chosen.groupby),
        "layers": written(_LAYERS, chosen.layers),
        "obsm": written(_OBSM, chosen.obsm),
        "dense": written("", chosen.dense),
    }


@dataclass(frozen=True, slots=True)
class Kept:
    """What of all inputs is in the collection."""

    elements: Sequence[Element]
    columns: Collection[str]
    """obs columns, as they are written."""
    var_columns: Collection[str] | None
    """var columns, as they are written; None if var is that of a collection."""
    unjoined: Mapping[str, str]
    """obs columns that cannot be joined, as they would be written, and why."""
    merge: str | None = None
    """Strategy by which var columns were chosen; None for the default."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What becomes of the elements of one input."""

    renamed: Sequence[tuple[str, Any, str]]
    """``"obs"``, ``"var"``, ``"layers"`` or ``"obsm"``, own name, name that is written."""
    left_out: tuple[str, ...]
    """Own keys of what is left out though the caller did not choose others."""
    unkept: tuple[str, ...]
    """Own keys of what no collection has room for."""

    def renamed_keys(self) -> dict[str, str]:
        """Give own keys and those that are written."""
        keys = {f"{part}/{own}": f"{part}/{written}" for part, own, written in self.renamed}
        return {own: written for own, written in keys.items() if own != written}


def changes(sources: Sequence[Source], kept: Kept, chosen: Chosen) -> list[Changes]:
    """Say of each input what is renamed, and what is left out."""
    by_choice = {"obs": chosen.obs_columns, "layers": chosen.layers, "obsm": chosen.obsm}
    quiet = [part for part, names in by_choice.items() if names is not None]
    var = _written_var(sources)
    taken = {element.key for element in kept.elements}
    found = []
    for source in sources:
        names = [("obs", own, name, name in kept.columns) for name, own in source.columns.items()]
        if kept.var_columns is not None:
            names += [("var", own, var[own], var[own] in kept.var_columns) for own in source.var_columns]
        names += [_element(source, key, taken) for key in _keys(source)]
        found.append(
            Changes(
                [(part, own, name) for part, own, name, is_in in names if is_in and own != name],
                tuple(f"{part}/{own}" for part, own, _, is_in in names if not is_in and part not in quiet),
                source.unkept,
            )
        )
    return found


def warn_of_changes(
    sources: Sequence[Source], found: Sequence[Changes], kept: Kept, *, in_collection: bool, strict: bool
) -> None:
    """Warn of what is renamed, once for each part of AnnData, of what is left out, and of what has no room.

    Parameters
    ----------
    in_collection
        Whether what is left out is what a collection, which is appended to, lacks.
    strict
        Whether to refuse instead to leave anything out.

    Raises
    ------
    InputError
        If something would be left out, and ``strict`` is set.
    """
    names: dict[str, dict[str, Any]] = {}
    paths: dict[str, dict[str, None]] = {}
    for source, of_source in zip(sources, found, strict=True):
        for part, own, written in of_source.renamed:
            names.setdefault(part, {})[written] = own
            paths.setdefault(part, {})[source.name] = None
    for part, changed in names.items():
        warn_renamed(changed, f"{summary.some_of(list(paths[part]))}: {part}")
    left_out = sorted({key for of_source in found for key in of_source.left_out})
    if left_out:
        named = ", ".join(f"{key!r} {_why(key, sources, kept, in_collection=in_collection)}" for key in left_out)
        if strict:
            raise InputError(f"no element may be left out (strict=True), but {named}")
        warn(f"elements are left out: {named}")
    warn_of_unkept({key for of_source in found for key in of_source.unkept})


def warn_of_unkept(keys: Collection[str], of_what: str = "") -> None:
    """Warn of what the inputs hold and no collection has room for, if there is anything."""
    if keys:
        named = ", ".join(sorted(keys))
        warn(f"a collection keeps X, layers, obsm, obs and var; left out: {named}{of_what}")


def _why(key: str, sources: Sequence[Source], kept: Kept, *, in_collection: bool) -> str:
    """Say why an element is left out, though nobody chose others."""
    if in_collection:
        return "is not in the collection"
    if key.startswith("obs/"):
        (written,) = {name for source in sources for name, own in source.columns.items() if f"obs/{own}" == key}
        return f"cannot be joined ({kept.unjoined[written]})"
    if key.startswith("var/"):
        return "differs between inputs" if kept.merge is None else f"is not taken by merge={kept.merge!r}"
    if lacking := [source for source in sources if key not in _keys(source)]:
        if lacking[0].x == key:
            return f"becomes X of {lacking[0].name}"
        if key.startswith(_LAYERS) and lacking[0].x.startswith("raw/"):
            return f"does not have the genes of raw/X, which becomes X of {lacking[0].name}"
        return f"is not in {lacking[0].name}"
    written = next((written for written, own in sources[0].own_keys.items() if own == key), key).removeprefix(_OBSM)
    return str(obsm_fault(sources, written))


def _keys(source: Source) -> list[str]:
    """Give the own keys of the layers and obsm arrays of an input."""
    own = [source.own_keys.get(_OBSM + name, _OBSM + name) for name in source.obsm]
    return [*(f"{_LAYERS}{name}" for name in source.layers), *own]


def _element(source: Source, own: str, taken: Collection[str]) -> tuple[str, Any, str, bool]:
    key = next((key for key, own_key in source.own_keys.items() if own_key == own), own)
    part, _, name = own.partition("/")
    return part, name, key.partition("/")[2], key in taken


def _written(names: Iterable[Hashable], where: str, reserved: Collection[str] = ()) -> dict[Any, str]:
    """Give each different name the one under which it is written."""
    return {own: written for written, own in output_names(dict.fromkeys(names), where, reserved).items()}


def _written_var(sources: Sequence[Source]) -> dict[Any, str]:
    return _written(chain.from_iterable(source.var_columns for source in sources), "var", TABLE_NAMES)
