"""Where are `Key` and `shuffle`, which stood here? In `annbatch.samplers`; this path is deprecated."""

from __future__ import annotations

import warnings

from annbatch.samplers import Key, Purpose, permutation, shuffle

__all__ = ["Key", "Purpose", "permutation", "shuffle"]

warnings.warn(
    f"annbatch.permutation is deprecated: import {', '.join(__all__)} from annbatch.samplers",
    FutureWarning,
    stacklevel=2,
)
