"""Which byte ranges of which objects or files are asked for, so that pieces arrive soon and with few requests?

Pure: no I/O. A request costs a round trip, and bytes cost bandwidth:

1. Pieces of an object that lie close together become one range; what lies between them is fetched and thrown away.
2. A range ends before it grows large, so that many can be under way at once and one that fails costs little.
3. Neighbouring ranges of an object make a group, which is fetched in one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.native import Kernel

Ints = NDArray[np.int64]

MAX_GAP_NBYTES = 1 << 17
"""Bytes between two pieces of an object that are fetched with them rather than left out at the cost of a request."""
MAX_RANGE_NBYTES = 1 << 22
"""A range takes in no further piece that makes it larger."""
MAX_GROUP = 10
"""Ranges in a group: obstore has no more than ten of a call under way."""


@dataclass(frozen=True, slots=True, eq=False)
class ByteRanges:
    """Byte ranges that hold pieces of some objects."""

    objects: Ints
    """(n_ranges,) which object each is of; ranges of an object are neighbours."""
    starts: Ints
    """(n_ranges,) first byte."""
    stops: Ints
    """(n_ranges,) end, exclusive."""
    of_piece: Ints
    """(n_pieces,) which range a piece lies in; -1 for none."""
    offsets: Ints
    """(n_pieces,) where in that range it begins."""

    def groups(self) -> list[slice]:
        """Give ranges that are fetched in one call: of one object, at most `MAX_GROUP`."""
        edges = [*np.flatnonzero(np.diff(self.objects, prepend=-1)).tolist(), len(self.objects)]
        return [
            slice(at, min(at + MAX_GROUP, stop))
            for first, stop in pairwise(edges)
            for at in range(first, stop, MAX_GROUP)
        ]


def merge(objects: Ints, starts: Ints, nbytes: Ints, max_gap_nbytes: int = MAX_GAP_NBYTES) -> ByteRanges:
    """Merge pieces to ranges.

    Parameters
    ----------
    objects
        (n_pieces,) which object each piece is of, ascending.
    starts
        (n_pieces,) first byte; -1 where there is none to fetch.
    nbytes
        (n_pieces,) at least 1.
    max_gap_nbytes
        Bytes between two pieces that are read with them.
    """
    order = np.lexsort((starts, objects))
    return ByteRanges(*_merge(objects, starts, nbytes, order, max_gap_nbytes, MAX_RANGE_NBYTES))


@Kernel
def _merge(objects: Any, starts: Any, nbytes: Any, order: Any, max_gap: Any, max_nbytes: Any) -> Any:
    n = order.size
    range_objects, range_starts = np.empty(n, np.int64), np.empty(n, np.int64)
    range_stops, of_piece, offsets = np.empty(n, np.int64), np.full(n, -1, np.int64), np.zeros(n, np.int64)
    last = -1
    for i in order:
        if starts[i] < 0:
            continue
        stop = starts[i] + nbytes[i]
        if (
            last < 0
            or range_objects[last] != objects[i]
            or starts[i] - range_stops[last] > max_gap
            or max(stop, range_stops[last]) - range_starts[last] > max_nbytes
        ):
            last += 1
            range_objects[last], range_starts[last], range_stops[last] = objects[i], starts[i], stop
        else:
            range_stops[last] = max(range_stops[last], stop)
        of_piece[i], offsets[i] = last, starts[i] - range_starts[last]
    return range_objects[: last + 1], range_starts[: last + 1], range_stops[: last + 1], of_piece, offsets
