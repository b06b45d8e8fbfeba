"""How do the blocks that are wanted of packed chunks become elements, and no others?

For each chunk of a `PackedJob`, the routine of its type (`DECODE_PACKED`)

1. reads it from its table to the last block that is wanted, with its neighbours where they are wanted, too; of a large
   chunk, its table and then the groups of blocks that are wanted,
2. checks the table, and the checksum of each group that it uses,
3. decodes each wanted block once, into its place in a scratch that stays in the cache.

It is compiled once for all kernels that call it, as `annbatch.shards.decode_kernels.DECODE` is.

Nothing is read or written outside the buffers whatever the bytes say: `docs/packed.md` lists the checks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from annbatch.counters import BYTES_DECODED, N_COUNTS, of_thread
from annbatch.native import (
    IN_MEMORY,
    Kernel,
    Routine,
    accumulate_vectors,
    address_of,
    call_routine,
    inline,
    load,
    place_of,
    pread,
    view,
)
from annbatch.shards.checksum import CRC32C
from annbatch.shards.codecs import HEAD_NBYTES, TAIL_NBYTES
from annbatch.shards.decode_kernels import Status
from annbatch.shards.packed_layout import BLOCK, FLAGS_NBYTES, GROUP, LANES
from annbatch.shards.packed_vectors import (
    add_row,
    clear_row,
    expand_row,
    split_nibbles,
    split_pairs,
    sum_row,
    unpack_row,
)

Array = np.ndarray[Any, Any]

_OK, _SIZE, _CHECKSUM, _DECODE, _PIECE = (
    int(status) for status in (Status.OK, Status.SIZE, Status.CHECKSUM, Status.DECODE, Status.PIECE)
)
_HEAD, _TAIL = HEAD_NBYTES, TAIL_NBYTES
_BLOCK, _GROUP, _ROWS, _FLAGS = BLOCK, GROUP, BLOCK // LANES, FLAGS_NBYTES
_ROW_NBYTES = 2 * LANES
_BYTES, _PAIRS, _WORDS = np.empty(0, np.uint8), np.empty(0, np.uint16), np.empty(0, np.int32)
_OFFSETS = np.empty(0, np.int64)

RUN_NBYTES = 1 << 15
"""Chunks that lie one behind the other are read in one request, up to this size."""
PREFIX_NBYTES = 1 << 13
"""Of a chunk that is wanted only behind so many bytes, the table is read first, and then the groups that are wanted."""
MOST = 4
"""Unless one value in so many is wanted."""


@Kernel
def plan_runs(fds: Array, offsets: Array, sizes: Array) -> Array:
    """Say which chunks are read in one request: those of run r are [runs[r], runs[r + 1])."""
    runs = np.empty(fds.size + 1, np.int64)
    n, start = 0, np.int64(0)
    for j in range(fds.size):
        follows = j > 0 and fds[j] == fds[j - 1] and offsets[j - 1] >= 0 and offsets[j] == offsets[j - 1] + sizes[j - 1]
        if not follows or offsets[j] + sizes[j] - start > RUN_NBYTES:
            runs[n], start = j, offsets[j]
            n += 1
    runs[n] = fds.size
    return runs[: n + 1]


@inline
def edges_of(descriptors: Any, itemsize: Any, edges: Any) -> Any:
    """Say where the blocks begin, counted from the first one, and whether their descriptors, int32, are sound."""
    n_blocks, bits = descriptors.size, 8 * itemsize
    is_wrong: Any = 0
    for block in range(n_blocks):
        descriptor = descriptors[block]
        width, extra, patch = descriptor & 255, descriptor >> 8 & 15, descriptor >> 12 & 15
        n_extras, n_patches = descriptor >> 16 & 255, descriptor >> 24 & 255
        flags = np.int32(0 if extra == 0 else _FLAGS)
        nbytes = width * 32 + flags + (n_extras * extra + 7 >> 3) + n_patches * (1 + patch)
        is_wrong |= np.int32(nbytes > _BLOCK * itemsize) | np.int32(width > bits) | np.int32(patch > itemsize)
        is_wrong |= np.int32(extra & 9 != 0) | np.int32(extra == 6) | np.int32((extra == 0) & (n_extras > 0))
        is_wrong |= np.int32((n_patches > 0) & (width + extra >= bits))
        edges[block + 1] = nbytes
    edges[0] = 0
    for block in range(n_blocks):
        edges[block + 1] += edges[block]
    return is_wrong == 0


@inline
def _unpack_words(source: Any, width: Any, target: Any) -> None:
    """Unpack 256 values of at most 16 bits into uint16."""
    if width == 0:
        for row in range(_ROWS):
            clear_row(target + row * _ROW_NBYTES)
        return
    mask, bit = (1 << width) - 1, 0
    for row in range(_ROWS):
        word, shift = bit >> 4, bit & 15
        low = source + word * _ROW_NBYTES
        high = low + _ROW_NBYTES if shift + width > 16 else low
        unpack_row(low, high, shift, mask, target + row * _ROW_NBYTES)
        bit += width


@inline
def _add_extras(source: Any, extra: Any, n_extras: Any, shift: Any, target: Any, extras: Any) -> Any:
    """Add extras, behind their flags, to 256 uint16; say whether there were as many as flags."""
    # 16 bytes at a time: what is read too much lies in the tail of the buffer, what is written too much is room.
    stored = source + _FLAGS
    for part in range((n_extras * extra + 127) >> 7):
        if extra == 2:
            split_pairs(stored + 16 * part, extras + 64 * part)
        else:
            split_nibbles(stored + 16 * part, extras + 32 * part)
    at = extras
    for row in range(_ROWS):
        at += expand_row(source + 2 * row, at, shift, target + row * _ROW_NBYTES)
    return at - extras == n_extras


@inline
def _patch(source: Any, n: Any, nbytes: Any, shift: Any, target: Any) -> Any:
    """Patch values of a block; say whether the places ascend."""
    places, patches = view(source, n, _BYTES), view(source + n, n * nbytes, _BYTES)
    before: Any = -1
    for i in range(n):
        if places[i] <= before:
            return False
        value: Any = np.uint64(0)
        for k in range(nbytes):
            value |= np.uint64(patches[i * nbytes + k]) << np.uint64(8 * k)
        target[places[i]] |= value << np.uint64(shift)
        before = np.int64(places[i])
    return True


@inline
def _decode_block(source: Any, descriptor: Any, base: Any, delta: Any, target: Any, halves: Any) -> Any:
    """Decode one block into the 256 elements of ``target``; say whether it is sound."""
    width, extra, patch = descriptor & 255, descriptor >> 8 & 15, descriptor >> 12 & 15
    n_extras, n_patches = descriptor >> 16 & 255, descriptor >> 24 & 255
    extras = address_of(halves) + _BLOCK * 2
    at, is_sound = source + width * 32, True
    if target.itemsize == 2:
        to = address_of(target)
        _unpack_words(source, width, to)
        if extra:
            is_sound = _add_extras(at, extra, n_extras, width, to, extras)
    else:
        to = address_of(halves)
        target[:] = 0
        for plane in range((width + 15) >> 4):
            _unpack_words(source + 512 * plane, min(16, width - 16 * plane), to)
            for i in range(_BLOCK):
                target[i] |= np.uint64(halves[i]) << np.uint64(16 * plane)
        if extra:
            _unpack_words(0, 0, to)
            is_sound = _add_extras(at, extra, n_extras, 0, to, extras)
            for i in range(_BLOCK):
                target[i] |= np.uint64(halves[i]) << np.uint64(width)
    if n_patches:
        at += (_FLAGS if extra else 0) + (n_extras * extra + 7 >> 3)
        is_sound &= _patch(at, n_patches, patch, width + extra, target)
    if target.itemsize == 2:
        if delta:
            before = np.int64(base) - 1
            for row in range(_ROWS):
                before = sum_row(to + row * _ROW_NBYTES, before)
        else:
            for row in range(_ROWS):
                add_row(to + row * _ROW_NBYTES, np.int64(base))
    elif delta:
        for i in range(1, _BLOCK):
            target[i] += np.uint64(1)
        target[0] += base
        accumulate_vectors(address_of(target), _BLOCK * target.itemsize // 16, target)
    else:
        for i in range(_BLOCK):
            target[i] += base
    return is_sound


@inline
def _first_nbytes(
    size: Any, table_nbytes: Any, n: Any, piece_src: Any, piece_len: Any, first: Any, last: Any, is_alone: Any
) -> Any:
    """Say how many bytes of the last chunk of a run are read at first."""
    end = n_wanted = 0
    for piece in range(first, last):
        end = max(end, piece_src[piece] + piece_len[piece])
        n_wanted += piece_len[piece]
    # Blocks are about equally long; where these are longer, the rest is read when the table is known.
    end = min(n, (end + _GROUP * _BLOCK - 1) // (_GROUP * _BLOCK) * _GROUP * _BLOCK)
    nbytes = min(size, table_nbytes + (size - table_nbytes) * end // n + (size >> 5))
    return table_nbytes if is_alone and nbytes > PREFIX_NBYTES and n_wanted * MOST < n else nbytes


@inline
def _check_groups(
    fd: Any,
    offset: Any,
    stored: Any,
    n_read: Any,
    checksums: Any,
    check: Any,
    edges: Any,
    first: Any,
    stop: Any,
    checked: Any,
    mark: Any,
    counts: Any,
) -> Any:
    """Read what is missing of the groups [first, stop) of a chunk, and check those that were not yet checked."""
    while first < stop and checked[first] == mark:
        first += 1
    if first == stop:
        return _OK
    n_blocks, blocks = edges.size - 1, checksums + 4 * checked.size
    start, end = blocks + edges[first * _GROUP], blocks + edges[min(stop * _GROUP, n_blocks)]
    if end > n_read:
        start = max(start, n_read)
        status = pread(fd, stored + start, end - start, offset + start, counts)
        if status != _OK:
            return status
    for group in range(first, stop):
        start, end = blocks + edges[group * _GROUP], blocks + edges[min((group + 1) * _GROUP, n_blocks)]
        recorded = _unsigned(load(stored + checksums + 4 * group, _WORDS))
        if call_routine(check, (stored + start, end - start)) != recorded:
            return _CHECKSUM
        checked[group] = mark
    return _OK


@inline
def _unsigned(word: Any) -> Any:
    return np.int64(word) & 0xFFFFFFFF


_DELTA, _N, _CHECK, _FDS, _OFFSETS_AT, _SIZES, _RUNS, _PIECE_PTR, _PIECE_SRC, _PIECE_LEN, _N_PIECES = range(11)
_FILL, _RAW, _RAW_NBYTES, _SCRATCH, _SCRATCH_NBYTES, _COUNTS_AT, _N_READ = range(11, 18)
_DESCRIPTORS, _EDGES, _DECODED, _CHECKED, _HALVES = range(18, 23)
_N_FIELDS = 23


class PackedJob:
    """What all chunks have in common that one thread decodes, in the form that `DECODE_PACKED` takes.

    Parameters
    ----------
    delta
        As in ``docs/packed.md``.
    n
        Elements of a chunk.
    stored
        Descriptors, offsets and sizes of the chunks, as `annbatch.shards.shard_index.Located` has them; offset -1 means
        that a chunk is missing and all ``fill``.
    runs
        What `plan_runs` gives.
    pieces
        ``piece_ptr``, ``piece_src`` and ``piece_len`` of `annbatch.shards.scatter_kernels.scatter_chunks`.
    fill
        (1,) of the stored dtype.
    raw
        A buffer as `annbatch.shards.codecs.Workspace.raw` has it, with room for a run.
    scratch
        A buffer of whole blocks, of any dtype as wide as the stored one.

    Attributes
    ----------
    decode
        Address of the routine.
    fields
        (23,) int64, which it also writes: how chunks are decoded, addresses of arrays, bytes of a run that were read.

    Raises
    ------
    ValueError
        If an array is not contiguous, or has another dtype than the routine takes.
    """

    def __init__(
        self,
        delta: bool,
        n: int,
        stored: tuple[Array, Array, Array],
        runs: Array,
        pieces: tuple[Array, Array, Array],
        fill: Array,
        raw: Array,
        scratch: Array,
    ) -> None:
        n_blocks, counts = -(-n // _BLOCK), of_thread()
        # The chunk, counted from 1, of which each block was decoded last, and of which each group was checked.
        decoded, checked = np.zeros(n_blocks, np.int64), np.zeros(-(-n_blocks // _GROUP), np.int64)
        state = (
            *(np.empty(n_blocks, np.int32), np.empty(n_blocks + 1, np.int32)),
            *(decoded, checked, np.empty(_BLOCK + 144, np.uint16)),
        )
        # Kept, as only their addresses are in the fields.
        self._arrays = stored, runs, pieces, fill, raw, scratch, counts, state
        self.decode = DECODE_PACKED[fill.itemsize].address
        places = place_of(stored[0], np.int32), *(place_of(one, np.int64) for one in (*stored[1:], runs, *pieces))
        buffers = (number for one in (raw, scratch) for number in (place_of(one), one.nbytes))
        self.fields = np.array(
            [
                *(int(delta), n, CRC32C.address, *places, len(pieces[1]), place_of(fill), *buffers),
                *(place_of(counts), -1, *(place_of(one) for one in state)),
            ],
            np.int64,
        )


def _routine(like: Array) -> Routine:
    """Make the routine for unsigned integers."""

    @Routine
    def decode_wanted(job_at: int, run: int, j: int) -> int:
        """Decode the blocks of chunk ``j``, of a run, that pieces want; give the `Status`.

        The chunks of a run come one after the other, the first one first: all are read with that.
        """
        job = view(job_at, _N_FIELDS, _OFFSETS)
        n, itemsize, check = job[_N], like.itemsize, job[_CHECK]
        runs = view(job[_RUNS], run + 2, _OFFSETS)
        end = runs[run + 1]
        fds, sizes = view(job[_FDS], end, _WORDS), view(job[_SIZES], end, _OFFSETS)
        offsets = view(job[_OFFSETS_AT], end, _OFFSETS)
        piece_ptr = view(job[_PIECE_PTR], end + 1, _OFFSETS)
        piece_src = view(job[_PIECE_SRC], job[_N_PIECES], _OFFSETS)
        piece_len = view(job[_PIECE_LEN], job[_N_PIECES], _OFFSETS)
        counts = view(job[_COUNTS_AT], N_COUNTS, _OFFSETS)
        n_blocks = (n + _BLOCK - 1) // _BLOCK
        descriptors, edges = view(job[_DESCRIPTORS], n_blocks, _WORDS), view(job[_EDGES], n_blocks + 1, _WORDS)
        decoded = view(job[_DECODED], n_blocks, _OFFSETS)
        checked = view(job[_CHECKED], (n_blocks + _GROUP - 1) // _GROUP, _OFFSETS)
        halves = view(job[_HALVES], _BLOCK + 144, _PAIRS)
        scratch = view(job[_SCRATCH], job[_SCRATCH_NBYTES] // itemsize, like)
        first, last, size, start = piece_ptr[j], piece_ptr[j + 1], sizes[j], offsets[runs[run]]
        bases, checksums = 4 + 4 * n_blocks, 4 + (4 + itemsize) * n_blocks
        table_nbytes = checksums + 4 * checked.size
        memory, room, within = job[_RAW] + _HEAD, job[_RAW_NBYTES] - _HEAD - _TAIL, offsets[j] - start
        if first < 0 or first > last or last > piece_len.size:
            return _PIECE
        if start == -1:
            fill = load(job[_FILL], like)
            for i in range(n):
                scratch[i] = fill
            return _OK
        if start < 0 or within < 0 or size < table_nbytes or within + size > room or scratch.size < n_blocks * _BLOCK:
            return _SIZE
        if j == runs[run]:
            k = end - 1
            more = _first_nbytes(
                *(sizes[k], table_nbytes, n, piece_src, piece_len, piece_ptr[k], piece_ptr[k + 1], k == j)
            )
            n_read = offsets[k] - start + more
            if n_read < table_nbytes or n_read > room:
                return _SIZE
            status: int = pread(fds[j], memory, n_read, start, counts)
            if status != _OK:
                return status
            job[_N_READ] = n_read
        n_read = job[_N_READ]
        stored = memory + within
        if call_routine(check, (stored + 4, table_nbytes - 4)) != _unsigned(load(stored, _WORDS)):
            return _CHECKSUM
        # A chunk in a run lies anywhere; its descriptors are handled many at once.
        pread(IN_MEMORY, address_of(descriptors), 4 * n_blocks, stored + 4, counts)
        if not edges_of(descriptors, itemsize, edges) or edges[n_blocks] != size - table_nbytes:
            return _DECODE
        for piece in range(first, last):
            begin, length = piece_src[piece], piece_len[piece]
            if begin < 0 or length < 0 or begin > n or length > n - begin:
                return _PIECE
            if length == 0:
                continue
            block, stop = begin // _BLOCK, (begin + length - 1) // _BLOCK + 1
            status = _check_groups(
                *(fds[j], offsets[j], stored, n_read - within, checksums, check, edges),
                *(block // _GROUP, (stop - 1) // _GROUP + 1, checked, j + 1, counts),
            )
            if status != _OK:
                return status
            for b in range(block, stop):
                if decoded[b] != j + 1:
                    decoded[b] = j + 1
                    counts[BYTES_DECODED] += _BLOCK * itemsize
                    target = view(job[_SCRATCH] + b * _BLOCK * itemsize, _BLOCK, like)
                    base = load(stored + bases + itemsize * b, like)
                    block_at = stored + table_nbytes + edges[b]
                    is_delta = job[_DELTA] != 0
                    if not _decode_block(block_at, _unsigned(descriptors[b]), base, is_delta, target, halves):
                        return _DECODE
        return _OK

    return decode_wanted


DECODE_PACKED = {nbytes: _routine(np.empty(0, f"u{nbytes}")) for nbytes in (1, 2, 4, 8)}
"""Width of the elements in bytes -> the routine that decodes the wanted blocks of a chunk."""
