"""Does any damage to an `.h5ad` file make the process crash, or put a number where it does not belong? Run as a script.

Bytes of whole files are flipped, overwritten or cut, metadata and chunks alike. Each damaged file is opened and read in
a forked child. What HDF5 itself makes of damaged metadata is its own affair: a child that dies while the file is opened
is counted, and one that dies, or gives rows of another shape, while rows are read is a failure. Of files that are read,
it is counted how many gave the same numbers as before: most of HDF5's metadata, and some filters, have no checksums.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import warnings
from pathlib import Path

import anndata as ad
import numpy as np

from annbatch import AnnbatchError, Loader
from datagen import named_matrix
from h5ad_files import LAYOUTS, write

NAMES = ("contiguous", "gzip 9 shuffle fletcher32", "lzf", "zstd shuffle", "blosc lz4", "big-endian gzip")
REFUSED, DIED_IN_HDF5, READ, OTHER, WRONG = 10, 11, 12, 13, 14
ENDS = {REFUSED: "refused", DIED_IN_HDF5: "died in HDF5", READ: "read", OTHER: "read, with other numbers"}


def damaged(rng: np.random.Generator, good: bytes) -> bytes:
    """Give a damaged copy."""
    data = bytearray(good)
    match rng.integers(4):
        case 0:
            for place in rng.integers(0, len(data), rng.integers(1, 20)):
                data[place] ^= 1 << int(rng.integers(8))
        case 1:
            start, n = int(rng.integers(0, len(data))), int(rng.integers(1, 64))
            data[start : start + n] = rng.bytes(len(data[start : start + n]))
        case 2:
            # Numbers of eight bytes, as offsets and sizes are stored, become huge or negative.
            start = 8 * int(rng.integers(0, len(data) // 8))
            huge = (0, 1, 2**31, 2**40, 2**63 - 1, 2**64 - 1)
            data[start : start + 8] = huge[int(rng.integers(len(huge)))].to_bytes(8, "little")
        case _:
            del data[int(rng.integers(1, len(data))) :]
    return bytes(data)


def child(path: Path, marker: Path, truth: dict[int, bytes]) -> int:
    """Open and read a file; say how that ended. The rows of an empty ``truth`` are put into it."""
    rows: dict[int, bytes] = {}
    try:
        ds = Loader(batch_size=16, chunk_size=3, preload_nchunks=8, layers=["dense"], prefetch=0, threads=1)
        ds.use_h5ad(path, labels=[])
        marker.touch()
        for batch in ds:
            x = batch.data
            n = len(x.indices)
            if x.shape != (len(batch.index), ds.n_vars) or len(x.data) != n or x.indptr[-1] != n:
                return WRONG
            if n and not 0 <= x.indices.min() <= x.indices.max() < ds.n_vars:
                return WRONG
            if (np.diff(x.indptr) < 0).any() or batch["layers"]["dense"].shape != x.shape:
                return WRONG
            for i, row in enumerate(batch.index.tolist()):
                own = slice(x.indptr[i], x.indptr[i + 1])
                parts = x.indices[own], x.data[own], batch["layers"]["dense"][i]
                rows[row] = b"".join(part.tobytes() for part in parts)
    except (AnnbatchError, MemoryError):
        return REFUSED
    if not truth:
        truth.update(rows)
    return READ if rows == truth else OTHER


def main() -> None:
    """Fuzz, and print how often each end came."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    warnings.simplefilter("ignore")
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        path, marker = Path(folder) / "damaged.h5ad", Path(folder) / "opened"
        cells = ad.AnnData(named_matrix(rng, range(120), range(23), density=0.5))
        goods = [write(cells, Path(folder) / f"{name}.h5ad", LAYOUTS[name]).read_bytes() for name in NAMES]
        truths: list[dict[int, bytes]] = [{} for _ in NAMES]
        for name, truth in zip(NAMES, truths, strict=True):
            # Kernels are compiled, or loaded, before any child is forked.
            assert child(Path(folder) / f"{name}.h5ad", marker, truth) == READ
        for i in range(options.count):
            path.write_bytes(damaged(rng, goods[i % len(goods)]))
            marker.unlink(missing_ok=True)
            pid = os.fork()
            if not pid:
                signal.alarm(60)
                end = WRONG
                try:
                    end = child(path, marker, truths[i % len(goods)])
                finally:
                    os._exit(end)
            status = os.waitpid(pid, 0)[1]
            end = os.waitstatus_to_exitcode(status)
            if end < 0 and not marker.exists():
                end = DIED_IN_HDF5
            text = ENDS.get(end)
            assert text is not None, f"damage {i} of seed {options.seed}, to {NAMES[i % len(NAMES)]}: ended with {end}"
            counts[text] = counts.get(text, 0) + 1
    print(counts)


if __name__ == "__main__":
    main()
