"""How fast is a collection read on this machine, with which settings?

1. `disk_rates` reads files as fast as the disk, and then as the memory gives them: no loader can be faster.
2. `run` lets a loader read for some seconds. `annbatch.Loader.stats` says what it took.
3. Before files are read cold, `forget` asks the system to drop what it keeps of them. `is_kept` says whether it did.

Nothing is written. Files of other programs stay in memory.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from annbatch.loader import Loader
from annbatch.stats import Stats

_BLOCK = 1 << 20
_SUMMED = (
    *("cells", "bytes_read", "requests", "seconds", "wait_seconds", "read_seconds", "request_seconds"),
    *("zarr_seconds", "decode_seconds", "plan_seconds"),
)


@dataclass(frozen=True, slots=True)
class Setting:
    """Options of a `Loader`."""

    batch_size: int
    """Rows in a batch."""
    chunk_size: int
    """Rows that are read contiguously."""
    preload_nchunks: int
    """Blocks in a window."""
    threads: int
    """Threads that read and decode."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a loader did in some seconds."""

    cells_per_second: float
    """Cells of the batches that were handed over."""
    decode_cells_per_second: float
    """What the threads could decode if reading took no time."""
    bytes_per_second: float
    """Bytes read from files or received from an object store."""
    requests: int
    """Requests to an object store."""
    waits_for: str | None
    """What the caller waited for, as `annbatch.Stats.waits_for` says."""
    memory_bytes: int
    """Most memory that batches took at once."""
    cells_of_pass: int
    """Cells of the longest pass over the beginning of the epoch."""

    @classmethod
    def of(cls, epochs: Sequence[Stats]) -> Self:
        """Add up epochs, or their beginnings."""
        total = {name: sum(getattr(one, name) for one in epochs) for name in _SUMMED}
        peak = max(one.peak_slab_bytes for one in epochs)
        stats = Stats(**total, threads=epochs[0].threads, peak_slab_bytes=peak)
        decode_s = stats.decode_seconds / max(1, stats.threads)
        return cls(
            stats.cells_per_second,
            stats.cells / decode_s if decode_s else 0.0,
            stats.bytes_read / stats.seconds if stats.seconds else 0.0,
            stats.requests,
            stats.waits_for,
            peak,
            max(one.cells for one in epochs),
        )


def run(
    loader: Loader,
    seconds: float,
    *,
    at_most_cells: int | None = None,
    prepare: Callable[[], object] | None = None,
) -> Run:
    """Let a loader read the beginning of epoch 0 for so many seconds, and again where that is shorter.

    Parameters
    ----------
    loader
        The loader; every run gets the same batches of it.
    seconds
        How long to read.
    at_most_cells
        How many cells to read before it begins anew; None means all.
    prepare
        What is done before each pass. Its time does not count as reading, but it is part of ``seconds``.
    """
    end, epochs = time.monotonic() + seconds, []
    while True:
        if prepare is not None:
            prepare()
        loader.set_epoch(0)
        began = time.monotonic()
        n_cells = 0
        for batch in loader:
            n_cells += batch.n_rows
            if time.monotonic() > end or (at_most_cells is not None and n_cells >= at_most_cells):
                break
        del batch
        epochs.append(loader.stats())
        if time.monotonic() + (time.monotonic() - began) / 2 > end:
            loader.close()
            return Run.of(epochs)


def files_of(folder: Path) -> list[Path]:
    """Give the files of a collection that hold data."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".json"))


def can_forget() -> bool:
    """Say whether this system can be asked to drop files from memory."""
    return hasattr(os, "posix_fadvise")


def forget(files: Sequence[Path]) -> None:
    """Ask the system to drop what it keeps of files in memory."""
    for path in files:
        fd = os.open(path, os.O_RDONLY)
        try:
            # Pages that are not yet on the disk would stay.
            os.fdatasync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def is_kept(path: Path) -> bool | None:
    """Say whether the middle of a file is in memory; None where the system does not say.

    Linux answers truly only to those who may write to the file (mincore(2)). A read that must not wait (preadv2(2) with
    RWF_NOWAIT) is no way to ask: Linux begins to read what is not there, and a fast disk may have done so by then.
    """
    mincore = getattr(ctypes.CDLL(None), "mincore", None)
    if mincore is None or not os.access(path, os.W_OK):
        return None
    start = path.stat().st_size // 2 // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    found = np.zeros(1, np.uint8)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_READ, offset=start) as page:
            view = np.frombuffer(page, np.uint8)
            failed = mincore(*map(ctypes.c_void_p, (view.ctypes.data, 1, found.ctypes.data)))
            del view
    except OSError:
        # Not every file system can map files.
        return None
    return None if failed else bool(found[0] & 1)


def disk_rates(files: Sequence[Path], threads: int, seconds: float) -> tuple[float | None, float]:
    """Read files in blocks of 1 MiB, cold and then from memory; gives bytes per second of both.

    Cold is None where files cannot be dropped from memory, or stay there.
    """
    blocks = [(path, start) for path in files for start in range(0, path.stat().st_size, _BLOCK)]
    # Neighbours together, so that the system reads ahead; pieces of 64 MiB from all over the collection.
    pieces = [blocks[i : i + 64] for i in range(0, len(blocks), 64)]
    random.Random(0).shuffle(pieces)
    cold = None
    if can_forget():
        forget(files)
        if not is_kept(max(files, key=lambda path: path.stat().st_size)):
            cold, n_read = _read(pieces, threads, seconds / 2)
            pieces = pieces[:n_read]
    else:
        _read(pieces, threads, seconds / 2)
    return cold, _read(pieces, threads, seconds / 2)[0]


def _read(pieces: Sequence[Sequence[tuple[Path, int]]], threads: int, seconds: float) -> tuple[float, int]:
    """Read pieces with several threads; give bytes per second, and how many of the pieces were read."""
    began, todo = time.perf_counter(), iter(pieces)
    n_begun = 0

    def own() -> Iterator[Sequence[tuple[Path, int]]]:
        nonlocal n_begun
        while time.perf_counter() - began < seconds and (piece := next(todo, None)) is not None:
            n_begun += 1
            yield piece

    def work() -> int:
        buffer, done = bytearray(_BLOCK), 0
        for piece in own():
            fds: dict[Path, int] = {}
            try:
                for path, start in piece:
                    if path not in fds:
                        fds[path] = os.open(path, os.O_RDONLY)
                    done += os.preadv(fds[path], [buffer], start)
            finally:
                for fd in fds.values():
                    os.close(fd)
        return done

    with ThreadPoolExecutor(threads) as pool:
        found = [pool.submit(work) for _ in range(threads)]
        done = sum(one.result() for one in found)
    return done / max(1e-9, time.perf_counter() - began), max(1, n_begun)
