"""How do only the elements of wanted columns leave the chunks of a CSR matrix, without the GIL?

A chunk of ``indices`` and the one of ``data`` beside it are decoded together, while both are in the cache:

1. Every column number is looked up in a table that says whether the column is wanted. The loop has no branch: with few
   wanted columns, a processor would guess wrong at most of them.
2. The places found are gone through once more: their values, and numbers among the wanted columns, are written one
   piece behind the other, and counted. Little memory is touched.
"""

from __future__ import annotations

import numpy as np

from annbatch.native import Kernel, address_of, pointer, take_ticket, view
from annbatch.shards.decode_kernels import Array, Chain, Status, decode_chunk

_OK, _PIECE, _LIMIT = int(Status.OK), int(Status.PIECE), int(Status.LIMIT)


@Kernel
def select_chunks(
    decompress: int,
    context: int,
    chains: tuple[Chain, Chain],
    values_at: tuple[Array, Array, Array],
    indices_at: tuple[Array, Array, Array],
    fills: tuple[Array, Array],
    pieces: tuple[Array, Array, Array],
    firsts: Array,
    picked: tuple[Array, Array],
    found: tuple[Array, Array],
    is_wanted: Array,
    lookup: Array,
    raw: Array,
    shuffled: tuple[Array, Array],
    scratch: tuple[Array, Array],
    numbers: Array,
    tickets: Array,
    counts: Array,
) -> tuple[int, int, int]:
    """Read, check and decode chunks of values and of column numbers, until none is left, and pick wanted elements.

    Several threads may be given the same chunks and tickets: each chunk then falls to one of them.

    Parameters
    ----------
    decompress, context, chains
        As `annbatch.shards.codecs.calls_of` gives them, for values and for column numbers.
    values_at, indices_at
        Descriptors, offsets and sizes of the chunks, (n,) each.
    fills
        The elements that missing chunks consist of, (1,) each.
    pieces
        (n + 1,), (n_pieces,), (n_pieces,) int64: which pieces each chunk has; the first element and the length of each.
    firsts
        (n + 1,) int64: chunk j has the room [``firsts[j]``, ``firsts[j + 1]``) in ``picked``.
    picked
        (n_elements,) values and column numbers that were picked, of the types of ``scratch``.
    found
        (n_pieces,) int64 each: set to where in ``picked`` those of a piece begin, and how many they are.
    is_wanted
        (n_columns,) uint8: 1 for the columns that are wanted. Column numbers must be below that.
    lookup
        (n_columns,) int32: their numbers among the wanted ones.
    raw, shuffled, scratch
        Buffers, of values and of column numbers; ``scratch`` has the size of a chunk.
    numbers
        A buffer, (elements of a chunk,) int32.
    tickets
        (1,) int64: the next chunk to take.
    counts
        Those of the thread, see `annbatch.counters.of_thread`.

    Returns
    -------
    tuple of int
        The `Status`, the chunk where it arose, and whether that is one of column numbers.
    """
    piece_ptr, piece_src, piece_len = pieces
    values, columns = scratch
    wanted, places = pointer(address_of(is_wanted), is_wanted), pointer(address_of(numbers), numbers)
    j = take_ticket(tickets)
    while j < values_at[0].size:
        if piece_ptr[j] < 0 or piece_ptr[j] > piece_ptr[j + 1] or piece_ptr[j + 1] > found[0].size:
            return _PIECE, j, 1
        fds, offsets, sizes = indices_at
        where, own_pieces = (fds[j], offsets[j], sizes[j]), (piece_src, piece_len, piece_ptr[j], piece_ptr[j + 1])
        status = decode_chunk(
            decompress, context, chains[1], *where, fills[1], own_pieces, raw, shuffled[1], columns, counts
        )
        if status != _OK:
            return status, j, 1
        fds, offsets, sizes = values_at
        where = fds[j], offsets[j], sizes[j]
        status = decode_chunk(
            decompress, context, chains[0], *where, fills[0], own_pieces, raw, shuffled[0], values, counts
        )
        if status != _OK:
            return status, j, 0
        at = firsts[j]
        for piece in range(piece_ptr[j], piece_ptr[j + 1]):
            start, n = piece_src[piece], piece_len[piece]
            if start < 0 or n < 0 or start > columns.size or n > columns.size - start:
                return _PIECE, j, 1
            # Not slices, which count references.
            own = view(address_of(columns) + start * columns.itemsize, n, columns)
            high = np.uint64(0)
            for i in range(n):
                high = max(high, np.uint64(own[i]))
            if n > 0 and high >= np.uint64(is_wanted.size):
                return _LIMIT, j, 1
            k = 0
            for i in range(n):
                places[k] = i
                k += int(wanted[np.int64(own[i])])
            if k > firsts[j + 1] - at:
                return _PIECE, j, 1
            for i in range(k):
                place = np.int64(places[i])
                picked[0][at + i] = values[start + place]
                picked[1][at + i] = lookup[np.int64(own[place])]
            found[0][piece], found[1][piece] = at, k
            at += k
        j = take_ticket(tickets)
    return _OK, -1, 0
