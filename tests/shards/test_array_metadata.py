"""What is understood of an array's metadata, down to the last number."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from annbatch.shards import array_metadata
from annbatch.shards.array_metadata import Description, describe, parse

BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
CRC32C = {"name": "crc32c"}
ZSTD = {"name": "zstd", "configuration": {"level": 0, "checksum": False}}


def metadata(
    shape: tuple[int, ...] = (100,),
    chunks: tuple[int, ...] = (10,),
    shards: tuple[int, ...] | None = None,
    codecs: Any = (BYTES, ZSTD),
    **changes: Any,
) -> dict[str, Any]:
    if shards is not None:
        configuration = {"chunk_shape": chunks, "codecs": codecs, "index_codecs": [BYTES, CRC32C]}
        codecs = [{"name": "sharding_indexed", "configuration": configuration}]
    found = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shards or chunks}},
        "chunk_key_encoding": {"name": "default"},
        "codecs": codecs,
        "fill_value": 0,
    }
    return json.loads(json.dumps(found | changes))


def parsed(**changes: Any) -> Description:
    found = parse(metadata(**changes), PurePosixPath("x"), "root/", {"c/0": 7})
    assert isinstance(found, Description), found
    return found


def reason(**changes: Any) -> str:
    found = parse(metadata(**changes), PurePosixPath("x"), "", {})
    assert isinstance(found, str)
    return found


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        # rows, chunk, shard; chunks that hold rows, chunks of a shard, objects
        ((100, 10, None), (10, 1, 10)),
        ((101, 10, None), (11, 1, 11)),
        ((100, 10, 40), (10, 4, 3)),
        ((0, 10, 40), (0, 4, 0)),
        ((1, 1, 1), (1, 1, 1)),
        ((7, 1, None), (7, 1, 7)),
    ],
)
@pytest.mark.parametrize("columns", [(), (3,)])
def test_how_many_chunks_there_are(
    sizes: tuple[int, int, int | None], expected: tuple[int, ...], columns: tuple[int, ...]
) -> None:
    rows, chunk, shard = sizes
    shards = None if shard is None else (shard, *columns)
    found = parsed(shape=(rows, *columns), chunks=(chunk, *columns), shards=shards)
    layout = found.layout
    assert (layout.n_chunks, layout.chunks_per_shard, layout.n_shards) == expected
    assert found.shape == (rows, *columns)
    assert found.chunk_elements == chunk * int(np.prod(columns, dtype=int))
    assert layout.index_at == (None if shard is None else "end")
    assert (layout.folder, layout.root, layout.recorded) == (PurePosixPath("x"), "root/", {"c/0": 7})


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({}, "x/c/3"),
        ({"chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}}}, "x/c.3"),
        ({"chunk_key_encoding": {"name": "v2"}}, "x/3"),
        ({"shape": (100, 2), "chunks": (10, 2)}, "x/c/3/0"),
        ({"shape": (100, 2), "chunks": (10, 2), "chunk_key_encoding": {"name": "v2"}}, "x/3.0"),
    ],
)
def test_what_a_chunk_is_called(changes: dict[str, Any], key: str) -> None:
    assert str(parsed(**changes).layout.key(3)) == key


def test_the_bytes_of_a_chunk() -> None:
    assert parsed(codecs=[BYTES]).layout.stored_nbytes == (40, 40)
    assert parsed(codecs=[BYTES, CRC32C]).layout.stored_nbytes == (44, 44)
    assert parsed(codecs=[BYTES], data_type="int64").layout.stored_nbytes == (80, 80)
    # The largest that libblosc2 takes.
    assert isinstance(parse(metadata(chunks=(2**27 - 2**18,)), PurePosixPath("x"), "", {}), Description)
    assert "inner chunks must decode to 1 to" in reason(chunks=(2**27 - 2**18 + 1,))


@pytest.mark.parametrize(
    ("changes", "compared"),
    [
        # Chunks without checksums, each a file; with checksums; shards, whose index has one.
        ({}, True),
        ({"codecs": [BYTES, ZSTD, CRC32C]}, False),
        ({"shards": (20,)}, False),
        ({"shards": (20,), "codecs": [BYTES, ZSTD, CRC32C]}, False),
    ],
)
def test_files_are_compared_where_nothing_else_shows_damage(changes: dict[str, Any], compared: bool) -> None:
    assert parsed(**changes).layout.is_compared == compared


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("float32", 0.5, 0.5),
        ("float32", "NaN", np.nan),
        ("float64", "-Infinity", -np.inf),
        ("float32", "0x3f800000", 1.0),
        ("float16", "0x3c00", 1.0),
        ("int64", 2**62 + 1, 2**62 + 1),
        ("uint64", 2**64 - 1, 2**64 - 1),
        ("bool", True, True),
    ],
)
def test_fill_values(dtype: str, value: Any, expected: Any) -> None:
    found = parsed(data_type=dtype, fill_value=value).fill
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.array([expected], dtype))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (((100,), (0,), None), r"shards must be whole multiples of chunks, got \(0,\)"),
        (((100,), (-1,), None), "shards must be whole multiples of chunks"),
        (((100,), (10,), (0,)), "shards must be whole multiples of chunks"),
        (((100,), (10,), (-10,)), "shards must be whole multiples of chunks"),
        (((100, 3), (10, 3), (0, 3)), "shards must be whole multiples of chunks"),
        (((100,), (10,), (25,)), "shards must be whole multiples of chunks"),
        (((100, 0), (10, 0), None), "shards must be whole multiples of chunks"),
        (((100, 3), (0, 3), (0, 3)), "shards must be whole multiples of chunks"),
        (((-1,), (10,), None), "there must be at most"),
        (((100,), (10, 1), None), "chunks must span whole rows"),
        (((100, 2), (10, 1), None), "chunks must span whole rows"),
        (((100, 2), (10, 2), (20, 4)), "chunks must span whole rows"),
    ],
)
def test_sizes_that_cannot_be(sizes: tuple[Any, Any, Any], message: str) -> None:
    shape, chunks, shards = sizes
    assert re.match(message, reason(shape=shape, chunks=chunks, shards=shards))


def test_there_may_be_so_many_chunks() -> None:
    most = 2**27
    assert parsed(shape=(most,), chunks=(1,)).layout.n_chunks == most
    assert f"there must be at most {most} chunks" in reason(shape=(most + 1,), chunks=(1,))
    # Shards count with all the chunks that they have room for.
    assert parsed(shape=(most,), chunks=(1,), shards=(2,)).layout.n_chunks == most
    assert f"there must be at most {most} chunks" in reason(shape=(most - 1,), chunks=(1,), shards=(most // 2 + 1,))
    # Columns count for nothing.
    wide: dict[str, Any] = {"chunks": (1, 16), "shards": (8, 16)}
    assert parsed(shape=(most, 16), **wide).layout.n_chunks == most
    assert f"there must be at most {most} chunks" in reason(shape=(most + 8, 16), **wide)


def test_small_machines_are_left_to_zarr(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "the platform has no 64-bit pread"
    with monkeypatch.context() as on_32_bit:
        on_32_bit.setattr(sys, "maxsize", 2**31 - 1)
        assert reason() == expected
    monkeypatch.delattr(array_metadata.os, "pread")
    assert reason() == expected


def test_metadata_of_another_version_are_looked_for_where_they_are(tmp_path: Path) -> None:
    assert describe(tmp_path) == f"{tmp_path} has no zarr.json that can be read (FileNotFoundError)"
    assert describe(tmp_path, zarr_format=2) == f"{tmp_path} has no .zarray that can be read (FileNotFoundError)"
    (tmp_path / "zarr.json").write_text(json.dumps(metadata()))
    found = describe(tmp_path)
    assert isinstance(found, Description)
    assert found.layout.recorded == {}
