"""How does a window become batches?

1. `Fetcher.begin` sorts the rows, so that each store is read forwards and each chunk once (`annbatch.plan.window`), and
   requests what remote stores have to say of them.
2. `Fetcher.plan` lays out the rows of every batch (`annbatch.plan.row_places`), and requests chunks that are not in
   memory (`annbatch.stores.chunk_arrival`).
3. `Fetcher.read` lets every part of a batch (X, layers, obsm) take its memory and say what has to be read
   (`annbatch.batches.filling`).
4. A pool of threads reads, decodes and scatters; meanwhile labels are gathered (`annbatch.batches.label_rows`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from annbatch.batch import Batch, Emit, Modality
from annbatch.batches.casts import Emitted
from annbatch.batches.dense_on_host import DensePart
from annbatch.batches.device_decoding import part_of
from annbatch.batches.exact import check_exact
from annbatch.batches.filling import Filling
from annbatch.batches.label_rows import Codes, LabelReader, LabelRows, Waiting, padded
from annbatch.batches.on_device import HandOver, OnDevicePart
from annbatch.batches.sparse_on_host import SparsePart
from annbatch.buffers import MIN_SLAB_BYTES, SlabPool
from annbatch.counters import READ_NS, REQUEST_NS, Counters, waiting
from annbatch.device.window_memory import WindowMemoryPool
from annbatch.errors import InputError
from annbatch.order.consumers import Window
from annbatch.plan.column_map import ColumnMap
from annbatch.plan.column_selection import Selection
from annbatch.plan.row_places import RowPlan
from annbatch.plan.window import Found, WindowPlan, plan_readings
from annbatch.remote.request_pool import Requests
from annbatch.shards.chunk_files import MAX_FILES
from annbatch.shards.uncached_reads import UncachedReads
from annbatch.stores.anndata_store import SparseMatrix, Store
from annbatch.stores.cell_names import CellNames, Names, names_in_order
from annbatch.stores.chunk_arrival import ArrivingChunks, exceed_memory
from annbatch.stores.elements import TASK_BYTES, Elements, RemoteElements, Task, Work
from annbatch.stores.label_columns import Column
from annbatch.transform import LogNormalize, Transforms

REQUEST_BYTES = 1 << 28
"""Decoded size of the windows that are requested ahead from remote stores, unless that would be few or many windows."""


READ_BYTES = 1 << 25
"""Decoded size, as stored, of the small windows that are read at a time."""

T = TypeVar("T")

Element = tuple[str, str]
"""A modality, ``""`` where there are none, and an element of it: ``"X"``, ``"layers/…"`` or ``"obsm/…"``."""


@dataclass(frozen=True, slots=True, eq=False)
class Carried:
    """What batches carry of all stores, or of one modality of them."""

    stores: Sequence[Store]
    """The stores, in the order in which their rows are numbered."""
    values: Mapping[str, Emitted]
    """Per element of the stores: what its values come as."""
    selection: Selection | None
    """Which columns of X and layers are wanted; None means all."""
    columns: ColumnMap | None = None
    """Which joined column each column of a store becomes; None where stores have the same genes."""
    mask: str | None = None
    """The label column that says which rows have the modality; None if all have."""


@dataclass(frozen=True, slots=True, eq=False)
class BegunWindow:
    """A window of which it is known which rows it holds."""

    window: Window
    """Its rows and batches."""
    plan: WindowPlan
    """In which order its rows are read."""
    indptrs: dict[Element, list[Callable[[], Found]]]
    """Per element: what waits for the ``indptr`` of each store."""
    of_others: dict[Element, list[tuple[WindowPlan, list[Callable[[], Found]]]]]
    """Per element: the same for what other consumers get at the same time, where batches are to be alike."""
    labels: list[Waiting]
    """What waits for the labels."""
    names: list[Callable[[], Names]]
    """What waits for the names of cells, in each store; nothing if batches do not carry them."""


@dataclass(frozen=True, slots=True, eq=False)
class PlannedWindow:
    """A window before it is read."""

    begun: BegunWindow
    """Its rows."""
    rows: dict[Element, RowPlan]
    """Per element: where the rows lie, and where they go."""
    requested: dict[Element, list[ArrivingChunks]]
    """Per element: chunks on their way into memory."""


class Fetcher:
    """Reads windows; holds the threads and the memory to recycle.

    Parameters
    ----------
    carried
        What batches carry, by modality; under ``""`` where there are none. All are stores of the same rows.
    columns
        The label columns, over the same rows.
    emit
        What batches shall look like.
    batch_size
        Rows of a full batch.
    n_threads
        Threads that read, decode and scatter.
    slabs
        Where memory comes from.
    n_windows
        Windows that are in memory at once.
    return_index
        Whether batches carry row numbers.
    cell_names
        The names of each store's cells; None if batches do not carry them.
    staging
        Where windows lie on a device; None if batches stay on the host.
    decodes_on_device
        Whether the device decodes the chunks of sparse matrices.
    transforms
        What becomes of each batch.
    counters
        Those of the epoch.

    Raises
    ------
    InputError
        If ``emit`` asks for what cannot be made of these stores.
    """

    def __init__(
        self,
        carried: Mapping[str, Carried],
        columns: Sequence[Column],
        emit: Emit,
        batch_size: int,
        n_threads: int,
        slabs: SlabPool,
        n_windows: int,
        *,
        return_index: bool,
        cell_names: Sequence[CellNames] | None = None,
        staging: WindowMemoryPool | None = None,
        decodes_on_device: bool = False,
        transforms: Transforms,
        counters: Counters,
    ) -> None:
        self.counters = counters
        self._labels = LabelReader(columns)
        self._return_index = return_index
        self._cell_names = cell_names
        self.alike = emit.alike
        self._carried = carried
        stores = [store for one in carried.values() for store in one.stores]
        rows = [store.shape[0] for store in next(iter(carried.values())).stores]
        self._first_rows = np.cumsum([0, *rows], dtype=np.int64)
        self._slabs = slabs
        self._n_windows = n_windows
        self._n_threads = n_threads
        self._parts: dict[Element, SparsePart | DensePart] = {}
        for modality, one in carried.items():
            for element, wanted in one.values.items():
                name = f"{modality}:{element}" if modality else element
                matrices: list[Any] = [store.matrices[element] for store in one.stores]
                is_obsm = element.startswith("obsm/")
                chosen, form = (None, replace(emit, bfloat16=False)) if is_obsm else (one.selection, emit)
                joined = None if is_obsm else one.columns
                check = None
                if wanted.limit is not None:
                    check = partial(check_exact, name=name, dtype=wanted.dtype, limit=wanted.limit)
                kernel = transforms.kernels.get(name)
                arguments = form, wanted.dtype, batch_size, chosen, self._slabs, check, kernel, joined
                part: SparsePart | DensePart
                if wanted.is_sparse:
                    names = [f"{store.name} {element}" for store in one.stores]
                    part = SparsePart(matrices, names, *arguments)
                    if staging is not None and OnDevicePart.can_serve(part):
                        kind = part_of(matrices[0]) if decodes_on_device else OnDevicePart
                        part = kind(matrices, names, *arguments, staging=staging)
                else:
                    part = DensePart(matrices, *arguments)
                is_made_here = not isinstance(part, OnDevicePart)
                if form.bfloat16 and is_made_here:
                    raise InputError(
                        f"{name}: bfloat16 needs Loader(device='cuda') and a sparse matrix; this one is made on the CPU"
                    )
                if is_made_here and wanted.dtype == np.float16 and isinstance(kernel, LogNormalize):
                    raise InputError(f"{name}: dtype must be float32 or float64 with LogNormalize, got float16")
                self._parts[modality, element] = part
        self._hand_over = None if staging is None else HandOver(staging)
        self._transforms = transforms
        self.is_remote = any(isinstance(array, RemoteElements) for array in _arrays(stores))
        nbytes = sum(array.size * array.dtype.itemsize for array in _arrays(stores))
        self._batch_nbytes = nbytes / max(1, int(self._first_rows[-1])) * batch_size
        self._requests = Requests(counters)
        self._uncached = UncachedReads(MAX_FILES, counters) if exceed_memory(_arrays(stores)) else None
        self._pid = os.getpid()
        self._pool: Executor = ThreadPoolExecutor(n_threads, thread_name_prefix="annbatch")

    def n_ahead(self, n_batches: int) -> int:
        """Say how many windows of so many batches are planned, and requested from remote stores, ahead of reading."""
        if not self.is_remote:
            return 1
        return min(16, max(3, int(REQUEST_BYTES // max(1.0, n_batches * self._batch_nbytes))))

    def n_at_once(self, n_batches: int) -> int:
        """Say how many windows of so many batches are read at a time from a local disk to the host: a power of two."""
        if self.is_remote or self._hand_over is not None:
            return 1
        return 1 << max(1, int(READ_BYTES // max(1.0, n_batches * self._batch_nbytes))).bit_length() - 1

    def cancel(self) -> None:
        """End requests; whoever waits for them fails."""
        if self._pid == os.getpid():
            self._requests.cancel()

    def close(self) -> None:
        """Stop the threads; waits for tasks under way. A forked child has none of them, and leaves them alone."""
        if self._pid == os.getpid():
            self._pool.shutdown(wait=True, cancel_futures=True)
            if self._uncached is not None:
                self._uncached.close()

    def begin(self, window: Window, others: Sequence[Window] = ()) -> BegunWindow:
        """Say in which order a window's rows are read; waits for nothing.

        ``others`` are what other consumers get at the same time; they matter if batches are to be alike.
        """
        with self.counters.measured("plan"):
            return self._begin(window, others)

    def _begin(self, window: Window, others: Sequence[Window]) -> BegunWindow:
        plan, *theirs = (plan_readings(one.rows, one.cuts, self._first_rows) for one in (window, *others))
        indptrs = {element: part.locate(plan, self._requests) for element, part in self._parts.items()}
        of_others = {
            element: [(other, part.locate(other, self._requests)) for other in theirs]
            for element, part in self._parts.items()
        }
        names = []
        if self._cell_names is not None:
            names = [self._cell_names[one.store].begin(one.ranges, self._requests) for one in plan.readings]
        return BegunWindow(window, plan, indptrs, of_others, self._labels.begin(plan, self._requests), names)

    def plan(self, begun: BegunWindow) -> PlannedWindow:
        """Say where a window's rows lie and where they go; reads ``indptr``, and takes no memory for batches.

        The next window may be planned while this one is read.
        """
        with self.counters.measured("plan"):
            return self._plan(begun)

    def _plan(self, begun: BegunWindow) -> PlannedWindow:
        plan = begun.plan
        rows = {
            element: part.plan(plan, begun.indptrs[element], begun.of_others[element])
            for element, part in self._parts.items()
        }
        requested = {
            element: part.request(plan, rows[element], self._requests, self._uncached)
            for element, part in self._parts.items()
        }
        return PlannedWindow(begun, rows, requested)

    def read(self, planned: PlannedWindow) -> list[Batch]:
        """Read, decode and scatter a planned window, and give its batches."""
        begun = planned.begun
        window, plan, n_batches = begun.window, begun.plan, len(begun.window.cuts) - 1
        if not n_batches:
            return []
        with self.counters.measured("decode"):
            fillings = self._fillings(planned)
        work, n_bytes = Work(), 0
        for filling in fillings.values():
            work += filling.work
            n_bytes += filling.n_bytes
        slab_bytes = max(n_bytes, n_batches * MIN_SLAB_BYTES)
        self._slabs.max_idle_bytes = max(self._slabs.max_idle_bytes, self._n_windows * slab_bytes)
        # This thread does its share of the work: another one would have to be woken, and waited for.
        tasks = self._counted("decode", shared_out(work, self._n_threads, n_bytes))
        with running(self._pool, tasks[1:]):
            with self.counters.measured("decode"):
                labels = self._labels.read(plan, window.rows, begun.labels)
                names: Sequence[Names | None] = [None] * n_batches
                if self._cell_names is not None:
                    names = np.split(names_in_order(plan, begun.names), plan.cuts[1:-1])
            for task in tasks[:1]:
                task()
        matrices = {element: self._finished(filling, n_batches) for element, filling in fillings.items()}
        batches = [
            self._batch({element: of_batches[b] for element, of_batches in matrices.items()}, labels[b], names[b])
            for b in range(n_batches)
        ]
        if not self._transforms.functions or self._hand_over is not None:
            return batches
        return run(self._pool, self._counted("transform", [partial(self._transforms, batch) for batch in batches]))

    def hand_over(self, batch: Batch) -> Batch:
        """Make a batch that was read what it shall be, in the thread of whoever asked for it."""
        if self._hand_over is None:
            return batch
        made = self.counters.run("device", partial(self._hand_over, batch))
        return self.counters.run("transform", partial(self._transforms, made))

    def _fillings(self, planned: PlannedWindow) -> dict[Element, Filling]:
        """Take memory for a window when all that was requested is there, and say what fills it."""
        began = time.perf_counter_ns()
        with waiting(REQUEST_NS if self.is_remote else READ_NS):
            located = {element: [chunks.result() for chunks in each] for element, each in planned.requested.items()}
        if not self.is_remote:
            # The other threads have nothing to do meanwhile, either.
            self.counters.add(read=(self._n_threads - 1) * (time.perf_counter_ns() - began))
        return {
            element: part.begin(planned.begun.plan, planned.rows[element], iter(located.pop(element)))
            for element, part in self._parts.items()
        }

    def _counted(self, stage: str, tasks: Iterable[Callable[[], T]]) -> list[Callable[[], T]]:
        return [partial(self.counters.run, stage, task) for task in tasks]

    def _finished(self, filling: Filling, n_batches: int) -> list[Any]:
        if not filling.heavy:
            return [filling.finish(b) for b in range(n_batches)]
        return run(self._pool, self._counted("decode", [partial(filling.finish, b) for b in range(n_batches)]))

    def _batch(self, matrices: dict[Element, Any], labels: LabelRows, names: Names | None) -> Batch:
        index = labels.index
        n_padding = next(iter(matrices.values())).shape[0] - len(index)
        # A view would keep the names of the whole window in memory.
        own_names = None if names is None else np.append(names, np.full(n_padding, "", object))
        codes = Codes(labels, n_padding)
        held: dict[str, dict[str, Any]] = {modality: {} for modality in self._carried}
        for (modality, element), matrix in matrices.items():
            part, _, key = element.partition("/")
            if key:
                held[modality].setdefault(part, {})[key] = matrix
            else:
                held[modality]["data"] = matrix
        alone = held.pop("", {"data": None})
        modalities = {
            name: Modality(**one, mask=None if (mask := self._carried[name].mask) is None else codes[mask])
            for name, one in held.items()
        }
        return Batch(
            codes=codes,
            index=padded(index, n_padding) if self._return_index else None,
            make_labels=partial(labels.frame, index if own_names is None else own_names[: len(index)]),
            n_padding=n_padding,
            names=own_names,
            modalities=modalities or None,
            **alone,
        )


def _arrays(stores: Sequence[Store]) -> Iterator[Elements]:
    """Give the arrays that hold the elements of the stores' matrices."""
    for store in stores:
        for matrix in store.matrices.values():
            yield from (matrix.data, matrix.indices) if isinstance(matrix, SparseMatrix) else (matrix.values,)


def shared_out(work: Work, n_threads: int, n_bytes: int) -> list[Task]:
    """Give a task for each thread that the work of filling ``n_bytes`` is worth; together they do all of it."""
    rest = iter(work.single)

    def take() -> None:
        for call in work.shared:
            call()
        # Each task is given out once: the interpreter takes a step of this iterator as one.
        for task in rest:
            task()

    n_wanted = max(len(work.single), -(-n_bytes // TASK_BYTES) if work.shared else 0)
    return [take] * min(n_threads, n_wanted)


@contextmanager
def running(pool: Executor, tasks: Iterable[Callable[[], Any]]) -> Iterator[list[Future[Any]]]:
    """Run tasks on the pool beside the block; leave it when none of them runs any more, or raise the first error."""
    futures = [pool.submit(task) for task in tasks]
    try:
        yield futures
        wait(futures)
    except BaseException:
        # Tasks write into memory that is freed when the caller's frame is left.
        for future in futures:
            future.cancel()
        wait(futures)
        raise
    for future in futures:
        future.result()


def run(pool: Executor, tasks: Iterable[Callable[[], Any]]) -> list[Any]:
    """Run tasks on the pool; gives their results."""
    with running(pool, tasks) as futures:
        pass
    return [future.result() for future in futures]
