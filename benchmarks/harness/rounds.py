"""How are contenders timed so that the noise of the machine falls on all of them alike?

1. `Worker` is one contender's process, waiting to be told to run. Its files are read into the page cache first, because
   the warm-up of a slow contender ends before it has read them all.
2. `measure` starts all workers of one setting, lets each warm up for an epoch, and then runs them one at a time,
   interleaved: A B C, A B C, … A slow one is timed on a fixed number of batches, and its row says so.
3. The sums that each found in whole epochs are compared with those of the input.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.contenders.registry import CONTENDERS
from harness.environments import Unavailable
from harness.jobs import Job
from harness.page_cache import load
from harness.settings import Setting
from harness.stores import Bench, worker_command, worker_environment


class Worker:
    """One contender's process.

    Raises
    ------
    Unavailable
        If the contender cannot open its store.
    """

    def __init__(self, bench: Bench, job: Job, variables: dict[str, str] | None = None) -> None:
        self.job = job
        self.rounds: list[dict[str, Any]] = []
        self.round: dict[str, Any] = {}
        for path in [job.store] if job.store else job.inputs:
            load(Path(path))
        python = bench.python(CONTENDERS[job.contender].environment)
        self._process = subprocess.Popen(
            worker_command(python, "serve", json.dumps(asdict(job))),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=worker_environment() | (variables or {}),
            text=True,
        )
        try:
            self.open_s: float = self.receive()["open_s"]
        except Unavailable:
            self.close()
            raise

    @property
    def title(self) -> str:
        """How tables call it."""
        return self.job.label or CONTENDERS[self.job.contender].title

    def send(self, **command: Any) -> None:
        """Start a round."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """Wait for what the worker says next."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise Unavailable(answer["error"])
        return answer

    def run(self, **command: Any) -> dict[str, Any]:
        """Run one round and give what it measured."""
        self.send(**command)
        return self.receive()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def choose_round(bench: Bench, setting: Setting, warm_up: dict[str, Any]) -> dict[str, Any]:
    """Decide from the warm-up how much one round runs: whole epochs, or a fixed number of cells."""
    round_s = bench.total_s / bench.rounds
    if warm_up["epochs"]:
        return {"epochs": math.ceil(round_s / warm_up["seconds"])}
    # Whole windows, so that what was read ahead is also used.
    rate = warm_up["cells"] / warm_up["seconds"]
    unit = setting.window if warm_up["cells"] >= setting.window else setting.batch_size
    return {"cells": max(1, math.ceil(rate * round_s / unit)) * unit}


def measure(
    bench: Bench,
    jobs: Sequence[Job],
    warm_ups: int = 1,
    keep: Callable[[list[dict[str, Any]]], None] | None = None,
) -> list[dict[str, Any]]:
    """Time jobs against each other; give one row each, in the format of the results.

    Where the first epoch compiles what others use, ``warm_ups`` is 2: the last one decides how long a round is.
    ``keep`` is given the rows so far after each round.
    """
    workers = []
    for job in jobs:
        try:
            workers.append(Worker(bench, job))
        except Unavailable as error:
            print(f"  left out: {job.label or CONTENDERS[job.contender].title}: {error}", flush=True)
    for worker in list(workers):
        try:
            for _ in range(warm_ups):
                warm_up = worker.run(at_most_s=bench.warm_up_s, thorough=True)
                check_sums(worker, warm_up)
            worker.round = choose_round(bench, worker.job.setting, warm_up)
            print(f"  {worker.title}: first {warm_up['cells']} cells in {warm_up['seconds']:.2f} s", flush=True)
        except Unavailable as error:
            print(f"  left out: {worker.title}: {error}", flush=True)
            workers.remove(worker)
    for number in range(bench.rounds):
        for worker in list(workers):
            try:
                worker.rounds.append(worker.run(**worker.round))
            except Unavailable as error:
                print(f"  left out: {worker.title}: {error}", flush=True)
                workers.remove(worker)
        rates = ", ".join(f"{worker.rounds[-1]['cells'] / worker.rounds[-1]['seconds']:,.0f}" for worker in workers)
        print(f"  round {number + 1}: {rates} cells/s", flush=True)
        if keep is not None:
            keep([as_row(worker) for worker in workers])
    rows = []
    for worker in workers:
        for answer in worker.rounds:
            check_sums(worker, answer)
        rows.append(as_row(worker))
        worker.close()
    return rows


def check_sums(worker: Worker, answer: dict[str, Any]) -> None:
    """Compare what whole epochs summed up with what was generated.

    Raises
    ------
    ValueError
        If a contender gave other data than the input holds.
    """
    if not CONTENDERS[worker.job.contender].needs_touch or not answer["epochs"] or "cells" in worker.round:
        return
    facts = json.loads((Path(worker.job.inputs[0]).parent / "input.json").read_text())
    wanted_sums = () if worker.job.train else (("sum_values", "sum_values"), ("sum_columns", "sum_columns"))
    for key, wanted in (("cells", "n_obs"), *wanted_sums):
        if answer[key] is not None and answer[key] != answer["epochs"] * facts[wanted]:
            raise ValueError(
                f"{worker.title}: {key} of {answer['epochs']} epochs must be {answer['epochs'] * facts[wanted]}, "
                f"got {answer[key]}"
            )


def as_row(worker: Worker) -> dict[str, Any]:
    """Give a worker's measurements as a row of the results."""
    trained = {}
    if worker.job.train:
        idle = [round(1 - answer["train_s"] / answer["seconds"], 4) for answer in worker.rounds]
        trained = {"idle_share": idle, "losses": worker.rounds[-1]["losses"]}
    return trained | {
        "contender": worker.title,
        "setting": worker.job.setting.name,
        "cells_per_s": [round(answer["cells"] / answer["seconds"], 1) for answer in worker.rounds],
        "peak_rss_bytes": worker.rounds[-1]["peak_rss_bytes"],
        "cells_per_round": worker.rounds[0]["cells"],
        "cells_per_cpu_s": [round(answer["cells"] / answer["cpu_s"], 1) for answer in worker.rounds],
        "seconds": round(sum(answer["seconds"] for answer in worker.rounds), 2),
        "cpu_s": round(sum(answer["cpu_s"] for answer in worker.rounds), 2),
        "whole_epochs": "cells" not in worker.round,
    }
