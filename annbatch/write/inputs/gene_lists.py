"""Which genes does each input have, kept once for all inputs that have the same?

1. `GeneLists.add` is told the genes of one input after the other. Each gene has a number, by first appearance, and each
   different list of genes is written to disk as such numbers.
2. `GeneLists.numbers` reads the list of an input.

So memory grows with the number of different genes, and neither with that of inputs nor with that of lists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from annbatch.write.inputs.spill import load, save

Ints = npt.NDArray[np.int64]
_STORED = np.dtype(np.int32)


class GeneLists:
    """The genes of all inputs.

    Parameters
    ----------
    directory
        Where the lists go; it must exist.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.known: dict[str, int] = {}
        """Each gene and its number, by first appearance."""
        self.of_input: list[int] = []
        """Per input: which list it has."""
        self.lengths: list[int] = []
        """Per list: its genes."""
        self.n_lists_with: Ints = np.zeros(0, np.int64)
        """(n_known,) how many lists have each gene."""
        self._of_digest: dict[bytes, int] = {}

    def add(self, names: pd.Index[Any]) -> None:
        """Take the genes of the next input, unique strings; each list kept once."""
        digest = hashlib.sha256("\0".join(names).encode(errors="surrogatepass")).digest()
        if digest not in self._of_digest:
            self._of_digest[digest] = len(self.lengths)
            known = self.known
            found = np.fromiter((known.setdefault(name, len(known)) for name in names), _STORED, len(names))
            more = np.zeros(len(known) - len(self.n_lists_with), np.int64)
            self.n_lists_with = np.concatenate([self.n_lists_with, more])
            self.n_lists_with[found] += 1
            save(self.directory / str(len(self.lengths)), found)
            self.lengths.append(len(found))
        self.of_input.append(self._of_digest[digest])

    def __iter__(self) -> Iterator[Ints]:
        """Read one different list after the other."""
        return map(self._read, range(len(self.lengths)))

    def numbers(self, source: int) -> Ints:
        """Read the genes of an input as numbers: (its n_vars,)."""
        return self._read(self.of_input[source])

    def _read(self, number: int) -> Ints:
        return load(self.directory / str(number), _STORED, 0, self.lengths[number]).astype(np.int64)

    def first_with(self, number: int) -> int:
        """Give the first input that has a list."""
        return self.of_input.index(number)
