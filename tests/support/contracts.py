"""What must hold for the batches of every framework?

1. `check_lasting`: batches that are kept stay as they are, while memory of others is used again.
2. `check_label_columns`: label columns of each kind come as codes or values, in the type of their kind, and mean what
   obs says, in every epoch.
3. `check_shared_by_threads`: threads that share an iterator get every row once.

An adapter's tests call them with a function or two of their framework.
"""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd


def check_lasting(ds: Any, check: Callable[[Any], None], address: Callable[[Any], int], n_epochs: int = 5) -> None:
    """Keep batches, drop some at random while new ones come, and compare at the end all that is left.

    Parameters
    ----------
    ds
        The adapter.
    check
        Compares a batch with the truth.
    address
        Where the values of a batch lie.
    n_epochs
        Epochs to go through.
    """
    rng = random.Random(0)
    kept: list[Any] = []
    addresses, n_seen = set(), 0
    for epoch in range(n_epochs):
        for batch in ds:
            kept.append(batch)
            addresses.add(address(batch))
            n_seen += 1
            if rng.random() < 0.6:
                del kept[rng.randrange(len(kept))]
        del batch
        if epoch == 0:
            gc.collect()
    assert len(addresses) < 0.8 * n_seen, "memory must be used again, or this tests nothing"
    assert len({address(batch) for batch in kept}) == len(kept) > n_seen / 4
    while kept:
        check(kept.pop(rng.randrange(len(kept))))


def check_label_columns(
    ds: Any, obs: pd.DataFrame, to_numpy: Callable[[Any], np.ndarray], dtype: Any, wide: Mapping[str, Any] | None = None
) -> None:
    """Compare the codes of all columns with obs, over two epochs.

    Parameters
    ----------
    ds
        The adapter, with at least `stores.awkward_obs`'s columns; its first stores have the cell types B and T, and NK.
    obs
        The obs of all rows.
    to_numpy
        Takes a framework's array to the host.
    dtype
        Type of the codes.
    wide
        Type of numbers of 64 bits, by their kind, where it is another.
    """
    assert list(ds.categories["cell_type"]) == ["B", "T", "NK"]
    assert list(ds.categories["stage"]) == ["early", "mid", "late"]
    assert list(ds.categories["treated"]) == [False, True]
    wide = {"i": np.int64, "f": np.float64} | dict(wide or {})
    numeric = {"n_counts": wide["i"], "age": wide["f"], "score": np.float32, "doublet": np.bool_}
    assert set(ds.categories) == set(obs.columns) - set(numeric)
    before = {column: list(names) for column, names in ds.categories.items()}
    n_missing = 0
    for _ in range(2):
        for batch in ds:
            assert set(batch.codes) == set(obs.columns)
            index = to_numpy(batch.index)
            real = index >= 0
            expected = obs.iloc[index[real]]
            for column, array in batch.codes.items():
                codes = to_numpy(array)
                if column in numeric:
                    values = expected[column].to_numpy(np.float64, na_value=np.nan)
                    assert codes.dtype == numeric[column]
                    np.testing.assert_array_equal(codes[real], values)
                else:
                    assert codes.dtype == dtype
                    wanted = pd.Index(before[column]).get_indexer(expected[column])
                    np.testing.assert_array_equal(codes[real], wanted)
                    n_missing += (wanted == -1).sum()
            assert batch.labels["cell_type"].astype(object).fillna("").tolist() == (
                expected["cell_type"].astype(object).fillna("").tolist()
            )
        assert {column: list(names) for column, names in ds.categories.items()} == before
    assert n_missing


def check_shared_by_threads(ds: Any, n_rows: int, to_numpy: Callable[[Any], np.ndarray] = np.asarray) -> None:
    """Let three threads share an iterator: every row comes once, and a batch that one of them got is whole."""
    batches, begun = iter(ds), threading.Barrier(3)

    def work() -> list[int]:
        begun.wait()
        return [row for batch in batches for row in to_numpy(batch.index).tolist() if row >= 0]

    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(work) for _ in range(3)]
    assert sorted(row for one in found for row in one.result()) == list(range(n_rows))
