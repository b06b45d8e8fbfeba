"""How do packed chunks become elements in their final places, no block more than is wanted?

For each chunk, `scatter_packed`

1. reads it from its table to the last block that is wanted, with its neighbours where they are wanted, too; of a large
   chunk, its table and then the groups of blocks that are wanted,
2. checks the table, and the checksum of each group that it uses,
3. decodes each wanted block once, into its place in a scratch that stays in the cache,
4. copies each row piece, with a cast, to its address.

Nothing is read or written outside the buffers whatever the bytes say: `docs/packed.md` lists the checks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from annbatch.counters import BYTES_DECODED
from annbatch.native import (
    IN_MEMORY,
    Kernel,
    accumulate_vectors,
    address_of,
    inline,
    inserted,
    load,
    pread,
    take_ticket,
    view,
)
from annbatch.shards.checksum import crc32c_at
from annbatch.shards.codecs import HEAD_NBYTES, TAIL_NBYTES
from annbatch.shards.decode_kernels import Status, place
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
        if crc32c_at(stored + start, end - start) != _unsigned(load(stored + checksums + 4 * group, _WORDS)):
            return _CHECKSUM
        checked[group] = mark
    return _OK


@inline
def _unsigned(word: Any) -> Any:
    return np.int64(word) & 0xFFFFFFFF


@inline
def decoding_state(n: Any, itemsize: Any) -> Any:
    """Give what `decode_wanted` remembers of chunks of ``n`` values from one to the next."""
    n_blocks = (n + _BLOCK - 1) // _BLOCK
    # The chunk, counted from 1, of which each block was decoded last, and of which each group was checked.
    decoded, checked = np.zeros(n_blocks, np.int64), np.zeros((n_blocks + _GROUP - 1) // _GROUP, np.int64)
    descriptors, edges = np.empty(n_blocks, np.int32), np.empty(n_blocks + 1, np.int32)
    return descriptors, edges, decoded, checked, np.empty(_BLOCK + 144, np.uint16)


@inserted
def decode_wanted(
    delta: Any,
    at: Any,
    runs: Any,
    run: Any,
    j: Any,
    n_read: Any,
    pieces: Any,
    fill: Any,
    raw: Any,
    buffers: Any,
    state: Any,
    counts: Any,
) -> Any:
    """Decode the blocks of one chunk of a run that pieces want.

    Parameters
    ----------
    at
        Descriptors, offsets and sizes of the chunks.
    n_read
        Bytes of the run that are in ``raw``; negative if it has to be read.
    pieces
        ``piece_ptr``, ``piece_src`` and ``piece_len`` of `scatter_packed`.
    buffers
        Its ``scratch`` and ``elements``.
    state
        A `decoding_state`.
    delta, runs, run, j, fill, raw, counts
        As `scatter_packed` has them; ``j`` is the chunk.

    Returns
    -------
    tuple of int
        The `Status`, and ``n_read``.
    """
    (fds, offsets, sizes), (piece_ptr, piece_src, piece_len), (scratch, elements) = at, pieces, buffers
    descriptors, edges, decoded, checked, halves = state
    first, last, size, start = piece_ptr[j], piece_ptr[j + 1], sizes[j], offsets[runs[run]]
    n, itemsize, n_blocks = elements.size, scratch.itemsize, descriptors.size
    bases, checksums = 4 + 4 * n_blocks, 4 + (4 + itemsize) * n_blocks
    table_nbytes = checksums + 4 * checked.size
    memory, room, within = address_of(raw) + _HEAD, raw.size - _HEAD - _TAIL, offsets[j] - start
    if first < 0 or first > last or last > piece_len.size:
        return _PIECE, n_read
    if start == -1:
        for i in range(n):
            elements[i] = fill[0]
        return _OK, n_read
    if start < 0 or within < 0 or size < table_nbytes or within + size > room or scratch.size < n_blocks * _BLOCK:
        return _SIZE, n_read
    if n_read < 0:
        end = runs[run + 1] - 1
        more = _first_nbytes(
            *(sizes[end], table_nbytes, n, piece_src, piece_len, piece_ptr[end], piece_ptr[end + 1], end == j)
        )
        n_read = offsets[end] - start + more
        if n_read < table_nbytes or n_read > room:
            return _SIZE, n_read
        status = pread(fds[j], memory, n_read, start, counts)
        if status != _OK:
            return status, n_read
    stored = memory + within
    if crc32c_at(stored + 4, table_nbytes - 4) != _unsigned(load(stored, _WORDS)):
        return _CHECKSUM, n_read
    # A chunk in a run lies anywhere; its descriptors are handled many at once.
    pread(IN_MEMORY, address_of(descriptors), 4 * n_blocks, stored + 4, counts)
    if not edges_of(descriptors, itemsize, edges) or edges[n_blocks] != size - table_nbytes:
        return _DECODE, n_read
    for piece in range(first, last):
        begin, length = piece_src[piece], piece_len[piece]
        if begin < 0 or length < 0 or begin > n or length > n - begin:
            return _PIECE, n_read
        if length == 0:
            continue
        block, stop = begin // _BLOCK, (begin + length - 1) // _BLOCK + 1
        status = _check_groups(
            *(fds[j], offsets[j], stored, n_read - within, checksums, edges),
            *(block // _GROUP, (stop - 1) // _GROUP + 1, checked, j + 1, counts),
        )
        if status != _OK:
            return status, n_read
        for b in range(block, stop):
            if decoded[b] != j + 1:
                decoded[b] = j + 1
                counts[BYTES_DECODED] += _BLOCK * itemsize
                target = view(address_of(scratch) + b * _BLOCK * itemsize, _BLOCK, scratch)
                base = load(stored + bases + itemsize * b, scratch)
                block_at = stored + table_nbytes + edges[b]
                if not _decode_block(block_at, _unsigned(descriptors[b]), base, delta, target, halves):
                    return _DECODE, n_read
    return _OK, n_read


@Kernel
def scatter_packed(
    delta: bool,
    fds: Array,
    offsets: Array,
    sizes: Array,
    runs: Array,
    piece_ptr: Array,
    piece_src: Array,
    piece_len: Array,
    piece_dst: Array,
    limit: int,
    fill: Array,
    raw: Array,
    scratch: Array,
    elements: Array,
    like: Array,
    tickets: Array,
    counts: Array,
) -> tuple[int, int]:
    """Read, check, decode and scatter packed chunks, one after the other until none is left.

    Parameters
    ----------
    delta
        As in ``docs/packed.md``.
    runs
        What `plan_runs` gives.
    raw, scratch
        Buffers of a `Workspace`; ``raw`` has room for a run, ``scratch`` is of unsigned integers and has room for whole
        blocks.
    elements
        The elements of a chunk at the front of ``scratch``, as they are cast.
    fds, offsets, sizes, piece_ptr, piece_src, piece_len, piece_dst, limit, fill, like, tickets, counts
        As `annbatch.shards.decode_kernels.scatter_chunks` has them; a ticket is a run.

    Returns
    -------
    tuple of int
        The `Status`, and the chunk where it arose.
    """
    at, pieces = (fds, offsets, sizes), (piece_ptr, piece_src, piece_len)
    state = decoding_state(elements.size, scratch.itemsize)
    run = take_ticket(tickets)
    while run < runs.size - 1:
        n_read = np.int64(-1)
        for j in range(runs[run], runs[run + 1]):
            status, n_read = decode_wanted(
                delta, at, runs, run, j, n_read, pieces, fill, raw, (scratch, elements), state, counts
            )
            if status == _OK:
                first, last = piece_ptr[j], piece_ptr[j + 1]
                status = place(elements, piece_src, piece_len, piece_dst, first, last, limit, like)
            if status != _OK:
                return status, j
        run = take_ticket(tickets)
    return _OK, -1
