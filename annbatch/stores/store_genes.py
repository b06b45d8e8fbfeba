"""Which genes do stores have together, and where do those of each store go?

1. `StoreGenes` knows the genes of all stores so far. `StoreGenes.with_stores` adds those of more stores, and looks at
   those alone.
2. `StoreGenes.joined` joins them as a loader was told to, and looks up the genes that it yields.

All stores that have the same genes in the same order need no map of their columns. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pandas as pd

from annbatch import summary
from annbatch.errors import InputError
from annbatch.plan.column_map import ColumnMap
from annbatch.plan.column_selection import Selection
from annbatch.stores.gene_join import How, join_genes
from annbatch.stores.gene_lists import GeneLists
from annbatch.stores.gene_overlap import few_in_common
from annbatch.stores.gene_selection import Genes
from annbatch.stores.var_columns import VarColumns


@dataclass(frozen=True, slots=True, eq=False)
class JoinedGenes:
    """The genes of a loader."""

    names: pd.Index[Any]
    """(n_joined,) the names of all joined genes."""
    var: pd.DataFrame
    """(n_vars, …) var of the genes that are yielded."""
    columns: ColumnMap | None
    """Which joined column each column of a store becomes; None if all stores have the joined genes in this order."""
    selection: Selection | None
    """Which of the joined genes are yielded; None means all."""
    partial: Mapping[str, str] = field(default_factory=dict)
    """The genes asked for by name that only some stores have, each with the name of a store that lacks it."""
    few_shared: str | None = None
    """What to warn of if stores share next to no gene."""

    def differences(self, before: JoinedGenes | None) -> list[str]:
        """Say what stores do not share, of which nothing was said ``before``."""
        found = []
        new = [name for name in self.partial if before is None or name not in before.partial]
        if new:
            more = f", nor are {summary.short(new[1:])} in all stores" if new[1:] else ""
            found.append(
                f"genes of var_names are zeros in stores that lack them ({len(new):,}): {new[0]!r} is not in "
                f"{self.partial[new[0]]}{more}"
            )
        if self.few_shared is not None and (before is None or before.few_shared is None):
            found.append(self.few_shared)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class StoreGenes:
    """The genes of some stores."""

    stores: tuple[str, ...]
    """What messages call the stores."""
    first: pd.DataFrame
    """(n_vars, …) var of the first store."""
    lists: GeneLists
    """Their genes."""
    var_columns: VarColumns | None
    """Their var columns, where they differ in genes."""

    @classmethod
    def of(cls, stores: Sequence[tuple[str, pd.DataFrame]]) -> Self:
        """Take the name and the var of each store."""
        return cls((), stores[0][1], GeneLists(), None).with_stores(stores, ())

    def with_stores(self, stores: Sequence[tuple[str, pd.DataFrame]], before: Sequence[pd.DataFrame]) -> Self:
        """Give the genes of more stores; ``before`` is the var of those that are known."""
        lists = self.lists.copy()
        for _, var in stores:
            names = var.index
            lists.add(names if names.inferred_type == "string" else names.map(str))
        columns = None
        if len(lists.lengths) > 1:
            columns = deepcopy(self.var_columns)
            added = [var for _, var in stores]
            if columns is None:
                columns, added = VarColumns(), [*before, *added]
            first = len(lists.of_input) - len(added)
            for number, var in enumerate(added, start=first):
                columns.add(var, lists.numbers(number))
        return type(self)((*self.stores, *(name for name, _ in stores)), self.first, lists, columns)

    def joined(self, genes: Genes) -> JoinedGenes:
        """Join the genes, and look up those asked for.

        Names that are asked for need to be in all stores, or may be zeros elsewhere; for them it does not matter which
        other genes stores have.

        Raises
        ------
        InputError
            If stores differ more than ``genes.join`` allows, have no gene in common, or have several genes of one name;
            or as `annbatch.stores.gene_selection.Genes.find` does.
        """
        if self.var_columns is None:
            found = genes.find(self.first, self.stores[0])
            selection = None if found is None else Selection.of(found[0], len(self.first))
            return JoinedGenes(self.first.index, self.first if found is None else found[1], None, selection)
        is_named = isinstance(genes.wanted, tuple)
        lists = self.lists
        self._check_unique()
        how: How = "outer" if is_named else genes.join
        join = join_genes(lists, self.stores, how, None)
        var = self.var_columns.joined(join.names, lists.known)
        columns = ColumnMap.of([join.placed[numbers] for numbers in lists], lists.of_input, len(join.names))
        found = genes.find(var, "the stores")
        if found is None:
            return JoinedGenes(join.names, var, columns, None, few_shared=few_in_common(lists, self.stores))
        selection = Selection.of(found[0], len(join.names))
        if not is_named:
            few = few_in_common(lists, self.stores)
            return JoinedGenes(join.names, found[1], columns, selection, few_shared=few)
        partial = self._partial(found[0], join.names)
        if partial and genes.absent == "error" and genes.join != "outer":
            gene, store = next(iter(partial.items()))
            raise InputError(
                f"var_names must be genes of all stores, got {gene!r}, which {store} lacks ({len(partial)} are not in "
                f"all stores); absent='zero', or join='outer', gives zeros there"
            )
        return JoinedGenes(join.names, found[1], columns, selection, partial)

    def _partial(self, positions: Any, names: pd.Index[Any]) -> dict[str, str]:
        """Name the joined genes at some positions that a store lacks, and such a store."""
        lists = self.lists
        there = positions[positions >= 0]
        left = there[lists.n_lists_with[there] < len(lists.lengths)]
        found: dict[int, str] = {}
        for number, numbers in enumerate(lists):
            if len(found) == len(left):
                break
            for gene in left[~np.isin(left, numbers)].tolist():
                found.setdefault(gene, self.stores[lists.first_with(number)])
        return {str(names[gene]): found[gene] for gene in left.tolist()}

    def _check_unique(self) -> None:
        known: list[str] | None = None
        for number, numbers in enumerate(self.lists):
            repeated = np.flatnonzero(np.bincount(numbers) > 1)
            if len(repeated):
                known = known or list(self.lists.known)
                store = self.stores[self.lists.first_with(number)]
                raise InputError(
                    f"{store}: var names must be unique to be joined with those of other stores, got more than one "
                    f"{known[repeated[0]]!r}; adata.var_names_make_unique() makes them so"
                )
