"""How does an object say what it holds, in a line and in a notebook?

A class gives its facts (`Summary._facts`); the two forms are the same for all of them. Nothing is read or copied to the
host for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from html import escape
from typing import Any

_MOST_NAMES = 8


class Summary:
    """Mixin for objects that are shown by their facts: those of a dataclass are its fields."""

    __slots__ = ()

    def _facts(self) -> Mapping[str, str]:
        """Give what is worth knowing, in the order in which it is shown."""
        return {field.name: array(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={text}' for name, text in self._facts().items())})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(text)}</td></tr>"
            for name, text in self._facts().items()
        )
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"


def array(value: Any) -> str:
    """Describe an array, or a matrix, of any framework: kind, type of values, shape, and a device other than the CPU.

    Examples
    --------
    >>> import numpy as np
    >>> array(np.zeros((4, 3), np.float32))
    'float32 (4, 3)'
    """
    if isinstance(value, Summary) or not hasattr(value, "dtype") or not hasattr(value, "shape"):
        return repr(value)
    kind = getattr(value, "format", None) or str(getattr(value, "layout", "")).removeprefix("torch.")
    kind = kind if str(kind).startswith(("csr", "sparse", "coo", "csc")) else ""
    shape = ", ".join(f"{n:,}" for n in value.shape) + ("," if len(value.shape) == 1 else "")
    device = str(getattr(value, "device", "cpu")).strip("<>")
    words = (kind, str(value.dtype).removeprefix("torch."), f"({shape})", "" if "cpu" in device.lower() else device)
    return " ".join(word for word in words if word)


def names(values: Iterable[object]) -> str:
    """List names, the first few of many."""
    found = [str(value) for value in values]
    more = f", … {len(found) - _MOST_NAMES:,} more" if len(found) > _MOST_NAMES else ""
    return f"[{', '.join(found[:_MOST_NAMES])}{more}]"
