"""Does speed last with more cells, and what do more processes add?

1. ``growth``: does speed last as the collection grows ten-fold?
2. ``workers``: what does torch's ``DataLoader`` with worker processes make of it?
3. ``ranks``: what do several processes that share the rows, as training ranks do, read together?
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from harness.command_line import prepared
from harness.contenders.registry import CONTENDERS
from harness.machine import cores
from harness.results import print_table, save
from harness.rounds import Worker, measure
from harness.settings import BLOCKS, SINGLE_ROWS
from harness.stores import jobs_of


def growth(arguments: argparse.Namespace) -> None:
    """Time a collection and one ten times as large, with 500 stored elements a cell."""
    arguments.nnz = 500
    benches = [prepared(arguments), prepared(arguments, cells=10 * arguments.cells)]
    rows: list[dict[str, Any]] = []
    for setting in (BLOCKS, SINGLE_ROWS):
        jobs, sizes = [], {}
        for bench in benches:
            for one in jobs_of(bench, ("direct", "direct-packed", "peer"), setting):
                title = CONTENDERS[one.contender].title
                jobs.append(replace(one, label=f"{title}, {bench.facts['n_obs']:,} cells"))
                sizes[jobs[-1].label] = {"contender": title, "n_obs": bench.facts["n_obs"]}
        found = measure(benches[0], jobs)
        print_table(found)
        rows += [row | sizes[row["contender"]] for row in found]
    save("growth", arguments, benches[1].facts, rows)


def workers(arguments: argparse.Namespace) -> None:
    """Time the loader for torch alone, and inside torch's DataLoader with workers that persist."""
    bench = prepared(arguments)
    rows = measure(bench, jobs_of(bench, [name for name in CONTENDERS if name.startswith("torch")], BLOCKS))
    print_table(rows, reference=CONTENDERS["torch"].title)
    save("workers", arguments, bench.facts, rows)


def ranks(arguments: argparse.Namespace) -> None:
    """Let 1, 4 and 16 processes share the rows of ten times as many cells, of 500 stored elements, all at once.

    The processes of a number share the machine's cores; their rounds are interleaved with those of the other numbers.
    """
    arguments.nnz = 500
    bench = prepared(arguments, cells=10 * arguments.cells)
    groups: dict[int, list[Worker]] = {}
    for n in (1, 4, 16):
        settings = [replace(BLOCKS, threads=max(1, cores() // n), rank=rank, ranks=n) for rank in range(n)]
        groups[n] = [Worker(bench, one) for setting in settings for one in jobs_of(bench, ["direct"], setting)]
    found: dict[int, list[dict[str, Any]]] = {n: [] for n in groups}
    for number in range(arguments.rounds + 1):
        for n, workers in groups.items():
            for worker in workers:
                worker.send(cells=10**12, at_most_s=bench.total_s / bench.rounds)
            answers = [worker.receive() for worker in workers]
            if number:
                rates = [answer["cells"] / answer["seconds"] for answer in answers]
                sums = {key: sum(answer[key] for answer in answers) for key in ("cells", "cpu_s", "peak_rss_bytes")}
                found[n].append({"rates": rates, "seconds": max(answer["seconds"] for answer in answers), **sums})
                print(f"{n} process(es): {sum(rates):,.0f} cells/s together", flush=True)
    rows: list[dict[str, Any]] = [
        {
            "contender": f"{n} processes" if n > 1 else "1 process",
            "setting": BLOCKS.name,
            "cells_per_s": [round(sum(one["rates"]), 1) for one in each],
            "slowest_cells_per_s": [round(min(one["rates"]), 1) for one in each],
            "cells_per_cpu_s": [round(one["cells"] / one["cpu_s"], 1) for one in each],
            "seconds": round(sum(one["seconds"] for one in each), 2),
            "cpu_s": round(sum(one["cpu_s"] for one in each), 2),
            "peak_rss_bytes": each[-1]["peak_rss_bytes"],
            "processes": n,
        }
        for n, each in found.items()
    ]
    for workers in groups.values():
        for worker in workers:
            worker.close()
    print_table(rows, reference="1 process")
    save("ranks", arguments, bench.facts, rows)
