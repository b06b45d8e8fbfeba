"""Which inputs and genes do the files and patterns of a command line name?"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from typing import BinaryIO

from annbatch.check import expanded
from annbatch.errors import InputError, MissingInputError


def gene_names(file: BinaryIO) -> list[str]:
    """Read names, one a line; blank lines are skipped.

    Raises
    ------
    InputError
        If there is none, or the file is no UTF-8 text.
    """
    names = _lines(file)
    if not names:
        raise InputError(f"{file.name}: must name at least one gene, one a line, got none")
    return names


def listed_paths(file: BinaryIO) -> list[str]:
    """Read paths, one a line; blank lines and those that begin with ``#`` are skipped.

    Raises
    ------
    InputError
        If there is none, or the file is no UTF-8 text.
    """
    paths = [line for line in _lines(file) if not line.startswith("#")]
    if not paths:
        raise InputError(f"{file.name}: must name at least one input, one a line, got none")
    return paths


def expanded_patterns(given: Iterable[str]) -> list[str]:
    """Give paths as they are, and for patterns such as ``data/*.h5ad`` the paths that match, ``s2`` before ``s10``.

    Raises
    ------
    MissingInputError
        If nothing matches a pattern.
    """
    paths: list[str] = []
    for path in given:
        if "://" in path or not re.search(r"[*?[]", path) or os.path.lexists(expanded(path)):
            paths.append(path)
            continue
        found = glob.glob(expanded(path), recursive=True)  # noqa: PTH207 keeps paths as they were written
        if not found:
            raise MissingInputError(f"{path}: no file or directory matches this pattern")
        paths += sorted(found, key=_natural)
    return paths


def _natural(path: str) -> list[str | int]:
    """Sort numbers in names by their value."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", path))]


def _lines(file: BinaryIO) -> list[str]:
    try:
        # Some editors put a byte-order mark before the first line.
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise InputError(
            f"{file.name}: must be text in UTF-8, got the byte {e.object[e.start]:#04x} at {e.start}"
        ) from e
    return [line.strip() for line in text.splitlines() if line.strip()]
