"""What do the metadata of a zarr array say, and can our kernels read such an array?

1. `describe` reads the file that holds them of a local array, and nothing else.
2. `parse` gives the array's `Description`, or the reason why zarr has to read it. Those of zarr v2 it translates first
   (`annbatch.shards.zarr_v2`).

Format: https://zarr-specs.readthedocs.io/en/latest/v3/core/
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from annbatch.shards.codecs import Decoder, parse_codecs
from annbatch.shards.shard_index import ChunkGrid
from annbatch.shards.zarr_v2 import as_v3

METADATA_KEYS = {2: ".zarray", 3: "zarr.json"}
"""What holds the metadata of an array, by its zarr format."""

_DTYPES = frozenset(
    ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
)
_MAX_CHUNKS = 2**27
"""Chunks of an array whose places can be kept in memory."""
_INDEX_CODECS = [("bytes", {"endian": "little"}), ("crc32c", {})]


@dataclass(frozen=True, slots=True, eq=False)
class Description:
    """A one-dimensional, or row-chunked two-dimensional, zarr array that the kernels can read."""

    dtype: np.dtype[Any]
    """Stored dtype."""
    shape: tuple[int, ...]
    """(n,) or (n_rows, n_columns)."""
    chunk_elements: int
    """Elements in an inner chunk."""
    decoder: Decoder
    """How an inner chunk is decoded."""
    fill: npt.NDArray[Any]
    """(1,) what missing chunks consist of."""
    layout: ChunkGrid
    """Which file holds which chunks."""


def describe(folder: Path, recorded: Mapping[str, int] | None = None, *, zarr_format: int = 3) -> Description | str:
    """Describe the array in a directory, or give the reason why zarr has to read it; ``recorded`` as in `ChunkGrid`."""
    key = METADATA_KEYS[zarr_format]
    try:
        metadata = json.loads((folder / key).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return f"{folder} has no {key} that can be read ({type(error).__name__})"
    return parse(metadata, folder.absolute(), "", recorded or {})


def parse(metadata: Mapping[str, Any], folder: PurePath, root: str, recorded: Mapping[str, int]) -> Description | str:
    """Describe an array, or give the reason why zarr has to read it.

    Parameters
    ----------
    metadata
        What ``zarr.json`` holds, or the ``.zarray`` of zarr v2.
    folder, root, recorded
        Those of the `ChunkGrid`.
    """
    try:
        return _parse(metadata, folder, root, recorded)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
        return f"the metadata are invalid ({type(error).__name__}: {error})"


def _parse(metadata: Mapping[str, Any], folder: PurePath, root: str, recorded: Mapping[str, int]) -> Description | str:
    if not hasattr(os, "pread") or sys.maxsize < 2**32:
        return "the platform has no 64-bit pread"
    if metadata["zarr_format"] == 2:
        translated = as_v3(metadata)
        if isinstance(translated, str):
            return translated
        metadata = translated
    if (metadata["zarr_format"], metadata.get("node_type")) != (3, "array"):
        return "it is not an array of zarr v2 or v3"
    if metadata["data_type"] not in _DTYPES:
        return f"the dtype must be one of {sorted(_DTYPES)}, got {metadata['data_type']!r}"
    if metadata.get("storage_transformers"):
        return "it has storage transformers"
    dtype = np.dtype(metadata["data_type"])
    shape = tuple(int(size) for size in metadata["shape"])
    grid, key = metadata["chunk_grid"], metadata["chunk_key_encoding"]
    if grid["name"] != "regular":
        return f"the chunk grid must be regular, got {grid['name']!r}"
    outer = inner = tuple(int(size) for size in grid["configuration"]["chunk_shape"])
    codecs, index_at = metadata["codecs"], None
    if codecs[0]["name"] == "sharding_indexed":
        if len(codecs) > 1:
            return "there are codecs around the shards"
        sharding = codecs[0]["configuration"]
        index_codecs = [(codec["name"], codec.get("configuration") or {}) for codec in sharding["index_codecs"]]
        if index_codecs != _INDEX_CODECS:
            return f"the index codecs must be [bytes (little), crc32c], got {index_codecs}"
        index_at = sharding.get("index_location", "end")
        if index_at not in ("start", "end"):
            return f"the index location must be start or end, got {index_at!r}"
        inner, codecs = tuple(int(size) for size in sharding["chunk_shape"]), sharding["codecs"]
    if len(shape) not in (1, 2) or shape[1:] != inner[1:] or inner[1:] != outer[1:]:
        return f"chunks must span whole rows of one or two dimensions, got shape {shape} in chunks {inner}"
    if min(inner) < 1 or outer[0] < 1 or outer[0] % inner[0]:
        return f"shards must be whole multiples of chunks, got {outer} and {inner}"
    n_chunks = -(-shape[0] // outer[0]) * (outer[0] // inner[0])
    if min(shape) < 0 or n_chunks > _MAX_CHUNKS:
        return f"there must be at most {_MAX_CHUNKS} chunks, got shape {shape} in chunks {inner} and shards {outer}"
    elements = math.prod(inner)
    decoder = parse_codecs(codecs, dtype, elements * dtype.itemsize)
    if isinstance(decoder, str):
        return decoder
    separators = {"default": "/", "v2": "."}
    if key["name"] not in separators:
        return f"the chunk key encoding must be default or v2, got {key['name']!r}"
    separator = (key.get("configuration") or {}).get("separator", separators[key["name"]])
    if separator not in ("/", "."):
        return f"the separator of chunk keys must be / or ., got {separator!r}"
    layout = ChunkGrid(
        folder=folder,
        prefix=f"c{separator}" if key["name"] == "default" else "",
        suffix=f"{separator}0" * (len(shape) - 1),
        n_chunks=-(-shape[0] // inner[0]),
        chunks_per_shard=outer[0] // inner[0],
        index_at=index_at,
        stored_nbytes=decoder.stored_nbytes(elements, dtype.itemsize),
        root=root,
        recorded=recorded,
        is_compared=index_at is None and not decoder.has_checksums,
    )
    return Description(dtype, shape, elements, decoder, _fill_value(metadata["fill_value"], dtype), layout)


def _fill_value(value: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Give (1,) of a fill value in JSON: a number, a boolean, NaN or Infinity by name, or a float's bits in hex."""
    if isinstance(value, str) and value.startswith("0x"):
        return np.array([int(value, 16)], f"u{dtype.itemsize}").view(dtype)
    return np.array([float(value) if isinstance(value, str) else value], dtype)
