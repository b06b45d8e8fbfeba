"""What does a manifest record about one store, one file and one element, and is the record sound?

1. `StoreEntry`, `FileEntry` and `ElementTypes` are the records.
2. `store_entry` and `element_types` read them from JSON values and check each field.
3. `checksum` makes the record of a file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import google_crc32c
import numpy as np

from annbatch.errors import StoreError

OUR_STORE = re.compile(r"chunk_(\d+)\.zarr")
THEIR_STORE = re.compile(r"dataset_(\d+)")
_READ_BYTES = 2**22

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a store, as it was when it was written."""

    nbytes: int
    """Size in bytes."""
    crc32c: int
    """CRC-32C (Castagnoli) of the whole file, as an unsigned 32-bit number."""


@dataclass(frozen=True, slots=True)
class StoreEntry:
    """One store of a collection."""

    name: str
    """Directory name, ``chunk_{i}.zarr`` (or ``dataset_{i}`` where scverse annbatch wrote it)."""
    n_obs: int
    """Number of rows."""
    nnz: int | None
    """Number of stored elements of X; None where X is dense."""
    files: Mapping[str, FileEntry]
    """Path relative to the store, with ``/``, to what that file holds; empty where nothing is recorded."""


@dataclass(frozen=True, slots=True)
class ElementTypes:
    """The types of one sparse element (X or a layer), the same in all stores."""

    stored: np.dtype[Any]
    """Type of ``data`` in the stores."""
    original: np.dtype[Any]
    """Type that the values had in the inputs."""
    indices: np.dtype[Any]
    """Type of ``indices`` in the stores."""


def checksum(path: Path, *, sync: bool = False) -> FileEntry:
    """Size and CRC-32C of a file; ``sync`` also waits until its bytes are on the disk."""
    crc, nbytes = 0, 0
    with path.open("r+b" if sync else "rb") as file:
        while piece := file.read(_READ_BYTES):
            crc = google_crc32c.extend(crc, piece)
            nbytes += len(piece)
        if sync:
            os.fsync(file.fileno())
    return FileEntry(nbytes, crc)


def sync_directory(path: Path) -> None:
    """Wait until a directory's own entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def store_number(name: str) -> int:
    """Give i of ``chunk_{i}.zarr`` or ``dataset_{i}``."""
    match = OUR_STORE.fullmatch(name) or THEIR_STORE.fullmatch(name)
    assert match is not None, name
    return int(match[1])


def field(entry: Mapping[str, Any], key: str, kind: type[T], where: str) -> T:
    """Give ``entry[key]``, which must be of type ``kind``; ``where`` names the place in errors."""
    value = entry.get(key)
    # bool is an int in Python, but not in JSON.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise StoreError(f"{where}: {key} must be of type {kind.__name__}, got {value!r}")
    return value


def count(entry: Mapping[str, Any], key: str, where: str) -> int:
    """Give ``entry[key]``, which must be an integer >= 0."""
    value = field(entry, key, int, where)
    if value < 0:
        raise StoreError(f"{where}: {key} must be >= 0, got {value}")
    return value


def store_entry(entry: object, where: str) -> StoreEntry:
    """Read one store's record."""
    if not isinstance(entry, dict):
        raise StoreError(f"{where} must be an object, got {entry!r}")
    name = field(entry, "name", str, where)
    if not OUR_STORE.fullmatch(name):
        raise StoreError(f"{where}: name must be chunk_{{i}}.zarr, got {name!r}")
    files = {}
    for key, value in field(entry, "files", dict, where).items():
        # A manifest must not make anyone read outside its own directory.
        if PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts:
            raise StoreError(f"{where}: files must lie inside the store, got {key!r}")
        if not isinstance(value, dict):
            raise StoreError(f"{where}: files[{key!r}] must be an object, got {value!r}")
        crc = count(value, "crc32c", f"{where}: files[{key!r}]")
        if crc >= 2**32:
            raise StoreError(f"{where}: files[{key!r}]: crc32c must be < 2**32, got {crc}")
        files[key] = FileEntry(count(value, "nbytes", f"{where}: files[{key!r}]"), crc)
    return StoreEntry(name, count(entry, "n_obs", where), count(entry, "nnz", where), files)


def element_types(entry: object, where: str) -> ElementTypes:
    """Read one element's types."""
    if not isinstance(entry, dict):
        raise StoreError(f"{where} must be an object, got {entry!r}")
    found = []
    for key in ("stored", "original", "indices"):
        value = field(entry, key, str, where)
        try:
            found.append(np.dtype(value))
        except TypeError as e:
            raise StoreError(f"{where}: {key} must be a NumPy dtype, got {value!r}") from e
    return ElementTypes(*found)
