"""How is a broken rule reported?

1. `rule` states the rule in words, and puts them in front of whatever goes wrong inside.
2. `expect` and `same` compare, and name the values that differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


@contextmanager
def rule(text: str, *, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """State a rule: an exception from inside becomes an AssertionError that begins with these words."""
    try:
        yield
    except passing:
        raise
    except AssertionError as error:
        raise AssertionError(f"{text}: {error}") from error
    except Exception as error:
        raise AssertionError(f"{text}: {type(error).__name__} was raised: {error}") from error


def expect(holds: bool, text: str) -> None:
    """Raise AssertionError with the text unless something holds."""
    if not holds:
        raise AssertionError(text)


def same(what: str, found: Any, expected: Any) -> None:
    """Compare two arrays of numbers, shapes and values; NaN equals NaN, and types do not count.

    Raises
    ------
    AssertionError
        Names the shape, or the first place that differs.
    """
    found, expected = np.asarray(found), np.asarray(expected)
    expect(found.shape == expected.shape, f"{what} must have the shape {expected.shape}, got {found.shape}")
    differs = (found != expected) & ~((found != found) & (expected != expected))
    if differs.any():
        place = tuple(np.argwhere(differs)[0].tolist())
        where = ", ".join(map(str, place))
        raise AssertionError(
            f"{what}[{where}] must be {expected[place]}, got {found[place]} ({int(differs.sum()):,} of "
            f"{differs.size:,} differ)"
        )
