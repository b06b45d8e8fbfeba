"""How are integers packed?

1. Each block's values become small: steps from one to the next, or distances from the least one.
2. Of all ways to store them, the block gets the one that takes the fewest bytes (`_choose`).
3. `packed` writes the blocks, and the table in front of them.

`docs/packed.md` describes the bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from annbatch.native import Kernel, address_of, inline, intrinsic, types
from annbatch.shards.checksum import crc32c_at
from annbatch.shards.packed_layout import BLOCK, FLAGS_NBYTES, GROUP, LANES, Layout

_BLOCK, _GROUP, _LANES, _FLAGS = BLOCK, GROUP, LANES, FLAGS_NBYTES
_FLAGS_COST, _PATCH_COST = 8, 2
"""Bytes that a block must become smaller by to be worth the time that flags, and each patch, take to decode."""


def packed(chunk: npt.NDArray[Any], *, delta: bool) -> npt.NDArray[np.uint8]:
    """Pack the integers of a chunk.

    Parameters
    ----------
    chunk
        Integers of any shape; they are packed in C order.
    delta
        Whether to store the steps from one value to the next, for values that mostly ascend.

    Returns
    -------
    ndarray
        (nbytes,) uint8.
    """
    itemsize, is_signed = chunk.dtype.itemsize, chunk.dtype.kind == "i"
    # One type for all: the kernel is compiled once.
    values = chunk.reshape(-1).astype(np.int64 if is_signed else np.uint64).view(np.uint64)
    layout = Layout(values.size, itemsize)
    out = np.empty(layout.max_nbytes, np.uint8)
    parts = layout.descriptors, layout.bases, layout.checksums, layout.blocks
    nbytes = _pack(values, itemsize, is_signed, delta, *parts, out)
    return out[:nbytes]


@intrinsic
def _leading_zeros(typing: Any, value: Any) -> Any:
    """Count the zero bits above the highest one of a uint64; 64 for 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


@inline
def _put(out: Any, at: Any, value: Any, nbytes: Any) -> None:
    """Write an integer, the lowest byte first."""
    for k in range(nbytes):
        out[at + k] = value >> np.uint64(8 * k) & np.uint64(255)


@inline
def _choose(above: Any) -> Any:
    """Choose width, extra bits and bytes of a patch; ``above[b]`` values of the block need more than ``b`` bits."""
    most = 64
    while most > 0 and above[most - 1] == 0:
        most -= 1
    width, extra, patch, lowest = most, 0, 0, 32 * most
    for w in range(most):
        for bits in (0, 2, 4):
            top = min(w + bits, 64)
            n_extras, n_patches = above[w] if bits else 0, above[top]
            nbytes = (most - top + 7) // 8 if n_patches else 0
            cost = 32 * w + n_patches * (1 + nbytes + _PATCH_COST)
            if bits:
                cost += _FLAGS + _FLAGS_COST + (n_extras * bits + 7) // 8
            if cost < lowest and n_extras < _BLOCK and n_patches < _BLOCK:
                width, extra, patch, lowest = w, bits, nbytes, cost
    return width, extra, patch


@inline
def _pack_plane(small: Any, shift: Any, bits: Any, words: Any) -> None:
    """Pack ``bits`` bits of each value of a block, from bit ``shift`` on, into ``bits * LANES`` words of 16 bits."""
    words[:] = 0
    mask = np.uint64((1 << bits) - 1)
    for row in range(_BLOCK // _LANES):
        word, bit = row * bits // 16, row * bits % 16
        for lane in range(_LANES):
            value = small[row * _LANES + lane] >> shift & mask
            words[word * _LANES + lane] |= np.uint16(value << np.uint64(bit) & np.uint64(0xFFFF))
            if bit + bits > 16:
                words[(word + 1) * _LANES + lane] |= np.uint16(value >> np.uint64(16 - bit))


@inline
def _shrink(values: Any, first: Any, stop: Any, mask: Any, is_signed: Any, delta: Any, small: Any) -> Any:
    """Fill ``small`` with the steps or distances of a block, and give its base."""
    small[:] = 0
    base = values[first]
    if delta:
        for i in range(first + 1, stop):
            small[i - first] = (values[i] - values[i - 1] - np.uint64(1)) & mask
        return base
    flip = np.uint64(1) << np.uint64(63) if is_signed else np.uint64(0)
    for i in range(first, stop):
        if values[i] ^ flip < base ^ flip:
            base = values[i]
    for i in range(first, stop):
        small[i - first] = (values[i] - base) & mask
    return base


@Kernel
def _pack(
    values: Any,
    itemsize: Any,
    is_signed: Any,
    delta: Any,
    descriptors: Any,
    bases: Any,
    checksums: Any,
    blocks: Any,
    out: Any,
) -> Any:
    n_blocks = (bases - descriptors) // 4
    mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - 8 * itemsize)
    small, lengths = np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.int64)
    above, words = np.empty(65, np.int64), np.empty(_BLOCK, np.uint16)
    at = group = blocks
    for block in range(n_blocks):
        first, stop = block * _BLOCK, min(values.size, (block + 1) * _BLOCK)
        base = _shrink(values, first, stop, mask, is_signed, delta, small)
        above[:] = 0
        for i in range(_BLOCK):
            lengths[i] = 64 - np.int64(_leading_zeros(small[i]))
            above[lengths[i]] += 1
        n = 0
        for bits in range(64, -1, -1):
            count = above[bits]
            above[bits] = n
            n += count
        width, extra, patch = _choose(above)
        top = min(width + extra, 64)
        descriptor = descriptors + 4 * block
        out[descriptor], out[descriptor + 1] = width, extra | patch << 4
        out[descriptor + 2], out[descriptor + 3] = above[width] if extra else 0, above[top]
        _put(out, bases + itemsize * block, base, itemsize)
        for plane in range((width + 15) // 16):
            bits = min(16, width - 16 * plane)
            _pack_plane(small, np.uint64(16 * plane), bits, words)
            for i in range(bits * _LANES):
                out[at], out[at + 1] = words[i] & 255, words[i] >> 8
                at += 2
        if extra:
            flags, n = at, 0
            at += _FLAGS
            out[flags : at + (above[width] * extra + 7) // 8] = 0
            low = np.uint64((1 << extra) - 1)
            for i in range(_BLOCK):
                if lengths[i] > width:
                    out[flags + i // 8] |= np.uint8(1 << i % 8)
                    out[at + n // 8] |= np.uint8((small[i] >> np.uint64(width) & low) << np.uint64(n % 8))
                    n += extra
            at += (n + 7) // 8
        if above[top]:
            place = at
            at += above[top]
            for i in range(_BLOCK):
                if lengths[i] > top:
                    out[place] = i
                    _put(out, at, small[i] >> np.uint64(top), patch)
                    place += 1
                    at += patch
        if block % _GROUP == _GROUP - 1 or block == n_blocks - 1:
            crc = np.uint64(crc32c_at(address_of(out) + group, at - group))
            _put(out, checksums + 4 * (block // _GROUP), crc, 4)
            group = at
    _put(out, 0, np.uint64(crc32c_at(address_of(out) + descriptors, blocks - descriptors)), 4)
    return at
