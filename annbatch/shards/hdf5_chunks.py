"""Where in its file lies each chunk of an HDF5 dataset, and can our kernels decode it?

Pure: no I/O. HDF5 itself is not needed: whoever opens a dataset (`annbatch.stores.hdf5_arrays`) hands over what HDF5
says of it.

1. `parse_filters` gives the `Decoder` of a dataset's filters, or the reason why HDF5 has to read it.
2. `FileChunks` says where the chunks are. What is stored in one piece is cut into chunks of a handy size.

Filters: https://support.hdfgroup.org/documentation/hdf5/latest/group___f_l_t_e_r_s.html and
https://github.com/HDFGroup/hdf5_plugins/blob/master/docs/RegisteredFilterPlugins.md
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from annbatch.errors import StoreError
from annbatch.shards.codecs import MAX_CHUNK_NBYTES, Codec, Decoder, Library, library
from annbatch.shards.file_stamp import FileStamp

Ints = npt.NDArray[np.int64]

PIECE_NBYTES = 1 << 17
"""Chunks that datasets stored in one piece are cut into: they fit into a processor's second cache."""

_SHUFFLE, _FLETCHER32 = 2, 3
_COMPRESSORS = {1: Codec.ZLIB, 32000: Codec.LZF, 32001: Codec.BLOSC, 32015: Codec.ZSTD}
_BLOSC_SNAPPY = 3


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter of a dataset."""

    code: int
    """Its registered number."""
    values: tuple[int, ...]
    """What it was set up with."""
    name: str

    def __str__(self) -> str:
        return f"{self.code} ({self.name or 'without a name'})"


def parse_filters(filters: Sequence[Filter], dtype: np.dtype[Any], chunk_nbytes: int) -> tuple[Decoder, int] | str:
    """Give the decoder of a chunk's filters, or the reason why there is none.

    Parameters
    ----------
    filters
        In the order in which they were applied.
    dtype
        As it is stored.
    chunk_nbytes
        Size of a decoded chunk.

    Returns
    -------
    tuple of Decoder and int
        With it the bit of a chunk's filter mask that says that the compressor left the chunk as it was; 0 if none may.
    """
    if not 1 <= chunk_nbytes <= MAX_CHUNK_NBYTES:
        return f"chunks must decode to 1 to {MAX_CHUNK_NBYTES} bytes, not {chunk_nbytes}"
    rest = list(filters)
    shuffle, codec, skipped, fletcher32 = 1, Codec.RAW, 0, False
    if rest and rest[0].code == _SHUFFLE:
        shuffle = rest.pop(0).values[0]
        if shuffle not in (1, 2, 4, 8) or chunk_nbytes % shuffle:
            return f"the shuffle's element size must be 1, 2, 4 or 8 and divide {chunk_nbytes}, got {shuffle}"
    if rest and rest[0].code in _COMPRESSORS:
        codec = _COMPRESSORS[rest[0].code]
        if codec is Codec.BLOSC and rest[0].values[6:7] == (_BLOSC_SNAPPY,):
            return "blosc's compressor is snappy"
        skipped = 1 << filters.index(rest.pop(0))
    if rest and rest[0].code == _FLETCHER32:
        fletcher32 = bool(rest.pop(0))
    if rest:
        return f"there are filters beyond [shuffle, compressor, fletcher32]: {', '.join(map(str, rest))}"
    if codec in (Codec.BLOSC, Codec.ZSTD, Codec.ZLIB) and not isinstance(loaded := library(), Library):
        return loaded
    swapped = dtype.itemsize > 1 and not dtype.isnative
    return Decoder(codec, shuffle, fletcher32=fletcher32, swapped=swapped), skipped


@dataclass(frozen=True, slots=True, eq=False)
class FileChunks:
    """Where in a file the chunks of one dataset are; to those who read them, the one file is one shard."""

    stamp: FileStamp
    """The file."""
    dataset: str
    """The dataset's name in the file."""
    n_elements: int
    """Elements of the dataset."""
    chunk_elements: int
    """Elements in a chunk."""
    offsets: Ints
    """(n_chunks,) first byte in the file; -1 where a chunk was never written, so that it is all fill value."""
    nbytes: Ints
    """(n_chunks,) stored bytes, as `annbatch.shards.shard_index.Located` has them."""

    @classmethod
    def in_one_piece(
        cls, stamp: FileStamp, dataset: str, shape: tuple[int, ...], itemsize: int, offset: int | None
    ) -> FileChunks:
        """Cut what is stored in one piece, or was never written (None), into chunks of whole rows."""
        n_elements, row = int(np.prod(shape, dtype=np.int64)), max(1, int(np.prod(shape[1:], dtype=np.int64)))
        chunk = row * max(1, PIECE_NBYTES // (row * itemsize))
        starts = np.arange(0, n_elements, chunk, dtype=np.int64)
        if offset is None:
            return cls(stamp, dataset, n_elements, chunk, np.full(len(starts), -1), np.full(len(starts), -1))
        nbytes = np.minimum(chunk, n_elements - starts) * itemsize
        return cls(stamp, dataset, n_elements, chunk, offset + starts * itemsize, nbytes)

    def __post_init__(self) -> None:
        stored = self._sizes
        wrong = (self.offsets != -1) & ((self.offsets < 0) | (stored < 0) | (self.offsets > self.stamp.nbytes - stored))
        if wrong.any():
            k = int(np.flatnonzero(wrong)[0])
            raise StoreError(
                f"{self.describe(k)}: must lie within the file's {self.stamp.nbytes} bytes, got {stored[k]} bytes at "
                f"{self.offsets[k]}"
            )

    @property
    def _sizes(self) -> Ints:
        return np.where(self.nbytes < -1, -self.nbytes - 1, self.nbytes)

    @property
    def stored_nbytes(self) -> int:
        """Stored bytes of all chunks."""
        return int(np.maximum(self._sizes, 0).sum())

    @property
    def n_chunks(self) -> int:
        """Chunks that hold elements of the dataset."""
        return len(self.offsets)

    @property
    def are_compressed(self) -> bool:
        """Whether the compressor left no chunk as it was."""
        return not bool((self.nbytes < -1).any())

    @property
    def n_shards(self) -> int:
        """Files."""
        return 1

    @property
    def chunks_per_shard(self) -> int:
        """Chunks in the file."""
        return max(1, self.n_chunks)

    @property
    def folder(self) -> Path:
        """What errors call the dataset."""
        return self.stamp.path / self.dataset

    def key(self, shard: int) -> Path:
        """Give the file's path."""
        return self.stamp.path

    def describe(self, chunk: int) -> str:
        """Name a chunk for people."""
        first = chunk * self.chunk_elements
        return f"{self.folder}: elements [{first}, {min(first + self.chunk_elements, self.n_elements)})"
