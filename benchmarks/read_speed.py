"""How many cells a second does a Loader hand over?

1. Generate counts from a seed, write them as ``.h5ad`` and make a collection of them (or take one that exists).
2. Read one epoch to warm the page cache and the compiled kernels.
3. Time whole epochs. Every batch is touched: all values and all column numbers are summed, and that time counts.
4. Check the sums against what the generator stated.
5. Print the median, the slowest and the fastest epoch, the machine and the versions.

Example: ``python benchmarks/read_speed.py --cells 200000 --genes 30000 --nnz 2226``
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import annbatch
from harness.generate import Spec, generate


@dataclass(frozen=True, slots=True)
class Speed:
    """Cells per second of several epochs."""

    cells_per_s: tuple[float, ...]
    """One figure for each timed epoch, in the order of the epochs."""

    def __str__(self) -> str:
        low, high = min(self.cells_per_s), max(self.cells_per_s)
        return f"{statistics.median(self.cells_per_s):,.0f} cells/s (from {low:,.0f} to {high:,.0f})"


@dataclass
class Sums:
    """What an epoch added up to; doubles hold sums of counts exactly."""

    rows: int = 0
    """Cells seen."""
    values: float = 0
    """Sum of all stored values."""
    columns: int = 0
    """Sum of the column numbers of all stored elements."""

    def add(self, batch: Any) -> None:
        """Touch every stored element of a batch of the core."""
        self.rows += batch.data.shape[0]
        self.values += float(batch.data.data.sum(dtype=np.float64))
        self.columns += int(batch.data.indices.sum(dtype=np.int64))


def measure(batches: Iterable[Any], n_obs: int, epochs: int, touch: Callable[[Any], object]) -> Speed:
    """Time ``epochs`` epochs of ``batches`` after one that does not count."""
    cells_per_s = []
    for _ in range(1 + epochs):
        started = time.perf_counter()
        for batch in batches:
            touch(batch)
        cells_per_s.append(n_obs / (time.perf_counter() - started))
    return Speed(tuple(cells_per_s[1:]))


def machine() -> str:
    """Say on what the figures were taken: processor, cores that this process may use, Python and versions."""
    processor = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = ", ".join(f"{name} {version(name)}" for name in ("annbatch-dlpack", "zarr", "zarrs", "anndata", "numpy"))
    return f"{processor}, {cores} cores, Python {platform.python_version()}, {packages}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Cells per second of annbatch.Loader.")
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=5_000)
    parser.add_argument("--nnz", type=int, default=500, help="stored values a cell, on average")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--chunk-size", type=int, default=512)
    parser.add_argument("--preload-nchunks", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=5, help="timed epochs, after one that is not")
    parser.add_argument("--collection", type=Path, help="read this collection instead of a generated one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, collection, facts = Path(temporary), options.collection, None
        if collection is None:
            facts = generate(Spec(options.cells, options.genes, options.nnz, files=1), folder)
            paths, collection = [folder / name for name in facts["files"]], folder / "collection"
            annbatch.create_anndata_collection(adata_paths=paths, output_path=collection, shuffle=True, seed=0)
        reading = {name: getattr(options, name) for name in ("batch_size", "chunk_size", "preload_nchunks")}
        with annbatch.Loader(**reading).use_collection(collection) as ds:
            sums = Sums()
            speed = measure(ds, ds.n_obs, options.epochs, sums.add)
            print(f"{ds.n_obs:,} cells × {ds.n_vars:,} genes, {options.epochs} epochs, {reading}")
    if facts is not None:
        expected = Sums(facts["n_obs"], facts["sum_values"], facts["sum_columns"])
        expected = Sums(*((1 + options.epochs) * getattr(expected, name) for name in Sums.__dataclass_fields__))
        if sums != expected:
            raise SystemExit(f"the epochs add up to {sums}, the generator stated {expected}")
    print(speed)
    print(machine())


if __name__ == "__main__":
    main()
