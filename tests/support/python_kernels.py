"""Does a kernel stay within its arrays? Compiled code does not check, but NumPy does if the kernel runs as Python."""

from __future__ import annotations

from types import ModuleType

import pytest
from numba.extending import is_jitted

from annbatch.native import Kernel


def run_as_python(patch: pytest.MonkeyPatch, module: ModuleType) -> None:
    """Replace a module's compiled functions by the Python functions that they were made of."""
    for name, value in list(vars(module).items()):
        compiled = value._compiled if isinstance(value, Kernel) else value
        if is_jitted(compiled):
            patch.setattr(module, name, compiled.py_func)
