"""How many rows must the last batch have?"""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from annbatch import Loader, Partition

BATCH = 4


def sizes(n: int, partition: Partition | None = None, **options: object) -> list[int]:
    ds = Loader(batch_size=BATCH, chunk_size=2, preload_nchunks=4, threads=1, partition=partition, **options)
    ds.add_anndatas([ad.AnnData(sp.csr_matrix((n, 3), dtype=np.float32))])
    found = [len(batch.index) for batch in ds]
    assert len(found) == len(ds)
    return found


@pytest.mark.parametrize(
    ("n", "drop_last", "last"),
    [(13, False, [1]), (13, 2, []), (14, 2, [2]), (14, 3, []), (15, 3, [3]), (15, True, []), (15, 4, []), (12, 2, [])],
)
def test_alone(n, drop_last, last):
    assert sizes(n, drop_last=drop_last) == [BATCH] * 3 + last


@pytest.mark.parametrize(
    ("n", "last"),
    # Behind 16 rows in full batches: too few for both, just enough, unequal shares, full.
    [(17, [[], []]), (19, [[], []]), (20, [[2], [2]]), (23, [[3], [4]]), (24, [[4], [4]])],
)
def test_of_two_consumers(n, last):
    assert [sizes(n, Partition(index, 2), drop_last=2) for index in range(2)] == [
        [BATCH, BATCH, *rest] for rest in last
    ]


def test_the_size_of_a_batch_means_full_batches():
    rows = [ad.AnnData(sp.csr_matrix((9, 3), dtype=np.float32))]
    states = [Loader(batch_size=4, drop_last=given).add_anndatas(rows).state_dict() for given in (True, 4)]
    assert states[0] == states[1]


@pytest.mark.parametrize("given", [0, 1, 5, -2])
def test_numbers_that_mean_nothing_are_refused(given):
    with pytest.raises(
        ValueError, match=rf"drop_last must be True, False or a number of rows in \[2, 4\], got {given}"
    ):
        Loader(batch_size=4, drop_last=given)


@pytest.mark.parametrize("given", ["yes", 2.0, None])
def test_other_types_are_refused(given):
    with pytest.raises(TypeError, match="drop_last must be True, False or a number of rows, got"):
        Loader(batch_size=4, drop_last=given)
