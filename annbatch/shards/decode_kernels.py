"""How do the stored bytes of inner chunks become elements in their final places, without the GIL?

For each inner chunk, `scatter_chunks`

1. reads its bytes with ``pread`` (of plain bytes, only those that a piece wants) and checks their checksum
   (`annbatch.shards.checksum`, `annbatch.shards.hdf5_bytes`),
2. checks the compressor's header, which is never trusted, and decodes into a scratch that stays in the cache,
3. undoes byte shuffle, byte order and differences, and copies each row piece, with a cast, to its address.

`scatter_buffer` is step 3 for elements that somebody else decoded. Both return a `Status`; nothing is written outside
scratch and destination whatever the bytes say. Types are few: `native_types` maps (stored, wanted) to what is compiled.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

from annbatch.counters import BYTES_DECODED
from annbatch.native import (
    READ_FAILED,
    READ_SHORT,
    Kernel,
    accumulate_vectors,
    address_of,
    call_decompress,
    call_inflate,
    inline,
    pread,
    stream_line,
    streamed,
    take_ticket,
    view,
)
from annbatch.shards.checksum import crc32c_at
from annbatch.shards.codecs import HEAD_NBYTES, TAIL_NBYTES, Checksum, Codec
from annbatch.shards.hdf5_bytes import decode_lzf, fletcher32_at, swap_bytes

Array = np.ndarray[Any, Any]
Chain = tuple[int, int, int, int, int]

_RAW, _BLOSC, _ZSTD = int(Codec.RAW), int(Codec.BLOSC), int(Codec.ZSTD)
_ZLIB, _LZF, _LIBDEFLATE = int(Codec.ZLIB), int(Codec.LZF), int(Codec.LIBDEFLATE)
_NOTHING, _CRC32C = int(Checksum.NONE), int(Checksum.CRC32C)
_GAP_NBYTES = 4096
"""What is read along between two pieces: as much as another call would cost."""
_HEAD, _TAIL = HEAD_NBYTES, TAIL_NBYTES
_BYTES, _WORDS = np.empty(0, np.uint8), np.empty(0, np.int32)
_PAIRS, _QUADS = np.empty(0, np.uint16), np.empty(0, np.uint32)


class Status(IntEnum):
    """How a kernel ended; `text` says it to people."""

    OK = 0
    READ = READ_FAILED
    SHORT = READ_SHORT
    SIZE = 3
    CHECKSUM = 4
    HEADER = 5
    DECODE = 6
    PIECE = 7
    LIMIT = 8
    FLETCHER = 9

    @property
    def text(self) -> str:
        """What went wrong, as the end of a sentence that names the file and the chunk."""
        return _TEXTS[self]


_TEXTS = {
    Status.OK: "nothing went wrong",
    Status.READ: "its bytes cannot be read",
    Status.SHORT: "the file ends before its last byte",
    Status.SIZE: "its stored size cannot be that of a chunk of this array",
    Status.CHECKSUM: "its bytes do not match their crc32c checksum",
    Status.HEADER: "its compressor's header contradicts its size",
    Status.DECODE: "its bytes cannot be decoded",
    Status.PIECE: "a requested range of elements reaches beyond it",
    Status.LIMIT: "it holds a value that is negative or not below the limit",
    Status.FLETCHER: "its bytes do not match their fletcher32 checksum",
}
_OK, _, _, _SIZE, _CHECKSUM, _HEADER, _DECODE, _PIECE, _LIMIT, _FLETCHER = (int(status) for status in Status)


@inline
def _read_checked(fd: int, offset: int, size: int, raw: Array, checksum: int, counts: Array) -> tuple[int, int]:
    """Read stored bytes to ``raw[_HEAD:]``; give the status and how many of them are the compressor's."""
    if offset < 0 or size <= (4 if checksum != _NOTHING else 0) or size > raw.size - _HEAD - _TAIL:
        return _SIZE, 0
    address = address_of(raw) + _HEAD
    status = pread(fd, address, size, offset, counts)
    if status != _OK or checksum == _NOTHING:
        return status, size
    size -= 4
    end = _HEAD + size
    stored = (
        np.int64(raw[end]) | np.int64(raw[end + 1]) << 8 | np.int64(raw[end + 2]) << 16 | np.int64(raw[end + 3]) << 24
    )
    if checksum == _CRC32C:
        return (_OK if crc32c_at(address, size) == stored else _CHECKSUM), size
    found = fletcher32_at(address, size)
    # HDF5 before 1.6.3 stored the bytes of each half in the other order, and later versions still take that.
    swapped = (found & 0x00FF00FF) << 8 | (found >> 8) & 0x00FF00FF
    return (_OK if stored in (found, swapped) else _FLETCHER), size


@inline
def _read_wanted(
    fd: int,
    offset: int,
    size: int,
    pieces: tuple[Array, Array, int, int],
    target: Array,
    itemsize: int,
    is_swapped: bool,
    counts: Array,
) -> int:
    """Read only those of plain stored bytes that pieces want, to their places in ``target``."""
    src, length, first, last = pieces
    n, gap = target.size // itemsize, _GAP_NBYTES // itemsize
    piece = first
    while piece < last:
        start, stop = src[piece], src[piece]
        while piece < last and start <= src[piece] <= stop + gap:
            if length[piece] < 0 or src[piece] > n or length[piece] > n - src[piece]:
                return _PIECE
            stop = max(stop, src[piece] + length[piece])
            piece += 1
        if start < 0:
            return _PIECE
        if offset < 0 or stop * itemsize > size:
            return _SIZE
        address = address_of(target) + start * itemsize
        status = pread(fd, address, (stop - start) * itemsize, offset + start * itemsize, counts)
        if status != _OK:
            return status
        counts[BYTES_DECODED] += (stop - start) * itemsize
        if is_swapped:
            swap_bytes(address, stop - start, itemsize)
    return _OK


@inline
def _decode(decompress: int, context: int, codec: int, raw: Array, size: int, target: Array) -> int:
    """Decode the ``size`` bytes at ``raw[_HEAD:]`` into exactly ``target``."""
    if codec == _RAW:
        if size != target.size:
            return _SIZE
        for i in range(size):
            target[i] = raw[_HEAD + i]
        return _OK
    words = view(address_of(raw), raw.size // 4, _WORDS)
    start = _HEAD
    if codec == _BLOSC:
        # version; not shuffle and bitshuffle at once; decoded and stored size
        if size < 16 or raw[start] != 2 or (raw[start + 2] & 5) == 5:
            return _HEADER
        if words[start // 4 + 1] != target.size or words[start // 4 + 3] != size:
            return _HEADER
    elif codec == _ZSTD:
        if size == target.size:
            # Equal sizes would be taken for stored bytes: an empty skippable frame makes them differ.
            for place in range(8):
                raw[start + size + place] = 0x184D2A50 >> 8 * place & 255
            size += 8
        # The header of a blosc chunk whose one block is this zstd frame.
        start -= 24
        words[start // 4] = 0x01900102
        words[start // 4 + 1] = words[start // 4 + 2] = target.size
        words[start // 4 + 3] = size + 24
        words[start // 4 + 4] = 20
        words[start // 4 + 5] = size
        size += 24
    elif codec == _ZLIB:
        if size == target.size:
            # Equal sizes would be taken for stored bytes; what follows the end of a stream is not looked at.
            raw[start + size] = 0
            size += 1
        # The header of a blosc chunk whose one block is this zlib stream.
        start -= 24
        words[start // 4] = 0x01700102
        words[start // 4 + 1] = words[start // 4 + 2] = target.size
        words[start // 4 + 3] = size + 24
        words[start // 4 + 4] = 20
        words[start // 4 + 5] = size
        size += 24
    elif codec == _LIBDEFLATE:
        status = call_inflate(decompress, context, address_of(raw) + start, size, address_of(target), target.size)
        return _OK if status == 0 else _DECODE
    elif codec == _LZF:
        return _OK if decode_lzf(raw, start, size, target) else _DECODE
    else:
        return _DECODE
    source = address_of(raw) + start
    decoded = call_decompress(decompress, context, source, size, address_of(target), target.size)
    return _OK if decoded == target.size else _DECODE


@inline
def _unshuffle(planes: Array, target: Array, element_nbytes: int) -> None:
    """Put byte k of element i, at ``planes[k * n + i]``, back in its place."""
    n = planes.size // element_nbytes
    if element_nbytes == 2:
        pairs, low, high = view(address_of(target), n, _PAIRS), planes[:n], planes[n:]
        for i in range(n):
            pairs[i] = low[i] | np.uint16(high[i]) << 8
    elif element_nbytes == 4:
        p0, p1, p2, p3 = planes[:n], planes[n:], planes[2 * n :], planes[3 * n :]
        quads = view(address_of(target), n, _QUADS)
        for i in range(n):
            quads[i] = p0[i] | np.uint32(p1[i]) << 8 | np.uint32(p2[i]) << 16 | np.uint32(p3[i]) << 24
    else:
        for i in range(n):
            for k in range(element_nbytes):
                target[i * element_nbytes + k] = planes[k * n + i]


@inline
def _accumulate(values: Array) -> None:
    """Replace integers by their running sums, which wrap as their type does."""
    lanes = 16 // values.itemsize
    n_vectors = values.size // lanes
    accumulate_vectors(address_of(values), n_vectors, values)
    for i in range(max(1, n_vectors * lanes), values.size):
        values[i] += values[i - 1]


@inline
def decode_chunk(
    decompress: int,
    context: int,
    chain: Chain,
    fd: int,
    offset: int,
    size: int,
    fill: Array,
    pieces: tuple[Array, Array, int, int],
    raw: Array,
    shuffled: Array,
    scratch: Array,
    counts: Array,
) -> int:
    """Read, check and decode one chunk into ``scratch``, or at least what some pieces want of it.

    ``chain`` is what `annbatch.shards.codecs.calls_of` chose; ``pieces`` holds the first element and the length of each
    piece, and which of them are those of this chunk.
    """
    codec, shuffle, delta, checksum, swapped = chain
    if offset == -1:
        for i in range(scratch.size):
            scratch[i] = fill[0]
        return _OK
    if size < -1:
        # The compressor left this chunk as it was.
        codec, size = _RAW, -size - 1
    target = view(address_of(scratch), scratch.size * scratch.itemsize, _BYTES)
    if codec == _RAW and shuffle == 1 and delta == 0 and checksum == _NOTHING:
        return _read_wanted(fd, offset, size, pieces, target, scratch.itemsize, swapped != 0, counts)
    status, stored = _read_checked(fd, offset, size, raw, checksum, counts)
    if status == _OK:
        status = _decode(decompress, context, codec, raw, stored, shuffled if shuffle > 1 else target)
    if status != _OK:
        return status
    if shuffle > 1:
        _unshuffle(shuffled, target, shuffle)
    if swapped != 0:
        swap_bytes(address_of(scratch), scratch.size, scratch.itemsize)
    if delta != 0:
        _accumulate(scratch)
    counts[BYTES_DECODED] += target.size
    return _OK


@inline
def place(source: Array, src: Array, length: Array, dst: Array, first: int, last: int, limit: int, like: Array) -> int:
    """Copy the pieces [first, last) of decoded elements, with a cast, to their addresses; gives a `Status`."""
    for piece in range(first, last):
        start, n = src[piece], length[piece]
        if start < 0 or n < 0 or start > source.size or n > source.size - start:
            return _PIECE
        if n == 0:
            continue
        # Not a slice, which counts references: each count would wait until all lines have reached the memory.
        values = view(address_of(source) + start * source.itemsize, n, source)
        if limit >= 0:
            low = high = values[0]
            for i in range(n):
                low, high = min(low, values[i]), max(high, values[i])
            if low < 0 or high >= limit:
                return _LIMIT
        target = view(dst[piece], n, like)
        head = min(n, (-dst[piece] % 64) // like.itemsize)
        per_line = 64 // like.itemsize
        n_lines = (n - head) // per_line
        for i in range(head):
            target[i] = values[i]
        at, to = address_of(source) + (start + head) * source.itemsize, dst[piece] + head * like.itemsize
        for line in range(n_lines):
            stream_line(to + line * 64, at + line * per_line * source.itemsize, like, source)
        for i in range(head + n_lines * per_line, n):
            target[i] = values[i]
    streamed()
    return _OK


@Kernel
def scatter_chunks(
    decompress: int,
    context: int,
    chain: Chain,
    fds: Array,
    offsets: Array,
    sizes: Array,
    piece_ptr: Array,
    piece_src: Array,
    piece_len: Array,
    piece_dst: Array,
    limit: int,
    fill: Array,
    raw: Array,
    shuffled: Array,
    scratch: Array,
    like: Array,
    tickets: Array,
    counts: Array,
) -> tuple[int, int]:
    """Read, check, decode and scatter inner chunks, one after the other until none is left.

    Several threads may be given the same chunks and tickets: each chunk then falls to one of them.

    Parameters
    ----------
    decompress, context, chain
        As `annbatch.shards.codecs.calls_of` gives them.
    fds, offsets, sizes
        (n,) int32, int64, int64: where each chunk is stored, as `Located` has it; offset -1 means that it is missing
        and all ``fill``.
    piece_ptr
        (n + 1,) int64: chunk j serves the pieces ``piece_ptr[j]`` to ``piece_ptr[j + 1]``.
    piece_src, piece_len, piece_dst
        int64: a piece's first element in its chunk, its number of elements, the address that it goes to.
    limit
        Values must be >= 0 and below it; negative means that they are not checked.
    fill
        (1,) of the stored dtype.
    raw, shuffled, scratch
        Buffers of a `Workspace`; ``scratch`` has the stored dtype and the size of a chunk.
    like
        An empty array of the destination's dtype.
    tickets
        (1,) int64: the next chunk to take; every thread counts it up.
    counts
        Those of the thread, see `annbatch.counters.of_thread`.

    Returns
    -------
    tuple of int
        The `Status`, and the chunk where it arose.
    """
    j = take_ticket(tickets)
    while j < fds.size:
        if piece_ptr[j] < 0 or piece_ptr[j] > piece_ptr[j + 1] or piece_ptr[j + 1] > piece_dst.size:
            return _PIECE, j
        where, own = (fds[j], offsets[j], sizes[j]), (piece_src, piece_len, piece_ptr[j], piece_ptr[j + 1])
        status = decode_chunk(decompress, context, chain, *where, fill, own, raw, shuffled, scratch, counts)
        if status != _OK:
            return status, j
        status = place(scratch, piece_src, piece_len, piece_dst, piece_ptr[j], piece_ptr[j + 1], limit, like)
        if status != _OK:
            return status, j
        j = take_ticket(tickets)
    return _OK, -1


@Kernel
def scatter_buffer(source: Array, piece_src: Array, piece_len: Array, piece_dst: Array, limit: int, like: Array) -> int:
    """Scatter pieces of decoded elements; the parameters and the `Status` are those of `scatter_chunks`."""
    return int(place(source, piece_src, piece_len, piece_dst, 0, piece_dst.size, limit, like))


@Kernel
def read_stored(fd: int, offset: int, size: int, raw: Array, verify: bool, counts: Array) -> tuple[int, int]:
    """Read the stored bytes of one chunk to ``raw[HEAD_NBYTES:]`` and check their crc32c.

    Gives the `Status` and how many of the bytes are the compressor's.
    """
    status, n = _read_checked(fd, offset, size, raw, _CRC32C if verify else _NOTHING, counts)
    return status, n


@Kernel
def read_pieces(
    fds: Array,
    offsets: Array,
    piece_ptr: Array,
    piece_src: Array,
    piece_len: Array,
    piece_dst: Array,
    fill: Array,
    counts: Array,
) -> tuple[int, int]:
    """Read pieces of uncompressed chunks straight to their addresses; of missing chunks (-1) they are ``fill``.

    ``fill`` holds the bytes of one element; the other parameters are those of `scatter_chunks`. Gives the `Status` and
    the chunk where it arose.
    """
    for j in range(fds.size):
        if piece_ptr[j] < 0 or piece_ptr[j] > piece_ptr[j + 1] or piece_ptr[j + 1] > piece_dst.size:
            return _PIECE, j
        for piece in range(piece_ptr[j], piece_ptr[j + 1]):
            n = piece_len[piece] * fill.size
            if offsets[j] == -1:
                target = view(piece_dst[piece], n, _BYTES)
                for i in range(n):
                    target[i] = fill[i % fill.size]
            else:
                status = pread(fds[j], piece_dst[piece], n, offsets[j] + piece_src[piece] * fill.size, counts)
                if status != _OK:
                    return status, j
    return _OK, -1


def copy_types(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Give the types as which a kernel shall see source and destination of a plain copy."""
    return np.dtype(f"u{dtype.itemsize}"), np.dtype(f"u{dtype.itemsize}")


def native_types(stored: np.dtype[Any], wanted: np.dtype[Any]) -> tuple[np.dtype[Any], np.dtype[Any]] | None:
    """Give the types as which a kernel shall see source and destination, so that few kernels serve all pairs.

    A copy sees unsigned integers, and so does every integer whose sign the cast ignores.
    None means that kernels and NumPy would not agree on the cast, so that NumPy has to make it.
    """
    if stored == wanted:
        return copy_types(stored)
    if np.float16 in (stored, wanted) or wanted.kind not in "iuf" or (stored.kind == "f" and wanted.kind != "f"):
        return None
    if stored.kind == "b":
        stored = copy_types(stored)[0]
    if stored.kind in "iu" and wanted.kind in "iu":
        wanted = copy_types(wanted)[0]
        if wanted.itemsize <= stored.itemsize:
            stored = copy_types(stored)[0]
    return stored, wanted
