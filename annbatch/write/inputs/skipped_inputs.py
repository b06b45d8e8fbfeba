"""What becomes of inputs without cells?

They add nothing to a collection, neither cells nor genes nor columns: `SkippedInputs` warns of them, and gives their
records for the manifest. Their genes are kept as those of other inputs are, once for all inputs that have the same
(`annbatch.write.inputs.spilled_genes`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from annbatch import summary
from annbatch.errors import InputError
from annbatch.stores.gene_join import placed
from annbatch.stores.manifest import InputEntry
from annbatch.warn import warn
from annbatch.write.inputs.spilled_genes import SpilledGeneLists


class SkippedInputs:
    """The inputs that have no cells.

    Parameters
    ----------
    directory
        Where lists of genes go; it must exist.
    """

    def __init__(self, directory: Path) -> None:
        self._names: dict[int, str] = {}
        self._genes = SpilledGeneLists(directory)

    def add(self, number: int, name: str, genes: pd.Index[Any]) -> None:
        """Take one; ``number`` is its place among all inputs."""
        self._names[number] = name
        self._genes.add(genes)

    def warn(self, n_inputs: int, *, strict: bool) -> None:
        """Warn of them.

        Raises
        ------
        InputError
            If no input has cells, or with ``strict`` if one has none.
        """
        names = summary.short(list(self._names.values()))
        if len(self._names) == n_inputs:
            raise InputError(f"at least one input must have cells, got none in {names}")
        if self._names and strict:
            raise InputError(f"no input may be skipped (strict=True), but there are no cells in {names}")
        if self._names:
            warn(f"inputs without cells are skipped: {names}")

    def entries(self, var_names: pd.Index[str]) -> list[tuple[int, InputEntry]]:
        """Give their records, and their places among all inputs, for a collection with these genes."""
        lost = placed(var_names, self._genes).n_lost()
        return [
            (number, InputEntry(name, 0, n_vars, n_lost, 0, 0))
            for (number, name), (n_vars, n_lost) in zip(self._names.items(), lost, strict=True)
        ]
