"""Pass 2, first half: how do the rows of a store come back from the runs, in their final order?

1. `StorePlan.of` looks up where in each run the rows of one store begin and end, how many elements they have, and cuts
   them into pieces that fit in memory.
2. `read_pieces` reads one piece after the other, the next one while the last is in use: of each run a consecutive
   stretch, whose rows go straight to their places.

What comes out depends neither on where the runs nor on where the pieces were cut.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from annbatch.batch import CSR
from annbatch.stores.manifest import ElementTypes
from annbatch.write.inputs.narrow_types import smallest_unsigned
from annbatch.write.inputs.spill import load, spilling
from annbatch.write.shuffle.job import Job
from annbatch.write.shuffle.row_kernels import as_words, scatter_rows
from annbatch.write.shuffle.run_merge import SortedRuns
from annbatch.write.shuffle.run_writer import Run

Ints = npt.NDArray[np.int64]
_STARTS = np.dtype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class RowPiece:
    """Consecutive rows of a store."""

    records: npt.NDArray[Any]
    """(n,) obs."""
    texts: Mapping[str, tuple[npt.NDArray[np.uint8], Ints]]
    """Per text: the bytes, and the (n + 1,) places at which each begins."""
    sparse: Mapping[str, CSR]
    """Per element: (n, n_columns), in the types that are stored."""
    dense: Mapping[str, npt.NDArray[Any]]
    """Per element: (n, n_columns), in the type that is stored."""


@dataclass(frozen=True, slots=True, eq=False)
class StorePlan:
    """Where the rows of one store come from."""

    job: Job
    runs: tuple[Run, ...]
    types: Mapping[str, ElementTypes]
    """By element: what is stored."""
    cuts: tuple[Ints, ...]
    """(n_runs,) each: rows of each run before the first piece, before the second, …, and behind the last one."""
    nnz: Mapping[str, int]
    """Stored elements of each sparse element."""

    @classmethod
    def of(cls, job: Job, runs: Sequence[Run], types: Mapping[str, ElementTypes], number: int) -> StorePlan:
        """Plan the ``number``-th store."""
        keys = _mapped(job, runs, "keys", np.dtype(np.uint64))
        groups = _mapped(job, runs, "groups", np.dtype(np.uint64)) if job.groupby else None
        sorted_runs = SortedRuns(keys, groups)
        places = list(job.store_rows(number))
        cuts = {place: sorted_runs.cut(place) for place in places}
        cost = partial(_nbytes, job, runs, types)
        at = 0
        while at < len(places) - 1:
            first, last = places[at], places[at + 1]
            if last - first > 1 and cost(cuts[first], cuts[last]) > job.piece_bytes:
                middle = (first + last) // 2
                cuts[middle] = sorted_runs.cut(middle)
                places.insert(at + 1, middle)
            else:
                at += 1
        nnz = {
            element.key: _elements(runs, f"m{i}.starts", cuts[places[0]], cuts[places[-1]])
            for i, element in enumerate(job.elements)
            if element.kind == "csr"
        }
        return cls(job, tuple(runs), types, tuple(cuts[place] for place in places), nnz)


def _mapped(job: Job, runs: Sequence[Run], name: str, dtype: np.dtype[Any]) -> list[npt.NDArray[Any]]:
    """Map an array of each run: all out of one file, as each file that is mapped stays open."""
    path = job.directory / f"{name}.all"
    if not path.exists():
        building = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
        with spilling(), building.open("wb") as whole:
            for run in runs:
                with (run.path / name).open("rb") as part:
                    shutil.copyfileobj(part, whole)
        # Another worker may have been first: its file is the same.
        building.replace(path)
    mapped = np.asarray(np.memmap(path, dtype, "r"))
    return np.split(mapped, np.cumsum([run.n_rows for run in runs])[:-1])


def read_pieces(plan: StorePlan, pool: Executor) -> Iterator[RowPiece]:
    """Yield the pieces of a store in order; ``pool`` reads stretches of several runs at a time."""
    with ThreadPoolExecutor(1, thread_name_prefix="annbatch-read") as ahead:
        waiting: deque[Future[RowPiece]] = deque()
        for low, high in zip(plan.cuts[:-1], plan.cuts[1:], strict=True):
            waiting.append(ahead.submit(_read_piece, plan, low, high, pool))
            if len(waiting) > 1:
                # Nothing here may hold on to a piece that was handed over.
                yield waiting.popleft().result()
        yield waiting.popleft().result()


def _read_piece(plan: StorePlan, low: Ints, high: Ints, pool: Executor) -> RowPiece:
    job = plan.job
    stretches = [(run, a, b) for run, a, b in zip(plan.runs, low.tolist(), high.tolist(), strict=True) if b > a]
    places = _places(job, stretches)
    firsts = np.cumsum([0, *(b - a for _, a, b in stretches)]).tolist()
    parts = [places[a:b] for a, b in zip(firsts[:-1], firsts[1:], strict=True)]
    records = np.empty(len(places), job.table.record)
    tasks = [
        partial(_place_fixed, records, run.path / "records", a, b, p) for (run, a, b), p in _with(stretches, parts)
    ]
    texts, sparse, dense = {}, {}, {}
    for name in job.table.texts:
        raw, starts, more = _place_ragged(stretches, parts, name, "bytes", np.dtype(np.uint8), None)
        texts[name] = (raw, starts)
        tasks += more
    for i, element in enumerate(job.elements):
        types = plan.types[element.key]
        stored = [run.elements[element.key].stored for run, _, _ in stretches]
        if element.kind == "dense":
            dense[element.key] = np.empty((len(places), element.n_columns), types.stored)
            for (run, a, b), p in _with(stretches, parts):
                read = partial(_place_fixed, dense[element.key], run.path / f"m{i}.data", a, b, p)
                tasks.append(partial(read, run.elements[element.key].stored))
            continue
        data, indptr, more = _place_ragged(stretches, parts, f"m{i}", "data", types.stored, stored)
        narrow = smallest_unsigned(max(job.n_vars - 1, 0))
        assert types.indices is not None
        indices, _, others = _place_ragged(
            stretches, parts, f"m{i}", "indices", types.indices, [narrow] * len(stretches)
        )
        tasks += [*more, *others]
        sparse[element.key] = CSR(data, indices, indptr, (len(places), element.n_columns))
    for done in [pool.submit(task) for task in tasks]:
        done.result()
    return RowPiece(records, texts, sparse, dense)


def _places(job: Job, stretches: Sequence[tuple[Run, int, int]]) -> Ints:
    """Give, for each row of the stretches, its place in the piece."""
    keys = np.concatenate([load(run.path / "keys", np.dtype(np.uint64), a, b) for run, a, b in stretches])
    if not job.groupby:
        order = np.argsort(keys, kind="stable")
    else:
        groups = [load(run.path / "groups", np.dtype(np.uint64), a, b) for run, a, b in stretches]
        order = np.lexsort((keys, np.concatenate(groups)))
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return places


def _place_fixed(
    out: npt.NDArray[Any], path: Path, start: int, stop: int, places: Ints, stored: np.dtype[Any] | None = None
) -> None:
    width = out.shape[1] if out.ndim == 2 else 1
    found = load(path, out.dtype if stored is None else stored, start, stop, width)
    out[places] = found.reshape(-1, *out.shape[1:])


def _place_ragged(
    stretches: Sequence[tuple[Run, int, int]],
    parts: Sequence[Ints],
    name: str,
    what: str,
    dtype: np.dtype[Any],
    stored: Sequence[np.dtype[Any]] | None,
) -> tuple[npt.NDArray[Any], Ints, list[Any]]:
    """Give the array to fill, where each row begins in it, and the tasks that fill it, one for each stretch."""
    bounds = [load(run.path / f"{name}.starts", _STARTS, a, b + 1) for run, a, b in stretches]
    lengths = np.empty(sum(map(len, parts)), np.int64)
    for part, starts in zip(parts, bounds, strict=True):
        lengths[part] = np.diff(starts)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    out = np.empty(int(indptr[-1]), dtype)

    def fill(path: Path, starts: Ints, part: Ints, on_disk: np.dtype[Any]) -> None:
        found = load(path, on_disk, int(starts[0]), int(starts[-1])).astype(dtype, copy=False)
        scatter_rows(as_words(found), starts[:-1] - starts[0], np.diff(starts), as_words(out), indptr[part])

    types = [dtype] * len(stretches) if stored is None else stored
    tasks = [
        partial(fill, run.path / f"{name}.{what}", starts, part, on_disk)
        for (run, _, _), starts, part, on_disk in zip(stretches, bounds, parts, types, strict=True)
    ]
    return out, indptr, tasks


def _with(stretches: Sequence[tuple[Run, int, int]], parts: Sequence[Ints]) -> Any:
    return zip(stretches, parts, strict=True)


def _nbytes(job: Job, runs: Sequence[Run], types: Mapping[str, ElementTypes], low: Ints, high: Ints) -> int:
    """Bytes that rows between two cuts take in memory."""
    rows = int((high - low).sum())
    total = rows * (job.table.record.itemsize + 40)
    for i, element in enumerate(job.elements):
        found = types[element.key]
        if found.indices is not None:
            n = _elements(runs, f"m{i}.starts", low, high)
            total += n * (found.stored.itemsize + found.indices.itemsize) + 24 * rows
        else:
            total += rows * element.n_columns * found.stored.itemsize
    return total


def _elements(runs: Sequence[Run], name: str, low: Ints, high: Ints) -> int:
    total = 0
    for run, a, b in zip(runs, low.tolist(), high.tolist(), strict=True):
        for sign, row in ((-1, a), (1, b)):
            total += sign * int(load(run.path / name, _STARTS, row, row + 1)[0])
    return total
