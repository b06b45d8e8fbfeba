"""How does a packed chunk become integers, in NumPy?

For zarr's own pipeline, and as the truth that the kernels are tested against: whole chunks, all blocks at once. No byte
is trusted. `docs/packed.md` describes the bytes.
"""

from __future__ import annotations

from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from annbatch.errors import CorruptStoreError
from annbatch.shards.packed_layout import BLOCK, FLAGS_NBYTES, GROUP, LANES, Layout

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


def unpacked(stored: Bytes, n: int, dtype: np.dtype[Any], *, delta: bool) -> npt.NDArray[Any]:
    """Unpack a chunk.

    Parameters
    ----------
    stored
        (nbytes,) uint8, contiguous.
    n
        Values in the chunk.
    dtype
        Their type, of integers.
    delta
        Whether steps are stored, as `annbatch.shards.packed_encoder.packed` says.

    Returns
    -------
    ndarray
        (n,) of ``dtype``, in the byte order of the machine.

    Raises
    ------
    CorruptStoreError
        If the bytes are not those of such a chunk.
    """
    layout = Layout(n, dtype.itemsize)
    if stored.size < layout.blocks:
        raise CorruptStoreError(f"a packed chunk of {n} values has a table of {layout.blocks} bytes, got {stored.size}")
    if _crc32c(stored[layout.descriptors : layout.blocks]) != _integers(stored[: layout.descriptors], 4):
        raise CorruptStoreError("the table of a packed chunk does not match its crc32c checksum")
    table = stored[layout.descriptors : layout.bases].reshape(-1, 4).astype(np.int64)
    width, extra, patch, n_extras, n_patches = table[:, 0], table[:, 1] & 15, table[:, 1] >> 4, table[:, 2], table[:, 3]
    bits = 8 * dtype.itemsize
    is_wrong = (width > bits) | ~np.isin(extra, (0, 2, 4)) | ((extra == 0) & (n_extras > 0)) | (patch > dtype.itemsize)
    if (is_wrong | ((n_patches > 0) & (width + extra >= bits))).any():
        raise CorruptStoreError(f"a block of a packed chunk has sizes that no block of {bits}-bit values has")
    # Of each block: its words, its flags, its extras, its patches.
    n_words, n_flags = width * BLOCK // 8, np.where(extra > 0, FLAGS_NBYTES, 0)
    n_extra_bytes = (n_extras * extra + 7) // 8
    nbytes = n_words + n_flags + n_extra_bytes + n_patches * (1 + patch)
    if (nbytes > BLOCK * dtype.itemsize).any():
        raise CorruptStoreError("a block of a packed chunk must not be longer than its values are")
    edges = layout.blocks + np.concatenate([[0], np.cumsum(nbytes)])
    if edges[-1] != stored.size:
        raise CorruptStoreError(f"the table of a packed chunk describes {edges[-1]} bytes, the chunk has {stored.size}")
    flags_at = edges[:-1] + n_words
    extras_at = flags_at + n_flags
    patches_at = extras_at + n_extra_bytes
    checksums = _integers(stored[layout.checksums : layout.blocks].reshape(-1, 4), 4)
    for group, checksum in enumerate(checksums.tolist()):
        first, stop = edges[group * GROUP], edges[min((group + 1) * GROUP, layout.n_blocks)]
        if _crc32c(stored[first:stop]) != checksum:
            raise CorruptStoreError(f"group {group} of a packed chunk's blocks does not match its crc32c checksum")

    values: npt.NDArray[Any] = np.zeros((layout.n_blocks, BLOCK), np.uint64)
    for w in np.unique(width).tolist():
        own = np.flatnonzero(width == w)
        values[own] = _words(stored, edges[own], w)
    for h in (2, 4):
        own = np.flatnonzero(extra == h)
        flags = stored[flags_at[own, None] + np.arange(FLAGS_NBYTES)]
        is_flagged = np.unpackbits(flags, axis=1, bitorder="little")
        if (is_flagged.sum(axis=1) != n_extras[own]).any():
            raise CorruptStoreError("a packed block flags more or fewer values than it has extra bits for")
        block, place = np.nonzero(is_flagged)
        rank = (np.cumsum(is_flagged, axis=1, dtype=np.int64) - 1)[block, place] * h
        extras = stored[extras_at[own][block] + rank // 8] >> (rank % 8) & (2**h - 1)
        values[own[block], place] |= extras.astype(np.uint64) << width[own][block].astype(np.uint64)
    for size in range(1, dtype.itemsize + 1):
        own = np.flatnonzero((patch == size) & (n_patches > 0))
        block = np.repeat(own, n_patches[own])
        number = np.arange(block.size) - np.repeat(np.cumsum(n_patches[own]) - n_patches[own], n_patches[own])
        place = stored[patches_at[block] + number]
        if ((np.diff(place.astype(np.int64)) <= 0) & (number[1:] > 0)).any():
            raise CorruptStoreError("the places of a packed block's patches must ascend")
        first = patches_at[block] + n_patches[block] + size * number
        highs = _integers(stored[first[:, None] + np.arange(size)], size)
        values[block, place] |= highs << (width + extra)[block].astype(np.uint64)
    if delta:
        values = np.cumsum(values, axis=1, dtype=np.uint64) + np.arange(BLOCK, dtype=np.uint64)
    values += _integers(stored[layout.bases : layout.checksums].reshape(-1, dtype.itemsize), dtype.itemsize)[:, None]
    return values.reshape(-1)[:n].astype(f"u{dtype.itemsize}").view(dtype.newbyteorder("="))


def _crc32c(part: Bytes) -> int:
    return int(google_crc32c.value(part.tobytes()))


def _integers(stored: Bytes, nbytes: int) -> npt.NDArray[np.uint64]:
    """Give little-endian integers of ``nbytes`` bytes, from an array whose last axis has so many."""
    places = np.uint64(8) * np.arange(nbytes, dtype=np.uint64)
    integers: npt.NDArray[np.uint64] = (stored.astype(np.uint64) << places).sum(axis=-1, dtype=np.uint64)
    return integers


def _words(stored: Bytes, starts: Ints, width: int) -> npt.NDArray[np.uint64]:
    """Give (n, BLOCK) values of ``width`` bits, of blocks whose words begin at ``starts``."""
    values = np.zeros((starts.size, BLOCK // LANES, LANES), np.uint64)
    for shift in range(0, width, 16):
        bits = min(16, width - shift)
        at = starts[:, None] + 2 * LANES * shift + np.arange(2 * LANES * bits)
        words = stored[at].view("<u2").reshape(-1, bits, LANES).astype(np.uint64)
        for row in range(BLOCK // LANES):
            word, bit = divmod(row * bits, 16)
            found = words[:, word] >> np.uint64(bit)
            if bit + bits > 16:
                found |= words[:, word + 1] << np.uint64(16 - bit)
            values[:, row] |= (found & np.uint64(2**bits - 1)) << np.uint64(shift)
    return values.reshape(-1, BLOCK)
