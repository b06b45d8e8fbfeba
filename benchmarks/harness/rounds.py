"""How are contenders timed so that the noise of the machine falls on all of them alike?

1. `prepare` makes a contender's environment and its store, both kept in the work folder.
2. `Worker` is one contender's process, waiting to be told to run.
3. `measure` starts all workers of one setting, lets each warm up for an epoch, and then runs them one at a time,
   interleaved: A B C, A B C, … A slow one is timed on a fixed number of batches, and its row says so.
4. The sums that each found in whole epochs are compared with those of the input.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness import BENCHMARKS
from harness.contenders.registry import CONTENDERS, Job, Setting
from harness.environments import Environment, Unavailable


@dataclass(frozen=True, slots=True)
class Bench:
    """Where everything lies, and how long it may take."""

    input: Path
    """Folder of the generated files and of ``input.json``."""
    environments: Path
    """Folder of the contenders' environments."""
    rounds: int = 5
    """Timed rounds a contender and setting."""
    total_s: float = 12.0
    """Seconds that the timed rounds of one contender last together, at least."""
    warm_up_s: float = 20.0
    """A contender whose first epoch takes longer is slow: it is timed on a fixed number of batches."""
    pythons: dict[str, Path] = field(default_factory=dict)
    """Environments that exist already: name -> interpreter."""

    @property
    def facts(self) -> dict[str, Any]:
        """What `generate.generate` says about the input."""
        facts: dict[str, Any] = json.loads((self.input / "input.json").read_text())
        return facts

    @property
    def files(self) -> tuple[str, ...]:
        """The input's ``.h5ad`` files."""
        return tuple(str(self.input / name) for name in self.facts["files"])

    def store(self, owner: str) -> Path:
        """Where ``owner`` keeps the store that it wrote from the input."""
        return self.input / "stores" / owner

    def python(self, environment: Environment | None) -> Path:
        """Give the interpreter of an environment; None is this project's."""
        if environment is None:
            return Path(sys.executable)
        if environment.name in self.pythons:
            return self.pythons[environment.name]
        return environment.python(self.environments)


def worker_command(python: Path, *words: object) -> list[str]:
    """Give the command that runs `worker` under ``python``.

    ``-P`` keeps the current folder from being searched: run from a checkout, the peer would import this project's
    ``annbatch`` instead of its own.
    """
    return [str(python), "-P", "-m", "harness.worker", *map(str, words)]


def worker_environment() -> dict[str, str]:
    """Give the environment variables of a worker: nothing of this process's Python but where `harness` is."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return kept | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(BENCHMARKS)}


def runnable(bench: Bench, contenders: Iterable[str]) -> Iterator[tuple[str, Path | None]]:
    """Give the contenders that can run here, each with its store; says which cannot, and why."""
    for name in contenders:
        try:
            store = prepare(bench, name)
        except Unavailable as error:
            print(f"  left out: {CONTENDERS[name].title}: {error}", flush=True)
            continue
        yield name, store


def prepare(bench: Bench, contender: str) -> Path | None:
    """Let a contender write its store unless it is there; give the store's path.

    Raises
    ------
    Unavailable
        If its environment cannot be made or it cannot write.
    """
    entry = CONTENDERS[contender]
    bench.python(entry.environment)
    if entry.store is None:
        return None
    store = bench.store(entry.store)
    done = store.with_name(f"{store.name}.json")
    if done.exists():
        return store
    writers = [other for other in CONTENDERS.values() if other.store == entry.store and other.writes]
    owner = entry if entry.writes else writers[0]
    store.parent.mkdir(exist_ok=True)
    if store.exists():
        raise Unavailable(f"{store} exists but was not finished; remove it")
    print(f"{owner.title} writes {store}", flush=True)
    command = worker_command(bench.python(owner.environment), "write", entry.store, store, *bench.files)
    answer = subprocess.run(command, env=worker_environment(), stdout=subprocess.PIPE, text=True, check=False)
    measured = json.loads(answer.stdout or '{"error": "no answer"}')
    if "error" in measured:
        raise Unavailable(f"writing {store} failed: {measured['error']}")
    measured["bytes"] = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    done.write_text(json.dumps(measured) + "\n")
    return store


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


def measure(bench: Bench, jobs: Sequence[Job], warm_ups: int = 1) -> list[dict[str, Any]]:
    """Time jobs against each other; give one row each, in the format of the results.

    Where the first epoch compiles what others use, ``warm_ups`` is 2: the last one decides how long a round is.
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
        "seconds": round(sum(answer["seconds"] for answer in worker.rounds), 2),
        "whole_epochs": "cells" not in worker.round,
    }
