"""Under which names can a collection hold what the inputs call otherwise?

Each obs column, layer and obsm array becomes a node of a zarr group, which is a file or a folder on a disk: not every
name will do. AnnData in memory may use any, HDF5 files nearly any.

1. `output_names` gives each element a name that can be written: its own, where that will do.
2. `warn_renamed` says which elements are called otherwise.
3. `as_text` makes names of cells and genes what they are in files: strings.

Names are no reason to give up a build, unless it is unknown what they mean: a name that occurs twice is refused. Both
are for the time when inputs are opened, before any work is done.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from annbatch.errors import InputError
from annbatch.warn import warn

TABLE_NAMES = frozenset({"_index"})
"""Names that a column of obs or var cannot have: AnnData's format keeps them for the index."""

MAX_NAME_BYTES = 200
"""Bytes of a name in UTF-8: file systems take 255, and zarr's temporary files add to it."""

_METADATA = frozenset({"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"})
"""Files of zarr's own that lie in a group."""

# zarr takes a backslash for a slash; UTF-8 has no lone surrogates.
_NO_CHARACTER_OF_A_NAME = re.compile("[/\\\\\0\ud800-\udfff]")


def output_names(names: Iterable[Hashable], where: str, reserved: Collection[str] = ()) -> dict[str, Any]:
    """Name elements so that a collection can hold them. Pure.

    What is no string becomes one; ``/`` and other characters that no node of zarr may have become ``_``; a name that
    means something else to zarr or AnnData loses its leading ``_`` or ``.`` and gets a ``_`` at its end; an empty one
    becomes ``unnamed``; one that is too long is cut. If another element has that name already, ``_1``, ``_2``, … is
    put behind it.

    Parameters
    ----------
    names
        The elements' own names, in order.
    where
        What messages call the element that holds them, with its file.
    reserved
        Further names that cannot be used, such as `TABLE_NAMES`.

    Returns
    -------
    dict
        For each element, in order: the name it is written under, and its own.

    Raises
    ------
    InputError
        If a name occurs more than once.
    """
    given = list(names)
    if repeated := [name for name, times in Counter(given).items() if times > 1]:
        raise InputError(
            f"{where}: names must be unique, got more than one of {repeated[:5]}; rename or drop all but one of each"
        )
    taken = {name for name in given if isinstance(name, str) and _writable(name, reserved) == name}
    found: dict[str, Any] = {}
    for name in given:
        written = _writable(name, reserved)
        if written != name:
            written = _unique(written, taken)
            taken.add(written)
        found[written] = name
    return found


def warn_renamed(names: Mapping[str, Any], where: str) -> None:
    """Warn of what `output_names` calls otherwise, in one warning that names it all."""
    if changed := [f"{own!r} as {written!r}" for written, own in names.items() if written != own]:
        warn(f"{where}: elements with names that a zarr store cannot hold are renamed: {', '.join(changed)}")


def _writable(name: object, reserved: Collection[str]) -> str:
    written = _NO_CHARACTER_OF_A_NAME.sub("_", str(name))
    if not written:
        return "unnamed"
    if written in reserved or written in _METADATA:
        written = f"{written.lstrip('_.')}_"
    if not written.strip("."):
        return "_" * len(written[:MAX_NAME_BYTES])
    return written.encode()[:MAX_NAME_BYTES].decode(errors="ignore")


def _unique(name: str, taken: Collection[str]) -> str:
    candidate, number = name, 0
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def as_text(labels: Any) -> npt.NDArray[Any]:
    """Give labels as (n,) str objects."""
    return np.array([str(label) for label in labels], dtype=object)
