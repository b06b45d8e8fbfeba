"""Does a kernel stay within its arrays, and how often does it read them? What tests can see if it runs as Python.

1. `run_as_python` takes the compiler away: NumPy refuses an index beyond the end of an array, compiled code does not.
2. `Counted` counts what is read.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numba.extending import is_jitted

from annbatch.native import Kernel


def run_as_python(patch: pytest.MonkeyPatch, module: ModuleType) -> None:
    """Replace a module's compiled functions by the Python functions that they were made of."""
    for name, value in list(vars(module).items()):
        compiled = value._compiled if isinstance(value, Kernel) else value
        if is_jitted(compiled):
            patch.setattr(module, name, compiled.py_func)


class Counted:
    """An array that counts how often its elements are read."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.size, self.n_reads = values, values.size, 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        self.n_reads += 1
        return self.values[index]
