"""Which inputs and genes do the files and patterns of a command line name?"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from typing import BinaryIO

from annbatch.check import expanded
from annbatch.errors import InputError, MissingInputError

_PATTERN = re.compile(r"[*?[]")
_NAMED = re.compile(r"([^/=]*[^/=\s][^/=]*)=(.+)", re.DOTALL)
"""A name and a path; no URL, and no path in which a folder's name has the sign."""


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


def chosen_inputs(given: Iterable[str]) -> list[str] | dict[str, str]:
    """Give the inputs that paths, patterns such as ``data/*.h5ad`` and ``NAME=PATH`` mean.

    What matches a pattern comes in the order of its name, ``s2`` before ``s10``. A path that exists is neither a
    pattern nor a name and a path, and a pattern that matches is no name and a pattern.

    Returns
    -------
    list or dict
        The paths; as soon as one has a name, a dict of names and paths, in which others are named by their paths.

    Raises
    ------
    MissingInputError
        If nothing matches a pattern.
    InputError
        If a name stands for several inputs.
    """
    pairs = [pair for text in given for pair in _pairs(text)]
    if all(name is None for name, _ in pairs):
        return [path for _, path in pairs]
    inputs: dict[str, str] = {}
    for given_name, path in pairs:
        name = path if given_name is None else given_name
        if name in inputs:
            raise InputError(f"{name}: must name one input, got {inputs[name]} and {path}")
        inputs[name] = path
    return inputs


def _pairs(text: str) -> list[tuple[str | None, str]]:
    """Give the inputs that one argument means: a name, if it has one, and a path."""
    named = _NAMED.fullmatch(text)
    if named is None or os.path.lexists(expanded(text)) or _matches(text):
        return [(None, path) for path in _expanded_pattern(text)]
    name, path = named.groups()
    found = _expanded_pattern(path)
    if len(found) > 1:
        raise InputError(f"{text}: must name one input, got {len(found):,} that match {path}")
    return [(name, found[0])]


def _expanded_pattern(path: str) -> list[str]:
    """Give a path as it is, and for a pattern the paths that match."""
    if "://" in path or not _PATTERN.search(path) or os.path.lexists(expanded(path)):
        return [path]
    found = _matches(path)
    if not found:
        raise MissingInputError(f"{path}: no file or directory matches this pattern")
    return sorted(found, key=_natural)


def _matches(pattern: str) -> list[str]:
    if not _PATTERN.search(pattern):
        return []
    return glob.glob(expanded(pattern), recursive=True)  # noqa: PTH207 keeps paths as they were written


def _natural(path: str) -> list[str | int]:
    """Sort numbers in names by their value."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", path))]


def _lines(file: BinaryIO) -> list[str]:
    try:
        # Some editors put a byte-order mark before the first line.
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise InputError(
            f"{file.name}: must be UTF-8 text, got byte {e.object[e.start]:#04x} at position {e.start}"
        ) from e
    return [line.strip() for line in text.splitlines() if line.strip()]
