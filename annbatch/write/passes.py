"""Who does the work of the two passes?

1. `row_costs` turns matrices that are stored by columns, and says what the rows of an input cost, for the plan.
2. `Local` runs pass 1 on a few threads, and writes one store after the other, each with all threads.
3. `OnDask` gives the same tasks to the workers of a cluster, which reach the same disk; a task whose worker dies is
   done again elsewhere.

Tasks are the functions `annbatch.write.shuffle.run_writer.write_run` and `finish_store`; either leaves its
result under a name that appears when it is whole, and does nothing if it is there already.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

import numpy as np

from annbatch.stores.manifest import ElementTypes, StoreEntry, store_entry, write_whole
from annbatch.write.inputs.matrix_rows import NOT_BY_ROWS, matrix_of
from annbatch.write.inputs.rewritten_rows import rewrite
from annbatch.write.inputs.transpose import transpose, transposed
from annbatch.write.output.store_writer import StoreContents, write_store
from annbatch.write.output.workplace import seal
from annbatch.write.shuffle.budget import dense_row_bytes, matrix_info, reads_chunks_at_once
from annbatch.write.shuffle.job import Ints, Job, RunSpec
from annbatch.write.shuffle.run_reader import StorePlan, read_pieces
from annbatch.write.shuffle.run_writer import Run, write_run

Report = Callable[[int], object]


class Passes(Protocol):
    """Carries out tasks."""

    def write_runs(self, job: Job, specs: Sequence[RunSpec], report: Report) -> list[Run]:
        """Pass 1: write all runs; ``report`` is told of rows."""

    def write_stores(
        self, job: Job, runs: Sequence[Run], types: Mapping[str, ElementTypes], report: Report
    ) -> list[StoreEntry]:
        """Pass 2: write all stores; ``report`` is told of rows."""


def row_costs(job: Job, source: int, checkpoint: Callable[[], None]) -> Ints:
    """Write by rows what cannot be read so where it is, and say what the rows of an input take in pass 1.

    Gives (n_obs + 1,) cumulated bytes, which rise only where a row begins new chunks of dense matrices, so that runs
    are cut there, as far as the rows of such chunks fit in a run.
    """
    described = job.sources[source]
    starts = np.arange(described.n_obs + 1)
    costs, chunk_rows = starts * (2 * job.table.record.itemsize + 64), 1
    with described.origin.open() as root:
        for number, element in enumerate(job.elements):
            where = f"{described.name}: {described.own_key(element.key)}"
            matrix, info = matrix_of(described.element(root, element.key), where), matrix_info(described, element)
            path = job.by_rows_path(source, number)
            if matrix.format in NOT_BY_ROWS:
                transpose(path, matrix, where, job.run_bytes, job.block_elements, checkpoint)
                matrix = transposed(path, matrix)
            elif not reads_chunks_at_once(info, element, job.row_bytes, job.run_bytes):
                rewrite(path, matrix, job.run_bytes, checkpoint)
            elif info.format == "dense":
                chunk_rows = max(chunk_rows, info.chunk_rows)
            if element.kind == "csr" and matrix.format == "csr":
                costs += matrix.row_starts(where) * job.row_bytes[element.key]
            else:
                costs += starts * dense_row_bytes(info, element, job.row_bytes)
    chunked = costs[np.minimum(-(-starts // chunk_rows) * chunk_rows, described.n_obs)]
    return chunked if np.diff(chunked).max() <= job.run_bytes else costs


def finish_store(
    job: Job, runs: Sequence[Run], types: Mapping[str, ElementTypes], number: int, report: Report
) -> StoreEntry:
    """Write the ``number``-th store, unless it is there already."""
    path, record = job.store_path(number), job.directory / "stores" / f"{number}.json"
    if record.exists() and path.exists():
        return store_entry(json.loads(record.read_text(encoding="utf-8")), str(record))
    plan = StorePlan.of(job, runs, types, number)
    # Not beside the finished ones: what a kill leaves behind must never be moved to the output with them.
    building = job.directory / "partial" / f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}"
    building.parent.mkdir(exist_ok=True)
    start, stop = job.store_rows(number)
    contents = StoreContents(stop - start, job.var, job.table, job.elements, types, plan.nnz)
    try:
        with ThreadPoolExecutor(job.threads) as workers, ThreadPoolExecutor(8) as syncing:
            pieces = read_pieces(plan, workers)
            files = write_store(building, contents, pieces, job.layout, workers=workers, syncing=syncing, report=report)
        entry = StoreEntry(path.name, stop - start, plan.nnz.get("X"), seal(building, files))
        if path.exists():
            # Another worker was first, or was killed before it could say so: its store is the same.
            shutil.rmtree(path)
        building.rename(path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    record.parent.mkdir(exist_ok=True)
    write_whole(record, json.dumps(entry.to_json()))
    return entry


class Local:
    """Works in this process.

    Parameters
    ----------
    tasks
        Tasks of pass 1 at a time.
    checkpoint
        Is called between steps, and raises when the work shall stop.
    """

    def __init__(self, tasks: int, checkpoint: Callable[[], None]) -> None:
        self._tasks, self._checkpoint = tasks, checkpoint

    def write_runs(self, job: Job, specs: Sequence[RunSpec], report: Report) -> list[Run]:
        """Pass 1, on several threads."""
        runs: dict[int, Run] = {}
        with ThreadPoolExecutor(self._tasks, thread_name_prefix="annbatch-run") as pool:
            waiting: dict[Future[Run], RunSpec] = {pool.submit(write_run, job, spec): spec for spec in specs}
            try:
                while waiting:
                    done, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                    self._checkpoint()
                    for task in done:
                        runs[waiting.pop(task).number] = task.result()
                        report(task.result().n_rows)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return [runs[spec.number] for spec in specs]

    def write_stores(
        self, job: Job, runs: Sequence[Run], types: Mapping[str, ElementTypes], report: Report
    ) -> list[StoreEntry]:
        """Pass 2, store after store."""

        def advance(rows: int) -> None:
            self._checkpoint()
            report(rows)

        return [finish_store(job, runs, types, number, advance) for number in range(job.n_stores)]


class OnDask:
    """Works on the workers of a Dask cluster."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def write_runs(self, job: Job, specs: Sequence[RunSpec], report: Report) -> list[Run]:
        """Pass 1, a task for each run."""
        shared = self._client.scatter(job, broadcast=True, hash=False)
        tasks = {self._client.submit(write_run, shared, spec, pure=False): spec.number for spec in specs}
        runs: dict[int, Run] = {}
        for number, run in self._completed(tasks):
            runs[number] = run
            report(run.n_rows)
        return [runs[spec.number] for spec in specs]

    def write_stores(
        self, job: Job, runs: Sequence[Run], types: Mapping[str, ElementTypes], report: Report
    ) -> list[StoreEntry]:
        """Pass 2, a task for each store."""
        shared = self._client.scatter((job, tuple(runs), dict(types)), broadcast=True, hash=False)
        tasks = {
            self._client.submit(_finish_shared, shared, number, pure=False): number for number in range(job.n_stores)
        }
        entries: dict[int, StoreEntry] = {}
        for number, entry in self._completed(tasks):
            entries[number] = entry
            report(entry.n_obs)
        return [entries[number] for number in range(job.n_stores)]

    def _completed(self, tasks: Mapping[Any, int]) -> Iterator[tuple[int, Any]]:
        import distributed

        completed: Any = distributed.as_completed
        try:
            for task in completed(tasks):
                yield tasks[task], task.result()
        except BaseException:
            self._client.cancel(list(tasks))
            raise


def _finish_shared(shared: tuple[Job, Sequence[Run], Mapping[str, ElementTypes]], number: int) -> StoreEntry:
    return finish_store(*shared, number, lambda rows: None)
