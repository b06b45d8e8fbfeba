"""Do the inputs call their genes alike?

Symbols in one input and Ensembl identifiers in another are different genes to a join, which puts them side by side.
`few_in_common` finds inputs that have next to no gene of the first one. It does no I/O but reading the lists of genes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from annbatch import summary
from annbatch.stores.gene_lists import GeneLists

FEW = 0.1
"""Share of the smaller of two lists. A panel lies in the genes of a transcriptome, and transcriptomes of one species
have most genes in common. Symbols and identifiers share only the genes that have no symbol but their identifier."""

_SHOWN = 3


def few_in_common(lists: GeneLists, paths: Sequence[str]) -> str | None:
    """Name the inputs that have next to no gene of the first one, with names of both; None if there are none."""
    in_first = np.zeros(len(lists.known), bool)
    apart: dict[int, int] = {}
    for number, numbers in enumerate(lists):
        if number == 0:
            in_first[numbers] = True
        elif (shared := int(in_first[numbers].sum())) < FEW * min(lists.lengths[0], len(numbers)):
            apart[number] = shared
    if not apart:
        return None
    number, shared = next(iter(apart.items()))
    smaller = min(lists.lengths[0], lists.lengths[number])
    others = [path for path, of_input in zip(paths, lists.of_input, strict=True) if of_input in apart]
    genes = np.array(list(lists.known), dtype=object)
    only = next(numbers for i, numbers in enumerate(lists) if i == number)
    there = genes[only[~in_first[only]][:_SHOWN]].tolist()
    in_first[only] = False
    here = genes[np.flatnonzero(in_first)[:_SHOWN]].tolist()
    return (
        f"{paths[0]} (with genes such as {here}) shares few genes with {summary.some_of(others)} (such as {there}): "
        f"{shared:,} of {smaller:,}. If these are two kinds of names, such as symbols and Ensembl identifiers, "
        "use one kind: var_key= names genes by a column of var"
    )
