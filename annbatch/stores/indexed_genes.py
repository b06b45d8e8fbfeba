"""How are the joined genes of many files kept in an index?

Numbering the genes of hundreds of files that differ takes longer than all else when they are opened again.
`packed_lists` keeps the numbers of all lists of genes, and `unpacked_lists` gives them again, without their names.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from annbatch.stores.gene_lists import NUMBERS, GeneLists
from annbatch.stores.indexed_columns import Arrays, packed_texts, unpacked_texts


def packed_lists(lists: GeneLists) -> bytes | None:
    """Describe lists of genes; None if a name cannot be kept."""
    arrays = Arrays()
    names = packed_texts(list(lists.known), arrays)
    if names is None:
        return None
    header = {
        "names": names,
        "lengths": lists.lengths,
        "numbers": arrays.add(np.concatenate([numbers.astype(NUMBERS) for numbers in lists])),
        "n_lists_with": arrays.add(lists.n_lists_with),
    }
    return arrays.with_header(header)


def unpacked_lists(stored: NDArray[np.uint8], digests: Sequence[bytes]) -> GeneLists:
    """Give lists of genes, no input having one of them yet; raises ValueError if they are damaged.

    Parameters
    ----------
    stored
        What `packed_lists` gave.
    digests
        The digest of each list, in the order in which they were added.
    """
    header, arrays = Arrays.parsed(stored)
    names = unpacked_texts(header["names"], arrays)
    numbers, lengths = arrays.get(header["numbers"]), header["lengths"]
    if len(lengths) != len(digests) or sum(lengths) != len(numbers):
        raise ValueError("the lists are those of other files")
    kept = np.split(numbers, np.cumsum(lengths)[:-1])
    return GeneLists.of(names, kept, digests, arrays.get(header["n_lists_with"]))
