"""How mixed is a batch?"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def entropy_bits(codes: npt.NDArray[Any]) -> float:
    """Entropy of a batch's composition, in bits; ``codes`` are (n_rows,) integers of at least 0."""
    share = np.bincount(codes) / len(codes)
    return float(-(share[share > 0] * np.log2(share[share > 0])).sum())
