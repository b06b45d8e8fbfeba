"""How do only the elements of wanted columns leave the chunks of a CSR matrix, without the GIL?

A chunk of ``indices`` and the one of ``data`` beside it are decoded together, while both are in the cache
(`select_chunks`; `select_packed` does so with packed chunks, of which it decodes the blocks that are wanted):

1. Column numbers are looked up, a vector at a time where `find_wanted` can, else in a table that says whether a column
   is wanted. Neither has a branch: with few wanted columns, a processor would guess wrong at most of them.
2. The places found are gone through once more: their values, and numbers among the wanted columns, are written one
   piece behind the other, and counted. Little memory is touched.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from annbatch.native import (
    Kernel,
    address_of,
    call_routine,
    count_bits,
    first_bit,
    inserted,
    pointer,
    take_ticket,
)
from annbatch.shards.decode_kernels import Array, Status
from annbatch.shards.select_vectors import find_wanted

_OK, _PIECE, _LIMIT = int(Status.OK), int(Status.PIECE), int(Status.LIMIT)

PLACES_ROOM = 64
"""Elements that the buffer of places has beyond those of a chunk."""
_LANES = 32
_FEW = 4


@inserted
def _find(source: Any, n: Any, columns: Any, is_wanted: Any, bitmap: Any, places: Any) -> Any:
    """Write the places of the wanted ones of ``n`` column numbers at ``source``; give their number, -1 at a bad one."""
    own, wanted = pointer(source, columns), pointer(address_of(is_wanted), is_wanted)
    i = k = np.int64(0)
    while i < n:
        n_known, bits = find_wanted(source + i * columns.itemsize, n - i, address_of(bitmap), is_wanted.size, columns)
        if n_known >= min(_FEW, n - i):
            n_found = count_bits(bits)
            # Mostly enough, and without a branch; what is written too much is overwritten.
            for more in range(4):
                places[k + more] = i + first_bit(bits)
                bits &= bits - 1
            for more in range(4, n_found):
                places[k + more] = i + first_bit(bits)
                bits &= bits - 1
            k += n_found
            i += n_known
            continue
        stop = min(n, i + _LANES)
        for at in range(i, stop):
            if np.uint64(own[at]) >= np.uint64(is_wanted.size):
                return np.int64(-1)
        while i < stop:
            places[k] = i
            k += np.int64(wanted[np.int64(own[i])])
            i += 1
    return k


@inserted
def _pick(
    values: Any,
    columns: Any,
    pieces: Any,
    first: Any,
    last: Any,
    picked: Any,
    at: Any,
    end: Any,
    found: Any,
    wanted: Any,
    numbers: Any,
) -> Any:
    """Pick the wanted elements of the pieces [first, last) of decoded chunks; give the `Status`."""
    (piece_src, piece_len), (is_wanted, bitmap, lookup) = pieces, wanted
    # Not arrays, whose indices might be negative.
    places, numbered = pointer(address_of(numbers), numbers), pointer(address_of(lookup), lookup)
    to_values, to_columns = pointer(address_of(picked[0]), picked[0]), pointer(address_of(picked[1]), picked[1])
    for piece in range(first, last):
        start, n = piece_src[piece], piece_len[piece]
        if start < 0 or n < 0 or start > columns.size or n > columns.size - start:
            return _PIECE
        # Not slices, which count references.
        source = address_of(columns) + start * columns.itemsize
        own, of_them = pointer(source, columns), pointer(address_of(values) + start * values.itemsize, values)
        k = _find(source, n, columns, is_wanted, bitmap, places)
        if k < 0:
            return _LIMIT
        if k > end - at:
            return _PIECE
        for i in range(k):
            place = np.int64(places[i])
            to_values[at + i] = of_them[place]
            to_columns[at + i] = numbered[np.int64(own[place])]
        found[0][piece], found[1][piece] = at, k
        at += k
    return _OK


@Kernel
def select_chunks(
    decode: int,
    jobs: tuple[Array, Array],
    values_at: tuple[Array, Array, Array],
    indices_at: tuple[Array, Array, Array],
    pieces: tuple[Array, Array, Array],
    firsts: Array,
    picked: tuple[Array, Array],
    found: tuple[Array, Array],
    wanted: tuple[Array, Array, Array],
    scratch: tuple[Array, Array],
    numbers: Array,
    tickets: Array,
) -> tuple[int, int, int]:
    """Read, check and decode chunks of values and of column numbers, until none is left, and pick wanted elements.

    Several threads may be given the same chunks and tickets: each chunk then falls to one of them.

    Parameters
    ----------
    decode, jobs
        The address of `annbatch.shards.decode_kernels.DECODE`, and the fields of its jobs, for values and for column
        numbers.
    values_at, indices_at
        Descriptors, offsets and sizes of the chunks, (n,) each.
    pieces
        (n + 1,), (n_pieces,), (n_pieces,) int64: which pieces each chunk has; the first element and the length of each.
    firsts
        (n + 1,) int64: chunk j has the room [``firsts[j]``, ``firsts[j + 1]``) in ``picked``.
    picked
        (n_elements,) values and column numbers that were picked, of the types of ``scratch``.
    found
        (n_pieces,) int64 each: set to where in ``picked`` those of a piece begin, and how many they are.
    wanted
        (n_columns,) uint8: 1 for the columns that are wanted, column numbers must be below that; the `bitmap_of` these;
        (n_columns,) int32: their numbers among the wanted ones.
    scratch
        Those of the jobs, of the stored dtypes; 64 bytes lie behind each.
    numbers
        A buffer, (elements of a chunk + `PLACES_ROOM`,) int32.
    tickets
        (1,) int64: the next chunk to take.

    Returns
    -------
    tuple of int
        The `Status`, the chunk where it arose, and whether that is one of column numbers.
    """
    piece_ptr, piece_src, piece_len = pieces
    values, columns = scratch
    j = take_ticket(tickets)
    while j < values_at[0].size:
        first, last = piece_ptr[j], piece_ptr[j + 1]
        if first < 0 or first > last or last > found[0].size:
            return _PIECE, j, 1
        fds, offsets, sizes = indices_at
        where = np.int64(fds[j]), offsets[j], sizes[j], first, last
        status = call_routine(decode, (address_of(jobs[1]), *where))
        if status != _OK:
            return status, j, 1
        fds, offsets, sizes = values_at
        where = np.int64(fds[j]), offsets[j], sizes[j], first, last
        status = call_routine(decode, (address_of(jobs[0]), *where))
        if status != _OK:
            return status, j, 0
        own, at, end = (piece_src, piece_len), firsts[j], firsts[j + 1]
        status = _pick(values, columns, own, first, last, picked, at, end, found, wanted, numbers)
        if status != _OK:
            return status, j, 1
        j = take_ticket(tickets)
    return _OK, -1, 0


@Kernel
def select_packed(
    decodes: tuple[int, int],
    jobs: tuple[Array, Array],
    runs: Array,
    pieces: tuple[Array, Array, Array],
    firsts: Array,
    picked: tuple[Array, Array],
    found: tuple[Array, Array],
    wanted: tuple[Array, Array, Array],
    scratch: tuple[Array, Array],
    numbers: Array,
    tickets: Array,
) -> tuple[int, int, int]:
    """Do with packed chunks what `select_chunks` does with others.

    The two loops stay apart on purpose: packed chunks are read by runs and decoded by blocks, so that a common loop
    would hand over the arrays of both decoders with each call.

    Parameters
    ----------
    decodes, jobs
        Those of a `annbatch.shards.packed_kernels.PackedJob` for values and of one for column numbers.
    runs
        Those of both jobs; a ticket is a run.
    scratch
        The elements of a chunk at the front of the jobs' scratches; 64 bytes lie behind these.
    pieces, firsts, picked, found, wanted, numbers, tickets
        As `select_chunks` has them.

    Returns
    -------
    tuple of int
        As `select_chunks` does.
    """
    piece_ptr, piece_src, piece_len = pieces
    values, columns = scratch
    run = take_ticket(tickets)
    while run < runs.size - 1:
        for j in range(runs[run], runs[run + 1]):
            status = call_routine(decodes[1], (address_of(jobs[1]), run, j))
            if status != _OK:
                return status, j, 1
            status = call_routine(decodes[0], (address_of(jobs[0]), run, j))
            if status != _OK:
                return status, j, 0
            own, first, last = (piece_src, piece_len), piece_ptr[j], piece_ptr[j + 1]
            status = _pick(values, columns, own, first, last, picked, firsts[j], firsts[j + 1], found, wanted, numbers)
            if status != _OK:
                return status, j, 1
        run = take_ticket(tickets)
    return _OK, -1, 0
