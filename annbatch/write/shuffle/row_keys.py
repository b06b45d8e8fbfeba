"""In which order do the rows go out?

1. Every row of the inputs has a 64-bit key that depends on nothing but (seed, row).
2. Rows go out in ascending order of their keys; equal keys (a chance of 1 in 2**64 per pair) in ascending order of
   rows.
3. Stores are consecutive pieces of that order (`annbatch.write.shuffle.run_merge`).

Everything here is pure: no I/O. The key of a row can be computed alone, so that an order which does not fit in memory
is made piece by piece.
The keys are raw Philox4x64-10 words, whose values are a published standard (Salmon et al. 2011,
doi:10.1145/2063384.2063405), and not draws from `numpy.random.Generator`, whose methods may change what they give
from one NumPy version to the next.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

DOMAIN = 0x616E6E6277726974
"""Second Philox key word (ASCII "annbwrit"): keeps these keys apart from every other use of the same seed."""

_WORDS = 4
"""Words that one Philox counter value gives."""


def row_keys(seed: int, start: int, stop: int) -> npt.NDArray[np.uint64]:
    """Give the (stop - start,) uint64 keys of rows ``start`` to ``stop``.

    The key of row r is word r of the Philox stream of (seed, `DOMAIN`).

    Raises
    ------
    ValueError
        If ``seed`` is not in [0, 2**64).
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    first = start // _WORDS
    # NumPy raises the counter before it draws, so word r is drawn from counter r // 4 + 1.
    stream = np.random.Philox(key=np.array([seed, DOMAIN], dtype=np.uint64), counter=first)
    words: npt.NDArray[np.uint64] = stream.random_raw(stop - first * _WORDS)
    return words[start - first * _WORDS :]
