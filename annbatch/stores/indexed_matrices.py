"""How is it kept in an index where the chunks of a file's matrices lie?

`packed_matrix` describes a matrix that the kernels read, `unpacked_matrix` gives it again, as
`annbatch.stores.anndata_store.matrix_in_hdf5` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from annbatch.shards.chunk_files import ChunkFiles
from annbatch.shards.codecs import Codec, Decoder, Library, library
from annbatch.shards.file_stamp import FileStamp
from annbatch.shards.hdf5_chunks import FileChunks
from annbatch.shards.local_array import ShardedArray
from annbatch.shards.scatter import Form
from annbatch.stores.anndata_store import DenseMatrix, Matrix, SparseMatrix
from annbatch.stores.elements import DirectElements
from annbatch.stores.indexed_columns import Arrays
from annbatch.stores.slices import Direct


def is_direct(matrix: Matrix, stamp: FileStamp) -> bool:
    """Say whether the kernels read a matrix, all of it from a file."""
    return all(
        isinstance(part, DirectElements | Direct)
        and isinstance(chunks := part.array.tables.layout, FileChunks)
        and chunks.stamp == stamp
        for part in _parts(matrix).values()
    )


def packed_matrix(matrix: Matrix, arrays: Arrays) -> dict[str, Any]:
    """Describe a matrix that `is_direct`."""
    parts = {key: _packed_array(part.array, arrays) for key, part in _parts(matrix).items()}
    return {"shape": list(matrix.shape), "dtype": matrix.dtype.str, **parts}


def unpacked_matrix(kept: Mapping[str, Any], arrays: Arrays, stamp: FileStamp) -> Matrix:
    """Give a matrix of a file; raises ValueError if the kernels do not decode it here."""
    n_obs, n_columns = kept["shape"]
    dtype = np.dtype(kept["dtype"])
    if "values" in kept:
        values = DirectElements(_array(kept["values"], arrays, stamp))
        return DenseMatrix((n_obs, n_columns), dtype, values, None, stamp)
    data, indices = (DirectElements(_array(kept[key], arrays, stamp)) for key in ("data", "indices"))
    indptr = Direct(_array(kept["indptr"], arrays, stamp))
    return SparseMatrix((n_obs, n_columns), dtype, indptr, data, indices, None, stamp)


def _parts(matrix: Matrix) -> dict[str, Any]:
    if isinstance(matrix, DenseMatrix):
        return {"values": matrix.values}
    return {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr}


def _packed_array(array: ShardedArray, arrays: Arrays) -> dict[str, Any]:
    chunks, form = array.tables.layout, array.form
    assert isinstance(chunks, FileChunks)
    decoder = form.decoder
    return {
        "dataset": chunks.dataset,
        "shape": list(array.shape),
        "dtype": form.dtype.str,
        "chunk_elements": form.chunk_elements,
        "fill": form.fill.hex(),
        "codec": decoder.codec.name,
        "shuffle": decoder.shuffle,
        "fletcher32": decoder.fletcher32,
        "swapped": decoder.swapped,
        "offsets": arrays.add(chunks.offsets),
        "nbytes": arrays.add(chunks.nbytes),
    }


def _array(kept: Mapping[str, Any], arrays: Arrays, stamp: FileStamp) -> ShardedArray:
    codec = Codec[kept["codec"]]
    if codec in (Codec.BLOSC, Codec.ZSTD, Codec.ZLIB) and not isinstance(library(), Library):
        raise ValueError("the kernels do not decode that here")
    decoder = Decoder(codec, kept["shuffle"], fletcher32=kept["fletcher32"], swapped=kept["swapped"])
    shape, elements = tuple(kept["shape"]), kept["chunk_elements"]
    form = Form(np.dtype(kept["dtype"]), elements, decoder, bytes.fromhex(kept["fill"]))
    n_elements = int(np.prod(shape, dtype=object))
    offsets, nbytes = arrays.get(kept["offsets"]), arrays.get(kept["nbytes"])
    chunks = FileChunks(stamp, kept["dataset"], n_elements, elements, offsets, nbytes)
    return ShardedArray(chunks.folder, shape, form, ChunkFiles(chunks))
