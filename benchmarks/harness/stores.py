"""Where does everything lie, and who writes each store?

1. A `Bench` knows the input, the environments and the stores, all of which are kept in the work folder.
2. `prepare` makes a contender's environment and its store, `prepare_each` those of several at a time; `jobs_of` leaves
   out who cannot run here.
3. `write_store` writes one in a process of its own, which `worker_command` and `worker_environment` describe.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import BENCHMARKS
from harness.contenders.registry import CONTENDERS
from harness.environments import Environment, Unavailable
from harness.jobs import Job
from harness.machine import cores
from harness.settings import Setting

CORES_OF_WRITER = 4
"""Cores for each store that is written at the same time as others."""


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


def jobs_of(bench: Bench, contenders: Iterable[str], setting: Setting, label: str = "", train: str = "") -> list[Job]:
    """Give the jobs, at one setting, of those contenders that can run here; say which cannot, and why."""
    jobs = []
    for name in contenders:
        try:
            store = prepare(bench, name)
        except Unavailable as error:
            print(f"  left out: {CONTENDERS[name].title}: {error}", flush=True)
            continue
        jobs.append(Job(name, setting, bench.files, "" if store is None else str(store), label, train))
    return jobs


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
    if store.exists():
        raise Unavailable(f"{store} exists but was not finished; remove it")
    print(f"{owner.title} writes {store}", flush=True)
    done.write_text(json.dumps(write_store(bench, owner.environment, entry.store, store)) + "\n")
    return store


def prepare_each(bench: Bench, contenders: Iterable[str]) -> None:
    """Let contenders write their stores, several at a time where there are cores for it.

    How long each takes then says little.
    """

    def attempt(contender: str) -> None:
        try:
            prepare(bench, contender)
        except Unavailable as error:
            print(f"  {CONTENDERS[contender].title}: {error}", flush=True)

    one_of_each = {CONTENDERS[name].store: name for name in contenders}
    with ThreadPoolExecutor(max(1, cores() // CORES_OF_WRITER)) as pool:
        list(pool.map(attempt, one_of_each.values()))


def write_store(bench: Bench, environment: Environment | None, way: str, store: Path) -> dict[str, Any]:
    """Write a store from the input in a process of its own; give seconds, CPU seconds, peak memory and bytes.

    Parameters
    ----------
    bench
        The input and the environments.
    environment
        Where the process runs.
    way
        Key of `registry.WRITERS`.
    store
        Path that does not exist yet.

    Raises
    ------
    Unavailable
        If its environment cannot be made or it cannot write.
    """
    store.parent.mkdir(exist_ok=True)
    command = worker_command(bench.python(environment), "write", way, store, *bench.files)
    answer = subprocess.run(command, env=worker_environment(), stdout=subprocess.PIPE, text=True, check=False)
    measured: dict[str, Any] = json.loads(answer.stdout or '{"error": "no answer"}')
    if "error" in measured:
        raise Unavailable(f"writing {store} failed: {measured['error']}")
    return measured | {"bytes": sum(path.stat().st_size for path in store.rglob("*") if path.is_file())}
