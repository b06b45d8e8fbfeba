"""How do packed chunks become elements in their final places, no block more than is wanted?

For each chunk, `scatter_packed`

1. reads all of it, or its table and the groups of blocks that hold what is wanted, whichever is cheaper,
2. checks the table, and the checksum of each group that it uses,
3. decodes each wanted block once, into its place in a scratch that stays in the cache,
4. copies each row piece, with a cast, to its address.

Nothing is read or written outside the buffers whatever the bytes say: `docs/packed.md` lists the checks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from annbatch.native import Kernel, accumulate_vectors, address_of, inline, load, pread, take_ticket, view
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

WHOLE_NBYTES = 1 << 13
"""Chunks up to this size are read whole: a second request to the file costs more than its bytes."""
WHOLE_PART = 4
"""So are those of which one value in so many is wanted."""


@inline
def edges_of(table: Any, n_blocks: Any, itemsize: Any, edges: Any) -> Any:
    """Say where the blocks begin, counted from the first one, and whether their descriptors are sound."""
    descriptors, bits = view(table, n_blocks, _WORDS), 8 * itemsize
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
    before = -1
    for i in range(n):
        place_ = np.int64(places[i])
        if place_ <= before:
            return False
        value: Any = np.uint64(0)
        for k in range(nbytes):
            value |= np.uint64(patches[i * nbytes + k]) << np.uint64(8 * k)
        target[place_] |= value << np.uint64(shift)
        before = place_
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


@Kernel
def scatter_packed(
    delta: bool,
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
    scratch: Array,
    elements: Array,
    like: Array,
    tickets: Array,
) -> tuple[int, int]:
    """Read, check, decode and scatter packed chunks, one after the other until none is left.

    Parameters
    ----------
    delta
        As in ``docs/packed.md``.
    raw, scratch
        Buffers of a `Workspace`; ``scratch`` is of unsigned integers, and has room for whole blocks.
    elements
        The elements of a chunk at the front of ``scratch``, as they are cast.
    fds, offsets, sizes, piece_ptr, piece_src, piece_len, piece_dst, limit, fill, like, tickets
        As `annbatch.shards.decode_kernels.scatter_chunks` has them.

    Returns
    -------
    tuple of int
        The `Status`, and the chunk where it arose.
    """
    n, itemsize = elements.size, scratch.itemsize
    n_blocks = (n + _BLOCK - 1) // _BLOCK
    n_groups = (n_blocks + _GROUP - 1) // _GROUP
    bases, checksums = 4 + 4 * n_blocks, 4 + (4 + itemsize) * n_blocks
    table_nbytes = checksums + 4 * n_groups
    edges = np.empty(n_blocks + 1, np.int32)
    # The chunk, counted from 1, of which each block was decoded last, and of which each group was read and checked.
    decoded, read = np.zeros(n_blocks, np.int64), np.zeros(n_groups, np.int64)
    halves = np.empty(_BLOCK + 144, np.uint16)
    stored = address_of(raw) + _HEAD
    if raw.size < _HEAD + _TAIL + table_nbytes or scratch.size < n_blocks * _BLOCK:
        return _SIZE, 0
    j = take_ticket(tickets)
    while j < fds.size:
        first, last, size = piece_ptr[j], piece_ptr[j + 1], sizes[j]
        if first < 0 or first > last or last > piece_dst.size:
            return _PIECE, j
        if offsets[j] == -1:
            for i in range(n):
                elements[i] = fill[0]
        else:
            if offsets[j] < 0 or size < table_nbytes or size > raw.size - _HEAD - _TAIL:
                return _SIZE, j
            is_whole = size <= WHOLE_NBYTES
            if not is_whole:
                n_wanted = 0
                for piece in range(first, last):
                    n_wanted += piece_len[piece]
                is_whole = n_wanted * WHOLE_PART > n
            status = pread(fds[j], stored, size if is_whole else table_nbytes, offsets[j])
            if status != _OK:
                return status, j
            if crc32c_at(stored + 4, table_nbytes - 4) != np.int64(load(stored, _WORDS)) & 0xFFFFFFFF:
                return _CHECKSUM, j
            if not edges_of(stored + 4, n_blocks, itemsize, edges) or edges[n_blocks] != size - table_nbytes:
                return _DECODE, j
            for piece in range(first, last):
                start, length = piece_src[piece], piece_len[piece]
                if start < 0 or length < 0 or start > n or length > n - start:
                    return _PIECE, j
                if length == 0:
                    continue
                block, end = start // _BLOCK, (start + length - 1) // _BLOCK + 1
                status = _check_groups(
                    fds[j],
                    offsets[j],
                    stored,
                    table_nbytes,
                    checksums,
                    edges,
                    block // _GROUP,
                    (end - 1) // _GROUP + 1,
                    is_whole,
                    read,
                    j + 1,
                )
                if status != _OK:
                    return status, j
                for b in range(block, end):
                    if decoded[b] != j + 1:
                        decoded[b] = j + 1
                        target = view(address_of(scratch) + b * _BLOCK * itemsize, _BLOCK, scratch)
                        descriptor = np.int64(load(stored + 4 + 4 * b, _WORDS)) & 0xFFFFFFFF
                        base = load(stored + bases + itemsize * b, scratch)
                        at = stored + table_nbytes + edges[b]
                        if not _decode_block(at, descriptor, base, delta, target, halves):
                            return _DECODE, j
        status = place(elements, piece_src, piece_len, piece_dst, first, last, limit, like)
        if status != _OK:
            return status, j
        j = take_ticket(tickets)
    return _OK, -1


@inline
def _check_groups(
    fd: Any,
    offset: Any,
    stored: Any,
    table_nbytes: Any,
    checksums: Any,
    edges: Any,
    first: Any,
    stop: Any,
    is_whole: Any,
    read: Any,
    mark: Any,
) -> Any:
    """Check the groups [first, stop) that were not yet, and read them if the chunk was not read as a whole."""
    while first < stop and read[first] == mark:
        first += 1
    if first == stop:
        return _OK
    n_blocks = edges.size - 1
    if not is_whole:
        start, end = table_nbytes + edges[first * _GROUP], table_nbytes + edges[min(stop * _GROUP, n_blocks)]
        status = pread(fd, stored + start, end - start, offset + start)
        if status != _OK:
            return status
    for group in range(first, stop):
        start, end = edges[group * _GROUP], edges[min((group + 1) * _GROUP, n_blocks)]
        expected = np.int64(load(stored + checksums + 4 * group, _WORDS)) & 0xFFFFFFFF
        if crc32c_at(stored + table_nbytes + start, end - start) != expected:
            return _CHECKSUM
        read[group] = mark
    return _OK
