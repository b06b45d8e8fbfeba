"""How do the elements of an array get from its chunks to their places in the batches?

`Elements` stands for one long array (``X/data`` or ``X/indices`` of one store); `plan_work` turns `Pieces` of the
arrays of several stores into `Work`: functions without arguments that read chunks once and scatter what is wanted.

1. `DirectElements` are local zarr arrays, and datasets of HDF5 files, whose codecs our kernels know: bytes are read,
   decoded and cast into their final places without zarr or HDF5 and without the GIL, those of like arrays in one call.
2. `RemoteElements` are such arrays in an object store: their chunks are fetched long before the work is planned
   (`annbatch.stores.chunk_arrival`), and the same kernels decode them from memory.
3. `ZarrElements` are everything else that zarr, h5py or NumPy can index.
4. `elements_of` chooses, and says why.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, Protocol, Self

import numpy as np

from annbatch.counters import BYTES_DECODED, ZARR_NS, of_thread, waiting
from annbatch.errors import CorruptStoreError, StoreError
from annbatch.plan.chunk_pieces import Pieces
from annbatch.remote.remote_array import RemoteArray
from annbatch.shards.chunk_files import MAX_FILES, ChunkFiles
from annbatch.shards.codecs import Workspace
from annbatch.shards.decode_kernels import Status
from annbatch.shards.local_array import ShardedArray
from annbatch.shards.scatter import Form, Scatter
from annbatch.shards.scatter_kernels import copy_types, native_types, scatter_buffer
from annbatch.shards.shard_index import Located
from annbatch.stores.array_opening import ThisProcess, own_array

Task = Callable[[], None]

TASK_BYTES = 1 << 21
"""Decoded bytes that make a task worth while."""

MAX_ELEMENTS = 1 << 62
"""Elements that no array has, so that sums of their numbers fit."""

_of_thread = threading.local()


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What has to be done to fill memory."""

    shared: list[Task] = field(default_factory=list)
    """Every worker calls all of these; they share their chunks out between them."""
    single: list[Task] = field(default_factory=list)
    """One worker calls each of these."""

    def __iadd__(self, other: Work) -> Self:
        self.shared.extend(other.shared)
        self.single.extend(other.single)
        return self


class Elements(Protocol):
    """One long array whose elements can be scattered."""

    dtype: np.dtype[Any]
    size: int
    chunk_elements: int


def alike_runs(arrays: Sequence[Elements], pieces: Pieces) -> Iterator[tuple[list[Elements], Pieces]]:
    """Give runs of arrays that are read together, with their pieces."""
    first = 0
    for _, run in groupby(arrays, lambda array: (type(array), getattr(array, "form", None))):
        alike = list(run)
        yield alike, pieces.of_arrays(first, first + len(alike))
        first += len(alike)


def plan_work(
    arrays: Sequence[Elements],
    pieces: Pieces,
    dtype: np.dtype[Any],
    limit: int | None,
    keep: Any,
    located: Iterator[Located | None],
) -> Work:
    """Say how all pieces get to their places.

    Parameters
    ----------
    arrays
        The arrays.
    pieces
        Planned for their chunks and for the size of ``dtype``.
    dtype
        Type of the elements at the destination.
    limit
        If given, values must be >= 0 and below it.
    keep
        Whatever owns the memory behind the addresses; every task holds on to it.
    located
        Where chunks are that `annbatch.stores.chunk_arrival.request_chunks` got into memory; None for those that are to
        be read, and nothing if all are.
    """
    work, n_open = Work(), 0
    for alike, part in alike_runs(arrays, pieces):
        first = alike[0]
        if isinstance(first, DirectElements):
            tables = [array.tables for array in alike if isinstance(array, DirectElements)]
            in_memory = next(located, None)
            if in_memory is not None:
                layouts = [of_array.layout for of_array in tables]
                scatter = Scatter(first.form, layouts, part, dtype, limit, in_memory)
                work.shared.append(partial(_run, scatter, keep))
                continue
            per_shard = [of_array.layout.chunks_per_shard for of_array in tables]
            n_files = len(part.file_starts(per_shard))
            n_open += n_files
            if n_files and n_open <= MAX_FILES:
                scatter = Scatter.of(first.form, tables, part, dtype, limit)
                work.shared.append(partial(_run, scatter, keep))
                continue
            # Files are found, and let go, by each task: a window of single rows may touch every file of a collection.
            for few in part.parts(per_shard, MAX_FILES):
                work.single.append(partial(_find_and_run, first.form, tables, few, dtype, limit, keep))
        elif isinstance(first, RemoteElements):
            layouts = [array.tables.layout for array in alike if isinstance(array, RemoteElements)]
            fetched = next(located)
            assert fetched is not None
            scatter = Scatter(first.form, layouts, part, dtype, limit, fetched)
            work.shared.append(partial(_run, scatter, keep))
        else:
            for i, array in enumerate(alike):
                assert isinstance(array, ZarrElements)
                work.single.extend(array.tasks(part.of_arrays(i, i + 1), dtype, limit, keep))
    return work


def _run(scatter: Scatter, keep: Any) -> None:
    scatter.run(workspace())


def _find_and_run(
    form: Form, tables: Sequence[ChunkFiles], pieces: Pieces, dtype: np.dtype[Any], limit: int | None, keep: Any
) -> None:
    Scatter.of(form, tables, pieces, dtype, limit).run(workspace())


def elements_of(name: str, array: Any, recorded: Mapping[str, int]) -> tuple[Elements, str | None]:
    """Choose how an array is read: the elements, and the reason why zarr reads them, if it does."""
    direct = own_array(array, recorded)
    if isinstance(direct, str):
        return ZarrElements(name, array), direct
    return RemoteElements(direct) if isinstance(direct, RemoteArray) else DirectElements(direct), None


def workspace() -> Workspace:
    """Give the calling thread's workspace."""
    if not hasattr(_of_thread, "workspace"):
        _of_thread.workspace = Workspace()
    found: Workspace = _of_thread.workspace
    return found


class DirectElements:
    """A local array, or a dataset of an HDF5 file, that the kernels read."""

    def __init__(self, array: ShardedArray) -> None:
        self.array = array
        self.form = array.form
        self.tables = array.tables
        self.dtype = array.dtype
        self.size = math.prod(array.shape)
        self.chunk_elements = array.chunk_elements


class RemoteElements:
    """An array in an object store whose chunks the kernels decode."""

    def __init__(self, array: RemoteArray) -> None:
        self.form = array.form
        self.tables = array.tables
        self.dtype = array.form.dtype
        self.size = math.prod(array.shape)
        self.chunk_elements = array.form.chunk_elements


class ZarrElements:
    """A zarr, HDF5 or NumPy array, read through its own indexing; of two dimensions only whole rows are wanted."""

    def __init__(self, name: str, array: Any) -> None:
        self.name = name
        self._array = ThisProcess(array)
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)
        self.size = math.prod(array.shape)
        self._width = max(1, math.prod(array.shape[1:]))
        # What is in memory is cut for the threads alone.
        of_task = max(1, TASK_BYTES // (self._width * self.dtype.itemsize))
        rows = int(chunks[0]) if (chunks := getattr(array, "chunks", None)) else of_task
        # A store may say that chunks are larger than any number that plans can hold.
        self.chunk_elements = max(1, min(rows * self._width, self.size))
        if self.size >= MAX_ELEMENTS:
            raise StoreError(f"{name}: must have fewer than 2**62 elements, got {self.size}")

    def tasks(self, pieces: Pieces, dtype: np.dtype[Any], limit: int | None, keep: Any) -> list[Task]:
        """Read neighbouring chunks together, and no element before the first or behind the last wanted one."""
        own = slice(pieces.bounds[0], pieces.bounds[-1])
        at = np.repeat(pieces.chunks * self.chunk_elements, np.diff(pieces.bounds)) + pieces.sources[own]
        lengths, targets = pieces.lengths[own], pieces.targets[own]
        per_task = max(1, 4 * TASK_BYTES // (self.chunk_elements * self.dtype.itemsize))
        first_of_run = np.flatnonzero(np.diff(pieces.chunks, prepend=-2) > 1)
        run_of_chunk = np.cumsum(np.diff(pieces.chunks, prepend=-2) > 1) - 1
        in_run = np.arange(len(pieces.chunks)) - first_of_run[run_of_chunk]
        firsts = np.append(np.flatnonzero(in_run % per_task == 0), len(pieces.chunks))
        edges = (pieces.bounds[firsts] - own.start).tolist()
        return [
            partial(self._scatter, at[a:b], lengths[a:b], targets[a:b], dtype, limit, keep)
            for a, b in zip(edges[:-1], edges[1:], strict=True)
        ]

    def _scatter(self, at: Any, lengths: Any, targets: Any, dtype: np.dtype[Any], limit: int | None, keep: Any) -> None:
        first, last = int(at.min()) // self._width, -(-int((at + lengths).max()) // self._width)
        start, stop = first * self._width, last * self._width
        try:
            with waiting(ZARR_NS):
                values = np.asarray(self._array.get()[first:last]).reshape(-1)
        except Exception as e:
            raise StoreError(f"{self.name}: elements [{start}, {stop}) cannot be read: {e}") from e
        of_thread()[BYTES_DECODED] += values.nbytes
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
