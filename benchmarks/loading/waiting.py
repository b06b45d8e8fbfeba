"""How long does a training loop wait for data, and what does the loader leave of the interpreter?

1. ``first-batch``: how long after opening does the first batch come, with kernels cached on disk and without?
2. ``wait``: what share of the time does a training step of 10 ms wait for data?
3. ``counting``: how much does an epoch slow down pure Python in the same process, and the other way round?
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.command_line import prepared
from harness.results import save
from harness.rounds import Worker
from harness.settings import BLOCKS
from harness.stores import jobs_of


def first_batch(arguments: argparse.Namespace) -> None:
    """Start processes that open a store and take one batch, with an empty kernel cache and with a filled one."""
    bench = prepared(arguments)
    rows: list[dict[str, Any]] = []
    for one in jobs_of(bench, ("direct", "peer"), BLOCKS):
        with tempfile.TemporaryDirectory() as cache:
            for cold in (True, False):
                name = "kernels compiled" if cold else "kernels cached"
                row: dict[str, Any] = {"setting": name, "open_s": [], "first_batch_s": []}
                for _ in range(arguments.rounds):
                    if cold:
                        shutil.rmtree(cache)
                        Path(cache).mkdir()
                    worker = Worker(bench, one, {"NUMBA_CACHE_DIR": cache})
                    answer = worker.run(cells=1)
                    row["open_s"].append(round(worker.open_s, 3))
                    row["first_batch_s"].append(round(answer["first_batch_s"], 3))
                    worker.close()
                rows.append({"contender": worker.title, **row})
                medians = np.median(row["open_s"]), np.median(row["first_batch_s"])
                print(f"{worker.title}, {name}: open {medians[0]:.2f} s, first batch {medians[1]:.2f} s", flush=True)
                if one.contender == "peer":
                    break
    save("first-batch", arguments, bench.facts, rows)


def wait(arguments: argparse.Namespace) -> None:
    """Run epochs under a training step of 10 ms that keeps a core busy, and one that waits as for a GPU.

    The wait for the first batch of an epoch, which nothing can hide, is told apart from the others.
    """
    bench = prepared(arguments)
    rows: list[dict[str, Any]] = []
    for batch_size in (128, 512, 1024):
        setting = replace(BLOCKS, name=f"batch {batch_size}", batch_size=batch_size)
        for one in jobs_of(bench, ("direct", "peer"), setting):
            worker = Worker(bench, one)
            worker.run(at_most_s=bench.warm_up_s)
            for busy in (True, False):
                step = "busy" if busy else "idle"
                row: dict[str, Any] = {"contender": worker.title, "setting": setting.name, "step": step}
                row |= {"wait_share": [], "wait_share_with_first": []}
                for _ in range(arguments.rounds):
                    seconds = bench.total_s / bench.rounds
                    answer = worker.run(cells=10**12, at_most_s=seconds, step_s=0.01, busy=busy)
                    work_s, wait_s, first_s = answer["step_s"], answer["wait_s"], answer["wait_first_s"]
                    row["wait_share"].append(round(wait_s / (wait_s + work_s), 4))
                    row["wait_share_with_first"].append(round((wait_s + first_s) / (wait_s + first_s + work_s), 4))
                rows.append(row)
                shares = np.median(row["wait_share"]), np.median(row["wait_share_with_first"])
                print(f"{worker.title}, {setting.name}, {step} step: waits {shares[0]:.1%} ({shares[1]:.1%})")
            worker.close()
    save("wait", arguments, bench.facts, rows)


def counting(arguments: argparse.Namespace) -> None:
    """Count in a thread beside an epoch in the same process, and in another process beside the same epoch.

    Both sides are timed: the counts, and the cells that the loader hands over meanwhile.
    """
    bench = prepared(arguments)
    rows: list[dict[str, Any]] = []
    for one in jobs_of(bench, ("direct", "zarr", "peer"), BLOCKS):
        worker, other = Worker(bench, one), Worker(bench, one)
        seconds = bench.total_s / bench.rounds
        worker.run(at_most_s=bench.warm_up_s)
        row: dict[str, Any] = {"contender": worker.title, "setting": one.setting.name}
        row |= {key: [] for key in ("inside_per_s", "beside_per_s", "lost", "cells_inside", "cells_beside")}
        for _ in range(arguments.rounds):
            inside = worker.run(cells=10**12, at_most_s=seconds, count=True)
            worker.send(cells=10**12, at_most_s=seconds)
            counts_beside = other.run(count_for_s=0.9 * seconds)["counts_per_s"]
            beside = worker.receive()
            row["inside_per_s"].append(round(inside["counts_per_s"]))
            row["beside_per_s"].append(round(counts_beside))
            row["lost"].append(round(1 - inside["counts_per_s"] / counts_beside, 4))
            row["cells_inside"].append(round(inside["cells"] / inside["seconds"], 1))
            row["cells_beside"].append(round(beside["cells"] / beside["seconds"], 1))
        rows.append(row)
        print(
            f"{worker.title}: a counting thread loses {np.median(row['lost']):.1%}; "
            f"{np.median(row['cells_inside']):,.0f} cells/s beside it, "
            f"{np.median(row['cells_beside']):,.0f} beside a counting process",
            flush=True,
        )
        worker.close()
        other.close()
    save("counting", arguments, bench.facts, rows)
