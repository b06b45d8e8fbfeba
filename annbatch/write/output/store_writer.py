"""Pass 2, second half: how is one store written?

1. A store is an AnnData group: var, the columns of obs and the empty mappings through AnnData's own writers, X and
   layers as sharded CSR or dense, obsm as sharded rows.
2. The matrices are filled a piece of rows at a time (`annbatch.write.output.shard_files`); obs is collected on the way,
   and written last, column by column.
3. What a reader looks up row by row (``indptr``, obs codes and numbers) lies uncompressed in plain chunks: a slice of
   it is one small read. The names of cells are text, of which a chunk is decoded as a whole: theirs are small.

The rows come in their final order; why that order, nobody here knows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec

from annbatch.shards.codecs import numcodecs_are_known
from annbatch.shards.packed_codec import PackedCodec
from annbatch.shards.packed_layout import can_pack
from annbatch.stores.anndata_store import ORIGINAL_DTYPE
from annbatch.stores.manifest import ElementTypes, FileEntry
from annbatch.write.array_layout import ArrayLayout, Codec
from annbatch.write.inputs.contents import Element
from annbatch.write.inputs.obs_table import NAMES, ObsTable
from annbatch.write.inputs.text_file import decode
from annbatch.write.output.shard_files import Cname, ShardFiles, blosc, packing, shuffled_zstd
from annbatch.write.shuffle.freed_memory import give_back
from annbatch.write.shuffle.run_reader import RowPiece

DATA_LEVEL: tuple[Cname, int] = ("lz4hc", 2)
"""Compressor and level of values: counts repeat, and what lz4hc finds in them is smaller and decodes faster."""
OTHER_LEVEL: tuple[Cname, int] = ("lz4", 5)
"""Compressor and level of everything else: column numbers hardly repeat, lz4hc would only cost time."""

ZSTD_LEVEL = 1
"""Level where the codec is zstd: higher ones take time, and make counts and differences hardly any smaller."""

NAMES_IN_CHUNK = 2048
"""Names in an inner chunk: of fewer, reading all takes longer; of more, reading those of a block of 512 rows."""

# Every chunk of numbers is written, also one of zeros only, so that each has its bytes and its checksum.
_KEEP_EMPTY: Any = {"write_empty_chunks": True}


@dataclass(frozen=True, slots=True)
class StoreContents:
    """What one store holds, apart from its rows."""

    n_obs: int
    var: pd.DataFrame
    """(n_vars, …)."""
    table: ObsTable
    """Its obs columns."""
    elements: Sequence[Element]
    """Its matrices."""
    types: Mapping[str, ElementTypes]
    """By element."""
    nnz: Mapping[str, int]
    """By sparse element: stored elements."""


def write_store(
    path: Path,
    contents: StoreContents,
    pieces: Iterable[RowPiece],
    layout: ArrayLayout,
    *,
    workers: Executor,
    syncing: Executor,
    report: Callable[[int], object],
) -> dict[str, FileEntry]:
    """Write a new AnnData store at ``path``; ``report`` is told of rows as they are done.

    Returns
    -------
    dict
        Size and checksum of the files that hold X, layers and obsm, by their paths in the store.
    """
    with warnings.catch_warnings(), numcodecs_are_known():
        # AnnData asks pandas for an option that pandas 3 deprecates: nothing that the caller could change.
        warnings.filterwarnings("ignore", message="The 'future.infer_string' option is deprecated")
        root = zarr.open_group(path, mode="w-", zarr_format=3, attributes=_encoding("anndata", "0.1.0"))
        for key in ("layers", "obsm", "varm", "obsp", "varp", "uns"):
            ad.io.write_elem(root, key, {})
        writing = frame_writer(layout)
        ad.experimental.write_dispatched(root, "var", contents.var, callback=writing)
        files, records, texts = _write_matrices(root, contents, pieces, layout, workers, syncing, report)
        _write_obs(root, contents.table, records, texts, layout)
    return files


def _write_matrices(
    root: zarr.Group,
    contents: StoreContents,
    pieces: Iterable[RowPiece],
    layout: ArrayLayout,
    workers: Executor,
    syncing: Executor,
    report: Callable[[int], object],
) -> tuple[dict[str, FileEntry], npt.NDArray[Any], dict[str, list[Any]]]:
    writers: dict[str, ShardFiles] = {}

    def start(
        array: zarr.Array[Any], level: tuple[Cname, int], *, is_dense: bool = False, ascends: bool = False
    ) -> None:
        dtype = np.dtype(array.dtype)
        if _is_packed(dtype, layout.codec, is_dense=is_dense):
            encode = packing(delta=ascends)
        elif layout.codec == "zstd":
            encode = shuffled_zstd(dtype.itemsize, ZSTD_LEVEL, delta=ascends)
        else:
            encode = blosc(*level)
        writers[array.path] = ShardFiles(array, encode, workers, syncing)

    for element in contents.elements:
        if element.kind == "dense":
            start(_create_dense(root, element, contents, layout), OTHER_LEVEL, is_dense=True)
        else:
            data, indices = _create_sparse(root, element, contents, layout)
            start(data, DATA_LEVEL)
            start(indices, OTHER_LEVEL, ascends=True)
    records, lengths = [], {key: [np.zeros(1, np.int64)] for key in contents.nnz}
    texts: dict[str, list[Any]] = {name: [] for name in contents.table.texts}
    try:
        for piece in pieces:
            for key in piece.dense:
                writers[key].append(piece.dense[key])
            for key in piece.sparse:
                writers[f"{key}/data"].append(piece.sparse[key].data)
                writers[f"{key}/indices"].append(piece.sparse[key].indices)
                lengths[key].append(np.diff(piece.sparse[key].indptr))
            records.append(piece.records)
            for name, text in piece.texts.items():
                texts[name].append(text)
            n_rows = len(piece.records)
            # The next piece is on its way: this one must go before it is there.
            del piece
            give_back()
            report(n_rows)
        files = {path: entry for writer in writers.values() for path, entry in writer.finish().items()}
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise
    for key, parts in lengths.items():
        _write_plain(root, f"{key}/indptr", np.cumsum(np.concatenate(parts)), layout)
    return files, np.concatenate(records), texts


def _encoding(name: str, version: str) -> dict[str, Any]:
    return {"encoding-type": name, "encoding-version": version}


def frame_writer(layout: ArrayLayout, text_rows: int | None = None) -> Callable[..., None]:
    """Give the callback that writes numbers in plain, uncompressed chunks, and lets AnnData write the rest.

    With ``text_rows`` arrays of text that are longer than that have inner chunks of so many rows.
    """

    def write(write_elem: Any, group: Any, name: str, elem: Any, *, dataset_kwargs: Any, iospec: Any) -> None:
        if iospec.encoding_type == "array":
            _write_plain(group, name, elem, layout)
            return
        kwargs = dict(dataset_kwargs)
        if iospec.encoding_type == "string-array":
            # `shards=None` says so explicitly: AnnData's own choice depends on its version and settings.
            kwargs |= {"chunks": (_plain_rows(elem, layout),), "shards": None}
            if text_rows is not None and len(elem) > text_rows:
                kwargs |= {"chunks": (text_rows,), "shards": (layout.shard(len(elem), text_rows, layout.plain_rows),)}
        write_elem(group, name, elem, dataset_kwargs=kwargs)

    return write


def _write_obs(
    root: zarr.Group,
    table: ObsTable,
    records: npt.NDArray[Any],
    texts: dict[str, list[Any]],
    layout: ArrayLayout,
) -> None:
    """Write obs as AnnData writes a DataFrame, but one column after the other: no frame of all is ever made."""
    index = table.index_name or "_index"
    attributes = _encoding("dataframe", "0.2.0") | {
        "_index": index,
        "column-order": [column.name for column in table.columns],
    }
    group, writing = root.create_group("obs", attributes=attributes), frame_writer(layout)
    names = {index: NAMES} | {column.name: column.field for column in table.columns if column.dtype is None}
    for name, text in names.items():
        strings = np.concatenate([decode(*part) for part in texts.pop(text)])
        # A window needs the names of its rows, while text columns are read as a whole.
        of_text = frame_writer(layout, NAMES_IN_CHUNK) if name == index else writing
        ad.experimental.write_dispatched(group, name, strings, callback=of_text)
    for column in table.columns:
        if column.dtype is not None:
            ad.experimental.write_dispatched(group, column.name, column.decoded(records), callback=writing)


def _is_packed(dtype: np.dtype[Any], codec: Codec, *, is_dense: bool) -> bool:
    """Say whether an array is packed: integers of sparse matrices are, all else gets blosc."""
    return codec == "packed" and can_pack(dtype) and not is_dense


def _codecs(
    dtype: np.dtype[Any], level: tuple[Cname, int], codec: Codec, *, is_dense: bool = False, ascends: bool = False
) -> dict[str, Any]:
    if _is_packed(dtype, codec, is_dense=is_dense):
        packed: dict[str, Any] = {"filters": None, "serializer": PackedCodec(delta=ascends), "compressors": None}
        return packed | {"fill_value": 0, "config": _KEEP_EMPTY}
    if codec == "zstd":
        shuffle = {"name": "numcodecs.shuffle", "configuration": {"elementsize": dtype.itemsize}}
        compressors: list[Any] = [shuffle, ZstdCodec(level=ZSTD_LEVEL)]
    else:
        cname, clevel = level
        compressors = [BloscCodec(cname=cname, clevel=clevel, shuffle="shuffle", typesize=dtype.itemsize)]
    delta = {"name": "numcodecs.delta", "configuration": {"dtype": dtype.newbyteorder("<").str}}
    return {
        "filters": [delta] if ascends and codec == "zstd" else None,
        "serializer": BytesCodec(endian="little"),
        "compressors": [*compressors, Crc32cCodec()],
        "fill_value": 0,
        "config": _KEEP_EMPTY,
    }


def _create_sparse(
    root: zarr.Group, element: Element, contents: StoreContents, layout: ArrayLayout
) -> tuple[zarr.Array[Any], zarr.Array[Any]]:
    """Create ``data`` and ``indices``."""
    types = contents.types[element.key]
    attributes = _encoding("csr_matrix", "0.1.0") | {
        "shape": [contents.n_obs, element.n_columns],
        ORIGINAL_DTYPE: str(types.original),
    }
    group = root.create_group(element.key, attributes=attributes)
    assert types.indices is not None
    nnz = contents.nnz[element.key]
    shard = layout.shard(nnz, layout.chunk_elements, layout.shard_elements)

    def create(name: str, dtype: np.dtype[Any], level: tuple[Cname, int], *, ascends: bool) -> zarr.Array[Any]:
        return group.create_array(
            name,
            shape=(nnz,),
            dtype=dtype,
            chunks=(layout.chunk_elements,),
            shards=(shard,),
            attributes=_encoding("array", "0.2.0"),
            **_codecs(dtype, level, layout.codec, ascends=ascends),
        )

    return (
        create("data", types.stored, DATA_LEVEL, ascends=False),
        create("indices", types.indices, OTHER_LEVEL, ascends=True),
    )


def _create_dense(root: zarr.Group, element: Element, contents: StoreContents, layout: ArrayLayout) -> zarr.Array[Any]:
    types, width = contents.types[element.key], max(1, element.n_columns)
    chunk = max(1, layout.chunk_elements // width)
    shard = layout.shard(contents.n_obs, chunk, max(chunk, layout.shard_elements // width))
    original = {ORIGINAL_DTYPE: str(types.original)} if element.has_genes else {}
    return root.create_array(
        element.key,
        shape=(contents.n_obs, element.n_columns),
        dtype=types.stored,
        chunks=(chunk, width),
        shards=(shard, width),
        attributes=_encoding("array", "0.2.0") | original,
        **_codecs(types.stored, OTHER_LEVEL, layout.codec, is_dense=True),
    )


def _write_plain(group: zarr.Group, path: str, values: npt.NDArray[Any], layout: ArrayLayout) -> None:
    """Write numbers in plain, uncompressed chunks. AnnData would leave out those that consist of zeros."""
    array = group.create_array(
        path,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(_plain_rows(values, layout), *values.shape[1:]),
        compressors=None,
        config=_KEEP_EMPTY,
        attributes=_encoding("array", "0.2.0"),
    )
    array[:] = values


def _plain_rows(values: npt.NDArray[Any], layout: ArrayLayout) -> int:
    return max(1, min(layout.plain_rows, len(values)))
