"""Which line does a warning name? That of the user who called, however deep inside the package it arises.

1. `warn` looks for the outermost function of this package and its adapters, and names the line that called it.
2. The stack of a thread ends before that line. `with_caller` takes it along.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from functools import partial
from types import FrameType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_PACKAGES = {"annbatch", "annbatch_torch", "annbatch_jax", "annbatch_cupy", "annbatch_ray"}
_caller: ContextVar[FrameType | None] = ContextVar("_caller", default=None)


def warn(message: str) -> None:
    """Issue a `UserWarning` at the line that called the package."""
    frame = _caller.get() or _calling_frame()
    module, registry = frame.f_globals.get("__name__"), frame.f_globals.setdefault("__warningregistry__", {})
    warnings.warn_explicit(message, UserWarning, frame.f_code.co_filename, frame.f_lineno, module, registry)


def with_caller(work: Callable[P, T]) -> Callable[P, T]:
    """Give ``work`` as another thread shall run it: its warnings name the line that calls the package now."""
    context = copy_context()
    context.run(_caller.set, _caller.get() or _calling_frame())
    return partial(context.run, work)


def _calling_frame() -> FrameType:
    frame: FrameType | None = sys._getframe()
    outermost = frame
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] in _PACKAGES:
            outermost = frame
        frame = frame.f_back
    assert outermost is not None
    return outermost.f_back or outermost
