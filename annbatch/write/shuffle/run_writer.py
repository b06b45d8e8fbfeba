"""Pass 1: how do the rows of an input become sorted runs on disk?

1. `plan_runs` cuts each input into consecutive rows that fit the memory of one task.
2. `write_run` reads such rows, once and sequentially, checks each value, and narrows what it can: a run has the
   smallest types that hold it, whatever the other runs will need.
3. It sorts the rows by group and key, and writes them as raw arrays to a directory of their own, which gets its name
   when everything is in it: a run is there whole or not at all.

A run depends on nothing but the job and its own number, so any worker may write it, and write it again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from annbatch.errors import InputError
from annbatch.write.inputs.contents import Element
from annbatch.write.inputs.main_matrix import check_counts
from annbatch.write.inputs.matrix_rows import (
    NOT_BY_ROWS,
    Matrix,
    cut_rows,
    matrix_of,
    read_dense,
    read_rows,
    row_blocks,
)
from annbatch.write.inputs.narrow_types import ValueScan, choose_types, smallest_unsigned
from annbatch.write.inputs.obs_table import NAMES
from annbatch.write.inputs.rewritten_rows import rewritten
from annbatch.write.inputs.spill import save
from annbatch.write.inputs.transpose import transposed
from annbatch.write.shuffle.freed_memory import give_back
from annbatch.write.shuffle.job import Job, RunSpec
from annbatch.write.shuffle.row_kernels import as_words, scatter_rows

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RunElement:
    """One element of a run."""

    scan: ValueScan
    """What is known of its values."""
    stored: np.dtype[Any]
    """Type of its values on disk."""
    n_lost: int
    """Elements that were left out with their genes."""
    counts_lost: int | None
    """Sum of their values; None if these are no counts."""


@dataclass(frozen=True, slots=True)
class Run:
    """A sorted run on disk."""

    path: Path
    n_rows: int
    elements: Mapping[str, RunElement]
    """By the element's key."""

    @classmethod
    def read(cls, path: Path) -> Run:
        """Read what `write_run` wrote about a run."""
        entry = json.loads((path / "run.json").read_text(encoding="utf-8"))
        elements = {
            key: RunElement(
                ValueScan(np.dtype(e["scan"][0]), *e["scan"][1:]), np.dtype(e["stored"]), e["n_lost"], e["counts_lost"]
            )
            for key, e in entry["elements"].items()
        }
        return cls(path, entry["n_rows"], elements)


def plan_runs(row_costs: Iterable[Ints], limit_bytes: int) -> list[RunSpec]:
    """Cut each input into runs of at most ``limit_bytes``, or of one row. Pure.

    Parameters
    ----------
    row_costs
        Per input: (n_obs + 1,) cumulated bytes that its rows take in memory; looked at one after the other.
    """
    specs: list[RunSpec] = []
    for source, costs in enumerate(row_costs):
        for start, stop in cut_rows(costs, slice(0, len(costs) - 1), limit_bytes):
            specs.append(RunSpec(len(specs), source, start, stop))
    return specs


def write_run(job: Job, spec: RunSpec) -> Run:
    """Write one run, unless it is there already.

    Raises
    ------
    InputError
        If the input breaks a rule, or cannot be read.
    OSError
        If the run cannot be written.
    """
    path = job.run_path(spec)
    if path.exists():
        return Run.read(path)
    building = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    building.mkdir(parents=True)
    try:
        order = _order(job, spec, building)
        start, stop = job.global_rows(spec)
        save(building / "records", job.table.read(start, stop)[order])
        for name in job.table.texts:
            raw, starts = job.table.text(name).read_bytes(start, stop)
            _save_ragged(building / f"{name}.bytes", [(raw, np.diff(starts))], starts, order, raw.dtype)
        entries = {}
        source = job.sources[spec.source]
        with source.origin.open() as root:
            for number, element in enumerate(job.elements):
                where = f"{source.name}: {source.own_key(element.key)}"
                matrix = matrix_of(source.element(root, element.key), where)
                by_rows = job.by_rows_path(spec.source, number)
                if matrix.format in NOT_BY_ROWS:
                    matrix = transposed(by_rows, matrix)
                elif by_rows.exists():
                    matrix = rewritten(by_rows, matrix)
                write = _write_sparse if element.kind == "csr" else _write_dense
                entries[element.key] = write(job, spec, element, matrix, where, building / f"m{number}", order)
        _save_entry(building, Run(path, len(order), entries))
        give_back()
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    try:
        building.rename(path)
    except OSError:
        # Another worker, believed to be lost, was first: its run is the same.
        if not path.exists():
            raise
        shutil.rmtree(building)
    return Run.read(path)


def _order(job: Job, spec: RunSpec, building: Path) -> Ints:
    """Sort the rows by group and key, ties in their order; give (n,) local rows, and leave keys and groups on disk."""
    start, stop = job.global_rows(spec)
    keys, groups = job.keys(start, stop), job.groups(start, stop)
    if groups is None:
        order = np.argsort(keys, kind="stable")
    else:
        order = np.lexsort((keys, groups))
        save(building / "groups", groups[order])
    save(building / "keys", keys[order])
    return order.astype(np.int64, copy=False)


def _write_sparse(
    job: Job, spec: RunSpec, element: Element, matrix: Matrix, where: str, path: Path, order: Ints
) -> RunElement:
    scan, n_lost = ValueScan.of(np.empty(0, matrix.dtype)), 0
    counts_lost: int | None = 0
    indices_dtype = smallest_unsigned(max(job.n_vars - 1, 0))
    values, indices, lengths = [], [], []
    row = spec.start
    columns = job.genes.columns(spec.source)
    for joined in read_rows(matrix, slice(spec.start, spec.stop), columns, job.n_vars, where, job.block_elements):
        block = joined.rows
        found = ValueScan.of(block.data)
        _check_values(job, spec, element, found, block.data, block.indptr, where, row)
        scan = scan.merge(found)
        lengths.append(np.diff(block.indptr))
        values.append((block.data.astype(_run_type(element.key, found, job), copy=False), lengths[-1]))
        indices.append((block.indices.astype(indices_dtype, copy=False), lengths[-1]))
        n_lost += joined.n_lost
        counts_lost = _added(counts_lost, joined.counts_lost)
        row += len(lengths[-1])
    starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    stored = _run_type(element.key, scan, job)
    _save_ragged(path.with_suffix(".data"), values, starts, order, stored)
    values.clear()
    _save_ragged(path.with_suffix(".indices"), indices, starts, order, indices_dtype)
    return RunElement(scan, stored, n_lost, counts_lost)


def _write_dense(
    job: Job, spec: RunSpec, element: Element, matrix: Matrix, where: str, path: Path, order: Ints
) -> RunElement:
    columns = job.genes.columns(spec.source) if element.has_genes else None
    n_rows = spec.stop - spec.start
    step = max(1, job.block_elements // max(1, element.n_columns))
    scan = ValueScan.of(np.empty(0, matrix.dtype))
    blocks = []
    for start, stop in row_blocks(matrix, slice(spec.start, spec.stop), step):
        block = read_dense(matrix, slice(start, stop), columns, element.n_columns, where)
        values = np.ascontiguousarray(block).reshape(-1)
        found = ValueScan.of(values)
        if element.has_genes:
            starts = np.arange(len(block) + 1) * element.n_columns
            _check_values(job, spec, element, found, values, starts, where, start)
        scan = scan.merge(found)
        blocks.append(block.astype(_run_type(element.key, found, job), copy=False))
    stored = _run_type(element.key, scan, job)
    out = np.empty((n_rows, element.n_columns), stored)
    places = np.argsort(order)
    at = 0
    for block in blocks:
        out[places[at : at + len(block)]] = block
        at += len(block)
    save(path.with_suffix(".data"), out)
    return RunElement(scan, stored, 0, 0)


def _run_type(key: str, scan: ValueScan, job: Job) -> np.dtype[Any]:
    # Narrow on the way in any case: wide types come back exactly, and the disk sees half the bytes.
    return choose_types(key, [scan], job.n_vars, narrow=not key.startswith("obsm/")).stored


def _save_ragged(
    path: Path, blocks: Sequence[tuple[npt.NDArray[Any], Ints]], starts: Ints, order: Ints, dtype: np.dtype[Any]
) -> None:
    """Write rows of different lengths in sorted order, and beside them the (n + 1,) places at which each begins."""
    lengths = np.diff(starts)
    sorted_starts = np.concatenate([[0], np.cumsum(lengths[order])])
    targets = np.empty(len(order), np.int64)
    targets[order] = sorted_starts[:-1]
    out = np.empty(int(sorted_starts[-1]), dtype)
    row = 0
    for block, block_lengths in blocks:
        n = len(block_lengths)
        scatter_rows(
            as_words(np.ascontiguousarray(block.astype(dtype, copy=False))),
            np.cumsum(block_lengths) - block_lengths,
            block_lengths,
            as_words(out),
            targets[row : row + n],
        )
        row += n
    save(path, out)
    save(path.with_suffix(".starts"), sorted_starts)


def _check_values(
    job: Job,
    spec: RunSpec,
    element: Element,
    scan: ValueScan,
    data: npt.NDArray[Any],
    indptr: Ints,
    where: str,
    first_row: int,
) -> None:
    bad, rule = None, ""
    if job.x_holds_counts and element.key == "X" and not scan.countable:
        bad = check_counts(data)
        rule = "must hold counts (x='counts'), got {} in row {}; x= can name another matrix"
    elif not job.allow_nonfinite and not (np.isfinite(scan.low) and np.isfinite(scan.high)):
        bad = int(np.flatnonzero(~np.isfinite(data))[0])
        rule = "must hold finite values, got {} in row {}; allow_nonfinite=True stores such values as they are"
    if bad is None:
        return
    row = int(np.searchsorted(indptr, bad, side="right")) - 1 + first_row
    at = job.global_rows(spec)[0] + row - spec.start
    name = job.table.text(NAMES).read(at, at + 1)[0]
    raise InputError(f"{where} {rule.format(data[bad], f'{row} ({name!r})')}")


def _added(total: int | None, part: int | None) -> int | None:
    return None if total is None or part is None else total + part


def _save_entry(building: Path, run: Run) -> None:
    elements = {}
    for key, e in run.elements.items():
        scan = [str(e.scan.dtype), e.scan.nnz, e.scan.countable, e.scan.low, e.scan.high]
        elements[key] = {"scan": scan, "stored": str(e.stored), "n_lost": e.n_lost, "counts_lost": e.counts_lost}
    entry = {"n_rows": run.n_rows, "elements": elements}
    (building / "run.json").write_text(json.dumps(entry), encoding="utf-8")
