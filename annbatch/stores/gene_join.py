"""What are the genes of all stores, or inputs of a build, together?

1. `join_genes` decides which genes there are, and to which joined column each input's genes go.
2. `fit_genes` does so for a collection that gets more cells, and `warn_of_lost_genes` warns of those that it lacks.

Nothing here does I/O but reading the lists of genes (`annbatch.stores.gene_lists`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from annbatch.errors import InputError
from annbatch.stores.gene_lists import GeneLists, Ints
from annbatch.stores.gene_overlap import few_in_common
from annbatch.warn import warn

How = Literal["outer", "inner", "same"]


@dataclass(frozen=True, slots=True, eq=False)
class GeneJoin:
    """The joined genes, and where each input's genes go."""

    names: pd.Index[str]
    """(n_vars,) joined var names."""
    placed: Ints
    """(n_known,) joined column of each gene of any input, -1 where it is left out."""
    lists: GeneLists
    """The genes of the inputs."""

    def columns(self, source: int) -> Ints:
        """Give the joined column of each gene of an input, -1 where it is left out: (its n_vars,)."""
        return self.placed[self.lists.numbers(source)]

    def n_lost(self) -> list[tuple[int, int]]:
        """Say, per input, how many genes it has, and how many of them are left out."""
        kept = [int((self.placed[numbers] >= 0).sum()) for numbers in self.lists]
        lengths = self.lists.lengths
        return [(lengths[number], lengths[number] - kept[number]) for number in self.lists.of_input]


def join_genes(lists: GeneLists, paths: Sequence[str], join: How, var_names: Iterable[str] | None) -> GeneJoin:
    """Join the inputs' genes: all or the shared ones by first appearance, or exactly ``var_names``.

    Raises
    ------
    InputError
        If ``join`` is unknown, no gene is left, ``var_names`` repeats a name or has one that no input has, or an input
        has not the same genes as the first one though ``join`` is ``"same"``.
    """
    if join not in ("outer", "inner", "same"):
        raise InputError(f"join must be 'outer', 'inner' or 'same', got {join!r}")
    known, in_all = lists.known, lists.n_lists_with == len(lists.lengths)
    if join == "same" and not in_all.all():
        _refuse_others(lists, paths)
    if var_names is not None:
        if isinstance(var_names, str):
            raise InputError(f"var_names must be a list of names, got the string {var_names!r}")
        names = [str(name) for name in var_names]
        if len(set(names)) != len(names):
            raise InputError(f"var_names must be unique, got more than one of {_some(_repeated(names))}")
        if unknown := [name for name in names if name not in known]:
            raise InputError(f"var_names must be in at least one input, got {_some(unknown)}")
    elif join == "inner":
        names = [name for name, number in known.items() if in_all[number]]
    else:
        names = list(known)
    if not names:
        few = few_in_common(lists, paths)
        why = "" if few is None else f"; {few}"
        raise InputError(f"no genes are left: join={join!r} of {_some(paths)} has no gene in common{why}")
    return placed(pd.Index(names, dtype=object), lists)


def fit_genes(lists: GeneLists, paths: Sequence[str], names: pd.Index[str]) -> GeneJoin:
    """Place the inputs' genes among those of a collection that is there; others are left out.

    Raises
    ------
    InputError
        If an input has none of its genes.
    """
    found = placed(names, lists)
    genes = list(lists.known)
    for number, numbers in enumerate(lists):
        if (found.placed[numbers] < 0).all():
            some = _some([genes[i] for i in numbers[:6]])
            raise InputError(
                f"{paths[lists.first_with(number)]}: must share a gene with the collection, got {some}; the collection "
                f"has {_some(list(names[:6]))}. var_key= names genes by a column of var"
            )
    return found


def warn_of_lost_genes(genes: GeneJoin, paths: Sequence[str], *, strict: bool) -> None:
    """Warn of genes of the inputs that are not in the collection which gets their cells.

    Raises
    ------
    InputError
        If there are any, and ``strict`` is set.
    """
    known = list(genes.lists.known)
    lost = [known[number] for number in np.flatnonzero(genes.placed < 0)[:6]]
    if not lost:
        return
    n_lost = genes.n_lost()
    first = next(i for i, (_, n) in enumerate(n_lost) if n)
    some = f"{n_lost[first][1]:,} of the {n_lost[first][0]:,} genes of {paths[first]}"
    n_more = sum(n > 0 for _, n in n_lost) - 1
    more = f", and genes of {n_more:,} more inputs," if n_more else ""
    said = f"{some}{more} are not in the collection: {_some(lost)}"
    if strict:
        raise InputError(f"no gene may be left out (strict=True), but {said}")
    warn(f"genes are left out: {said}")


def placed(names: pd.Index[str], lists: GeneLists) -> GeneJoin:
    """Place the inputs' genes among ``names``; those that are not there are left out."""
    known = pd.Index(list(lists.known), dtype=object)
    return GeneJoin(names, names.get_indexer(known).astype(np.int64), lists)


def _refuse_others(lists: GeneLists, paths: Sequence[str]) -> None:
    """Refuse the first input that has other genes than the first of all."""
    genes = np.array(list(lists.known), dtype=object)
    first, *others = lists
    for number, numbers in enumerate(others, start=1):
        missing, extra = first[~np.isin(first, numbers)], numbers[~np.isin(numbers, first)]
        if len(missing) or len(extra):
            raise InputError(
                f"{paths[lists.first_with(number)]}: must have the same genes as {paths[0]} (join='same'), lacks "
                f"{len(missing)} {_some(genes[missing].tolist())} and has {len(extra)} others "
                f"{_some(genes[extra].tolist())}; join='outer' takes all genes, join='inner' the shared ones"
            )


def _repeated(names: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    return [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]


def _some(names: Sequence[str]) -> str:
    return str(list(names[:5])) + (" …" if len(names) > 5 else "")
