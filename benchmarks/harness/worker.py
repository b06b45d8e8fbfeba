"""What happens inside one contender's process?

1. It is started with a `Job` as JSON, opens the store, and says so (``ready``, with the seconds that took).
2. Each line on its standard input asks for one round; it runs whole epochs, or a fixed number of cells where the
   contender is slow, touches every batch, and answers with one line: cells, seconds, CPU seconds, sums, peak memory.
3. An empty line, or the end of the input, ends it.

A round may carry a training step (``step_s``), a counting thread (``count``), or nothing but counting. It may begin
with files that are not in memory (``forget``).
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from harness.contenders.registry import CONTENDERS, WRITERS
from harness.environments import Unavailable
from harness.jobs import Epoch, Job
from harness.page_cache import device_bytes, forget
from harness.settings import Setting
from harness.touch import touch


def descendants() -> list[str]:
    """Give the numbers of this process's living children and of theirs, where ``/proc`` lists them."""
    found = [str(os.getpid())]
    for pid in found:
        children = Path(f"/proc/{pid}/task/{pid}/children")
        if children.exists():
            found += children.read_text().split()
    return found[1:]


def peak_rss_bytes() -> int:
    """Peak memory of this process and of its living children, and of theirs."""
    if not Path("/proc/self/status").exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    total = 0
    for path in (Path(f"/proc/{pid}/status") for pid in ("self", *descendants())):
        if path.exists():
            total += next((int(line.split()[1]) for line in path.read_text().splitlines() if "VmHWM" in line), 0)
    return total * 1024


def cpu_seconds() -> float:
    """CPU seconds, user and system, of this process, of its children, and of theirs, living or not.

    Where there is no ``/proc``, children count when they have ended. Those that live count in steps of 10 ms.
    """
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for path in (Path(f"/proc/{pid}/stat") for pid in descendants()):
        if path.exists():
            # The name, in parentheses, may hold anything; times of a process and of its ended children follow.
            fields = path.read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return total


class Counter(threading.Thread):
    """A thread of pure Python that counts until it is told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.count, self.wanted, self.started = 0, True, time.perf_counter()

    def run(self) -> None:
        while self.wanted:
            self.count += 1

    def rate(self) -> float:
        """Stop and give the counts per second."""
        seconds = time.perf_counter() - self.started
        self.wanted = False
        self.join()
        return self.count / seconds


def train(step_s: float, busy: bool) -> None:
    """Stand for a training step: keep a core busy with NumPy, or wait as for a GPU."""
    end = time.perf_counter() + step_s
    if not busy:
        time.sleep(step_s)
        return
    x = np.ones(4096, np.float32)
    while time.perf_counter() < end:
        x.sum()


def run_round(epoch: Epoch, command: dict[str, Any], needs_touch: bool, model: str = "") -> dict[str, Any]:
    """Run one round and give what was measured."""
    limit = command.get("cells")
    if command.get("forget"):
        forget(Path(command["forget"]))
    device_before = device_bytes()
    wait_s = step_s = 0.0
    first_s: list[float] = []
    cells = n_batches = 0
    sum_values: Any = 0
    sum_columns: Any = 0
    trainer = None
    if model:
        from harness.training import Trainer

        trainer = Trainer(model)
    counter = Counter() if command.get("count") else None
    if counter is not None:
        counter.start()
    cpu_before, started = cpu_seconds(), time.perf_counter()
    deadline = started + command.get("at_most_s", float("inf"))
    done = False
    epochs = 0
    while not done:
        batches = iter(epoch())
        is_first = True
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            waited = time.perf_counter() - asked
            if batch is None:
                break
            cells += batch.n_rows
            n_batches += 1
            if is_first:
                first_s.append(waited)
            else:
                wait_s += waited
            is_first = False
            if command.get("step_s"):
                train(command["step_s"], command.get("busy", False))
                step_s += command["step_s"]
            elif trainer is not None:
                trainer.step(batch)
            elif needs_touch:
                values, columns = touch(batch, command.get("thorough", False))
                sum_values += values
                sum_columns = None if columns is None else sum_columns + columns
            if (limit is not None and cells >= limit) or time.perf_counter() > deadline:
                done = True
                break
        del batches, batch
        epochs += not done
        done = done or (limit is None and epochs >= command.get("epochs", 1))
    # What a GPU was asked for is done when its sums are there, or its losses.
    sum_values, sum_columns = int(sum_values), None if sum_columns is None else int(sum_columns)
    trained = {} if trainer is None else trainer.finish()
    seconds, cpu_s = time.perf_counter() - started, cpu_seconds() - cpu_before
    return trained | {
        "cells": cells,
        "seconds": seconds,
        "cpu_s": cpu_s,
        "epochs": epochs,
        "batches": n_batches,
        "first_batch_s": first_s[0],
        "wait_s": wait_s,
        "wait_first_s": sum(first_s),
        "step_s": step_s,
        "sum_values": sum_values,
        "sum_columns": sum_columns,
        "counts_per_s": counter.rate() if counter is not None else None,
        "peak_rss_bytes": peak_rss_bytes(),
        "device_bytes": None if device_before is None else (device_bytes() or 0) - device_before,
    }


def serve(job: Job, answer: Any) -> None:
    """Open ``job`` and answer commands until the input ends."""

    def say(message: dict[str, Any]) -> None:
        answer.write(json.dumps(message) + "\n")
        answer.flush()

    contender = CONTENDERS[job.contender]
    started = time.perf_counter()
    try:
        epoch = contender.open(job)
    except (ImportError, Unavailable) as error:
        say({"error": f"{type(error).__name__}: {error}"})
        return
    say({"ready": True, "open_s": time.perf_counter() - started})
    for line in sys.stdin:
        if not line.strip():
            break
        command = json.loads(line)
        if "count_for_s" in command:
            counter = Counter()
            counter.start()
            time.sleep(command["count_for_s"])
            say({"counts_per_s": counter.rate()})
        else:
            say(run_round(epoch, command, contender.needs_touch, job.train))


def main() -> None:
    """Serve a job, or write a store: ``serve JOB`` or ``write OWNER STORE INPUT...``."""
    warnings.simplefilter("ignore")
    # Progress bars and prints of libraries must not get between the answers.
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)
        try:
            if sys.argv[1] == "write":
                cpu_before, started = cpu_seconds(), time.perf_counter()
                WRITERS[sys.argv[2]](sys.argv[4:], sys.argv[3])
                seconds, cpu_s = time.perf_counter() - started, cpu_seconds() - cpu_before
                measured = {"seconds": seconds, "cpu_s": cpu_s, "peak_rss_bytes": peak_rss_bytes()}
                answer.write(json.dumps(measured) + "\n")
            else:
                fields = json.loads(sys.argv[2])
                serve(Job(**{**fields, "setting": Setting(**fields["setting"])}), answer)
        except Exception as error:
            traceback.print_exc()
            answer.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
            raise SystemExit(1) from error


if __name__ == "__main__":
    main()
