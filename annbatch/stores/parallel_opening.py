"""How are many ``.h5ad`` files opened in less time than one after the other takes?

HDF5 does one thing at a time in a process, so that threads would not help. Other processes do:

1. `open_h5ads` opens files in their order. It skips those that the index knows. Once it is clear that the others take
   long enough, it starts workers.
2. A `Worker` is a plain interpreter that runs `serve`. A fork would copy the locks of threads that it does not have,
   and a process of `multiprocessing` would run the user's script again.
3. Workers get files from the end, a few at once, and answer with their stores, while this process goes on from the
   front.
4. What a worker cannot open, or opens with a warning or a log message, is opened again here. So errors, warnings and
   messages are what they would be without workers. If a worker dies, its files are opened here, too.
"""

from __future__ import annotations

import logging
import multiprocessing.spawn
import os
import subprocess
import sys
import time
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from logging.handlers import BufferingHandler
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from annbatch.check import available_cores
from annbatch.stores import array_opening
from annbatch.stores.anndata_store import Store, Wanted
from annbatch.stores.file_index import FileIndex
from annbatch.stores.h5ad_file import known_h5ad, open_h5ad
from annbatch.stores.obs_access import ObsInFile

_WORTH_S = 3.0
"""Seconds of work for which a worker is started. Starting one takes 1.5 to 1.8 s of an AMD EPYC, for its imports."""

_MAX_WORKERS = 8
"""Workers at most: each takes 200 MB of memory."""

_FILES_AT_ONCE = 4
"""Files that a worker is asked for at once."""

_RUNS_AHEAD = 2
"""How often a worker is asked before it has answered, so that it does not wait."""

_PATIENCE_S = 10.0
"""How long a worker may take to finish the files that it has when they are not needed any more."""


@dataclass(slots=True, eq=False)
class Worker:
    """A process that opens files."""

    process: subprocess.Popen[bytes]
    connection: Connection[Any, Any]
    is_ready: bool = False
    """Whether its imports are done."""
    n_runs: int = 0
    """How often it was asked and has not answered yet."""
    max_runs: int = _RUNS_AHEAD
    """How often it is asked before it has answered; 0 if asking it is of no use."""

    @classmethod
    def start(cls, wanted: Wanted, index: FileIndex | None) -> Worker:
        """Start a process; raises an error of any type if that cannot be done."""
        ours, theirs = Pipe()
        with theirs:
            descriptor = theirs.fileno()
            paths = [str(path) for path in sys.path]
            code = (
                f"import sys; sys.path[:] = {paths!r}; from annbatch.stores.parallel_opening import serve; "
                f"serve({descriptor})"
            )
            nothing = subprocess.DEVNULL
            process = subprocess.Popen(
                [_interpreter(), "-c", code], stdin=nothing, stdout=nothing, stderr=nothing, pass_fds=[descriptor]
            )
        worker = cls(process, ours)
        try:
            ours.send((wanted, index, _filters()))
        except BaseException:
            worker.close()
            raise
        return worker

    def ask(self, files: dict[int, Path]) -> None:
        """Ask for the stores of some files, by their numbers."""
        self.n_runs += 1
        self.connection.send(files)

    def answer(self) -> dict[int, Store | None]:
        """Wait for the next answer: stores, None for files to be opened elsewhere. The first answer has none."""
        found: dict[int, Store | None] = self.connection.recv()
        if not self.is_ready:
            self.is_ready = True
            return found
        self.n_runs -= 1
        if all(store is None for store in found.values()):
            self.max_runs = 0
        return found

    def close(self) -> None:
        """End the process; it may finish what it has, since it may be writing to the index."""
        self.connection.close()
        if not self.is_ready:
            self.process.kill()
        try:
            self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def open_h5ads(files: Sequence[Path], wanted: Wanted, index: FileIndex | None = None) -> list[Store]:
    """Open ``.h5ad`` files as `open_h5ad` opens one.

    Raises
    ------
    InputError, StoreError
        What `open_h5ad` raises for the first file that cannot be opened.
    """
    openings = _Openings(files, wanted, index)
    left, n_opened, began = openings.left, 0, 0.0
    with closing(openings):
        while left:
            openings.open(left.popleft())
            n_opened += 1
            if n_opened == 1:
                # What a process does only once took part of the time until now.
                began = _own_time_s()
            elif not openings.has_started:
                openings.start(_n_workers((_own_time_s() - began) / (n_opened - 1) * len(left)))
            openings.exchange(timeout_s=0)
        while openings.is_asked:
            openings.exchange(timeout_s=None)
    return openings.all_stores()


class _Openings:
    """Files, those of their stores that are there, and workers."""

    def __init__(self, files: Sequence[Path], wanted: Wanted, index: FileIndex | None) -> None:
        self._files, self._wanted, self._index = files, wanted, index
        self._stores = [None if index is None else known_h5ad(file, wanted, index) for file in files]
        self._workers: list[Worker] = []
        self.left = deque(number for number, store in enumerate(self._stores) if store is None)
        """Numbers of the files that nobody has begun with, ascending."""
        self.has_started = False
        """Whether there are workers, or were."""

    def open(self, number: int) -> None:
        """Open a file here."""
        self._stores[number] = open_h5ad(self._files[number], self._wanted, self._index)

    def start(self, n_workers: int) -> None:
        """Start workers."""
        for _ in range(n_workers):
            self.has_started = True
            # Without them it takes longer, and that is all.
            with suppress(Exception):
                self._workers.append(Worker.start(self._wanted, self._index))

    @property
    def is_asked(self) -> bool:
        """Whether a worker has files."""
        return any(worker.n_runs for worker in self._workers)

    def exchange(self, timeout_s: float | None) -> None:
        """Take what workers have answered, and ask them for more; None waits for an answer."""
        if not self._workers:
            return
        answered = wait([worker.connection for worker in self._workers], timeout_s)
        for worker in [worker for worker in self._workers if worker.connection in answered]:
            try:
                self._take(worker.answer())
                while self.left and worker.n_runs < worker.max_runs:
                    worker.ask(self._few())
            except Exception:  # noqa: BLE001 it died, or what it says makes no sense
                self._workers.remove(worker)
                worker.close()

    def all_stores(self) -> list[Store]:
        """Give all stores, and open those that are not there."""
        for number, store in enumerate(self._stores):
            if store is None:
                self.open(number)
        return [store for store in self._stores if store is not None]

    def close(self) -> None:
        """End the workers."""
        while self._workers:
            self._workers.pop().close()

    def _few(self) -> dict[int, Path]:
        """Take files from the end: fewer when few are left, so that all end at the same time."""
        n = min(_FILES_AT_ONCE, len(self.left) // (2 * len(self._workers) + 2))
        return {number: self._files[number] for number in [self.left.pop() for _ in range(max(1, n))]}

    def _take(self, found: Mapping[int, Store | None]) -> None:
        for number, store in found.items():
            if store is not None and isinstance(store.obs, ObsInFile):
                # The worker's copy of the index would say once more that it cannot be written.
                self._stores[number] = replace(store, obs=replace(store.obs, kept=self._index))


def _own_time_s() -> float:
    """Give the time, less that in which other programs kept this thread from running: they would keep workers, too."""
    try:
        _, waited_ns, _ = Path("/proc/thread-self/schedstat").read_text().split()
    except (OSError, ValueError):
        waited_ns = "0"
    return time.perf_counter() - int(waited_ns) / 1e9


def _n_workers(left_s: float) -> int:
    """Say how many workers pay for so many seconds of work."""
    if not array_opening.DIRECT or not Path(_interpreter()).name.startswith("python"):
        # Workers know nothing of that switch. In programs that embed Python, there may be no interpreter to start.
        return 0
    return max(0, min(available_cores() - 1, _MAX_WORKERS, int(left_s / _WORTH_S)))


def _interpreter() -> str:
    """Give the path of the interpreter, as processes of `multiprocessing` get it."""
    return os.fsdecode(multiprocessing.spawn.get_executable() or "")


def _filters() -> list[tuple[Any, ...]]:
    """Give the filters of warnings, so that they can be pickled."""
    return [tuple(getattr(part, "pattern", part) for part in one) for one in warnings.filters]


def serve(descriptor: int) -> None:
    """Open the files that another process asks for, until it closes the connection; what a worker runs."""
    connection: Connection[Any, Any] = Connection(descriptor)
    messages = BufferingHandler(sys.maxsize)
    messages.setLevel(logging.WARNING)
    logging.getLogger().addHandler(messages)
    try:
        wanted, index, filters = connection.recv()
        with warnings.catch_warnings(record=True) as warned:
            warnings.resetwarnings()
            for action, text, category, module, line in filters:
                warnings.filterwarnings(action, text or "", category, module or "", line, append=True)
            connection.send({})
            while True:
                stores: dict[int, Store | None] = {}
                for number, file in connection.recv().items():
                    warned.clear()
                    messages.flush()
                    try:
                        stores[number] = open_h5ad(file, wanted, index)
                    except Exception:  # noqa: BLE001 whoever asked finds out
                        stores[number] = None
                    if warned or messages.buffer:
                        stores[number] = None
                connection.send(stores)
    finally:
        # There is nothing to tidy up, and somebody waits for the end.
        os._exit(0)
