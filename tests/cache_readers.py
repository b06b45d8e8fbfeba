"""Processes that read one collection at once, through one cache or none: what ``test_cache.py`` and others start.

Usage: ``python cache_readers.py TASK PLACE CACHE LIMIT N OUTPUT WARM_UP``. TASK is one of

- ``together``: N processes each read two epochs;
- ``ranks``: N processes each read their part of two epochs;
- ``killed``: N processes, one after the other, are killed while they read; then one reads two epochs;
- a moment of `fault_matrix.MOMENTS`, at which a process becomes another user, who may not even look into the folders.

Each process writes what it read, or in the last case the outcome, to a file of its number in the folder OUTPUT. They
are forked from one that has compiled the kernels on the local collection WARM_UP; CACHE may be empty for none.
"""

from __future__ import annotations

import os
import pickle
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from annbatch import Partition
from annbatch.cache import PAGE_NBYTES, DiskCache
from fault_matrix import MOMENTS, outcome, two_epochs


def forked(work: Callable[[], Any], output: Path | None) -> int:
    """Let a child do some work, and write what it gives."""
    child = os.fork()
    if child:
        return child
    try:
        found = work()
        if output is not None:
            output.with_suffix(".part").write_bytes(pickle.dumps(found))
            output.with_suffix(".part").rename(output)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main() -> None:
    task, place, kept, limit, n, output, warm_up = sys.argv[1:]
    folder, count = Path(output), int(n)
    folder.mkdir()
    wanted = two_epochs(warm_up, lambda now: None)
    file = DiskCache(folder / "warm", 10**6).file("", "", "", PAGE_NBYTES)
    file.store(0, np.zeros(PAGE_NBYTES, np.uint8))
    assert file.load(np.array([0]), np.empty(PAGE_NBYTES, np.uint8)).all()
    options: dict[str, Any] = {"cache_dir": kept, "cache_limit": int(limit)} if kept else {}

    def work(partition: Partition = Partition(0, 1)) -> Any:
        return two_epochs(place, lambda now: None, partition=partition, threads=1, **options)

    def inject(now: str) -> None:
        if now == task:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)

    def as_nobody(pipe: int) -> None:
        with os.fdopen(pipe, "wb") as answer:
            run = partial(two_epochs, place, inject, **options)
            answer.write(pickle.dumps(outcome(run, wanted, is_remote="://" in place)))

    def forever() -> None:
        while True:
            work()

    children = []
    if task == "together":
        children = [forked(work, folder / f"{i}") for i in range(count)]
    elif task == "ranks":
        children = [forked(partial(work, Partition(i, count)), folder / f"{i}") for i in range(count)]
    elif task in MOMENTS:
        read, write = os.pipe()
        children = [forked(partial(as_nobody, write), None)]
        os.close(write)
        with os.fdopen(read, "rb") as answer:
            (folder / "0").write_bytes(answer.read())
    else:
        chance = random.Random(0)
        for i in range(count):
            child = forked(forever, None)
            time.sleep(chance.uniform(0.02, 0.4))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            if i % 4 == 3:
                for path in Path(kept).glob("*.annbatch-cache"):
                    path.unlink()
        children = [forked(work, folder / "0")]
    codes = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(any(codes))


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
