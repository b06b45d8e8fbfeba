"""What does each sampler cost?

1. *Plan*: all windows of an epoch of a hundred million rows, without reading any: seconds, peak memory, and the time of
   a window of perfectly random rows. Each in a process of its own.
2. *Reading*: cells per second, and per CPU second, of each sampler on the shuffled collection and on one whose rows
   are grouped by cell type, in interleaved rounds within one process; and the *read amplification*: stored values that
   are decoded, divided by those that are handed over, counted from the plan of an epoch.

Usage: ``python benchmarks/sampling.py [--codec packed] [--cells 200000] [--round-cells 60000] [--rounds 5]``
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr

import annbatch
from annbatch import samplers
from annbatch.order.consumers import Segment
from annbatch.order.schedule import Schedule, Settings
from annbatch.order.state import Position
from annbatch.samplers import Shuffled
from annbatch.shards.packed_layout import BLOCK, NAME
from harness.command_line import options, prepared
from harness.contenders.registry import CODECS
from harness.jobs import Matrix
from harness.results import median, save, spread
from harness.touch import touch

PLANS = {"blocks of 32": (32, 512), "blocks of 512": (512, 32), "single rows": (1, 16384)}
ROWS = 100_000_000


def plan(name: str) -> dict[str, Any]:
    """Plan an epoch in this process: seconds, peak memory, milliseconds a window."""
    chunk_size, nchunks = PLANS[name]
    for n_rows in (10**6, ROWS):  # the first time compiles
        schedule = Schedule(Settings(Shuffled(), 4096, chunk_size, nchunks, 0, False), (n_rows,), {}, None, {})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        segment, _ = schedule.segment(Position(), 1)
        n_windows = segment.n_windows if chunk_size > 1 else min(segment.n_windows, 500)
        rows = sum(len(segment.window(number, 0).rows) for number in range(n_windows))
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "rows": rows,
        "seconds": seconds,
        "ms_a_window": 1000 * seconds / n_windows,
        "added_mb": (peak - before) / 1024,
    }


def plans(rounds: int) -> list[dict[str, Any]]:
    """Plan in processes of their own, several times."""
    rows = []
    for name in PLANS:
        command = [sys.executable, __file__, "--plan", name]
        found = [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(rounds)]
        rows.append({"plan": name} | {key: [one[key] for one in found] for key in found[0]})
        print(
            f"{name:<14} {rows[-1]['rows'][0]:>12,} rows: {np.median(rows[-1]['seconds']):6.2f} s, "
            f"{np.median(rows[-1]['ms_a_window']):6.2f} ms a window, {max(rows[-1]['added_mb']):5.0f} MB",
            flush=True,
        )
    return rows


def loaders(collection: Path, n_cells: int) -> dict[str, annbatch.Loader]:
    """Open the collection once for each sampler."""

    def opened(sampler: Any = None, **more: Any) -> annbatch.Loader:
        return annbatch.Loader(batch_size=4096, sampler=sampler, **more).use_collection(
            collection, labels=["cell_type"]
        )

    weights = np.random.default_rng(0).lognormal(0, 1, n_cells)
    default = opened()
    types = list(default.categories["cell_type"])
    parts = opened().split({"train": 0.8, "valid": 0.1, "test": 0.1})
    quotas = {name: 4096 // len(types) + (i < 4096 % len(types)) for i, name in enumerate(types)}
    return {
        "every row once": default,
        "weighted": opened(samplers.Weighted(weights)),
        "class-balanced": opened(samplers.ClassBalanced("cell_type")),
        "split: train, 80 %": parts["train"],
        "split: valid, 10 %": parts["valid"],
        "single rows, 10 %": opened(rows=np.random.default_rng(1).random(n_cells) < 0.1),
        "quotas": opened(samplers.Stratified("cell_type", quotas)),
        "batches of one type": opened(samplers.Grouped("cell_type")),
        "pairs": opened(samplers.MatchedPairs("cell_type", types[0])),
    }


def amplification(loader: annbatch.Loader, collection: annbatch.Collection) -> float:
    """Values decoded for each one handed over, in a whole epoch, by its plan."""
    segment: Segment = loader._scheduled().segment(Position(), 1)[0]
    groups = [zarr.open_group(path, mode="r")["X"] for path in collection.store_paths]
    indptrs = [group["indptr"][:] for group in groups]
    # Of packed chunks, the blocks that hold wanted rows are decoded, and no others.
    sizes = [BLOCK if NAME in str(group["data"].metadata.to_dict()) else group["data"].chunks[0] for group in groups]
    first = np.cumsum([0, *(len(indptr) - 1 for indptr in indptrs)])
    decoded = handed = 0
    for number in range(segment.n_windows):
        rows = segment.window(number, 0).rows
        for i, (indptr, size) in enumerate(zip(indptrs, sizes, strict=True)):
            own = rows[(rows >= first[i]) & (rows < first[i + 1])] - first[i]
            handed += int((indptr[own + 1] - indptr[own]).sum())
            own = np.unique(own)
            own = own[indptr[own + 1] > indptr[own]]
            lo, hi = indptr[own] // size, (indptr[own + 1] - 1) // size
            longest = int((hi - lo).max(initial=0))
            chunks = np.unique(np.concatenate([np.minimum(lo + k, hi) for k in range(longest + 1)]))
            decoded += len(chunks) * size
    return decoded / handed


def batches(loader: annbatch.Loader) -> Iterator[Any]:
    """Batches without an end, epoch after epoch."""
    while True:
        yield from loader


def reading(collection: Path, title: str, n_cells: int, rounds: int, round_cells: int) -> list[dict[str, Any]]:
    """Time all samplers in turn."""
    opened = loaders(collection, n_cells)
    manifest = annbatch.Collection.open(collection)
    streams = {name: batches(loader) for name, loader in opened.items()}
    rates: dict[str, list[float]] = {name: [] for name in opened}
    cpu_rates: dict[str, list[float]] = {name: [] for name in opened}
    for timed in range(-1, rounds):
        for name, stream in streams.items():
            cells, cpu_before, started = 0, time.process_time(), time.perf_counter()
            while cells < round_cells:
                batch = next(stream)
                touch(Matrix.of_csr(batch.data))
                cells += batch.data.shape[0]
            if timed >= 0:
                rates[name].append(cells / (time.perf_counter() - started))
                cpu_rates[name].append(cells / (time.process_time() - cpu_before))
            # Nothing of this one may be read ahead while another one is timed.
            opened[name].close()
            streams[name] = batches(opened[name])
    rows = []
    base, cpu_base = (float(np.median(found["every row once"])) for found in (rates, cpu_rates))
    for name, found in rates.items():
        row = {
            "contender": name,
            "setting": title,
            "cells_per_s": found,
            "cells_per_cpu_s": cpu_rates[name],
            "amplification": amplification(opened[name], manifest),
        }
        rows.append(row)
        print(
            f"{title:<22} {name:<22} {median(row):>10,.0f} cells/s ± {spread(row):.0%} "
            f"({median(row) / base:.2f} of the default), "
            f"{median(row, 'cells_per_cpu_s'):>10,.0f} cells/CPU s ({median(row, 'cells_per_cpu_s') / cpu_base:.2f}), "
            f"decodes {row['amplification']:.2f} × what it hands over",
            flush=True,
        )
    return rows


def main() -> None:
    """Run from the command line."""
    if sys.argv[1:2] == ["--plan"]:
        print(json.dumps(plan(sys.argv[2])))
        return
    parser = options("Measure what each sampler costs.")
    parser.add_argument("--codec", default=CODECS[0], choices=CODECS, help="what the collections are written with")
    parser.add_argument("--round-cells", type=int, default=60_000, help="cells that each sampler gives in a round")
    arguments = parser.parse_args()
    bench = prepared(arguments)
    rows: list[dict[str, Any]] = plans(arguments.rounds)
    ending = "" if arguments.codec == CODECS[0] else f"-{arguments.codec}"
    for title, folder, options_of in (
        ("shuffled", bench.store(f"ours{ending}"), {}),
        ("grouped by cell type", bench.store(f"ours-grouped{ending}"), {"groupby": "cell_type"}),
    ):
        if not (folder / "collection.json").exists():
            options_of |= {"codec": arguments.codec, "progress": False}
            annbatch.create_anndata_collection(bench.files, folder, **options_of)
        named = f"{title}, codec {arguments.codec}" if ending else title
        rows += reading(folder, named, bench.facts["n_obs"], arguments.rounds, arguments.round_cells)
    save(f"sampling{ending}", arguments, bench.facts, rows)


if __name__ == "__main__":
    main()
