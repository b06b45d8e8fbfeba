"""How is a dataset of an HDF5 file read: by the kernels where it lies, or by h5py?

1. `describe` asks HDF5 where the bytes of a dataset are and which filters they went through, and gives an `Hdf5Array`.
2. Its ``own`` is what the kernels read, or the reason why h5py has to. The rest of the project reads it as it reads a
   local zarr array.
3. Indexing an `Hdf5Array` reads through h5py, in any thread and process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from annbatch.shards.chunk_files import ChunkFiles
from annbatch.shards.codecs import Codec, Decoder
from annbatch.shards.file_stamp import FileStamp
from annbatch.shards.hdf5_chunks import FileChunks, Filter, parse_filters
from annbatch.shards.local_array import ShardedArray
from annbatch.shards.scatter import Form
from annbatch.stores.hdf5_files import open_hdf5
from annbatch.stores.hdf5_filters import ensure_filters
from annbatch.stores.hdf5_links import stamp_behind

_MAX_CHUNKS = 2**27
"""Chunks of a dataset whose places can be kept in memory."""

Read = TypeVar("Read")


@dataclass(frozen=True, slots=True, eq=False)
class Hdf5Array:
    """A dataset of an HDF5 file."""

    stamp: FileStamp
    """The file, and those in which else its elements lie."""
    name: str
    """The dataset's name in the file."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    """Type of the elements, in the byte order of the machine."""
    chunks: tuple[int, ...] | None
    """Shape of a chunk; None if it is stored in one piece."""
    own: ShardedArray | str = field(repr=False)
    """What the kernels read, or why they cannot."""

    @property
    def ndim(self) -> int:
        """Dimensions."""
        return len(self.shape)

    def __getitem__(self, part: Any) -> NDArray[Any]:
        with open_hdf5(self.stamp) as file:
            dataset = file[self.name]
            # Another process may have opened it, and loaded the filter.
            found: NDArray[Any] = with_filters(dataset, f"{self.stamp.path}{self.name}", lambda: dataset[part])
        return found.astype(self.dtype, copy=False)


def describe(dataset: h5py.Dataset, stamp: FileStamp) -> Hdf5Array:
    """Describe a dataset of an open file, or of one that a link leads to; what it holds is not read.

    Raises
    ------
    InputError
        If h5py has to read it, and HDF5 lacks a filter for that.
    StoreError
        If it lies in other files, of which one is missing or too short.
    """
    stamp = stamp_behind(dataset, stamp)
    own = _own(dataset, stamp)
    if isinstance(own, str):
        ensure_filters(dataset, f"{stamp.path}/{dataset.name.lstrip('/')}")
    return Hdf5Array(stamp, dataset.name, dataset.shape, dataset.dtype.newbyteorder("="), dataset.chunks, own)


def with_filters(node: h5py.Group | h5py.Dataset, where: str, read: Callable[[], Read]) -> Read:
    """Read something of a file; if HDF5 lacks a filter, load it from hdf5plugin and read again.

    Raises
    ------
    InputError
        If HDF5 lacks a filter all the same.
    """
    try:
        return read()
    except OSError:
        if not ensure_filters(node, where):
            raise
        return read()


def _own(dataset: h5py.Dataset, stamp: FileStamp) -> ShardedArray | str:
    dtype, shape, settings = dataset.dtype, dataset.shape, dataset.id.get_create_plist()
    if not hasattr(os, "pread") or sys.maxsize < 2**32 or sys.byteorder != "little":
        return "the platform is big-endian, or has no 64-bit pread"
    if dtype.kind not in "biuf" or dtype.itemsize > 8 or not dataset.id.get_type().equal(_type_of(dtype)):
        return f"its HDF5 type is not exactly a NumPy number type, got {dtype}"
    if dataset.file.userblock_size:
        return "the file begins with a user block"
    if dataset.is_virtual:
        return "it is a virtual dataset, whose elements are in other datasets"
    if settings.get_external_count():
        return "its elements are in external files"
    if len(shape) not in (1, 2) or int(np.prod(shape, dtype=object)) >= 2**62:
        return f"it must have one or two dimensions, got shape {shape}"
    name, itemsize = dataset.name.lstrip("/"), dtype.itemsize
    decoder = Decoder(Codec.RAW, swapped=itemsize > 1 and not dtype.isnative)
    if settings.get_layout() == h5py.h5d.CHUNKED:
        found = _chunked(dataset, stamp, name)
        if isinstance(found, str):
            return found
        chunks, decoder = found
    elif settings.get_layout() == h5py.h5d.CONTIGUOUS:
        chunks = FileChunks.in_one_piece(stamp, name, shape, itemsize, dataset.id.get_offset())
    else:
        return "it is small, and stored in its header"
    native = dtype.newbyteorder("=")
    fill = np.array([0 if dataset.fillvalue is None else dataset.fillvalue], native)
    form = Form(native, chunks.chunk_elements, decoder, fill.tobytes())
    return ShardedArray(chunks.folder, shape, form, ChunkFiles(chunks))


def _type_of(dtype: np.dtype[Any]) -> h5py.h5t.TypeID:
    return h5py.h5t.py_create(dtype, logical=True)


def _chunked(dataset: h5py.Dataset, stamp: FileStamp, name: str) -> tuple[FileChunks, Decoder] | str:
    """Say where the chunks of a dataset are, and how they are decoded, or why the kernels cannot read them."""
    shape, chunk, settings = dataset.shape, dataset.chunks, dataset.id.get_create_plist()
    if chunk[1:] != shape[1:]:
        return f"its chunks must span whole rows, got shape {shape} in chunks {chunk}"
    n_chunks, elements = -(-shape[0] // chunk[0]), int(np.prod(chunk, dtype=object))
    if n_chunks > _MAX_CHUNKS:
        return f"there must be at most {_MAX_CHUNKS} chunks, got shape {shape} in chunks {chunk}"
    filters = [Filter(code, tuple(values), label.decode()) for code, _, values, label in _filters(settings)]
    chunk_nbytes = elements * dataset.dtype.itemsize
    parsed = parse_filters(filters, dataset.dtype, chunk_nbytes)
    if isinstance(parsed, str):
        return parsed
    decoder, skipped = parsed
    if not hasattr(dataset.id, "chunk_iter"):
        return "HDF5 before 1.12.3 does not list chunks"
    stored: list[tuple[int, int, int, int]] = []

    def note(chunk: Any) -> None:
        stored.append((chunk.chunk_offset[0], chunk.filter_mask, chunk.byte_offset, chunk.size))

    dataset.id.chunk_iter(note)
    table = np.array(stored, np.int64).reshape(-1, 4)
    number, mask, at, size = table[table[:, 0] < shape[0]].T
    offsets, nbytes = np.full(n_chunks, -1), np.full(n_chunks, -1)
    offsets[number // chunk[0]] = at
    nbytes[number // chunk[0]] = np.where(mask == 0, size, -size - 1)
    if (wrong := (mask != 0) & (mask != skipped)).any():
        return f"a chunk skipped some of its filters, with the mask {int(mask[wrong][0])}"
    whole = chunk_nbytes + (4 if decoder.fletcher32 else 0)
    if shape[0] % chunk[0] and filters and nbytes[-1] == chunk_nbytes and decoder != Decoder(Codec.RAW):
        return "its last chunk may have been stored without filters"
    smallest, largest = decoder.stored_nbytes(elements, dataset.dtype.itemsize)
    compressed, kept = nbytes[nbytes >= 0], -nbytes[nbytes < -1] - 1
    if (compressed < smallest).any() or (compressed > largest).any() or (kept != whole).any():
        return f"a chunk of {chunk_nbytes} bytes is stored in an impossible size"
    return FileChunks(stamp, name, int(np.prod(shape, dtype=object)), elements, offsets, nbytes), decoder


def _filters(settings: Any) -> list[tuple[int, int, tuple[int, ...], bytes]]:
    return [settings.get_filter(i) for i in range(settings.get_nfilters())]
