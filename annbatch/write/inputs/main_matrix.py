"""Which matrix of an input becomes X?

1. `checked_choice` takes what the caller asks for: one key, several keys, or ``"counts"``.
2. `main_key` finds the matrix of one input: the first of several that it has, or the first that holds counts. Whether
   values are counts is judged by samples, so that opening takes the same time for every input.
3. `check_counts` looks at all values, when they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from annbatch.errors import InputError
from annbatch.write.inputs.matrix_rows import DENSE, Matrix, matrix_of
from annbatch.write.inputs.opened_input import Root

MainMatrix: TypeAlias = str | Sequence[str]

COUNTS = "counts"
"""Asks for the first of `_WITH_COUNTS` that holds counts."""

_WITH_COUNTS = ("layers/counts", "raw/X", "X")
_SAMPLE = 2**15
"""Elements looked at, at the start, in the middle and at the end of a matrix."""


def checked_choice(x: MainMatrix) -> tuple[str, ...]:
    """Give the keys that may become X, in the caller's order; `COUNTS` alone stands for itself.

    Raises
    ------
    InputError
        If there is none, or one is no key of a matrix.
    """
    keys = (x,) if isinstance(x, str) else tuple(x)
    known = all(key in ("X", "raw/X") or str(key).startswith("layers/") for key in keys)
    if not keys or not (known or keys == (COUNTS,)):
        got = x if isinstance(x, str) else list(x)
        raise InputError(f"x must be 'X', 'raw/X', 'layers/…', a list of these, or 'counts', got {got!r}")
    return keys


def main_key(root: Root, x: Sequence[str], path: str) -> str:
    """Give the key of the matrix that becomes X in one input.

    Parameters
    ----------
    x
        What `checked_choice` gives.
    path
        What messages call the input.

    Raises
    ------
    InputError
        If the input has none of the matrices, or none that holds counts.
    """
    counts = tuple(x) == (COUNTS,)
    there = [key for key in (_WITH_COUNTS if counts else x) if root.element(key) is not None]
    for key in there:
        if not counts or _holds_counts(matrix_of(root.element(key), f"{path}: {key}")):
            return key
    if counts:
        found = ", ".join(there)
        raise InputError(
            f"{path}: x='counts' needs non-negative integers in one of {', '.join(_WITH_COUNTS)}, got "
            f"{f'other values in {found}' if found else 'none of these'}; x= may be one of {_matrices(root)}"
        )
    missing = x[0] if len(x) == 1 else f"each of {', '.join(x)}"
    raise InputError(f"{path}: {missing} is missing; x= may be one of {_matrices(root)}")


def _matrices(root: Root) -> list[str]:
    there = [key for key in ("X", "raw/X") if root.element(key) is not None]
    return there + [f"layers/{name}" for name in root.names("layers")]


def check_counts(values: npt.NDArray[Any]) -> int | None:
    """Give the place of the first of (n,) values that is no non-negative integer; None if there is none. Pure."""
    if values.dtype.kind in "bu":
        return None
    good = values >= 0
    if values.dtype.kind == "f":
        good &= (values == np.trunc(values)) & (values < np.inf)
    return None if good.all() else int(np.argmin(good))


def _holds_counts(matrix: Matrix) -> bool:
    """Judge by samples whether a matrix holds counts."""
    if matrix.dtype.kind in "bu":
        return True
    if matrix.format == "coordinate":
        return all(check_counts(values) is None for _, _, values in islice(matrix.data.blocks(_SAMPLE), 1))
    length = matrix.data.shape[0]
    width = matrix.data.shape[1] if matrix.format in DENSE else 1
    step = max(1, _SAMPLE // max(1, width))
    starts = sorted({max(0, min(start, length - step)) for start in (0, length // 2, length)})
    samples = (np.asarray(matrix.data[start : min(start + step, length)]).reshape(-1) for start in starts)
    return all(check_counts(sample) is None for sample in samples)
