"""Are records of stores, files, elements and inputs read back as they were written, and others refused?"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from annbatch.errors import StoreError
from annbatch.stores import manifest
from annbatch.stores.manifest import (
    ElementTypes,
    FileEntry,
    InputEntry,
    StoreEntry,
    checksum,
    checksum_of,
    count,
    element_types,
    field,
    hex_digest,
    input_entry,
    store_entry,
    store_number,
    sync_directory,
    write_whole,
)


def types(stored: str, original: str, indices: str | None) -> ElementTypes:
    return ElementTypes(np.dtype(stored), np.dtype(original), None if indices is None else np.dtype(indices))


PLAIN = InputEntry("a.h5ad", 3, 2, 1, 5, None)
FULL = InputEntry(
    "b.h5ad", 3, 2, 1, 5, 7, {"obs/a/b": "obs/a_b"}, ("var/x", "layers/y"), "raw/X", {"rna": 2, "protein": 0}
)


@pytest.mark.parametrize("entry", [PLAIN, FULL], ids=["plain", "full"])
def test_inputs(entry: InputEntry):
    written = entry.to_json()
    assert input_entry(written, "here") == entry
    assert ("x" in written) == ("renamed" in written) == ("left_out" in written) == ("cells_lost" in written)
    assert ("x" in written) == (entry is FULL)
    assert {"name", "n_obs", "n_vars", "genes_lost", "elements_lost", "counts_lost"} <= written.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_obs": -1}, "here: n_obs must be >= 0, got -1"),
        ({"counts_lost": "many"}, "here: counts_lost must be of type int, got 'many'"),
        ({"renamed": []}, r"here: renamed must be of type dict, got \[\]"),
        ({"renamed": {"a": 1}}, "here: renamed and left_out must hold strings, got 1"),
        ({"left_out": [None]}, "here: renamed and left_out must hold strings, got None"),
        ({"left_out": "a"}, "here: left_out must be of type list, got 'a'"),
        ({"x": 1}, "here: x must be of type str, got 1"),
        ({"cells_lost": {"rna": -2}}, "here: cells_lost: rna must be >= 0, got -2"),
        ({"cells_lost": 3}, "here: cells_lost must be of type dict, got 3"),
    ],
    ids=str,
)
def test_inputs_that_are_none(change: dict[str, Any], message: str):
    with pytest.raises(StoreError, match=f"^{message}$"):
        input_entry(FULL.to_json() | change, "here")


@pytest.mark.parametrize("read", [input_entry, store_entry, element_types])
def test_what_is_no_object_is_refused(read: Callable[[object, str], object]):
    with pytest.raises(StoreError, match=r"^here must be an object, got \[\]$"):
        read([], "here")


@pytest.mark.parametrize("entry", [types("uint16", "float32", "uint32"), types("float64", "float64", None)])
def test_types(entry: ElementTypes):
    assert element_types(entry.to_json(), "here") == entry
    assert element_types(entry.to_json(), "here").indices == entry.indices


@pytest.mark.parametrize(("key", "value"), [("stored", None), ("original", None), ("indices", 3)])
def test_types_that_are_none(key: str, value: Any):
    written = types("uint16", "float32", "uint32").to_json() | {key: value}
    with pytest.raises(StoreError, match=f"here: {key} must be of type str, got {value}"):
        element_types(written, "here")
    del written[key]
    with pytest.raises(StoreError, match=f"here: {key} must be of type str, got None"):
        element_types(written, "here")


def test_types_of_two_collections_are_merged():
    merged = types("uint16", "float32", "uint16").merge(types("float64", "float64", "uint32"))
    assert merged == types("float64", "float64", "uint32")
    # The second holds counts that float32 holds, too.
    assert types("float32", "float32", None).merge(types("uint16", "float64", None)) == types(
        "float32", "float32", None
    )
    with pytest.raises(AssertionError):
        types("uint16", "float32", None).merge(types("uint16", "float32", "uint16"))


@pytest.mark.parametrize("nnz", [4, 0, None])
def test_stores(nnz: int | None):
    entry = StoreEntry("chunk_12.zarr", 3, nnz, {"X/data/c/0": FileEntry(10, 2**32 - 1), "..a": FileEntry(0, 0)})
    assert store_entry(entry.to_json(), "here") == entry


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "chunk_1.zarr/mod"}, "name must be chunk_{i}.zarr, got 'chunk_1.zarr/mod'"),
        ({"name": "chunk_1234567890.zarr"}, "name must be chunk_{i}.zarr"),
        ({"name": "dataset_1"}, "name must be chunk_{i}.zarr"),
        ({"nnz": -1}, "nnz must be >= 0, got -1"),
        ({"files": {"a\0": {"nbytes": 1, "crc32c": 1}}}, "files must lie inside the store"),
        ({"files": {"./a": {"nbytes": 1, "crc32c": 1}}}, "files must lie inside the store"),
        ({"files": {"a": {"nbytes": True, "crc32c": 1}}}, r"files\['a'\]: nbytes must be of type int, got True"),
        ({"files": {"a": {"nbytes": 1, "crc32c": 2**32}}}, r"files\['a'\]: crc32c must be < 2\*\*32, got 4294967296"),
    ],
    ids=str,
)
def test_stores_that_are_none(change: dict[str, Any], message: str):
    written = StoreEntry("chunk_0.zarr", 3, 4, {}).to_json()
    with pytest.raises(StoreError, match=message):
        store_entry(written | change, "here")
    del written["nnz"]
    with pytest.raises(StoreError, match="nnz must be of type int, got None"):
        store_entry(written, "here")


@pytest.mark.parametrize(
    ("name", "number"),
    [("chunk_0.zarr", 0), ("chunk_12.zarr", 12), ("dataset_3", 3), ("dataset_30", 30), ("chunk_7.zarr/mod/rna", 7)],
)
def test_numbers_of_stores(name: str, number: int):
    assert store_number(name) == number


def test_fields():
    entry = {"n": 0, "flag": True, "text": "0" * 64}
    assert (field(entry, "flag", bool, "here"), count(entry, "n", "here")) == (True, 0)
    assert count({"n": 7}, "n", "here", below=8) == 7
    assert hex_digest(entry, "text", "here") == "0" * 64
    with pytest.raises(StoreError, match="^here: flag must be of type int, got True$"):
        count(entry, "flag", "here")
    with pytest.raises(StoreError, match=r"^here: n must be < 2\*\*3, got 8$"):
        count({"n": 8}, "n", "here", below=8)
    for text in ("0" * 63, "0" * 65, "G" * 64, "A" * 64):
        with pytest.raises(StoreError, match="must be a SHA-256"):
            hex_digest({"text": text}, "text", "here")


@pytest.mark.parametrize("content", [b"", b"abc", b"0123456789" * 3], ids=len)
def test_checksums(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(manifest, "_READ_BYTES", 4)
    (tmp_path / "file").write_bytes(content)
    expected = FileEntry(len(content), google_crc32c.value(content))
    assert checksum_of(content) == expected
    synced: list[int] = []
    modes: list[str] = []
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: (modes.append(mode), opened(path, mode))[1])
    monkeypatch.setattr(os, "fsync", synced.append)
    assert checksum(tmp_path / "file") == expected
    assert not synced
    assert checksum(tmp_path / "file", sync=True) == expected
    assert len(synced) == 1
    # What may not be written can be read all the same.
    assert modes == ["rb", "r+b"]


def test_files_are_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    for text in ("first", "other"):
        write_whole(tmp_path / "file", text)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
        assert (tmp_path / "file").read_text() == text
    # The file and its directory, each time.
    assert len(synced) == 4
    sync_directory(tmp_path)
    assert len(synced) == 5
    with pytest.raises(OSError, match="closed|Bad file descriptor"):
        os.fstat(synced[-1])
