"""Which cells have all modalities, and where does each modality have them?

1. `join_cells` compares the names of the cells of one input, modality by modality: those that all have, or those that
   any has, in the order of the first. Pure.
2. `RowFile` keeps such rows on disk, so that no more than the cells of one input are in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from annbatch import summary
from annbatch.errors import InputError
from annbatch.write.inputs.matrix_rows import Ints
from annbatch.write.inputs.spill import save

JoinObs = Literal["inner", "outer"]
Names = npt.NDArray[Any]

_SHOWN = 3


@dataclass(frozen=True, slots=True, eq=False)
class CellRows:
    """Where one modality of an input has the joint cells: in the order of its own rows, cells that it lacks last."""

    own: Ints
    """(n_joint,) its own rows, ascending, then -1 for cells that it lacks."""
    joint: Ints
    """(n_joint,) which of the joint cells each is."""
    n_lost: int
    """Its cells that are not among the joint ones."""


def join_cells(names: Mapping[str, Names], how: JoinObs, where: str) -> tuple[pd.Index[Any], dict[str, CellRows]]:
    """Join the cells of one input's modalities by their names. Pure.

    Raises
    ------
    InputError
        If names are not unique in a modality, or ``how`` is ``"inner"`` and no cell has all modalities.
    """
    found = {}
    for modality, own in names.items():
        found[modality] = index = pd.Index(own, dtype=object)
        if not index.is_unique:
            twice = index[index.duplicated()][0]
            raise InputError(
                f"{where}: obs names of the modality {modality!r} must be unique to join cells by them, got {twice!r} "
                f"more than once"
            )
    first, *others = found.values()
    if how == "inner":
        joint = first[np.logical_and.reduce([np.ones(len(first), bool), *(first.isin(other) for other in others)])]
    else:
        joint = first
        for other in others:
            joint = joint.append(other[~other.isin(joint)])
    if not len(joint):
        some = ", ".join(f"{name}: {summary.short(list(own[:_SHOWN]))}" for name, own in found.items())
        raise InputError(f"{where}: the modalities must have a cell in common, by their obs names, got {some}")
    rows = {}
    for modality, index in found.items():
        at = joint.get_indexer(index).astype(np.int64)
        kept = np.flatnonzero(at >= 0)
        missing = np.setdiff1d(np.arange(len(joint)), at[kept])
        rows[modality] = CellRows(
            np.concatenate([kept, np.full(len(missing), -1)]),
            np.concatenate([at[kept], missing]),
            len(index) - len(kept),
        )
    return joint, rows


@dataclass(frozen=True, slots=True)
class RowFile:
    """Row numbers on disk."""

    path: Path

    def save(self, rows: Ints) -> None:
        """Write them."""
        save(self.path, np.ascontiguousarray(rows, np.int64))

    def append(self, rows: Ints) -> None:
        """Write more behind those that are there."""
        with self.path.open("ab") as file:
            file.write(np.ascontiguousarray(rows, np.int64).tobytes())

    def mapped(self) -> Ints:
        """Give them, (n,) int64, read where they are looked at."""
        return np.memmap(self.path, np.int64, "r")
