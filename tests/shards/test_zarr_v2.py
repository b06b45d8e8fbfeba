"""Arrays of zarr v2: what the kernels read is what zarr reads."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr

from annbatch.errors import CorruptStoreError
from annbatch.shards.codecs import Workspace
from annbatch.shards.local_array import ShardedArray

CHUNK, SIZE = 512, 5000
DTYPES = ["bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
COMPRESSORS: dict[str, Any] = {
    "none": None,
    **{
        f"blosc {cname} {shuffle}": numcodecs.Blosc(cname, 5, shuffle)
        for cname in ("lz4", "lz4hc", "zstd", "zlib", "blosclz")
        for shuffle in (-1, 0, 1, 2)
    },
    "zstd": numcodecs.Zstd(3),
    "zstd with a checksum": numcodecs.Zstd(3, checksum=True),
    "gzip": numcodecs.GZip(5),
    "zlib": numcodecs.Zlib(5),
}
FILTERS: dict[str, list[Any]] = {
    "delta": [numcodecs.Delta("<i4")],
    "shuffle": [numcodecs.Shuffle(4)],
    "both": [numcodecs.Delta("<i4"), numcodecs.Shuffle(4)],
}


def values(dtype: str, size: int = SIZE) -> np.ndarray[Any, Any]:
    return (np.arange(size) * 7 % 251).astype(dtype)


def write(path: Path, x: np.ndarray[Any, Any], **options: Any) -> zarr.Array[Any]:
    options = {"chunks": (CHUNK, *x.shape[1:]), "compressors": numcodecs.Zstd(1)} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = zarr.create_array(path, shape=x.shape, dtype=x.dtype, zarr_format=2, **options)
        array[...] = x
    return array


def opened(path: Path) -> ShardedArray:
    array = ShardedArray.open(path, zarr_format=2)
    assert isinstance(array, ShardedArray), array
    return array


def read(path: Path) -> np.ndarray[Any, Any]:
    array = opened(path)
    found = array.read_ranges(Workspace(), np.array([0]), np.array([int(np.prod(array.shape))]))
    return found.reshape(array.shape)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_every_compressor(tmp_path: Path, name: str) -> None:
    for dtype in DTYPES if name in ("none", "blosc lz4 1", "zstd") else ("u2", "f4"):
        x = values(dtype)
        write(tmp_path / dtype, x, compressors=COMPRESSORS[name])
        found = read(tmp_path / dtype)
        assert found.dtype == x.dtype
        np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize("compressor", [None, numcodecs.Zstd(1), numcodecs.Blosc("lz4", 5, 1), numcodecs.Zlib(1)])
@pytest.mark.parametrize("name", FILTERS)
def test_filters(tmp_path: Path, name: str, compressor: Any) -> None:
    x = values("i4")
    write(tmp_path / "x", x, filters=FILTERS[name], compressors=compressor)
    np.testing.assert_array_equal(read(tmp_path / "x"), x)


@pytest.mark.parametrize("separator", [".", "/"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(SIZE,), (SIZE, 1), (SIZE, 3)], ids=str)
def test_every_layout(tmp_path: Path, shape: tuple[int, ...], order: Any, separator: Any) -> None:
    x = values("f4", int(np.prod(shape))).reshape(shape)
    key = {"name": "v2", "separator": separator}
    array = write(tmp_path / "x", x, order=order, chunk_key_encoding=key)
    np.testing.assert_array_equal(array[...], x)
    if order == "F" and len(shape) == 2:
        assert ShardedArray.open(tmp_path / "x", zarr_format=2) == (
            "the order of elements in a chunk must be C, got 'F'"
        )
    else:
        np.testing.assert_array_equal(read(tmp_path / "x"), x)


@pytest.mark.parametrize("fill", [None, 0, 3, float("nan"), float("-inf")])
def test_missing_chunks_are_fill_value(tmp_path: Path, fill: Any) -> None:
    array = write(tmp_path / "x", values("f4"), fill_value=fill)
    (tmp_path / "x" / "2").unlink()
    np.testing.assert_array_equal(read(tmp_path / "x"), array[:])


def test_metadata_as_old_versions_wrote_them(tmp_path: Path) -> None:
    """Without what was added later."""
    x = values("i8")
    write(tmp_path / "x", x)
    metadata = json.loads((tmp_path / "x" / ".zarray").read_text())
    del metadata["dimension_separator"]
    del metadata["filters"]
    (tmp_path / "x" / ".zarray").write_text(json.dumps(metadata))
    np.testing.assert_array_equal(read(tmp_path / "x"), x)


REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "big-endian": ({"dtype": ">f4"}, "the values are not little-endian"),
    "complex": ({"dtype": "<c8"}, "the dtype must be one of"),
    "text": ({"dtype": "<U3"}, "the dtype must be one of"),
    "objects": ({"dtype": "|O"}, "the dtype must be one of"),
    "structured": ({"dtype": [["a", "<i4"]]}, "the dtype must be one of"),
    "no type": ({"dtype": "nothing"}, "the metadata are invalid"),
    "lz4": ({"compressor": {"id": "lz4", "acceleration": 1}}, r"the codec chain has codecs beyond .*numcodecs.lz4"),
    "snappy": ({"compressor": {"id": "blosc", "cname": "snappy"}}, "blosc's compressor must be one of"),
    "two compressors": ({"filters": [{"id": "zstd"}]}, r"the codec chain has codecs beyond .*numcodecs.zstd"),
    "scaled": ({"filters": [{"id": "fixedscaleoffset"}]}, r"codecs beyond .*numcodecs.fixedscaleoffset"),
    "delta of bytes": (
        {"filters": [{"id": "shuffle", "elementsize": 4}, {"id": "delta", "dtype": "<f4"}]},
        "delta must be the first filter",
    ),
    "other differences": ({"filters": [{"id": "delta", "dtype": "<i2", "astype": "<i4"}]}, "differences must be of"),
    "nested codecs": ({"filters": [[]]}, "the metadata are invalid"),
    "parts of rows": ({"shape": [10, 10], "chunks": [5, 5]}, "chunks must span whole rows"),
    "no shape": ({"shape": None}, "the metadata are invalid"),
    "another version": ({"zarr_format": 4}, "it is not an array of zarr v2 or v3"),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_cannot_be_read_says_why(tmp_path: Path, name: str) -> None:
    change, message = REASONS[name]
    write(tmp_path / "x", values("f4"))
    path = tmp_path / "x" / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    found = ShardedArray.open(tmp_path / "x", zarr_format=2)
    assert isinstance(found, str)
    assert re.search(message, found), found


@pytest.mark.parametrize("missing", ["zarr_format", "shape", "chunks", "dtype", "compressor", "fill_value", "order"])
def test_incomplete_metadata(tmp_path: Path, missing: str) -> None:
    write(tmp_path / "x", values("f4"))
    path = tmp_path / "x" / ".zarray"
    metadata = json.loads(path.read_text())
    del metadata[missing]
    path.write_text(json.dumps(metadata))
    assert ShardedArray.open(tmp_path / "x", zarr_format=2) == f"the metadata are invalid (KeyError: '{missing}')"


def test_a_damaged_chunk_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "x", values("f4"))
    chunk = tmp_path / "x" / "3"
    chunk.write_bytes(chunk.read_bytes()[:-5])
    with pytest.raises(CorruptStoreError, match=f"^{chunk}: "):
        read(tmp_path / "x")
