"""A second reader of the packed format, written from ``docs/packed.md`` alone, in plain NumPy."""

import numpy as np

POLYNOMIAL = 0x82F63B78


def crc32c(data):
    """RFC 3720, B.4, bit by bit."""
    state = 0xFFFFFFFF
    for byte in bytes(data):
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (POLYNOMIAL if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def check(holds, what):
    if not holds:
        raise ValueError(what)


def bit_numbers(data, width):
    """Numbers of ``width`` bits that follow each other, lowest bits first."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    bits = bits[: bits.size // width * width].reshape(-1, width).astype(object)
    return (bits << np.arange(width).astype(object)).sum(axis=1)


def read_block(data, descriptor, s):
    """Give d[0] … d[255] as Python integers."""
    width, sizes, n_extras, n_patches = descriptor
    extra, patch_nbytes = sizes & 15, sizes >> 4
    d = np.zeros(256, object)
    at = 0
    for low in range(0, width, 16):
        bits = min(16, width - low)
        words = np.frombuffer(data[at : at + 32 * bits], "<u2").reshape(bits, 16)
        for lane in range(16):
            d[lane::16] += bit_numbers(words[:, lane].tobytes(), bits)[:16] << low
        at += 32 * bits
    if extra:
        flagged = np.flatnonzero(np.unpackbits(np.frombuffer(data[at : at + 32], np.uint8), bitorder="little"))
        check(flagged.size == n_extras, "flags")
        at += 32
        n = -(-n_extras * extra // 8)
        d[flagged] += bit_numbers(data[at : at + n], extra)[:n_extras] << width
        at += n
    places = list(data[at : at + n_patches])
    check(all(a < b for a, b in zip(places, places[1:], strict=False)), "places")
    for j, place in enumerate(places):
        first = at + n_patches + j * patch_nbytes
        d[place] += int.from_bytes(data[first : first + patch_nbytes], "little") << (width + extra)
    return d


def read_chunk(data, n, dtype, delta, blocks=None):
    """Give the values of a chunk, or of some of its blocks alone."""
    dtype = np.dtype(dtype).newbyteorder("<")
    s = dtype.itemsize
    n_blocks = -(-n // 256)
    n_groups = -(-n_blocks // 4)
    size = 4 + (4 + s) * n_blocks + 4 * n_groups
    check(len(data) >= size and crc32c(data[4:size]) == int.from_bytes(data[:4], "little"), "table")
    descriptors = [tuple(data[4 + 4 * b : 8 + 4 * b]) for b in range(n_blocks)]
    bases = np.frombuffer(data[4 + 4 * n_blocks : 4 + (4 + s) * n_blocks], f"<u{s}")
    edges = [size]
    for width, sizes, n_extras, n_patches in descriptors:
        extra, patch_nbytes = sizes & 15, sizes >> 4
        check(width <= 8 * s and extra in (0, 2, 4) and patch_nbytes <= s, "sizes")
        check((extra or not n_extras) and (not n_patches or width + extra < 8 * s), "numbers")
        parts = 32 * width + (32 if extra else 0) + -(-n_extras * extra // 8) + n_patches * (1 + patch_nbytes)
        check(parts <= 256 * s, "sizes")
        edges.append(edges[-1] + parts)
    check(edges[-1] == len(data), "length")
    values = []
    for b in range(n_blocks) if blocks is None else blocks:
        group, checksum = b // 4, size - 4 * (n_groups - b // 4)
        stored = data[edges[4 * group] : edges[min(4 * group + 4, n_blocks)]]
        check(crc32c(stored) == int.from_bytes(data[checksum : checksum + 4], "little"), "group")
        d = read_block(data[edges[b] : edges[b + 1]], descriptors[b], s)
        v = np.cumsum(d) + np.arange(256) if delta else d
        values.append(((v + int(bases[b])) % 2 ** (8 * s))[: n - 256 * b])
    return np.concatenate(values).astype(f"<u{s}").view(dtype)
