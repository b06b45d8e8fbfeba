"""What becomes of one flipped bit in a chunk of an `.h5ad` file, for each of HDF5's filters? Run as a script.

Each trial flips a random bit of a random chunk of ``X/data``, ``X/indices`` or ``X/indptr``, opens the file and reads
an epoch. That ends in an error that names the file, in the same rows as before, or in other values or genes of some.

Usage: ``python tests/support/flip_bits.py [--count 200] [--table docs/h5ad-flips.inc]``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import anndata as ad
import h5py
import numpy as np

from annbatch import Loader, StoreError
from datagen import named_matrix
from h5ad_files import LAYOUTS, write

FOUND, SAME, OTHER = "found", "without effect", "other values or genes"
SHOWN = (
    *("contiguous", "chunked", "fletcher32", "gzip", "gzip 9 shuffle fletcher32", "lzf", "lzf shuffle fletcher32"),
    *("zstd", "zstd shuffle", "blosc lz4", "blosc zstd"),
)
"""The layouts that the kernels read. HDF5's plugins may crash: that of bitshuffle does."""


def epoch(path: Path) -> dict[int, tuple[bytes, bytes]]:
    """Read all rows: the columns and the values of each."""
    rows = {}
    ds = Loader(batch_size=16, chunk_size=3, preload_nchunks=8, prefetch=0, threads=1).use_h5ad(path, labels=[])
    for batch in ds:
        x = batch.data
        for i, row in enumerate(batch.index.tolist()):
            own = slice(x.indptr[i], x.indptr[i + 1])
            rows[row] = x.indices[own].tobytes(), x.data[own].tobytes()
    return rows


def flips(path: Path, count: int, rng: np.random.Generator) -> Counter[str]:
    """Count how trials end with a file that is whole."""
    truth, good = epoch(path), path.read_bytes()
    chunks: list[tuple[int, int]] = []
    with h5py.File(path) as file:
        for key in ("data", "indices", "indptr"):
            array = file[f"X/{key}"].id
            if array.get_create_plist().get_layout() == h5py.h5d.CHUNKED:
                infos = [array.get_chunk_info(i) for i in range(array.get_num_chunks())]
                chunks += [(info.byte_offset, info.size) for info in infos]
            else:
                chunks.append((array.get_offset(), array.get_storage_size()))
    copy, found = path.with_name("flipped.h5ad"), Counter[str]()
    for _ in range(count):
        offset, size = chunks[int(rng.integers(len(chunks)))]
        content = bytearray(good)
        content[offset + int(rng.integers(size))] ^= 1 << int(rng.integers(8))
        copy.write_bytes(content)
        try:
            rows = epoch(copy)
        except StoreError as e:
            found[FOUND if copy.name in str(e) else "UNNAMED"] += 1
            continue
        assert rows.keys() == truth.keys()
        found[SAME if rows == truth else OTHER] += 1
    return found


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, help="where to write the table")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    lines = [f"| X stored as | flipped bits | {FOUND} | {SAME} | {OTHER} |", "| --- | ---: | ---: | ---: | ---: |"]
    with tempfile.TemporaryDirectory() as folder:
        x = named_matrix(rng, range(120), range(23), density=0.5)
        cells = ad.AnnData(x)
        for name in SHOWN:
            counts = flips(write(cells, Path(folder) / f"{name}.h5ad", LAYOUTS[name]), arguments.count, rng)
            columns = " | ".join(str(counts[key]) for key in (FOUND, SAME, OTHER))
            lines.append(f"| {name} | {arguments.count} | {columns} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.table:
        arguments.table.write_text(text)


if __name__ == "__main__":
    main()
