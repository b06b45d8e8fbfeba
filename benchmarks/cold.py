"""How fast do loaders read what is not in memory, and how many bytes does that take?

1. Local stores: each worker runs an epoch cold, after the system was made to drop its files (`harness.page_cache`), and
   then the same warm, in interleaved rounds. The bytes that its process had read from the device are counted.
2. ``cat`` of the same files, cold and warm, stands beside that: no reader of whole files is faster.
3. An object store on loopback, nginx, which counts requests and bytes for all contenders alike: what an epoch asks of a
   store that is far away and paid for by request. One epoch is counted, behind one that reads the indexes of shards.

Usage: ``python benchmarks/cold.py [--contenders direct,peer] [--settings 512x32,32x256] [--cells 200000] …``
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.command_line import options, prepared
from harness.contenders.registry import CODECS, CONTENDERS, of_codec
from harness.environments import Unavailable
from harness.jobs import Job
from harness.page_cache import forget
from harness.range_server import Traffic, range_server
from harness.results import median, print_table, save
from harness.rounds import Worker, as_row, check_sums
from harness.settings import SETTINGS, Setting
from harness.stores import Bench, jobs_of

LOCAL = (*map(of_codec, CODECS), "direct-peer-store", "peer")
REMOTE = (*map(of_codec, CODECS), "peer-remote-fused")
STATES = ("cold", "warm")


def started(bench: Bench, jobs: Sequence[Job]) -> list[Worker]:
    """Start the workers of those jobs that can run here; each warms up with one epoch."""
    workers = []
    for job in jobs:
        try:
            worker = Worker(bench, job)
            check_sums(worker, worker.run(epochs=1, thorough=True))
            workers.append(worker)
        except Unavailable as error:
            print(f"  left out: {job.label or CONTENDERS[job.contender].title}: {error}", flush=True)
    return workers


def rows_of(worker: Worker, answers: list[dict[str, Any]], **facts: Any) -> dict[str, Any]:
    """Give the row of one worker in one state."""
    worker.rounds = answers
    return as_row(worker) | facts


def local(bench: Bench, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Run epochs of all jobs, cold and warm."""
    workers = started(bench, jobs)
    answers: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for number in range(bench.rounds):
        for worker in workers:
            for state in STATES:
                answer = worker.run(epochs=1, forget=worker.job.store if state == "cold" else None)
                check_sums(worker, answer)
                answers.setdefault((worker.title, state), []).append(answer)
        rates = ", ".join(
            f"{one.title} {' / '.join(f'{rate(answers[one.title, state][-1]):,.0f}' for state in STATES)}"
            for one in workers
        )
        print(f"  round {number + 1}: {rates} cells/s, cold / warm", flush=True)
    rows = []
    for state in STATES:
        for worker in workers:
            own = answers[worker.title, state]
            read = [answer["device_bytes"] for answer in own]
            facts = {"device_bytes_per_cell": None if None in read else [n / bench.facts["n_obs"] for n in read]}
            rows.append(rows_of(worker, own, state=state, store=Path(worker.job.store).name, **facts))
    for worker in workers:
        worker.close()
    return rows


def rate(answer: dict[str, Any]) -> float:
    """Cells in a second."""
    return float(answer["cells"] / answer["seconds"])


def cat(bench: Bench, jobs: Sequence[Job], setting: Setting) -> list[dict[str, Any]]:
    """Time ``cat`` of the files that each store's epoch reads, cold and warm: in cells per second."""
    rows = []
    for store in dict.fromkeys(Path(job.store) for job in jobs):
        files = [str(path) for path in store.rglob("*") if path.is_file() and "/X/" in str(path)]
        seconds: dict[str, list[float]] = {state: [] for state in STATES}
        for _ in range(bench.rounds):
            for state in STATES:
                if state == "cold":
                    forget(store)
                began = time.perf_counter()
                subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True)
                seconds[state].append(time.perf_counter() - began)
        n_bytes = sum(Path(path).stat().st_size for path in files)
        rows += [
            {
                "contender": f"cat of {store.name}",
                "setting": setting.name,
                "state": state,
                "store": store.name,
                "cells_per_s": [round(bench.facts["n_obs"] / one, 1) for one in seconds[state]],
                "bytes_per_s": [n_bytes / one for one in seconds[state]],
            }
            for state in STATES
        ]
    return rows


def remote(bench: Bench, names: Sequence[str], setting: Setting) -> list[dict[str, Any]]:
    """Run epochs on an object store, and count what each asks for."""
    rows = []
    with range_server(bench.input / "stores", [0.0], traffic=(traffic := Traffic())) as urls:
        jobs = [replace(job, store=f"{urls[0.0]}/{Path(job.store).name}") for job in jobs_of(bench, names, setting)]
        for worker in started(bench, jobs):
            before = traffic.count()
            answer = worker.run(epochs=1)
            check_sums(worker, answer)
            requests, n_bytes = (after - earlier for after, earlier in zip(traffic.count(), before, strict=True))
            n_obs = bench.facts["n_obs"]
            facts = {"requests_per_1000_cells": 1000 * requests / n_obs, "bytes_per_cell": n_bytes / n_obs}
            rows.append(rows_of(worker, [answer], state="object store", **facts))
            print(f"  {worker.title}: {median(rows[-1]):,.0f} cells/s", flush=True)
            worker.close()
    return rows


def main() -> None:
    """Run the benchmark from the command line."""
    parser = options("Time loaders with files that are not in memory, and count what they read.")
    parser.add_argument("--contenders", default=",".join(LOCAL), help=f"on the local disk, of {', '.join(CONTENDERS)}")
    parser.add_argument("--remote", default=",".join(REMOTE), help="the same on an object store; empty for none")
    parser.add_argument("--settings", default="512x32,32x256", help="which settings of bench.py to run")
    parser.add_argument(
        "--prepare", action="store_true", help="only generate the input, the environments and the stores"
    )
    arguments = parser.parse_args()
    names, remotes = arguments.contenders.split(","), [name for name in arguments.remote.split(",") if name]
    settings = arguments.settings.split(",")
    for given, known in (([*names, *remotes], CONTENDERS), (settings, SETTINGS)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    bench = prepared(arguments)
    rows: list[dict[str, Any]] = []
    for number, setting in enumerate(map(SETTINGS.__getitem__, settings)):
        print(f"setting {setting.name}", flush=True)
        jobs = jobs_of(bench, names, setting)
        if arguments.prepare:
            jobs_of(bench, remotes, setting)
            continue
        rows += local(bench, jobs)
        if not number:
            rows += cat(bench, jobs, setting)
        if remotes:
            try:
                rows += remote(bench, remotes, setting)
            except Unavailable as error:
                print(f"  left out: the object store: {error}", flush=True)
    if not rows:
        return
    timed = [row for row in rows if "cpu_s" in row]
    for state in dict.fromkeys(row["state"] for row in timed):
        print(f"\n{state}")
        print_table([row for row in timed if row["state"] == state], reference=CONTENDERS["peer"].title)
    save("cold", arguments, bench.facts, rows)


if __name__ == "__main__":
    main()
