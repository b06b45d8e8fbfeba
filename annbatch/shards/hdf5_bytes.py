"""How are the bytes of HDF5's own filters decoded, in compiled code?

1. `FLETCHER32` computes the checksum of HDF5's fletcher32 filter.
2. `DECODE_LZF` undoes the lzf filter that h5py brings along.
3. `SWAP_BYTES` turns big-endian elements into little-endian ones.

They are routines of their own: whoever needs none of them compiles none. Nothing is read or written outside of what is
given, whatever the bytes say. After a change here remove ``__pycache__``, as `annbatch.native` says.

Formats: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html and http://oldhome.schmorp.de/marc/liblzf.html
"""

from __future__ import annotations

from typing import Any

import numpy as np

from annbatch.native import Routine, inline, view

_BYTES = np.empty(0, np.uint8)
_PAIRS, _QUADS, _OCTETS = np.empty(0, np.uint16), np.empty(0, np.uint32), np.empty(0, np.uint64)
_FLETCHER_WORDS = 1 << 20
"""Words whose sums fit into 64 bits: 2**20 * 2**20 * 2**16 is below 2**63."""


@Routine
def FLETCHER32(address: int, size: int) -> int:
    """Give the Fletcher-32 checksum of bytes, as HDF5 computes it: sums of big-endian words of 16 bits."""
    stored = view(address, size, _BYTES)
    low: Any = np.uint64(0)
    high: Any = np.uint64(0)
    n_words = size // 2
    for first in range(0, n_words, _FLETCHER_WORDS):
        words = view(address + 2 * first, min(n_words - first, _FLETCHER_WORDS), _PAIRS)
        for i in range(words.size):
            word = np.uint64((words[i] & 255) << 8 | words[i] >> 8)
            low += word
            high += low
        low, high = _folded(low), _folded(high)
    if size % 2:
        low += np.uint64(stored[size - 1]) << np.uint64(8)
        high += low
    return int(np.int64(_folded(high)) << 16 | np.int64(_folded(low)))


@inline
def _folded(total: Any) -> Any:
    """Give a sum modulo 65,535, where a sum that is not 0 becomes 65,535 rather than 0."""
    while total > np.uint64(65535):
        total = (total & np.uint64(65535)) + (total >> np.uint64(16))
    return total


@Routine
def DECODE_LZF(source_at: int, size: int, target_at: int, room: int) -> int:
    """Decode ``size`` bytes; give 1 if they gave exactly ``room`` bytes at the target, else 0."""
    source, target = view(source_at, size, _BYTES), view(target_at, room, _BYTES)
    at, end, done = np.int64(0), size, np.int64(0)
    while at < end:
        control = np.int64(source[at])
        at += 1
        if control < 32:
            n = control + 1
            if n > end - at or n > target.size - done:
                return 0
            for i in range(n):
                target[done + i] = source[at + i]
            at += n
        else:
            n = (control >> 5) + 2
            if n == 9:
                if at >= end:
                    return 0
                n += np.int64(source[at])
                at += 1
            if at >= end:
                return 0
            back = ((control & 31) << 8) + np.int64(source[at]) + 1
            at += 1
            if back > done or n > target.size - done:
                return 0
            for i in range(n):
                target[done + i] = target[done + i - back]
        done += n
    return int(done == target.size)


@Routine
def SWAP_BYTES(address: int, n: int, itemsize: int) -> int:
    """Reverse the bytes of each of ``n`` elements at an address; gives 0."""
    if itemsize == 2:
        pairs = view(address, n, _PAIRS)
        for i in range(n):
            pairs[i] = pairs[i] << 8 | pairs[i] >> 8
    elif itemsize == 4:
        quads = view(address, n, _QUADS)
        for i in range(n):
            one = quads[i]
            quads[i] = one << 24 | (one & 0xFF00) << 8 | (one >> 8) & 0xFF00 | one >> 24
    elif itemsize == 8:
        octets = view(address, n, _OCTETS)
        for i in range(n):
            one = octets[i]
            one = (one & np.uint64(0x00FF00FF00FF00FF)) << np.uint64(8) | (one >> np.uint64(8)) & np.uint64(
                0x00FF00FF00FF00FF
            )
            one = (one & np.uint64(0x0000FFFF0000FFFF)) << np.uint64(16) | (one >> np.uint64(16)) & np.uint64(
                0x0000FFFF0000FFFF
            )
            octets[i] = one << np.uint64(32) | one >> np.uint64(32)
    return 0
