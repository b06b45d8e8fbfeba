"""Processes that read one collection at once, through one cache or none: what ``test_cache.py`` and others start.

Usage: ``python cache_readers.py COLLECTION``. The kernels are compiled on that local collection. Then each line on
standard input is a JSON list of arguments for `run`, and is answered by a line when its processes have ended. They are
forked, which is much cheaper than to start them anew.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from annbatch import Partition
from annbatch.remote.disk_cache import PAGE_NBYTES, DiskCache
from fault_matrix import MOMENTS, Batches, outcome, two_epochs


def forked(work: Callable[[], Any], output: Path) -> int:
    """Let a child do some work, and write what it gives to a file that is open before."""
    child = os.fork()
    if child:
        return child
    try:
        with output.open("wb") as file:
            file.write(pickle.dumps(work()))
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def run(wanted: Batches, task: str, place: str, kept: str, limit: int, n: int, output: str) -> bool:
    """Start processes, wait for them, and say whether all went well.

    Each writes what it read, or the outcome, to a file of its number in the folder ``output``. The task is one of

    - ``together``: ``n`` processes each read two epochs;
    - ``ranks``: they each read their part of two epochs;
    - ``killed``: one after the other is killed while it reads; then one more reads two epochs;
    - a moment of `fault_matrix.MOMENTS`, at which a process becomes another user, who may not even look into the
      folders; it writes its outcome.
    """
    folder = Path(output)
    folder.mkdir()
    options: dict[str, Any] = {"cache_dir": kept, "cache_limit": limit} if kept else {}

    def work(partition: Partition = Partition(0, 1)) -> Batches:
        return two_epochs(place, lambda now: None, partition=partition, threads=1, **options)

    def inject(now: str) -> None:
        if now == task:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)

    def as_another() -> str:
        # zarr's own loop, with its descriptors, is made before they are counted.
        work()
        return outcome(partial(two_epochs, place, inject, **options), wanted, is_remote="://" in place)

    def forever() -> None:
        while True:
            work()

    if task == "together":
        children = [forked(work, folder / f"{i}") for i in range(n)]
    elif task == "ranks":
        children = [forked(partial(work, Partition(i, n)), folder / f"{i}") for i in range(n)]
    elif task in MOMENTS:
        children = [forked(as_another, folder / "0")]
    else:
        chance = random.Random(0)
        for i in range(n):
            child = forked(forever, folder / "killed")
            time.sleep(chance.uniform(0.02, 0.4))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            if i % 4 == 3:
                for path in Path(kept).glob("*.annbatch-cache"):
                    path.unlink()
        children = [forked(work, folder / "0")]
    codes = [os.waitpid(child, 0)[1] for child in children]
    return not any(codes)


def main() -> None:
    warnings.simplefilter("ignore")
    wanted = two_epochs(sys.argv[1], lambda now: None)
    with tempfile.TemporaryDirectory() as folder:
        file = DiskCache(Path(folder), 10**6).file("", "", "", PAGE_NBYTES)
        file.store(0, np.zeros(PAGE_NBYTES, np.uint8))
        assert file.load(np.array([0]), np.empty(PAGE_NBYTES, np.uint8)).all()
    for line in sys.stdin:
        print(json.dumps(run(wanted, *json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
