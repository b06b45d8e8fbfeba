"""Does any packed chunk make the kernel crash, run long, or write outside its buffers? Run as a script; the tests do.

As `fuzz_decoder`, which lends its guarded buffers: each ends at a page that cannot be touched, and begins behind a
margin of known bytes. Sound chunks are damaged; in most of them the checksums are put right again, so that the decoder
itself gets to see the damage. Pieces of them are wanted as windows want them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np

from annbatch.shards.codecs import HEAD_NBYTES, TAIL_NBYTES
from annbatch.shards.decode_kernels import Status
from annbatch.shards.packed_encoder import packed
from annbatch.shards.packed_kernels import PackedJob
from annbatch.shards.packed_layout import BLOCK, Layout
from annbatch.shards.scatter_kernels import scatter_packed
from fuzz_decoder import CANARY, MARGIN, guarded

N = 2600
SMALL = np.dtype("u2")


def seeds(rng: np.random.Generator, dtype: np.dtype[Any]) -> list[tuple[bool, np.ndarray[Any, Any]]]:
    """Give chunks of N values, and whether steps are stored: blocks of all kinds."""
    most = np.iinfo(dtype).max
    rows = [np.sort(rng.choice(30000, 700, replace=False)) for _ in range(N // 700 + 1)]
    counts = np.minimum(rng.geometric(0.3, N), 200)
    rare = np.where(rng.random(N) < 0.02, rng.integers(0, most, N, dtype=np.uint64), counts.astype(np.uint64))
    mixed = rng.integers(0, most, N, dtype=np.uint64) >> rng.integers(0, 8 * dtype.itemsize, N).astype(np.uint64)
    made = [np.concatenate(rows)[:N], counts, rare, mixed, np.full(N, 7)]
    return [(delta, packed(values.astype(dtype), delta=delta)) for values in made for delta in (True, False)]


def mutate(rng: np.random.Generator, good: np.ndarray[Any, Any], layout: Layout) -> bytes:
    """Give a damaged copy."""
    data = bytearray(good.tobytes())
    match rng.integers(5):
        case 0:
            del data[int(rng.integers(1, len(data))) :]
        case 1:
            for place in rng.integers(0, len(data), rng.integers(1, 6)):
                data[place] ^= 1 << int(rng.integers(8))
        case 2:
            # Descriptors are where damage hurts most.
            for place in rng.integers(layout.descriptors, layout.bases, rng.integers(1, 4)):
                data[place] = int(rng.integers(256))
        case 3:
            start = int(rng.integers(0, len(data)))
            stop = min(len(data), start + int(rng.integers(1, 200)))
            data[start:stop] = rng.integers(0, 256, stop - start, dtype=np.uint8).tobytes()
        case _:
            # Two blocks whose descriptors change so that the sum of the sizes may stay.
            a, b = rng.integers(0, layout.n_blocks, 2) * 4 + layout.descriptors
            data[a : a + 4], data[b : b + 4] = data[b : b + 4], data[a : a + 4]
    if rng.integers(8) and len(data) >= layout.blocks:
        mend(data, layout)
    return bytes(data)


def mend(data: bytearray, layout: Layout) -> None:
    """Put the checksums right, and the size too if the table is for another one."""
    table = np.frombuffer(data[layout.descriptors : layout.bases], np.uint8).reshape(-1, 4).astype(np.int64)
    extra, patch = table[:, 1] & 15, table[:, 1] >> 4
    sizes = 32 * table[:, 0] + np.where(extra > 0, 32, 0) + (table[:, 2] * extra + 7) // 8 + table[:, 3] * (1 + patch)
    edges = layout.blocks + np.concatenate([[0], np.cumsum(sizes)])
    if edges[-1] <= layout.max_nbytes:
        data[edges[-1] :] = bytes(max(0, int(edges[-1]) - len(data)))
    for group in range(layout.n_groups):
        first, stop = edges[4 * group], edges[min(4 * group + 4, layout.n_blocks)]
        crc = google_crc32c.value(bytes(data[first:stop])).to_bytes(4, "little")
        data[layout.checksums + 4 * group : layout.checksums + 4 * group + 4] = crc
    data[:4] = google_crc32c.value(bytes(data[4 : layout.blocks])).to_bytes(4, "little")


def fuzz(count: int, seed: int, dtypes: Sequence[str]) -> dict[str, int]:
    """Decode damaged chunks; give how often each status came."""
    rng = np.random.default_rng(seed)
    counts: dict[str, int] = {}
    with tempfile.TemporaryFile() as file:
        for name in dtypes:
            dtype = np.dtype(name)
            layout = Layout(N, dtype.itemsize)
            # The stored bytes lie as close to the forbidden page as the kernel allows.
            raw = guarded(layout.max_nbytes + HEAD_NBYTES + TAIL_NBYTES)
            scratch, target = guarded(layout.n_blocks * BLOCK * dtype.itemsize), guarded(4 * N)
            goods = seeds(rng, dtype)
            elements = scratch[MARGIN:].view(dtype)
            for i in range(count):
                delta, good = goods[i % len(goods)]
                stored = mutate(rng, good, layout)
                starts = np.sort(rng.integers(0, N, 2))
                lengths = np.array([rng.integers(0, N - start + 1) for start in starts])
                os.ftruncate(file.fileno(), 0)
                os.pwrite(file.fileno(), stored, 0)
                room = len(stored) + HEAD_NBYTES + TAIL_NBYTES
                at = np.array([file.fileno()], np.int32), np.zeros(1, np.int64), np.array([len(stored)], np.int64)
                runs, pieces = np.array([0, 1], np.int64), (np.array([0, 2], np.int64), starts, lengths)
                own_raw = raw[MARGIN:][max(0, raw.size - MARGIN - room) :]
                job = PackedJob(delta, N, at, runs, pieces, np.zeros(1, dtype), own_raw, elements)
                status, _ = scatter_packed(
                    *(job.decode, job.fields, runs, *pieces),
                    target[MARGIN:].ctypes.data + 4 * (N - lengths),
                    30000 if i & 1 else -1,
                    elements[:N],
                    np.empty(0, np.float32),
                    np.zeros(1, np.int64),
                )
                kind = Status(status).name
                counts[kind] = counts.get(kind, 0) + 1
                margins = [part[:MARGIN] for part in (raw, scratch, target)]
                assert all((margin == CANARY).all() for margin in margins), "a byte was written before a buffer"
    return counts


def main() -> None:
    """Fuzz, and print how often each status came."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtypes", nargs="+", default=["u2"])
    print(fuzz(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
