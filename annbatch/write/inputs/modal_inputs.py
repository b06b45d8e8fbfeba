"""Which modalities does an input have, and where is each?

An input with modalities is MuData, as a ``.h5mu`` file, a zarr store or an object, or a dict with an AnnData input for
each. `as_modal_inputs` takes what the caller passed, and gives each modality as an
`annbatch.write.inputs.opening.Origin`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import anndata as ad
import zarr
from zarr.abc.store import Store as ZarrStore

from annbatch import summary
from annbatch.check import expanded
from annbatch.errors import InputError
from annbatch.remote.urls import is_url
from annbatch.stores.modality import FOLDER, fault_of_name
from annbatch.write.inputs.faults import Faults
from annbatch.write.inputs.file_formats import modalities as modalities_of
from annbatch.write.inputs.file_formats import named_part
from annbatch.write.inputs.joint_roots import open_mudata
from annbatch.write.inputs.opening import Load, Origin, as_origins

ModalInputs: TypeAlias = Any
"""MuData, which is known by its parts, since mudata need not be installed."""

_SUFFIX = ".h5mu"
_NO_ROOM = ("uns", "varm", "obsp", "varp")


@dataclass(frozen=True, slots=True)
class ModalInput:
    """One input with modalities."""

    name: str
    """What messages and the obs column ``src_path`` call it."""
    parts: Mapping[str, Origin]
    """Each modality."""
    whole: Origin | None
    """MuData, for its own obs; None of a dict."""
    all_modalities: tuple[str, ...]
    """Names of all that it has, whether they are taken or not."""
    unkept: tuple[str, ...] = ()
    """Keys of what MuData itself has and no collection has room for."""

    def stamp(self) -> object:
        """Give a JSON value that differs if the contents do."""
        if self.whole is not None and not isinstance(self.whole.given, ad.AnnData):
            return self.whole.stamp()
        whole = [] if self.whole is None else [["", self.whole.stamp()]]
        return [*whole, *([name, part.stamp()] for name, part in self.parts.items())]


def as_modal_inputs(given: Any, modalities: Sequence[str] | None, load: Load | None) -> list[ModalInput] | None:
    """Give the inputs, if they have modalities; None if they are AnnData.

    Parameters
    ----------
    modalities
        Which to take; None for those of the first input.

    Raises
    ------
    InputError
        If only some inputs have modalities, or one lacks a modality, or has one that cannot be named so.
    """
    if isinstance(given, Mapping):
        # Without the names of modalities, a dict may be names of inputs.
        items: list[Any] = [given] if modalities is not None else []
    else:
        # What can be gone through once is left to whoever reads AnnData.
        items = [given] if _is_one(given) else list(given) if isinstance(given, Sequence) else []
    found, faults = [], Faults()
    for number, item in enumerate(items):
        with faults.keeping():
            found.append(_modal(item, modalities, load, number))
    faults.raise_any()
    if not any(found):
        if modalities is not None:
            raise InputError(
                "modalities= needs .h5mu files, MuData or dicts such as {'rna': 'rna.h5ad', 'adt': 'adt.h5ad'}, "
                "got inputs without modalities"
            )
        return None
    if None in found and modalities is None and all(isinstance(item, str | os.PathLike | ZarrStore) for item in items):
        # As AnnData, MuData is refused with all other faults of the inputs, and what to write instead.
        return None
    if None in found:
        other = items[found.index(None)]
        raise InputError(
            f"all inputs must have modalities or none, got {_said(other)} without any at position {found.index(None)}"
        )
    inputs = [one for one in found if one is not None]
    wanted = list(inputs[0].parts) if modalities is None else list(dict.fromkeys(map(str, modalities)))
    if not wanted:
        raise InputError("modalities must name at least one, got none")
    for name in wanted:
        if fault := fault_of_name(name):
            raise InputError(f"the name of a modality {fault}, got {name!r}")
    for one in inputs:
        if lacking := [name for name in wanted if name not in one.parts]:
            raise InputError(
                f"{one.name}: must have the modalities {wanted}, lacks {lacking}; it has {list(one.parts)}. "
                f"modalities= selects those to take"
            )
    return [replace(one, parts={name: one.parts[name] for name in wanted}) for one in inputs]


def _is_one(given: Any) -> bool:
    return isinstance(given, str | os.PathLike | ad.AnnData | ZarrStore) or _is_mudata_object(given)


def _is_mudata_object(item: Any) -> bool:
    # By its parts: mudata need not be installed.
    return not isinstance(item, ad.AnnData) and hasattr(item, "mod") and hasattr(item, "obs_names")


def _said(item: Any) -> str:
    return summary.short(str(item)) if isinstance(item, str | os.PathLike) else type(item).__name__


def _modal(item: Any, modalities: Sequence[str] | None, load: Load | None, number: int) -> ModalInput | None:
    if isinstance(item, Mapping):
        parts = {str(name): as_origins(part, load)[0] for name, part in item.items()}
        if not parts:
            raise InputError(f"a dict of modalities must name at least one, got an empty one at position {number}")
        named = [
            replace(part, name=f"{name}_{number}") if isinstance(part.given, ad.AnnData) else part
            for name, part in parts.items()
        ]
        return ModalInput(
            " + ".join(one.name for one in named), dict(zip(parts, named, strict=True)), None, tuple(parts)
        )
    if _is_mudata_object(item):
        name = f"mudata_{number}"
        obsm = {key: item.obsm[key] for key in item.obsm if key not in item.mod}
        own = Origin(name, ad.AnnData(obs=item.obs.copy(), obsm=obsm), None)
        parts = {str(key): Origin(f"{name}/{FOLDER}/{key}", part, None) for key, part in item.mod.items()}
        unkept = _unkept({part: getattr(item, part, {}) for part in _NO_ROOM}, list(parts))
        return ModalInput(name, parts, own, tuple(parts), unkept)
    if isinstance(item, ad.AnnData) or load is not None:
        return None
    if isinstance(item, ZarrStore):
        return _in_store(item, modalities)
    if not isinstance(item, str | os.PathLike):
        return None
    path = expanded(item)
    if not (path.endswith(_SUFFIX) or modalities is not None or _is_zarr_of_mudata(Path(path))):
        return None
    (origin,) = as_origins(item, None)
    if is_url(path) or named_part(path)[1] is not None or not Path(path).exists():
        return None
    try:
        with open_mudata(path) as group:
            return _stored(group, origin, modalities)
    except (OSError, ValueError, KeyError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"{origin.name}: cannot be read as MuData: {type(e).__name__}: {e}") from e


def _in_store(store: ZarrStore, modalities: Sequence[str] | None) -> ModalInput | None:
    try:
        return _stored(zarr.open_group(store, mode="r"), Origin(str(store), store, None), modalities)
    except Exception as e:  # Stores raise errors of their own libraries.
        if modalities is None:
            # Whoever reads it as AnnData says what is wrong with it.
            return None
        raise InputError(f"{store}: cannot be read as MuData: {type(e).__name__}: {e}") from e


def _stored(group: Any, origin: Origin, wanted: Sequence[str] | None) -> ModalInput | None:
    """Give MuData of several modalities, or those that are wanted of it; one alone is AnnData."""
    names = modalities_of(group)
    if len(names) < (2 if wanted is None else 1):
        return None
    parts = {}
    for name in names:
        place = f"{FOLDER}/{name}"
        in_store = isinstance(origin.given, ZarrStore)
        given = origin.given if in_store else f"{origin.given}/{place}"
        parts[name] = Origin(f"{origin.name}/{place}", given, None, group=place if in_store else "")
    return ModalInput(origin.name, parts, origin, tuple(parts), _unkept(group, names))


def _unkept(whole: Any, modalities: Sequence[str]) -> tuple[str, ...]:
    """Name what is in the parts of MuData, by their names, but for what says which cells and genes a modality has."""
    found = [f"{part}/{key}" for part in _NO_ROOM[1:] for key in whole.get(part, ()) if key not in modalities]
    return (*(["uns"] if len(whole.get("uns", ())) else []), *map(str, found))


def _is_zarr_of_mudata(folder: Path) -> bool:
    """Look at the attributes of a zarr directory alone."""
    for name, key in (("zarr.json", "attributes"), (".zattrs", "")):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
            return bool((found[key] if key else found).get("encoding-type") == "MuData")
        except (OSError, ValueError, KeyError, AttributeError):
            continue
    return False
