"""How do decoded elements come to their final places, without the GIL?

1. `place` copies each row piece, with a cast, to its address.
2. `scatter_chunks` decodes chunk after chunk (`annbatch.shards.decode_kernels`) and places its pieces; `scatter_packed`
   does so with packed ones (`annbatch.shards.packed_kernels`).
3. `scatter_buffer` places pieces of elements that somebody else decoded; `read_pieces` reads plain bytes straight to
   their addresses.

They return a `Status`; nothing is written outside scratch and destination whatever the bytes say. Types are few:
`native_types` maps (stored, wanted) to what is compiled.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from annbatch.native import (
    Kernel,
    address_of,
    call_routine,
    inline,
    pread,
    stream_line,
    streamed,
    take_ticket,
    view,
)
from annbatch.shards.decode_kernels import Array, Status

_BYTES = np.empty(0, np.uint8)
_OK, _PIECE, _LIMIT = int(Status.OK), int(Status.PIECE), int(Status.LIMIT)


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
    decode: int,
    job: Array,
    fds: Array,
    offsets: Array,
    sizes: Array,
    piece_ptr: Array,
    piece_src: Array,
    piece_len: Array,
    piece_dst: Array,
    limit: int,
    scratch: Array,
    like: Array,
    tickets: Array,
) -> tuple[int, int]:
    """Read, check, decode and scatter inner chunks, one after the other until none is left.

    Several threads may be given the same chunks and tickets: each chunk then falls to one of them.

    Parameters
    ----------
    decode, job
        The address of `annbatch.shards.decode_kernels.DECODE`, and the fields of its job.
    fds, offsets, sizes
        (n,) int32, int64, int64: where each chunk is stored, as `Located` has it; offset -1 means that it is missing.
    piece_ptr
        (n + 1,) int64: chunk j serves the pieces ``piece_ptr[j]`` to ``piece_ptr[j + 1]``.
    piece_src, piece_len, piece_dst
        int64: a piece's first element in its chunk, its number of elements, the address that it goes to.
    limit
        Values must be >= 0 and below it; negative means that they are not checked.
    scratch
        That of the job, of the stored dtype.
    like
        An empty array of the destination's dtype.
    tickets
        (1,) int64: the next chunk to take; every thread counts it up.

    Returns
    -------
    tuple of int
        The `Status`, and the chunk where it arose.
    """
    j = take_ticket(tickets)
    while j < fds.size:
        first, last = piece_ptr[j], piece_ptr[j + 1]
        if first < 0 or first > last or last > piece_dst.size:
            return _PIECE, j
        status = call_routine(decode, (address_of(job), np.int64(fds[j]), offsets[j], sizes[j], first, last))
        if status != _OK:
            return status, j
        status = place(scratch, piece_src, piece_len, piece_dst, first, last, limit, like)
        if status != _OK:
            return status, j
        j = take_ticket(tickets)
    return _OK, -1


@Kernel
def scatter_packed(
    decode: int,
    job: Array,
    runs: Array,
    piece_ptr: Array,
    piece_src: Array,
    piece_len: Array,
    piece_dst: Array,
    limit: int,
    elements: Array,
    like: Array,
    tickets: Array,
) -> tuple[int, int]:
    """Do with packed chunks what `scatter_chunks` does with others.

    Parameters
    ----------
    decode, job
        Those of a `annbatch.shards.packed_kernels.PackedJob`.
    runs
        Those of the job; a ticket is a run.
    elements
        The elements of a chunk at the front of the job's ``scratch``, as they are cast.
    piece_ptr, piece_src, piece_len, piece_dst, limit, like, tickets
        As `scatter_chunks` has them.

    Returns
    -------
    tuple of int
        The `Status`, and the chunk where it arose.
    """
    run = take_ticket(tickets)
    while run < runs.size - 1:
        for j in range(runs[run], runs[run + 1]):
            status = call_routine(decode, (address_of(job), run, j))
            if status == _OK:
                first, last = piece_ptr[j], piece_ptr[j + 1]
                status = place(elements, piece_src, piece_len, piece_dst, first, last, limit, like)
            if status != _OK:
                return status, j
        run = take_ticket(tickets)
    return _OK, -1


@Kernel
def scatter_buffer(source: Array, piece_src: Array, piece_len: Array, piece_dst: Array, limit: int, like: Array) -> int:
    """Scatter pieces of decoded elements; the parameters and the `Status` are those of `scatter_chunks`."""
    return int(place(source, piece_src, piece_len, piece_dst, 0, piece_dst.size, limit, like))


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
