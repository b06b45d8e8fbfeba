"""What does a manifest record about one store, one file and one element, and is the record sound?

1. `StoreEntry`, `FileEntry`, `ElementTypes` and `InputEntry` are the records.
2. `store_entry`, `element_types` and `input_entry` read them from JSON values and check each field.
3. `checksum` makes the record of a file.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import google_crc32c
import numpy as np

from annbatch.errors import StoreError
from annbatch.stores.common_type import common_type, float32_holds

OUR_STORE = re.compile(r"chunk_(0|[1-9][0-9]{0,8})\.zarr")
THEIR_STORE = re.compile(r"dataset_(\d+)")
_DIGEST = re.compile("[0-9a-f]{64}")
_NUMBERS = frozenset(
    ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
)
_READ_BYTES = 2**22

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of a store, as it was written."""

    nbytes: int
    """Size in bytes."""
    crc32c: int
    """CRC-32C (Castagnoli) of the whole file, as an unsigned 32-bit number."""


@dataclass(frozen=True, slots=True)
class StoreEntry:
    """One store of a collection."""

    name: str
    """Directory name, ``chunk_{i}.zarr``, or ``dataset_{i}`` if scverse annbatch wrote it."""
    n_obs: int
    """Number of rows."""
    nnz: int | None
    """Number of stored elements of X; None if X is dense."""
    files: Mapping[str, FileEntry]
    """Files by their path relative to the store, with ``/``; empty if nothing is recorded."""

    def to_json(self) -> dict[str, Any]:
        """Give its JSON value."""
        files = {key: {"nbytes": file.nbytes, "crc32c": file.crc32c} for key, file in self.files.items()}
        return {"name": self.name, "n_obs": self.n_obs, "nnz": self.nnz, "files": files}


@dataclass(frozen=True, slots=True)
class ElementTypes:
    """The types of one element (X or a layer): those that hold what any store has."""

    stored: np.dtype[Any]
    """Type of the values in the stores."""
    original: np.dtype[Any]
    """Type that the values had in the inputs."""
    indices: np.dtype[Any] | None
    """Type of ``indices`` in the stores; None where the element is dense."""

    def to_json(self) -> dict[str, str | None]:
        """Give its JSON value."""
        indices = None if self.indices is None else str(self.indices)
        return {"stored": str(self.stored), "original": str(self.original), "indices": indices}

    def merge(self, other: ElementTypes) -> ElementTypes:
        """Give types that hold what either holds."""
        assert (self.indices is None) == (other.indices is None)
        indices = None if self.indices is None else np.promote_types(self.indices, other.indices)  # type: ignore[arg-type]
        original = common_type((types.original, float32_holds(types.stored)) for types in (self, other))
        return ElementTypes(np.promote_types(self.stored, other.stored), original, indices)


@dataclass(frozen=True, slots=True)
class InputEntry:
    """One input of a collection, and what the collection has of it."""

    name: str
    """Path as it was given, or the name of an object."""
    n_obs: int
    """Its cells in the collection: all of them, unless ``cells_lost`` says otherwise. An input without any was
    skipped."""
    n_vars: int
    """Its genes."""
    genes_lost: int
    """Genes that are not in the collection."""
    elements_lost: int
    """Stored elements of X in those genes."""
    counts_lost: int | None
    """Sum of these elements; None if they are not counts."""
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Elements whose names a store cannot hold, such as ``"obs/…"``: from the input's name to that in the stores."""
    left_out: tuple[str, ...] = ()
    """Elements, such as ``"var/…"`` or ``"layers/…"``, that were left out without having been deselected."""
    x: str | None = None
    """Element that became X, such as ``"raw/X"``; None if it was the same in all inputs by choice."""
    cells_lost: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """By modality: its cells that are not in the collection because another modality of the input lacks them."""

    def to_json(self) -> dict[str, Any]:
        """Give its JSON value; what is empty is left away."""
        found = {name: getattr(self, name) for name in self.__slots__}
        more = {
            "renamed": dict(self.renamed),
            "left_out": list(self.left_out),
            "x": self.x,
            "cells_lost": dict(self.cells_lost),
        }
        return {name: value for name, value in (found | more).items() if name not in more or value}


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


def checksum_of(stored: bytes) -> FileEntry:
    """Size and CRC-32C of what a file holds."""
    return FileEntry(len(stored), google_crc32c.value(stored))


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it is either there in full, on the disk, or as it was before."""
    temporary = path.with_name(f".{path.name}.writing")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Wait until a directory's own entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def store_number(name: str) -> int:
    """Give i of ``chunk_{i}.zarr`` or ``dataset_{i}``."""
    # A modality is stored below the store.
    match = OUR_STORE.match(name) or THEIR_STORE.fullmatch(name)
    assert match is not None, name
    return int(match[1])


def field(entry: Mapping[str, Any], key: str, kind: type[T], where: str) -> T:
    """Give ``entry[key]``, which must be of type ``kind``; ``where`` names the place in errors."""
    value = entry.get(key)
    # bool is an int in Python, but not in JSON.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise StoreError(f"{where}: {key} must be of type {kind.__name__}, got {value!r}")
    return value


def count(entry: Mapping[str, Any], key: str, where: str, *, below: int | None = None) -> int:
    """Give ``entry[key]``, which must be an integer >= 0, and less than ``below`` if that is given."""
    value = field(entry, key, int, where)
    if value < 0:
        raise StoreError(f"{where}: {key} must be >= 0, got {value}")
    if below is not None and value >= below:
        raise StoreError(f"{where}: {key} must be < 2**{below.bit_length() - 1}, got {value}")
    return value


def hex_digest(entry: Mapping[str, Any], key: str, where: str) -> str:
    """Give ``entry[key]``, which must be a SHA-256 in hex."""
    value = field(entry, key, str, where)
    if not _DIGEST.fullmatch(value):
        raise StoreError(f"{where}: {key} must be a SHA-256, 64 digits 0-9 and a-f, got {value!r}")
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
        if not {"", ".", ".."}.isdisjoint(key.split("/")) or "\0" in key:
            raise StoreError(f"{where}: files must lie inside the store, got {key!r}")
        if not isinstance(value, dict):
            raise StoreError(f"{where}: files[{key!r}] must be an object, got {value!r}")
        of_file = f"{where}: files[{key!r}]"
        files[key] = FileEntry(count(value, "nbytes", of_file), count(value, "crc32c", of_file, below=2**32))
    nnz = None if entry.get("nnz", 0) is None else count(entry, "nnz", where)
    return StoreEntry(name, count(entry, "n_obs", where), nnz, files)


def element_types(entry: object, where: str) -> ElementTypes:
    """Read one element's types."""
    if not isinstance(entry, dict):
        raise StoreError(f"{where} must be an object, got {entry!r}")
    found: list[Any] = []
    for key in ("stored", "original", "indices"):
        if key == "indices" and entry.get(key, "") is None:
            found.append(None)
            continue
        value = field(entry, key, str, where)
        if value not in _NUMBERS:
            raise StoreError(f"{where}: {key} must be one of {', '.join(sorted(_NUMBERS))}, got {value!r}")
        found.append(np.dtype(value))
    return ElementTypes(*found)


def input_entry(entry: object, where: str) -> InputEntry:
    """Read one input's record."""
    if not isinstance(entry, dict):
        raise StoreError(f"{where} must be an object, got {entry!r}")
    lost = None if entry.get("counts_lost") is None else count(entry, "counts_lost", where)
    counts = {key: count(entry, key, where) for key in ("n_obs", "n_vars", "genes_lost", "elements_lost")}
    renamed = field(entry, "renamed", dict, where) if "renamed" in entry else {}
    left_out = field(entry, "left_out", list, where) if "left_out" in entry else []
    for what in (*renamed, *renamed.values(), *left_out):
        if not isinstance(what, str):
            raise StoreError(f"{where}: renamed and left_out must hold strings, got {what!r}")
    found = field(entry, "cells_lost", dict, where) if "cells_lost" in entry else {}
    return InputEntry(
        name=field(entry, "name", str, where),
        counts_lost=lost,
        renamed=renamed,
        left_out=tuple(left_out),
        x=field(entry, "x", str, where) if "x" in entry else None,
        cells_lost={name: count(found, name, f"{where}: cells_lost") for name in found},
        **counts,
    )
