"""Is an argument of the right type and in range? Each check gives the value back, in its plain type."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import numpy as np


def integer(name: str, value: int, low: int, high: int | None = None) -> int:
    """Check for an integer of at least ``low`` and below ``high``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < low or (high is not None and value >= high):
        rule = f">= {low}" if high is None else f"in [{low}, {high})"
        raise ValueError(f"{name} must be {rule}, got {value}")
    return int(value)


def byte_count(name: str, value: str | int) -> int:
    """Check for a number of bytes, or of kB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB as in ``"2GB"``."""
    if not isinstance(value, str):
        if value < 0:
            raise ValueError(f"{name} must be >= 0, got {value}")
        return int(value)
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([KMGT]?)(I?)B?\s*", value.upper())
    if match is None or (match[3] and not match[2]):
        raise ValueError(f"{name} must be like '2GB' or a number of bytes, got {value!r}")
    power = "KMGT".index(match[2]) + 1 if match[2] else 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def expanded(path: str | os.PathLike[str]) -> str:
    """Give a path with ``~`` replaced by the home directory; one that only begins with that sign stays as it is."""
    return os.path.expanduser(path)  # noqa: PTH111 Path.expanduser fails where the sign is a part of a name


def boolean(name: str, value: bool) -> bool:
    """Check for True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def least_rows(name: str, value: bool | int, batch_size: int) -> bool | int:
    """Check for whether a batch must be full, or for a number of rows, at least 2, that it must have."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be True, False or a number of rows, got {value!r}")
    # Python takes 0 and 1 for False and True.
    if not 2 <= value <= batch_size:
        raise ValueError(f"{name} must be True, False or a number of rows in [2, {batch_size}], got {value}")
    return True if value == batch_size else int(value)


def one_of(name: str, value: str, choices: Sequence[str]) -> str:
    """Check for one of a few words."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def distinct_names(name: str, value: Sequence[str]) -> tuple[str, ...]:
    """Check for a sequence of different names."""
    if isinstance(value, str):
        raise TypeError(f"{name} must be a sequence of names, got the string {value!r}")
    found = tuple(str(one) for one in value)
    if len(set(found)) != len(found):
        raise ValueError(f"{name} must be distinct, got {max(found, key=found.count)!r} more than once")
    return found


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
