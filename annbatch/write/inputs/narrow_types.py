"""What is the smallest type that holds these values exactly?

1. `ValueScan.of` looks at values once; scans of several pieces are merged.
2. `choose_types` turns the scans of all inputs into the types of one element, the same for every store: the inputs'
   common type (`annbatch.stores.common_type`), and the smallest that holds the values. A collection that gets more
   cells counts as one more input.

Everything here is pure: no I/O. uint8 is never chosen: `np.log1p` of uint8 gives float16, which SciPy's sparse matrices
refuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from annbatch.errors import InputError
from annbatch.stores.common_type import common_type, float32_holds
from annbatch.stores.manifest import ElementTypes

_UNSIGNED = tuple(np.dtype(t) for t in (np.uint16, np.uint32, np.uint64))


@dataclass(frozen=True, slots=True)
class ValueScan:
    """What is known about some values after looking at each of them."""

    dtype: np.dtype[Any]
    """Their type."""
    nnz: int
    """How many they are."""
    countable: bool
    """Whether each is finite, whole and >= 0, and none is -0.0."""
    low: int | float
    """The smallest, or 0."""
    high: int | float
    """The largest, or 0."""

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> ValueScan:
        """Scan (n,) boolean, integer or floating values; `low` and `high` are NaN if a value is."""
        if not len(values):
            return cls(values.dtype, 0, True, 0, 0)
        low, high = values.min().item(), values.max().item()
        countable = low >= 0 and high < np.inf
        if countable and values.dtype.kind == "f":
            countable = bool((values == np.trunc(values)).all()) and not np.signbit(values).any()
        return cls(values.dtype, len(values), bool(countable), min(low, 0), max(high, 0))

    def fits(self, dtype: np.dtype[Any]) -> bool:
        """Say whether ``dtype`` holds the values exactly."""
        if self.dtype.kind == "f" and (not self.countable or np.can_cast(self.dtype, dtype, "safe")):
            return np.can_cast(self.dtype, dtype, "safe")
        low, high = _whole_range(dtype)
        return low <= self.low and self.high <= high

    def merge(self, other: ValueScan) -> ValueScan:
        """Give the scan of both pieces together."""
        return ValueScan(
            np.result_type(self.dtype, other.dtype),
            self.nnz + other.nnz,
            self.countable and other.countable,
            min(self.low, other.low),
            max(self.high, other.high),
        )


def _whole_range(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Give the range in which a type holds every whole number."""
    if dtype.kind == "f":
        return -(2 ** (np.finfo(dtype).nmant + 1)), 2 ** (np.finfo(dtype).nmant + 1)
    return (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))


def smallest_unsigned(high: int) -> np.dtype[Any]:
    """Give the smallest of uint16, uint32 and uint64 that holds ``high``.

    Raises
    ------
    OverflowError
        If none does.
    """
    for dtype in _UNSIGNED:
        if high < 256**dtype.itemsize:
            return dtype
    raise OverflowError(f"no unsigned type holds {high}")


def _original(scans: Sequence[ValueScan], present: ElementTypes | None) -> np.dtype[Any]:
    known = [(scan.dtype, scan.fits(np.dtype(np.float32))) for scan in scans]
    if present is not None:
        known.append((present.original, float32_holds(present.stored)))
    return common_type(known)


def choose_types(
    key: str, scans: Sequence[ValueScan], n_vars: int, *, narrow: bool, present: ElementTypes | None = None
) -> ElementTypes:
    """Choose the types of element ``key`` from the scans of its inputs.

    Parameters
    ----------
    present
        Types of the collection that the values are to join.

    Raises
    ------
    InputError
        If the inputs' common type cannot hold all of their integers exactly.
    """
    original = _original(scans, present)
    if original == np.float16:
        # SciPy has no sparse matrix of float16.
        original = np.dtype(np.float32)
    if original.kind == "f":
        _, exact = _whole_range(original)
        names = sorted({str(scan.dtype) for scan in scans} | ({str(present.original)} if present else set()))
        for scan in scans:
            extreme = max(abs(scan.low), abs(scan.high))
            if scan.dtype.kind in "iu" and extreme > exact:
                raise InputError(
                    f"{key}: the inputs' types {names} have the common type "
                    f"{original}, which holds integers up to {exact} exactly, got {extreme}"
                )
    stored, indices = original, np.dtype(np.int32 if n_vars <= 2**31 else np.int64)
    if narrow:
        indices = smallest_unsigned(max(n_vars - 1, 0))
        whole = reduce(ValueScan.merge, scans)
        if whole.countable and whole.high < 2**64:
            candidate = smallest_unsigned(int(whole.high))
            if candidate.itemsize <= max(original.itemsize, np.dtype(np.uint16).itemsize):
                stored = candidate
    return ElementTypes(stored, original, indices)
