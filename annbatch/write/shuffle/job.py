"""What must every task of a build know?

A `Job` is all that the tasks of both passes share, a `RunSpec` what one task of pass 1 is about. Both are plain values
that travel to other processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from annbatch.stores.gene_join import GeneJoin
from annbatch.write.array_layout import ArrayLayout
from annbatch.write.inputs.contents import Element, Source
from annbatch.write.inputs.obs_table import ObsTable
from annbatch.write.inputs.spill import load
from annbatch.write.shuffle.row_keys import row_keys

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Consecutive rows of one input."""

    number: int
    """Which run; runs are numbered in the order of their rows."""
    source: int
    """Which input."""
    start: int
    """First row, counted in that input."""
    stop: int
    """Row behind the last one."""


@dataclass(frozen=True, slots=True)
class JointOrder:
    """The order of cells that have several modalities, for the job of one of them.

    The rows of an input may stand in another order in each modality. Sorted by the keys of the joint rows they come out
    alike.
    """

    path: Path
    """(n_obs,) int64 on disk: the joint row of each row of the inputs."""
    table: ObsTable
    """The obs of the joint rows."""
    groupby: tuple[str, ...]
    """Columns of it whose categories stay together."""

    def rows(self, start: int, stop: int) -> Ints:
        """Give the joint rows of rows ``start`` to ``stop``."""
        return load(self.path, np.dtype(np.int64), start, stop)


@dataclass(frozen=True, slots=True)
class Job:
    """All that the tasks of a build share."""

    directory: Path
    """Where runs and other temporary files lie."""
    output: Path
    """Where the stores are written."""
    sources: tuple[Source, ...]
    first_rows: tuple[int, ...]
    """Per input: its first row, counted through all inputs."""
    genes: GeneJoin
    """Where the inputs' genes go."""
    var: pd.DataFrame
    """(n_vars, …) of the collection."""
    elements: tuple[Element, ...]
    """What is written."""
    table: ObsTable
    """The obs of all inputs."""
    seed: int | None
    """Seed of the shuffle; None to keep the rows in order."""
    groupby: tuple[str, ...]
    """Obs columns, of the joint obs if there is one, whose categories stay together."""
    joint: JointOrder | None
    """What orders the rows, if that is not their own numbers and obs."""
    narrow: bool
    """Whether counts are stored in the smallest type that holds them."""
    x_holds_counts: bool
    """Whether X must hold counts."""
    allow_nonfinite: bool
    """Whether NaN and infinite values are stored as they are."""
    rows_per_store: int
    """Rows of every store but the last."""
    first_store: int
    """Number of the first store that is written."""
    layout: ArrayLayout
    """How arrays are cut."""
    row_bytes: Mapping[str, int]
    """By element: bytes that one stored element may take in memory during pass 1."""
    run_bytes: int
    """Bytes that a run may take in memory while it is written."""
    block_elements: int
    """Elements read at a time."""
    piece_bytes: int
    """Bytes of sorted rows that are in memory at a time in pass 2."""
    threads: int
    """Threads that one task may use."""

    @property
    def n_vars(self) -> int:
        """Genes of the collection."""
        return len(self.var)

    @property
    def n_obs(self) -> int:
        """Cells of all inputs."""
        return self.table.n_obs

    @property
    def n_stores(self) -> int:
        """Stores that are written."""
        return -(-self.n_obs // self.rows_per_store)

    def global_rows(self, spec: RunSpec) -> tuple[int, int]:
        """Give a run's rows, counted through all inputs."""
        first = self.first_rows[spec.source]
        return first + spec.start, first + spec.stop

    def keys(self, start: int, stop: int) -> npt.NDArray[np.uint64]:
        """Give what rows ``start`` to ``stop`` of all inputs are sorted by, beside their groups."""
        if self.joint is None:
            return np.zeros(stop - start, np.uint64) if self.seed is None else row_keys(self.seed, start, stop)
        rows = self.joint.rows(start, stop)
        if self.seed is None:
            return rows.astype(np.uint64)
        first = int(rows.min())
        return row_keys(self.seed, first, int(rows.max()) + 1)[rows - first]

    def groups(self, start: int, stop: int) -> npt.NDArray[np.uint64] | None:
        """Read to which groups these rows belong; None if there is one group."""
        if not self.groupby:
            return None
        if self.joint is None:
            return self.table.groups(self.groupby, start, stop)
        rows = self.joint.rows(start, stop)
        first = int(rows.min())
        return self.joint.table.groups(self.groupby, first, int(rows.max()) + 1)[rows - first]

    def run_path(self, spec: RunSpec) -> Path:
        """Give a run's directory."""
        return self.directory / "runs" / f"{spec.number:06d}"

    def by_rows_path(self, source: int, element: int) -> Path:
        """Give the directory of a matrix that could not be read by rows where it is."""
        return self.directory / "by_rows" / f"{source}-{element}"

    def store_rows(self, number: int) -> tuple[int, int]:
        """Give the rows, in their final order, of the ``number``-th store that is written."""
        return number * self.rows_per_store, min((number + 1) * self.rows_per_store, self.n_obs)

    def store_path(self, number: int) -> Path:
        """Give the directory of the ``number``-th store that is written."""
        return self.output / f"chunk_{self.first_store + number}.zarr"
