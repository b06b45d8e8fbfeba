"""How do the stored bytes of an inner chunk become elements, without the GIL?

`DECODE` is the compiled function that does so for one chunk of a `Job`. It

1. reads its bytes with ``pread`` (of plain bytes, only those that a piece wants) and checks their checksum
   (`annbatch.shards.checksum`, `annbatch.shards.hdf5_bytes`),
2. checks the compressor's header, which is never trusted, and decodes into a scratch that stays in the cache,
3. undoes byte shuffle, byte order and differences.

It knows of elements only how many bytes they have, so it is compiled once for all types and all kernels that call it.
It returns a `Status`, and writes nothing outside its buffers whatever the bytes say.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

from annbatch.counters import BYTES_DECODED, N_COUNTS, of_thread
from annbatch.native import (
    IN_MEMORY,
    READ_FAILED,
    READ_SHORT,
    Kernel,
    Routine,
    accumulate_vectors,
    address_of,
    call_decompress,
    call_inflate,
    call_routine,
    inline,
    place_of,
    pread,
    view,
)
from annbatch.shards.checksum import CRC32C
from annbatch.shards.codecs import HEAD_NBYTES, TAIL_NBYTES, Checksum, Codec, Decoder, Workspace, decompressor
from annbatch.shards.hdf5_bytes import DECODE_LZF, FLETCHER32, SWAP_BYTES

Array = np.ndarray[Any, Any]

_RAW, _BLOSC, _ZSTD = int(Codec.RAW), int(Codec.BLOSC), int(Codec.ZSTD)
_ZLIB, _LZF, _LIBDEFLATE = int(Codec.ZLIB), int(Codec.LZF), int(Codec.LIBDEFLATE)
_NOTHING, _CRC32C = int(Checksum.NONE), int(Checksum.CRC32C)
_GAP_NBYTES = 4096
"""What is read along between two pieces: as much as another call would cost."""
_HEAD, _TAIL = HEAD_NBYTES, TAIL_NBYTES
_BYTES, _WORDS = np.empty(0, np.uint8), np.empty(0, np.int32)
_PAIRS, _QUADS, _OCTETS = np.empty(0, np.uint16), np.empty(0, np.uint32), np.empty(0, np.uint64)
_OFFSETS = np.empty(0, np.int64)


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
def _read_checked(
    fd: int, offset: int, size: int, raw: Array, checksum: int, check: int, counts: Array
) -> tuple[int, int]:
    """Read stored bytes to ``raw[_HEAD:]``; give the status and how many of them are the compressor's.

    ``check`` is the address of the routine that computes the checksum, if there is one.
    """
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
    found = call_routine(check, (address, size))
    if checksum == _CRC32C:
        return (_OK if found == stored else _CHECKSUM), size
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
    swap: int,
    counts: Array,
) -> int:
    """Read only those of plain stored bytes that pieces want, to their places in ``target``.

    ``swap`` is the address of the routine that swaps their bytes, or 0.
    """
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
        if swap != 0:
            call_routine(swap, (address, stop - start, itemsize))
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
        is_decoded = call_routine(decompress, (address_of(raw) + start, size, address_of(target), target.size))
        return _OK if is_decoded != 0 else _DECODE
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
def _accumulate_as(values: Array) -> None:
    """Replace integers by their running sums, which wrap as their type does."""
    lanes = 16 // values.itemsize
    n_vectors = values.size // lanes
    accumulate_vectors(address_of(values), n_vectors, values)
    for i in range(max(1, n_vectors * lanes), values.size):
        values[i] += values[i - 1]


@Routine
def ACCUMULATE(address: int, n: int, itemsize: int) -> int:
    """Replace ``n`` integers by their running sums, as the former codec ``delta`` needs it; gives 0."""
    if itemsize == 1:
        _accumulate_as(view(address, n, _BYTES))
    elif itemsize == 2:
        _accumulate_as(view(address, n, _PAIRS))
    elif itemsize == 4:
        _accumulate_as(view(address, n, _QUADS))
    else:
        _accumulate_as(view(address, n, _OCTETS))
    return 0


@inline
def _fill(address: int, nbytes: int, element: int, itemsize: int, counts: Array) -> None:
    """Write copies of one element, which is at another address."""
    pread(IN_MEMORY, address, itemsize, element, counts)
    done = itemsize
    while done < nbytes:
        n = min(done, nbytes - done)
        pread(IN_MEMORY, address + done, n, address, counts)
        done += n


_DECOMPRESS, _CONTEXT, _CODEC, _SHUFFLE, _CHECKSUM_KIND, _CHECK, _SWAP, _SUM = range(8)
_ITEMSIZE, _FILLING, _SOURCES, _LENGTHS, _RAW_AT, _RAW_NBYTES = range(8, 14)
_SHUFFLED_AT, _SHUFFLED_NBYTES, _SCRATCH_AT, _SCRATCH_NBYTES, _COUNTS_AT = range(14, 19)
_N_FIELDS = 19


class Job:
    """What all chunks have in common that one thread decodes, in the form that `DECODE` takes.

    Parameters
    ----------
    decoder
        How they are decoded.
    workspace
        Of the thread.
    fill
        (1,) of the stored dtype: the element that missing chunks consist of.
    sources, lengths
        (n_pieces,) int64: a piece's first element in its chunk, its number of elements.
    raw, shuffled
        uint8 buffers: for stored bytes, as `annbatch.shards.codecs.Workspace.raw` has them; for a chunk before its
        shuffle is undone.
    scratch
        A buffer for a decoded chunk, of any dtype.

    Attributes
    ----------
    fields
        (19,) int64: how chunks are decoded, addresses of routines and arrays.

    Raises
    ------
    ValueError
        If an array is not contiguous, or sources or lengths are not int64.
    """

    def __init__(
        self,
        decoder: Decoder,
        workspace: Workspace,
        fill: Array,
        sources: Array,
        lengths: Array,
        raw: Array,
        shuffled: Array,
        scratch: Array,
    ) -> None:
        decompress, context, codec = decompressor(decoder.codec, workspace)
        if decoder.codec is Codec.LZF:
            decompress = DECODE_LZF.address
        counts = of_thread()
        # Kept, as only their addresses are in the fields.
        self._arrays = fill, sources, lengths, raw, shuffled, scratch, counts
        self.fields = np.array(
            [
                *(decompress, context, codec, decoder.shuffle, decoder.checksum),
                CRC32C.address if decoder.crc32c else FLETCHER32.address if decoder.fletcher32 else 0,
                SWAP_BYTES.address if decoder.swapped else 0,
                ACCUMULATE.address if decoder.delta else 0,
                *(fill.nbytes, place_of(fill), place_of(sources, np.int64), place_of(lengths, np.int64)),
                *(number for buffer in (raw, shuffled, scratch) for number in (place_of(buffer), buffer.nbytes)),
                place_of(counts, np.int64),
            ],
            np.int64,
        )


@Routine
def DECODE(job_at: int, fd: int, offset: int, size: int, first: int, last: int) -> int:
    """Read, check and decode one chunk into the job's scratch, or at least what some pieces want of it.

    Parameters
    ----------
    job_at
        Address of the fields of a `Job`.
    fd, offset, size
        Where the chunk is stored, as `annbatch.shards.shard_index.Located` has it; offset -1 means that it is missing
        and all ``fill``.
    first, last
        The pieces [first, last) are those of this chunk.

    Returns
    -------
    int
        A `Status`.
    """
    job = view(job_at, _N_FIELDS, _OFFSETS)
    codec, shuffle, itemsize, checksum = job[_CODEC], job[_SHUFFLE], job[_ITEMSIZE], job[_CHECKSUM_KIND]
    swap, accumulate = job[_SWAP], job[_SUM]
    scratch, nbytes = job[_SCRATCH_AT], job[_SCRATCH_NBYTES]
    counts = view(job[_COUNTS_AT], N_COUNTS, _OFFSETS)
    if offset == -1:
        _fill(scratch, nbytes, job[_FILLING], itemsize, counts)
        return _OK
    if size < -1:
        # The compressor left this chunk as it was.
        codec, size = np.int64(_RAW), -size - 1
    target = view(scratch, nbytes, _BYTES)
    if codec == _RAW and shuffle == 1 and accumulate == 0 and checksum == _NOTHING:
        pieces = view(job[_SOURCES], last, _OFFSETS), view(job[_LENGTHS], last, _OFFSETS), first, last
        return _read_wanted(fd, offset, size, pieces, target, itemsize, swap, counts)
    raw, shuffled = view(job[_RAW_AT], job[_RAW_NBYTES], _BYTES), view(job[_SHUFFLED_AT], job[_SHUFFLED_NBYTES], _BYTES)
    status, stored = _read_checked(fd, offset, size, raw, checksum, job[_CHECK], counts)
    if status == _OK:
        decoded = shuffled if shuffle > 1 else target
        status = _decode(job[_DECOMPRESS], job[_CONTEXT], codec, raw, stored, decoded)
    if status != _OK:
        return status
    if shuffle > 1:
        _unshuffle(shuffled, target, shuffle)
    if swap != 0:
        call_routine(swap, (scratch, nbytes // itemsize, itemsize))
    if accumulate != 0:
        call_routine(accumulate, (scratch, nbytes // itemsize, itemsize))
    counts[BYTES_DECODED] += nbytes
    return _OK


@Kernel
def read_stored(fd: int, offset: int, size: int, raw: Array, crc32c: int, counts: Array) -> tuple[int, int]:
    """Read the stored bytes of one chunk to ``raw[HEAD_NBYTES:]``, and check them if the address of `CRC32C` is given.

    Gives the `Status` and how many of the bytes are the compressor's.
    """
    status, n = _read_checked(fd, offset, size, raw, _CRC32C if crc32c != 0 else _NOTHING, crc32c, counts)
    return status, n
