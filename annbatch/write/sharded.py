"""How is one store written?

1. A store is an AnnData group: obs, var and the empty mappings through AnnData's own writers, X and layers as sharded
   CSR, obsm as sharded rows.
2. ``data`` and ``indices`` are filled a whole shard at a time, so that no shard is ever read back and encoded again.
3. What a reader looks up row by row (``indptr``, obs codes and numbers) lies uncompressed in plain chunks: a slice of
   it is one small read.

The rows come in their final order; why that order, nobody here knows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec

from annbatch.batch import CSR
from annbatch.manifest import ElementTypes

Cname = Literal["lz4", "lz4hc"]

DATA_LEVEL: tuple[Cname, int] = ("lz4hc", 2)
"""Compressor and level of values: counts repeat, and what lz4hc finds in them is smaller and decodes faster."""
OTHER_LEVEL: tuple[Cname, int] = ("lz4", 5)
"""Compressor and level of everything else: column numbers hardly repeat, lz4hc would only cost time."""

# Every chunk is written, also one of zeros only, so that each has its bytes and its checksum.
_KEEP_EMPTY: Any = {"write_empty_chunks": True}


@dataclass(frozen=True, slots=True)
class Layout:
    """How the arrays of a store are cut."""

    chunk_elements: int = 2**15
    """Elements in an inner chunk."""
    shard_elements: int = 2**25
    """Elements in a shard, at most; cut down to a multiple of the chunk, and to the array."""
    plain_rows: int = 2**20
    """Elements in a plain chunk of ``indptr`` or of an obs column."""

    def __post_init__(self) -> None:
        # Blosc cannot hold a chunk of 2 GiB or more.
        if not 1 <= self.chunk_elements <= 2**27:
            raise ValueError(f"chunk_elements must be in [1, 2**27], got {self.chunk_elements}")
        if self.shard_elements < self.chunk_elements:
            raise ValueError(
                f"shard_elements must be >= chunk_elements {self.chunk_elements}, got {self.shard_elements}"
            )
        if self.plain_rows < 1:
            raise ValueError(f"plain_rows must be >= 1, got {self.plain_rows}")

    def shard(self, length: int, chunk: int, limit: int) -> int:
        """Give the shard length for an axis of ``length``: whole chunks, at most ``limit``, no more than needed."""
        return chunk * max(1, min(limit // chunk, -(-length // chunk)))


@dataclass(frozen=True, slots=True)
class SparseRows:
    """The rows of one sparse element, in their final order."""

    row_lengths: npt.NDArray[np.int64]
    """(n_obs,) stored elements of each row."""
    blocks: Iterable[CSR]
    """Consecutive rows; read once."""
    types: ElementTypes
    """What is written; blocks of other types are cast."""


@dataclass(frozen=True, slots=True)
class StoreRows:
    """Everything that one store holds."""

    obs: pd.DataFrame
    """(n_obs, …)."""
    var: pd.DataFrame
    """(n_vars, …)."""
    sparse: Mapping[str, SparseRows]
    """``"X"`` and ``"layers/{name}"``."""
    obsm: Mapping[str, npt.NDArray[Any]]
    """Name to (n_obs, …)."""


def write_store(path: Path, rows: StoreRows, layout: Layout, report: Callable[[int], object]) -> int:
    """Write a new AnnData store at ``path``; ``report`` is told of rows as they are done.

    Returns
    -------
    int
        Stored elements of X.
    """
    with warnings.catch_warnings():
        # AnnData asks pandas for an option that pandas 3 deprecates: nothing that the caller could change.
        warnings.filterwarnings("ignore", message="The 'future.infer_string' option is deprecated")
        root = zarr.open_group(path, mode="w-", zarr_format=3, attributes=_encoding("anndata", "0.1.0"))
        for key in ("layers", "obsm", "varm", "obsp", "varp", "uns"):
            ad.io.write_elem(root, key, {})
        _write_frame(root, "obs", rows.obs, layout)
        _write_frame(root, "var", rows.var, layout)
        for key, sparse in rows.sparse.items():
            _write_sparse(root, key, sparse, len(rows.var), layout, report)
        for name, array in rows.obsm.items():
            _write_rows(root, f"obsm/{name}", array, layout)
    return int(rows.sparse["X"].row_lengths.sum())


def _encoding(name: str, version: str) -> dict[str, Any]:
    return {"encoding-type": name, "encoding-version": version}


def _codecs(dtype: np.dtype[Any], level: tuple[Cname, int]) -> dict[str, Any]:
    cname, clevel = level
    return {
        "filters": None,
        "serializer": BytesCodec(endian="little"),
        "compressors": [
            BloscCodec(cname=cname, clevel=clevel, shuffle="shuffle", typesize=dtype.itemsize),
            Crc32cCodec(),
        ],
        "fill_value": 0,
        "config": _KEEP_EMPTY,
    }


def _write_frame(root: zarr.Group, key: str, frame: pd.DataFrame, layout: Layout) -> None:
    def write(write_elem: Any, group: Any, name: str, elem: Any, *, dataset_kwargs: Any, iospec: Any) -> None:
        kwargs = dict(dataset_kwargs)
        if iospec.encoding_type in ("array", "string-array"):
            # `shards=None` says so explicitly: AnnData's own choice depends on its version and settings.
            kwargs |= {"chunks": (max(1, min(layout.plain_rows, len(elem))),), "shards": None, "config": _KEEP_EMPTY}
        if iospec.encoding_type == "array":
            kwargs["compressors"] = None
        write_elem(group, name, elem, dataset_kwargs=kwargs)

    ad.experimental.write_dispatched(root, key, frame, callback=write)


def _write_sparse(
    root: zarr.Group, key: str, rows: SparseRows, n_vars: int, layout: Layout, report: Callable[[int], object]
) -> None:
    indptr = np.concatenate([[0], np.cumsum(rows.row_lengths, dtype=np.int64)])
    attributes = _encoding("csr_matrix", "0.1.0") | {
        "shape": [len(indptr) - 1, n_vars],
        "original-dtype": str(rows.types.original),
    }
    group = root.create_group(key, attributes=attributes)
    data = _ShardWriter(group, "data", int(indptr[-1]), rows.types.stored, layout)
    indices = _ShardWriter(group, "indices", int(indptr[-1]), rows.types.indices, layout)
    for block in rows.blocks:
        data.append(block.data)
        indices.append(block.indices)
        report(block.shape[0])
    data.finish()
    indices.finish()
    chunk = min(layout.plain_rows, len(indptr))
    array = group.create_array(
        "indptr",
        shape=indptr.shape,
        dtype=np.int64,
        chunks=(chunk,),
        serializer=BytesCodec(endian="little"),
        filters=None,
        compressors=None,
        fill_value=0,
        config=_KEEP_EMPTY,
        attributes=_encoding("array", "0.2.0"),
    )
    array[:] = indptr


def _write_rows(root: zarr.Group, key: str, array: npt.NDArray[Any], layout: Layout) -> None:
    width = max(1, int(np.prod(array.shape[1:])))
    chunk = max(1, layout.chunk_elements // width)
    shard = layout.shard(len(array), chunk, max(chunk, layout.shard_elements // width))
    target = root.create_array(
        key,
        shape=array.shape,
        dtype=array.dtype,
        chunks=(chunk, *array.shape[1:]),
        shards=(shard, *array.shape[1:]),
        attributes=_encoding("array", "0.2.0"),
        **_codecs(array.dtype, OTHER_LEVEL),
    )
    for start in range(0, len(array), shard):
        target[start : start + shard] = array[start : start + shard]


class _ShardWriter:
    """A one-dimensional sharded array that is filled from the front, one whole shard at a time."""

    def __init__(self, group: zarr.Group, name: str, length: int, dtype: np.dtype[Any], layout: Layout) -> None:
        shard = layout.shard(length, layout.chunk_elements, layout.shard_elements)
        self._array = group.create_array(
            name,
            shape=(length,),
            dtype=dtype,
            chunks=(layout.chunk_elements,),
            shards=(shard,),
            attributes=_encoding("array", "0.2.0"),
            **_codecs(dtype, DATA_LEVEL if name == "data" else OTHER_LEVEL),
        )
        self._length = length
        self._buffer = np.empty(min(shard, length), dtype=dtype)
        self._filled = 0
        self._written = 0

    def append(self, values: npt.NDArray[Any]) -> None:
        while len(values):
            if not len(self._buffer) - self._filled:
                self._flush()
            taken = values[: len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            values = values[len(taken) :]

    def finish(self) -> None:
        self._flush()
        if self._written != self._length:
            raise ValueError(
                f"{self._array.path}: blocks must hold the {self._length} elements announced, got {self._written}"
            )

    def _flush(self) -> None:
        if self._filled:
            self._array[self._written : self._written + self._filled] = self._buffer[: self._filled]
        self._written += self._filled
        self._filled = 0
