"""How are many strings kept on disk, and which of them occur twice?

1. `TextFile` holds strings one after the other: their UTF-8 bytes in one file, where each ends in another.
2. `distinct` gives other names to those that occurred before, or refuses them. It compares hashes, a part of them at a
   time, so that memory does not grow with the number of names, and looks at names themselves only where hashes agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

Texts = npt.NDArray[Any]
Repeats = Literal["unique", "refuse"]

_BLOCK = 2**20
_PART = 2**23
"""Hashes compared at a time."""


@dataclass(frozen=True, slots=True)
class TextFile:
    """Strings, one after the other; `append` to it, then `read` from it."""

    path: Path
    """The file of the bytes; that of the ends is beside it."""

    @property
    def _ends(self) -> Path:
        return self.path.with_name(f"{self.path.name}.ends")

    def __len__(self) -> int:
        return self._ends.stat().st_size // 8 if self._ends.exists() else 0

    def append(self, texts: Texts) -> None:
        """Write (n,) str objects behind those that are there."""
        encoded = [text.encode() for text in texts]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        start = self.path.stat().st_size if self.path.exists() else 0
        with self.path.open("ab") as file, self._ends.open("ab") as ends:
            file.write(b"".join(encoded))
            ends.write((start + np.cumsum(lengths)).tobytes())

    def read_bytes(self, start: int, stop: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Read the bytes of strings ``start`` to ``stop``, and the (stop - start + 1,) places at which they begin."""
        ends = np.fromfile(self._ends, np.int64, stop - max(start - 1, 0), offset=8 * max(start - 1, 0))
        bounds = ends if start else np.concatenate([[0], ends])
        found = np.fromfile(self.path, np.uint8, int(bounds[-1] - bounds[0]), offset=int(bounds[0]))
        return found, bounds - bounds[0]

    def read(self, start: int, stop: int) -> Texts:
        """Read strings ``start`` to ``stop``: (stop - start,) str objects."""
        return decode(*self.read_bytes(start, stop))

    def blocks(self) -> Iterator[Texts]:
        """Read all strings, a block at a time."""
        for start in range(0, len(self), _BLOCK):
            yield self.read(start, min(start + _BLOCK, len(self)))


def decode(raw: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64]) -> Texts:
    """Make (n,) str objects of bytes and the (n + 1,) places at which they begin."""
    whole, bounds = raw.tobytes(), starts.tolist()
    texts = np.empty(len(bounds) - 1, dtype=object)
    texts[:] = [whole[a:b].decode() for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    return texts


def distinct(given: TextFile, others: Sequence[TextFile], target: TextFile, repeats: Repeats) -> list[str]:
    """Move to ``target`` what is in ``given``, each string that occurred before with the first free ``-1``, ``-2``, ….

    Parameters
    ----------
    others
        Strings that count as having occurred before.
    repeats
        ``"unique"`` to do so; ``"refuse"`` to write nothing.

    Returns
    -------
    list of str
        Strings that are in ``given`` and occurred before: none if ``target`` holds exactly what ``given`` does. A few
        of them if they are refused.
    """
    files = [*others, given]
    repeated = _repeated_hashes(files)
    taken: set[str] = set()
    again: list[str] = []
    next_number: dict[str, int] = {}
    renamed: list[tuple[int, str]] = []
    at = -sum(map(len, others))
    for file in files:
        for block in file.blocks():
            suspects = np.flatnonzero(_is_in(_hashes(block), repeated)).tolist() if len(repeated) else []
            for i in suspects:
                if block[i] not in taken:
                    taken.add(block[i])
                elif at + i >= 0:
                    again.append(block[i])
                    renamed.append((at + i, block[i]))
            at += len(block)
    if again and repeats == "refuse":
        return again[:5]
    if not again:
        given.path.replace(target.path)
        given._ends.replace(target._ends)
        return []
    names = _free_names([name for _, name in renamed], files, next_number)
    rows = np.array([row for row, _ in renamed], np.int64)
    start = 0
    for block in given.blocks():
        first, last = np.searchsorted(rows, [start, start + len(block)]).tolist()
        block[rows[first:last] - start] = names[first:last]
        target.append(block)
        start += len(block)
    return again


def _free_names(repeats: Sequence[str], files: Sequence[TextFile], number: dict[str, int]) -> Texts:
    """Number each repeated name so that it meets no name that is there, nor one given before."""
    names = np.empty(len(repeats), dtype=object)
    waiting, given = np.arange(len(repeats)), set[str]()
    while len(waiting):
        for i in waiting.tolist():
            name = repeats[i]
            number[name] = number.get(name, 0) + 1
            names[i] = f"{name}-{number[name]}"
        proposed = _hashes(names[waiting])
        known = np.concatenate(
            [found[np.isin(found, proposed)] for file in files for found in map(_hashes, file.blocks())]
        )
        clash = _is_in(proposed, np.unique(known))
        for k, i in enumerate(waiting.tolist()):
            clash[k] |= names[i] in given
            if not clash[k]:
                given.add(names[i])
        waiting = waiting[clash]
    return names


def _hashes(texts: Texts) -> npt.NDArray[np.uint64]:
    found: npt.NDArray[np.uint64] = np.asarray(pd.util.hash_array(texts, categorize=False), np.uint64)
    return found


def _repeated_hashes(files: Sequence[TextFile]) -> npt.NDArray[np.uint64]:
    """Hashes that more than one string has, sorted."""
    parts = np.uint64(max(1, -(-sum(map(len, files)) // _PART)))
    repeated = []
    for part in range(int(parts)):
        found = [hashes[hashes % parts == part] for file in files for hashes in map(_hashes, file.blocks())]
        values, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *found]), return_counts=True)
        repeated.append(values[counts > 1])
    return np.sort(np.concatenate(repeated))


def _is_in(hashes: npt.NDArray[np.uint64], sorted_hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    if not len(sorted_hashes):
        return np.zeros(len(hashes), dtype=bool)
    at = np.minimum(np.searchsorted(sorted_hashes, hashes), len(sorted_hashes) - 1)
    found: npt.NDArray[np.bool_] = sorted_hashes[at] == hashes
    return found
