"""How do the elements of an array get from its chunks to their places in the batches?

`Elements` stands for one long array (``X/data`` or ``X/indices`` of one store). It turns `Pieces` into tasks: functions
without arguments that any thread may run, each of which reads some chunks once and scatters what the window wants.

1. `DirectElements` serves local zarr v3 arrays whose codecs our kernels know: bytes are read, decoded and cast into
   their final places without zarr and without the GIL.
2. `ZarrElements` serves everything else that zarr, or NumPy, can index.
3. `elements_of` chooses, and says why.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zarr

from annbatch.codecs import Workspace
from annbatch.errors import CorruptStoreError, StoreError
from annbatch.kernels import Status, copy_types, native_types, scatter_buffer
from annbatch.plan import Pieces
from annbatch.shards import ShardedArray

Task = Callable[[], None]

DIRECT = True
"""Whether the direct path is taken where it can be; benchmarks and tests turn it off to measure and compare."""

TASK_BYTES = 1 << 21
"""Decoded bytes that make a task worth while."""

MAX_FILES = 64
"""Files that one task keeps open."""

_of_thread = threading.local()


class Elements(Protocol):
    """One long array whose elements can be scattered."""

    dtype: np.dtype[Any]
    size: int
    chunk_elements: int

    def tasks(self, pieces: Pieces, dtype: np.dtype[Any], limit: int | None, keep: Any, n_workers: int) -> list[Task]:
        """Give the tasks that put all pieces in their places.

        Parameters
        ----------
        pieces
            Planned for ``chunk_elements`` and for the size of ``dtype``.
        dtype
            Type of the elements at the destination.
        limit
            If given, values must be >= 0 and below it.
        keep
            Whatever owns the memory behind the addresses; every task holds on to it.
        n_workers
            Threads that will run the tasks.
        """


def elements_of(name: str, array: Any) -> tuple[Elements, str | None]:
    """Choose how an array is read: the elements, and the reason why zarr reads them, if it does."""
    direct = direct_array(array)
    if isinstance(direct, str):
        return ZarrElements(name, array), direct
    return DirectElements(direct), None


def direct_array(array: Any) -> ShardedArray | str:
    """Open a zarr array for the direct path, or say why that cannot be."""
    if not DIRECT:
        return "the direct path is turned off"
    if not isinstance(array, zarr.Array):
        return "it is in memory"
    if array.metadata.zarr_format != 3:
        return f"it is zarr v{array.metadata.zarr_format}, not v3"
    if type(array.store) is not zarr.storage.LocalStore:
        return f"its store is a {type(array.store).__name__}, not a local directory"
    return ShardedArray.open(Path(array.store.root) / array.path)


ZARR = "zarr.core.codec_pipeline.BatchedCodecPipeline"
ZARRS = "zarrs.ZarrsCodecPipeline"


@contextmanager
def codec_pipeline(path: str) -> Iterator[None]:
    """Let arrays that are opened meanwhile use a codec pipeline; the setting of the process is put back afterwards."""
    with zarr.config.set({"codec_pipeline.path": path}):
        yield


class ThisProcess:
    """A zarr or NumPy array that may be indexed after a fork, too.

    What zarrs opened before a fork hangs in the child, so a child opens the array again, with zarr's own codecs.
    """

    def __init__(self, array: Any) -> None:
        self._array = array
        self._pid = os.getpid()

    def get(self) -> Any:
        """Give the array that this process may read."""
        if self._pid != os.getpid():
            if isinstance(self._array, zarr.Array):
                with codec_pipeline(ZARR):
                    self._array = zarr.open_array(store=self._array.store, path=self._array.path, mode="r")
            self._pid = os.getpid()
        return self._array


def workspace() -> Workspace:
    """Give the calling thread's workspace."""
    if not hasattr(_of_thread, "workspace"):
        _of_thread.workspace = Workspace()
    found: Workspace = _of_thread.workspace
    return found


class DirectElements:
    """A local array that the kernels read."""

    def __init__(self, array: ShardedArray) -> None:
        self._array = array
        self.dtype = array.dtype
        self.size = math.prod(array.shape)
        self.chunk_elements = array.chunk_elements

    def tasks(self, pieces: Pieces, dtype: np.dtype[Any], limit: int | None, keep: Any, n_workers: int) -> list[Task]:
        """Let the workers share the chunks out between them; each starts once, so that Python is seldom needed."""
        shards = pieces.chunks // self._array.tables.layout.chunks_per_shard
        new_shard = np.diff(shards, prepend=-1) > 0
        edges = np.append(np.flatnonzero(new_shard)[::MAX_FILES], len(shards)).tolist()
        if len(edges) <= 2:
            n_tasks = min(n_workers, -(-len(shards) * self.chunk_elements * self.dtype.itemsize // TASK_BYTES))
            prepared = self._array.prepare(*self._arguments(pieces, slice(0, len(shards)), dtype, limit))
            return [partial(self._work, prepared, keep)] * n_tasks
        parts = [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
        # Files are found, and let go, by each task: a window of single rows may touch every file of a collection.
        return [partial(self._scatter, self._arguments(pieces, part, dtype, limit), keep) for part in parts]

    def _arguments(self, pieces: Pieces, part: slice, dtype: np.dtype[Any], limit: int | None) -> tuple[Any, ...]:
        bounds = pieces.bounds[part.start : part.stop + 1]
        return pieces.chunks[part], bounds, pieces.sources, pieces.lengths, pieces.targets, dtype, limit

    def _work(self, prepared: Callable[[Workspace], None], keep: Any) -> None:
        prepared(workspace())

    def _scatter(self, arguments: tuple[Any, ...], keep: Any) -> None:
        self._array.scatter(workspace(), *arguments)


class ZarrElements:
    """A zarr or NumPy array, read through its own indexing; of two dimensions only whole rows are wanted."""

    def __init__(self, name: str, array: Any) -> None:
        self.name = name
        self._array = ThisProcess(array)
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)
        self.size = math.prod(array.shape)
        self._width = max(1, math.prod(array.shape[1:]))
        rows = int(array.chunks[0]) if isinstance(array, zarr.Array) else array.shape[0]
        self.chunk_elements = max(1, rows * self._width)

    def tasks(self, pieces: Pieces, dtype: np.dtype[Any], limit: int | None, keep: Any, n_workers: int) -> list[Task]:
        """Read neighbouring chunks together, and no element before the first or behind the last wanted one."""
        at = np.repeat(pieces.chunks * self.chunk_elements, np.diff(pieces.bounds)) + pieces.sources
        per_task = max(1, 4 * TASK_BYTES // (self.chunk_elements * self.dtype.itemsize))
        first_of_run = np.flatnonzero(np.diff(pieces.chunks, prepend=-2) > 1)
        run_of_chunk = np.cumsum(np.diff(pieces.chunks, prepend=-2) > 1) - 1
        in_run = np.arange(len(pieces.chunks)) - first_of_run[run_of_chunk]
        edges = pieces.bounds[np.append(np.flatnonzero(in_run % per_task == 0), len(pieces.chunks))].tolist()
        return [
            partial(self._scatter, at[a:b], pieces.lengths[a:b], pieces.targets[a:b], dtype, limit, keep)
            for a, b in zip(edges[:-1], edges[1:], strict=True)
        ]

    def _scatter(self, at: Any, lengths: Any, targets: Any, dtype: np.dtype[Any], limit: int | None, keep: Any) -> None:
        first, last = int(at.min()) // self._width, -(-int((at + lengths).max()) // self._width)
        start, stop = first * self._width, last * self._width
        try:
            values = np.asarray(self._array.get()[first:last]).reshape(-1)
        except Exception as e:
            raise StoreError(f"{self.name}: elements [{start}, {stop}) cannot be read: {e}") from e
        types = native_types(values.dtype, dtype) if values.dtype.isnative else None
        if types is None:
            with np.errstate(all="ignore"):
                values = values.astype(dtype)
            types = copy_types(dtype)
        elif limit is not None and values.dtype.kind == "i":
            # Seen as unsigned, negative values lie above every limit of half the range.
            limit = min(limit, 1 << (8 * values.itemsize - 1))
        source = np.ascontiguousarray(values).view(types[0])
        status = scatter_buffer(
            source, at - start, lengths, targets, -1 if limit is None else limit, np.empty(0, types[1])
        )
        if status != Status.OK:
            raise CorruptStoreError(
                f"{self.name}: elements [{start}, {stop}): {Status(status).text}"
                + (f" of {limit}" if status == Status.LIMIT else "")
            )
