"""Which genes does each store or input have, kept once for all that have the same?

1. `GeneLists.add` is told the genes of one after the other. Each gene has a number, by first appearance, and each
   different list of genes is kept as such numbers.
2. `GeneLists.numbers` gives the list of a store or input.

Building, which may have millions of inputs, keeps the lists on disk (`annbatch.write.inputs.spilled_genes`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from itertools import repeat
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

Ints = npt.NDArray[np.int64]
NUMBERS = np.dtype(np.int32)
"""The type in which lists are kept."""


class GeneLists:
    """The genes of all stores or inputs."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        """Each gene and its number, by first appearance."""
        self.of_input: list[int] = []
        """Per input: which list it has."""
        self.lengths: list[int] = []
        """Per list: its genes."""
        self.n_lists_with: Ints = np.zeros(0, np.int64)
        """(n_known,) how many lists have each gene."""
        self._of_digest: dict[bytes, int] = {}
        self._kept: list[npt.NDArray[Any]] = []

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        kept: Sequence[npt.NDArray[Any]],
        digests: Sequence[bytes],
        n_lists_with: Ints,
    ) -> Self:
        """Give lists that were made before, of no input yet: the names of all genes, the lists and their digests."""
        lists = cls()
        lists.known = dict(zip(names, range(len(names)), strict=True))
        lists.lengths = [len(numbers) for numbers in kept]
        lists.n_lists_with = n_lists_with
        lists._of_digest = {digest: number for number, digest in enumerate(digests)}
        lists._kept = list(kept)
        return lists

    def add(self, names: pd.Index[Any]) -> None:
        """Take the genes of the next input, unique strings; each list kept once."""
        digest = hashlib.sha256("\0".join(names).encode(errors="surrogatepass")).digest()
        self.add_known(digest, names.tolist)

    def add_known(self, digest: bytes, read: Callable[[], list[str]]) -> None:
        """Take the genes of the next input by their digest; ``read`` gives the names of a list that is new."""
        if digest not in self._of_digest:
            names, known = read(), self.known
            self._of_digest[digest] = len(self.lengths)
            found = np.fromiter(map(known.get, names, repeat(-1)), NUMBERS, len(names))
            for place in np.flatnonzero(found < 0).tolist():
                found[place] = known.setdefault(names[place], len(known))
            more = np.zeros(len(known) - len(self.n_lists_with), np.int64)
            self.n_lists_with = np.concatenate([self.n_lists_with, more])
            self.n_lists_with[found] += 1
            self._keep(found)
            self.lengths.append(len(found))
        self.of_input.append(self._of_digest[digest])

    def copy(self) -> Self:
        """Give lists that can be added to while these remain as they are."""
        other = copy(self)
        for name in ("known", "of_input", "lengths", "_of_digest", "_kept"):
            setattr(other, name, getattr(self, name).copy())
        other.n_lists_with = self.n_lists_with.copy()
        return other

    def __iter__(self) -> Iterator[Ints]:
        """Give one different list after the other."""
        return map(self._list, range(len(self.lengths)))

    def numbers(self, source: int) -> Ints:
        """Give the genes of an input as numbers: (its n_vars,)."""
        return self._list(self.of_input[source])

    def first_with(self, number: int) -> int:
        """Give the first input that has a list."""
        return self.of_input.index(number)

    def _keep(self, numbers: npt.NDArray[Any]) -> None:
        """Keep one more list."""
        self._kept.append(numbers)

    def _list(self, number: int) -> Ints:
        return self._kept[number].astype(np.int64)
