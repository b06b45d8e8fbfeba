"""Which genes do stores have together, and where do those of each store go?

1. `StoreGenes` knows the genes of all stores so far. `StoreGenes.with_stores` adds those of more stores, and looks at
   those alone.
2. `StoreGenes.joined` joins them as a loader was told to, and looks up the genes that it yields.

All stores that have the same genes in the same order need no map of their columns. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd

from annbatch import summary
from annbatch.errors import InputError
from annbatch.plan.column_map import ColumnMap
from annbatch.plan.column_selection import Selection
from annbatch.stores.gene_join import GeneJoin, How, join_genes
from annbatch.stores.gene_lists import GeneLists
from annbatch.stores.gene_overlap import few_in_common
from annbatch.stores.gene_selection import Genes
from annbatch.stores.store_var import StoreVar
from annbatch.stores.var_columns import VarColumns


@dataclass(frozen=True, eq=False)
class JoinedGenes:
    """The genes of a loader. What takes long is made when somebody asks for it, since stores may come one by one."""

    names: pd.Index[Any]
    """(n_joined,) the names of all joined genes."""
    of: StoreGenes
    """The genes of the stores."""
    join: GeneJoin | None
    """Where the genes of each store go; None if all stores have the joined genes in this order."""
    selection: Selection | None = None
    """Which of the joined genes are yielded; None means all."""
    chosen: pd.DataFrame | None = None
    """(n_vars, …) var of those that are selected, if it was needed to find them."""
    genes: Genes | None = None
    """Finds it in the var of all, where names alone told which genes are selected."""
    partial: Mapping[str, str] = field(default_factory=dict)
    """The genes asked for by name that only some stores have, each with the name of a store that lacks it."""
    few_shared: str | None = None
    """What to warn of if stores share next to no gene."""

    @property
    def n(self) -> int:
        """Number of genes that are yielded; var is not read for it."""
        return len(self.names) if self.selection is None else len(self.selection.columns)

    @cached_property
    def var(self) -> pd.DataFrame:
        """(n_vars, …) var of the genes that are yielded."""
        if self.chosen is not None:
            return self.chosen
        whole = self.of.var(self.names)
        found = None if self.genes is None else self.genes.find(whole, "the stores")
        return whole if found is None else found[1]

    @cached_property
    def columns(self) -> ColumnMap | None:
        """Which joined column each column of a store becomes; None if they are the same."""
        if self.join is None:
            return None
        placed, lists = self.join.placed, self.of.lists
        return ColumnMap.of([placed[numbers] for numbers in lists], lists.of_input, len(self.names))

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
    tables: tuple[StoreVar, ...]
    """The var of each."""
    lists: GeneLists
    """Their genes."""
    built: list[tuple[int, VarColumns]] = field(default_factory=list)
    """The var columns of the first so many stores, if somebody has asked for them."""

    @classmethod
    def of(cls, stores: Sequence[tuple[str, StoreVar]], lists: GeneLists | None = None) -> Self:
        """Take the name and the var of each store, and the ``lists`` of their genes, if these were made before."""
        if lists is None:
            return cls((), (), GeneLists()).with_stores(stores)
        called, tables = zip(*stores, strict=True)
        return cls(called, tables, lists)

    def with_stores(self, stores: Sequence[tuple[str, StoreVar]]) -> Self:
        """Give the genes of more stores."""
        lists = self.lists.copy()
        for _, var in stores:
            lists.add_known(var.genes.digest, var.genes.names)
        called, tables = zip(*stores, strict=True)
        return type(self)((*self.stores, *called), (*self.tables, *tables), lists, self.built.copy())

    def var(self, names: pd.Index[Any]) -> pd.DataFrame:
        """Give var of joined genes: that of the first store if all have the same, else what no two contradict."""
        if len(self.lists.lengths) == 1:
            return self.tables[0].table
        n_known, columns = self.built[0] if self.built else (0, VarColumns())
        if n_known < len(self.tables):
            columns = deepcopy(columns)
            for number in range(n_known, len(self.tables)):
                columns.add(self.tables[number].table, self.lists.numbers(number))
            self.built[:] = [(len(self.tables), columns)]
        return columns.joined(names, self.lists.known)

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
        lists, first = self.lists, self.tables[0]
        if len(lists.lengths) == 1:
            if genes.wanted is None:
                return JoinedGenes(pd.Index(first.genes.names(), dtype=object), self, None)
            found = genes.find(first.table, self.stores[0])
            assert found is not None
            return JoinedGenes(first.table.index, self, None, Selection.of(found[0], len(first)), found[1])
        is_named = isinstance(genes.wanted, tuple)
        self._check_unique()
        how: How = "outer" if is_named else genes.join
        join = join_genes(lists, self.stores, how, None)
        if genes.wanted is None:
            return JoinedGenes(join.names, self, join, few_shared=few_in_common(lists, self.stores))
        # Names are found without the rest of var, which would have to be read from all files.
        found = None
        if is_named and genes.key is None:
            # Otherwise the message may say which column has the names.
            with suppress(InputError):
                found = genes.find(pd.DataFrame(index=join.names), "the stores")
        by_name = None if found is None else genes
        found = found or genes.find(self.var(join.names), "the stores")
        assert found is not None
        selection, chosen = Selection.of(found[0], len(join.names)), None if by_name else found[1]
        if not is_named:
            few = few_in_common(lists, self.stores)
            return JoinedGenes(join.names, self, join, selection, chosen, few_shared=few)
        partial = self._partial(found[0], join.names)
        if partial and genes.absent == "error" and genes.join != "outer":
            gene, store = next(iter(partial.items()))
            raise InputError(
                f"var_names must be genes of all stores, got {gene!r}, which {store} lacks ({len(partial)} are not in "
                f"all stores); absent='zero' or join='outer' gives zeros there"
            )
        return JoinedGenes(join.names, self, join, selection, chosen, by_name, partial)

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
                    f"{store}: var names must be unique to join them with those of other stores, got "
                    f"{known[repeated[0]]!r} more than once; adata.var_names_make_unique() makes them unique"
                )
