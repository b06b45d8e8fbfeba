"""Which faults, planted one at a time, does the suite not notice?

1. `modules.toml` says which modules are mutated, and which test files concern each of them.
2. `faults` lists what can be planted. Each fault is planted in a copy of the tree, where `trials` runs the tests.
3. What survived stands in ``results.json``; ``survivors.toml`` says why it may. `table.py` makes of both the page in
   the documentation.

A session is kept in ``.mutants`` for each state of a module's source. The same command goes on with one that was
interrupted, and runs the survivors of a finished one again, since the tests may have become better.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import trials
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkItem, WorkResult
from faults import Planter, difference, forget, judged, mutated, new_session
from kernel_caches import stale_kernels

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SESSIONS = ROOT / ".mutants"
RESULTS = HERE / "results.json"

FIRST_RUN = trials.Limits(cpu_s=1800, clock_s=3600)
"""Of unchanged tests, which may have many kernels to compile."""


class NoResultError(Exception):
    """Nothing can be said of a module: its tests fail unchanged, or do not concern it."""


def modules() -> dict[str, list[str]]:
    """Give the modules that are mutated, each with its test files."""
    with (HERE / "modules.toml").open("rb") as file:
        return tomllib.load(file)["modules"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of the modules' paths, say order/; none means all of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many mutants to run at a time")
    arguments = parser.parse_args()
    # Whoever ends it by a signal need not end its children and remove its files.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    names = arguments.names
    chosen = {path: tests for path, tests in modules().items() if not names or any(name in path for name in names)}
    if not chosen:
        sys.exit(f"no module in {HERE / 'modules.toml'} has a path with one of {names}")
    SESSIONS.mkdir(exist_ok=True)
    n_without = 0
    for path, tests in chosen.items():
        try:
            with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
                result = mutate(path, tests, Path(folder).resolve(), arguments.jobs)
        except NoResultError as e:
            n_without += 1
            print(f"{path}: no result: {e}", flush=True)
            continue
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results[path] = result
        RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1, ensure_ascii=False) + "\n")
        print(f"{path}: {result['killed']} of {result['mutants']} mutants killed", flush=True)
    if n_without:
        sys.exit(f"{n_without} of {len(chosen)} modules have no result")


def mutate(path: str, tests: list[str], folder: Path, n_jobs: int) -> dict[str, Any]:
    """Plant every fault in one module, and give what the tests noticed."""
    copies = [folder / str(i) for i in range(n_jobs)]
    copy_tree(copies[0])
    source = (copies[0] / path).read_text(encoding="utf-8")
    stale = {name: (copies[0] / name).read_text(encoding="utf-8") for name in stale_kernels(copies[0], path)}
    planter = Planter(path, source, stale)
    # The first run compiles kernels, and tells what is imported.
    first = passed(trials.run(copies[0], tests, FIRST_RUN, keep_bytecode=True))
    if str(copies[0] / path) not in first.imported.values():
        raise NoResultError("its tests do not import it")
    trials.import_packages(first.imported, copies[0])
    planter.plant(copies[0], source)
    unchanged = passed(trials.run(copies[0], tests, FIRST_RUN))
    limits = trials.Limits(cpu_s=5 + 3 * unchanged.cpu_s, clock_s=60 + 10 * max(unchanged.cpu_s, unchanged.clock_s))
    for copy in copies[1:]:
        shutil.copytree(copies[0], copy)
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    session = SESSIONS / f"{path.replace('/', '.')}-{digest}.sqlite"
    if not session.exists():
        new_session(session, path, source, copies[0])
    with use_db(str(session), WorkDB.Mode.open) as database:
        forget(database, [item.job_id for item, result in judged(database) if not result.is_killed])
        items = sorted(database.pending_work_items, key=lambda item: tuple(item.mutations[0].start_pos))
        print(
            f"{path}: {len(items)} mutants; the tests take {unchanged.cpu_s:.1f} s of CPU time, a mutant at most "
            f"{limits.cpu_s:.0f} s",
            flush=True,
        )
        unclear, failed = run_all(database, planter, items, copies, tests, limits)
        planter.plant(copies[0], source)
        last = trials.run(copies[0], tests, limits, first=failed)
        if last.is_killed is not False:
            forget(database, [item.job_id for item in items])
            raise NoResultError(f"the unchanged tests failed after the mutants:\n{last.output}")
        if unclear:
            raise NoResultError("\n".join([f"run it again for {len(unclear)} of its mutants:", *unclear]))
        return result_of(database) | {
            "source": digest,
            "date": date.today().isoformat(),
            "python": platform.python_version(),
        }


def passed(outcome: trials.Outcome) -> trials.Outcome:
    """Refuse tests that fail although nothing was changed."""
    if outcome.is_killed is not False:
        raise NoResultError(
            f"its tests must pass before a fault is planted, pytest ended with {outcome.code}:\n{outcome.output}"
        )
    return outcome


def run_all(
    database: WorkDB,
    planter: Planter,
    items: list[WorkItem],
    copies: list[Path],
    tests: list[str],
    limits: trials.Limits,
) -> tuple[list[str], list[str]]:
    """Run mutants, one in each copy at a time; give those without a result, and the tests that failed, latest first."""
    waiting, free = list(items), list(copies)
    running: dict[int, tuple[trials.Trial, WorkItem, str]] = {}
    unclear: list[str] = []
    failed: list[str] = []
    try:
        while waiting or running:
            while waiting and free:
                item = waiting.pop(0)
                source = mutated(planter.source, item)
                if source is None:
                    database.set_result(item.job_id, WorkResult(worker_outcome=WorkerOutcome.NO_TEST))
                    continue
                planter.plant(free[-1], source)
                trial = trials.begin(free.pop(), tests, limits, first=failed)
                running[trial.pid] = (trial, item, difference(planter.source, source))
            if not running:
                continue
            trial, outcome = trials.end_of_one([trial for trial, _, _ in running.values()])
            _, item, changes = running.pop(trial.pid)
            free.append(trial.copy)
            if outcome.failed is not None:
                # The next mutant, which is near this one, is likely to be noticed by the same test.
                with contextlib.suppress(ValueError):
                    failed.remove(outcome.failed)
                failed.insert(0, outcome.failed)
            if outcome.is_killed is None:
                unclear.append(f"pytest ended with {outcome.code} for\n{changes}\n{outcome.output[-2000:]}")
                continue
            if not outcome.is_killed:
                print(f"survived, line {item.mutations[0].start_pos[0]}:\n{changes}", flush=True)
            result = WorkResult(
                worker_outcome=WorkerOutcome.NORMAL,
                test_outcome=TestOutcome.KILLED if outcome.is_killed else TestOutcome.SURVIVED,
                output=outcome.output[-2000:],
                diff=changes,
            )
            database.set_result(item.job_id, result)
    finally:
        trials.stop(trial for trial, _, _ in running.values())
    return unclear, failed


def copy_tree(copy: Path) -> None:
    """Copy what tests need, with compiled kernels and the times that these hold for."""
    for name in ("annbatch", "adapters", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("results", "*.pyc"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy2(ROOT / name, copy / name)


def result_of(database: WorkDB) -> dict[str, Any]:
    n_killed, survivors = 0, []
    for item, result in judged(database):
        if result.is_killed:
            n_killed += 1
            continue
        changed = (result.diff or "").splitlines()
        survivors.append(
            {
                "line": item.mutations[0].start_pos[0],
                "was": " ".join(line[1:].strip() for line in changed if line.startswith("-")),
                "is": " ".join(line[1:].strip() for line in changed if line.startswith("+")),
            }
        )
    survivors.sort(key=lambda one: (one["line"], one["is"]))
    return {"mutants": n_killed + len(survivors), "killed": n_killed, "survivors": survivors}


if __name__ == "__main__":
    main()
