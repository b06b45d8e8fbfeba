"""Are the places of the final order found in the sorted runs, whatever the keys, ties and groups?

The oracle sorts everything in memory.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from annbatch.write.shuffle.run_merge import SortedRuns

# Few different keys, at both ends of the range, make ties the rule.
KEYS = st.sampled_from([0, 1, 2, 2**63, 2**64 - 2, 2**64 - 1])
GROUPS = st.sampled_from([0, 1, 5, 2**32 - 1])
RUNS = st.lists(st.lists(st.tuples(GROUPS, KEYS), max_size=8), min_size=1, max_size=5)


def sorted_runs(runs: list[list[tuple[int, int]]], grouped: bool) -> SortedRuns:
    ordered = [sorted(run) if grouped else sorted(run, key=lambda row: row[1]) for run in runs]
    keys = [np.array([key for _, key in run], np.uint64) for run in ordered]
    groups = [np.array([group for group, _ in run], np.uint32) for run in ordered]
    return SortedRuns(keys, groups if grouped else None)


def check_all_cuts(runs: list[list[tuple[int, int]]], grouped: bool) -> None:
    found = sorted_runs(runs, grouped)
    rows = [((group if grouped else 0), key, i) for i, run in enumerate(runs) for group, key in run]
    rows.sort()
    for place in range(len(rows) + 1):
        expected = np.bincount([run for _, _, run in rows[:place]], minlength=len(runs))
        assert found.cut(place).tolist() == expected.tolist()


@given(runs=RUNS, grouped=st.booleans())
def test_every_cut_takes_the_rows_that_come_first(runs: list[list[tuple[int, int]]], grouped: bool):
    check_all_cuts(runs, grouped)


MANY = [[(i % 3, i * i % 7) for i in range(n)] for n in (20, 0, 7, 13)]
TIES = [[(1, 2**64 - 1), (1, 0), (0, 2**64 - 1)], [(1, 0), (0, 2**64 - 1)], [(1, 2**64 - 1)], [(2**32 - 1, 2**63)]]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("runs", [MANY, TIES], ids=["many", "ties"])
def test_cuts_of_a_few_runs(runs: list[list[tuple[int, int]]], grouped: bool):
    check_all_cuts(runs, grouped)


@given(keys=st.lists(hnp.arrays(np.uint64, st.integers(0, 30)), min_size=1, max_size=4))
def test_cuts_of_any_keys_ascend_and_add_up(keys: list[np.ndarray]):
    found = SortedRuns([np.sort(run) for run in keys], None)
    cuts = [found.cut(place) for place in range(found.n_rows + 1)]
    assert [int(cut.sum()) for cut in cuts] == list(range(found.n_rows + 1))
    assert all((np.diff(np.stack(cuts), axis=0) >= 0).ravel())


@pytest.mark.parametrize("place", [-1, 3])
def test_a_place_out_of_range_is_refused(place: int):
    with pytest.raises(ValueError, match=rf"place must be in \[0, 2\], got {place}"):
        SortedRuns([np.array([1, 2], np.uint64)], None).cut(place)


def test_each_run_has_groups():
    run = np.array([1, 2], np.uint64)
    with pytest.raises(ValueError, match="zip"):
        SortedRuns([run, run], [run]).cut(1)
