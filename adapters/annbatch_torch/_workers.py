"""Which epoch is it, and what was counted, if every worker process of a ``DataLoader`` has a copy of the loader?

Workers that are started anew for each epoch all begin with the same copy, and those that persist do not hear what the
parent says. Both share a small table in memory:

1. Workers of one iteration know each other by the seed that torch gave that iteration. The first of them to look takes
   the epoch behind the last one in the table; the others find it there.
2. A worker only writes to its own line, and a line carries a check, so nobody needs a lock: a line that is being
   written is read again.
3. Line 0 is the parent's: it says that the epoch was set.

What workers count goes to the parent by such a table, too (`SharedStats`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from annbatch.adapter import Stats

_MAX_WORKERS = 1024
_PATIENCE = 1000

_Lines = NDArray[np.int64]


class SharedEpoch:
    """The table; it goes to worker processes by fork or pickle and stays the same memory."""

    def __init__(self) -> None:
        # Epoch, iteration, check; epoch -1 means that nothing has happened.
        self._lines = torch.full((_MAX_WORKERS + 1, 3), -1, dtype=torch.int64)
        self._lines[:, 2] = int(_check(-1, -1))
        self._lines.share_memory_()  # type: ignore[no-untyped-call]
        self._heard = -1

    def set(self, epoch: int, *, resumes: bool = False) -> None:
        """Let the next iteration be ``epoch``, from its beginning or from a state that was loaded; for the parent."""
        for line in range(1, len(self._lines)):
            if int(self._lines[line, 0]) >= 0:
                self._write(line, -1, -1)
        self._heard = (int(self._lines[0, 1]) // 2 + 1) * 2 + resumes
        self._write(0, epoch, self._heard)

    def heard(self) -> int | None:
        """Give the epoch that the parent set, if it did so since this copy was made; for workers.

        Raises
        ------
        RuntimeError
            If it loaded a state, which this copy does not have.
        """
        epoch, announced = (int(word) for word in self._read()[0, :2])
        if announced == self._heard:
            return None
        if announced % 2:
            raise RuntimeError("a state was loaded after the workers of this DataLoader had started: make a new one")
        self._heard = announced
        return epoch

    def claim(self, worker: int, iteration: int, at_least: int) -> int:
        """Give the epoch of an iteration that this worker begins: one for all workers, and a new one each time."""
        lines = self._read()[1:]
        same = lines[lines[:, 1] == iteration]
        epoch = int(same[0, 0]) if len(same) else max(at_least, int(lines[:, 0].max()) + 1)
        self.note(worker, iteration, epoch)
        return epoch

    def note(self, worker: int, iteration: int, epoch: int) -> None:
        """Say which epoch this worker is in."""
        self._write(worker + 1, epoch, iteration)

    def _write(self, line: int, epoch: int, iteration: int) -> None:
        self._lines[line, 0] = epoch
        self._lines[line, 1] = iteration
        self._lines[line, 2] = int(_check(epoch, iteration))

    def _read(self) -> _Lines:
        for _ in range(_PATIENCE):
            lines: _Lines = self._lines.numpy().copy()
            whole = lines[:, 2] == _check(lines[:, 0], lines[:, 1])
            if whole.all():
                return lines
            time.sleep(0.001)
        # A worker was killed while it wrote.
        lines[~whole] = -1
        return lines


class SharedStats:
    """What each worker counted in its latest epoch; the parent reads it from the same memory."""

    def __init__(self) -> None:
        # Times in nanoseconds; a line holds the same number at both ends, unless it is being written.
        self._lines = torch.zeros((_MAX_WORKERS, 5 + len(_FIELDS)), dtype=torch.int64)
        self._lines.share_memory_()  # type: ignore[no-untyped-call]

    def clear(self) -> None:
        """Forget what workers counted: an epoch begins in the parent."""
        self._lines.zero_()

    def note(self, worker: int, iteration: int, began_ns: int, stats: Stats) -> None:
        """Say what this worker counted since it began an iteration."""
        line: NDArray[np.int64] = self._lines[worker].numpy()
        values = [getattr(stats, name) * unit for name, unit in _FIELDS]
        version = int(line[0]) + 1
        line[-1] = version
        line[1:-1] = [iteration, began_ns, time.monotonic_ns(), *map(round, values)]
        line[0] = version

    def read(self) -> Stats | None:
        """Give the counts of all workers of the latest iteration; None if there are none."""
        for _ in range(_PATIENCE):
            lines: _Lines = self._lines.numpy().copy()
            if (lines[:, 0] == lines[:, -1]).all():
                break
            time.sleep(0.001)
        lines = lines[(lines[:, 0] == lines[:, -1]) & (lines[:, 0] > 0)]
        if not len(lines):
            return None
        lines = lines[lines[:, 1] == lines[lines[:, 2].argmax(), 1]]
        each = [
            Stats(
                **{name: value / unit if unit > 1 else value for (name, unit), value in zip(_FIELDS, row, strict=True)}
            )
            for row in lines[:, 4:-1].tolist()
        ]
        return Stats.together(each, float(lines[:, 3].max() - lines[:, 2].min()) / 1e9)

    def noting(self, batches: Iterator[Any], worker: int, iteration: int, stats: Callable[[], Stats]) -> Iterator[Any]:
        """Give the batches of a worker, and note what ``stats`` says behind each of them."""
        began_ns = time.monotonic_ns()

        def noted(batch: Any) -> Any:
            self.note(worker, iteration, began_ns, stats())
            return batch

        # A generator would keep the batch until it is asked for the next one.
        return map(noted, batches)


# With how many of their units a second is, where they are seconds.
_FIELDS = [(field.name, 10**9 if isinstance(field.default, float) else 1) for field in fields(Stats)]


def _check(epoch: int | _Lines, iteration: int | _Lines) -> Any:
    """Tell a whole line from one that is half old and half new."""
    return np.asarray(epoch, np.int64) * 0x9E3779B1 ^ np.asarray(iteration, np.int64)
