"""How does an object say what it holds, in a line and in a notebook, and how do messages name values?

A class gives its facts (`Summary._facts`); the two forms are the same for all of them. Nothing is read or copied to the
host for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from html import escape
from typing import Any

_MOST_NAMES = 8
_MOST_VALUES = 5
_MOST_CHARACTERS = 200


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
    return _listed([str(value) for value in values], _MOST_NAMES)


def short(value: object) -> str:
    """Give the ``repr`` of a value for a message: of a long list the first few and their number, of a text the start.

    Examples
    --------
    >>> short(list(range(300)))
    '[0, 1, 2, 3, 4, … 295 more]'
    """
    if isinstance(value, list | tuple):
        return _listed([_cut(item) for item in value], _MOST_VALUES)
    return _cut(value)


def some_of(paths: Sequence[str]) -> str:
    """Name the first of some inputs, and count the others.

    Examples
    --------
    >>> some_of(["a.h5ad", "b.h5ad", "c.h5ad"])
    'a.h5ad and 2 more inputs'
    """
    return paths[0] + (f" and {len(paths) - 1:,} more inputs" if len(paths) > 1 else "")


def size(nbytes: int) -> str:
    """Give a number of bytes in the unit in which it is easily read.

    Examples
    --------
    >>> size(2_480_000)
    '2.48 MB'
    """
    units = ("B", "kB", "MB", "GB", "TB")
    power = next((i for i in range(len(units)) if nbytes < 999.5 * 1000**i), len(units) - 1)
    scaled = nbytes / 1000**power
    return f"{scaled:.3g} {units[power]}" if scaled < 999.5 else f"{scaled:,.0f} {units[power]}"


def _listed(words: Sequence[str], most: int) -> str:
    more = f", … {len(words) - most:,} more" if len(words) > most else ""
    return f"[{', '.join(words[:most])}{more}]"


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"
