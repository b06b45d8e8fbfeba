"""How do perturbed cells come with controls that match them?

1. The perturbed rows are a table of their own, and come once an epoch in blocks in random order.
2. Every context (a donor, a cell type, both) has its controls, in an order of their own. The perturbed rows of a
   context, numbered as they are stored, take its controls in turn: neighbours are paired with neighbours, so that both
   are read in blocks.
3. Within a window the pairs are mixed, and so are the controls among the pairs of a context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.errors import InputError
from annbatch.order.consumers import Order
from annbatch.order.permutation import Ints, Key, Purpose, shuffle
from annbatch.order.row_table import Classes, ClassRows, Table, described, joint, names_of, ranks_in_class
from annbatch.order.stream import Stream
from annbatch.samplers.blocks import shuffled_blocks


@dataclass(frozen=True, slots=True)
class MatchedPairs:
    """Batches of perturbed cells, each paired with a control of the same context.

    The first half of a batch holds perturbed rows, the second half controls: row i and row ``i + n_rows / 2`` are a
    pair. Every perturbed row comes once an epoch. The controls of a context come equally often, up to one, and are
    paired with other rows in each epoch. Rows without a perturbation or a context are left out.

    Parameters
    ----------
    by
        obs column that says how a cell was perturbed; or several columns, whose categories are tuples.
    control
        Category of the cells that were not perturbed.
    within
        obs columns in which both cells of a pair must agree: their context. Without any, every control matches.

    Examples
    --------
    >>> from annbatch import Loader, samplers
    >>> sampler = samplers.MatchedPairs("perturbation", control="none", within=["donor"])
    >>> ds = Loader(batch_size=16, sampler=sampler).use_collection(
    ...     "collection", labels=["perturbation", "donor"]
    ... )
    >>> labels = next(iter(ds)).labels
    >>> labels["perturbation"].tolist()[8:] == ["none"] * 8
    True
    >>> labels["donor"].tolist()[:8] == labels["donor"].tolist()[8:]
    True
    """

    by: str | Sequence[str]
    control: Any
    within: Sequence[str] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The obs columns that it compares."""
        return tuple(dict.fromkeys((*names_of(self.by), *self.within)))

    def bind(self, table: Table) -> Callable[[int], Order]:
        """Check that every perturbed row has a control, and return a function from the epoch's number to its order.

        Raises
        ------
        InputError
            If ``batch_size`` is odd, ``control`` is not a category, no row is perturbed, or a context has no control.
        """
        if isinstance(self.within, str):
            raise InputError(f"within must be a sequence of names, got the string {self.within!r}")
        if table.batch_size % 2:
            raise InputError(f"batch_size must be even for pairs, got {table.batch_size}")
        perturbation = table.classes_by(self.by)
        control = perturbation.code(self.control)
        contexts, names = _contexts([table.classes[name] for name in self.within], table.n_rows)
        is_control = (perturbation.codes == control) & (contexts >= 0)
        perturbed = np.flatnonzero((perturbation.codes >= 0) & ~is_control & (contexts >= 0))
        if not len(perturbed):
            raise InputError(f"obs[{self.by!r}] must have perturbed rows, got none other than {self.control!r}")
        controls = ClassRows.of(np.where(is_control, contexts, -1), len(names))
        codes = contexts[perturbed]
        lacking = np.flatnonzero((np.bincount(codes, minlength=len(names)) > 0) & (controls.counts() == 0))
        if len(lacking):
            raise InputError(
                f"every context must have a control, a row whose obs[{self.by!r}] is {self.control!r}: "
                f"{names[lacking[0]]} has none ({len(lacking)} contexts have none)"
            )
        ranks = ranks_in_class(codes, len(names))
        return lambda epoch: _PairOrder(table, perturbed, codes, ranks, controls, epoch, table.batch_size // 2)

    def describe(self) -> dict[str, Any]:
        """Return the sampler's name and arguments."""
        return {
            "sampler": "MatchedPairs",
            "by": described(self.by),
            "control": str(self.control),
            "within": list(self.within),
        }


@dataclass(frozen=True, eq=False)
class _PairOrder(Order):
    table: Table
    perturbed: Ints
    """(n_pairs,) perturbed rows, ascending."""
    contexts: NDArray[Any]
    """(n_pairs,) context of each."""
    ranks: Ints
    """(n_pairs,) how many perturbed rows of the same context come before each."""
    controls: ClassRows
    """The controls of each context."""
    epoch: int
    batch_items: int
    streams: dict[int, Stream] = field(default_factory=dict)
    """The controls of each context that a window has asked for, in the epoch's order."""

    def __len__(self) -> int:
        return len(self.perturbed)

    def items(self, start: int, stop: int, key: Key) -> Ints:
        numbers = self._numbers.rows(start, stop)
        shuffle(numbers, key)
        contexts = self.contexts[numbers]
        pairs = np.stack([self.perturbed[numbers], np.empty_like(numbers)], axis=1)
        for context in np.unique(contexts).tolist():
            mine = np.flatnonzero(contexts == context)
            places = self._control_places(context, self.ranks[numbers[mine]])
            shuffle(places, replace(key, part=key.part << 32 | context + 1))
            pairs[mine, 1] = self.controls.find(context, self._controls(context).at(places))
        return pairs

    @cached_property
    def _numbers(self) -> Stream:
        """The pairs in the epoch's order."""
        key = Key(self.table.seed, self.epoch, Purpose.BLOCKS)
        return shuffled_blocks((len(self),), self.table.chunk_size, key)

    def _control_places(self, context: int, ranks: Ints) -> Ints:
        """Say which controls, in the epoch's order, the perturbed rows of these ranks take."""
        n_controls = int(self.controls.counts()[context])
        word = int(Key(self.table.seed, self.epoch, Purpose.DRAW, context).words(1)[0])
        places: Ints = (ranks + (word * n_controls >> 64)) % n_controls
        return places

    def _controls(self, context: int) -> Stream:
        if context not in self.streams:
            key = Key(self.table.seed, self.epoch, Purpose.CLASS_BLOCKS, context)
            n_controls = int(self.controls.counts()[context])
            self.streams[context] = shuffled_blocks((n_controls,), self.table.chunk_size, key)
        return self.streams[context]


def _contexts(columns: Sequence[Classes], n_rows: int) -> tuple[NDArray[np.int64], list[str]]:
    """Give the context of each row, (n_rows,) with -1 where one of the columns is missing, and the contexts' names."""
    if not columns:
        return np.zeros(n_rows, np.int64), ["the table"]
    found = joint(columns)
    names = [
        " ".join(f"{column.name}={value!r}" for column, value in zip(columns, values, strict=True))
        for values in found.categories.tolist()
    ]
    return found.codes.astype(np.int64), names
