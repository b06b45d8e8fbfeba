"""Which data do the adapters' tests read, and what is the truth about them?

1. Two stores whose values name their row and column; later rows have more elements, and some have none.
2. Label columns of each kind: categories that differ between the stores, and numbers, some missing.
3. `Truth` compares any batch with SciPy's ``X[index]`` and pandas' ``obs.iloc[index]``.

`annbatch.testing` has a truth of its own. This one stays apart on purpose: it tests the adapters by which that one is
tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr

from annbatch import Loader, Partition
from annbatch.batch import Batch, Emit

N_VARS = 50
STORE_ROWS = (130, 87)


@dataclass(frozen=True, eq=False)
class Truth:
    """All rows of all stores, in the order in which they were passed."""

    x: sp.csr_matrix
    obs: pd.DataFrame

    def check(self, index: np.ndarray, dense: np.ndarray, codes: dict[str, np.ndarray], categories: Any) -> None:
        """Compare a batch; its padding has to be empty, with missing labels."""
        real = index >= 0
        np.testing.assert_array_equal(dense[real], self.x[index[real]].toarray())
        assert not dense[~real].any()
        names = np.append(np.asarray(categories["cell_type"], dtype=object), None)
        expected = self.obs["cell_type"].astype(object).to_numpy()[index[real]]
        expected = np.where(pd.isna(expected), None, expected)
        np.testing.assert_array_equal(names[codes["cell_type"][real]], expected)
        np.testing.assert_array_equal(codes["score"][real], self.obs["score"].to_numpy(np.float32)[index[real]])
        assert (codes["cell_type"][~real] == -1).all()
        assert np.isnan(codes["score"][~real]).all()


class Recorded:
    """A loader that keeps the core's last batch, so that a test can compare memory addresses."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self.last: Batch | None = None

    def batches(self, emit: Emit, partition: Partition | None = None) -> Iterator[Batch]:
        for batch in self._loader.batches(emit, partition):
            self.last = batch
            yield batch

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def make_stores() -> tuple[list[ad.AnnData], Truth]:
    """Write the stores into memory."""
    rng = np.random.default_rng(0)
    stores, xs, obs = [], [], []
    for first, n_rows in zip((0, STORE_ROWS[0]), STORE_ROWS, strict=True):
        rows = np.arange(first, first + n_rows)[:, None]
        values = (rows * N_VARS + np.arange(N_VARS) + 1).astype(np.float32)
        density = 0.3 + 0.4 * rows / sum(STORE_ROWS)
        x = sp.csr_matrix(np.where((rng.random(values.shape) < density) & (rows % 13 != 5), values, 0))
        names = np.array(["B", "T", None] if first == 0 else ["NK", "T", "mono"], dtype=object)
        labels = pd.DataFrame(
            {
                "cell_type": pd.Categorical(names[rng.integers(0, 3, n_rows)]),
                "score": np.where(rng.random(n_rows) < 0.1, np.nan, rows[:, 0] / 4),
            },
            index=[f"cell_{row}" for row in rows[:, 0]],
        )
        group = zarr.open_group(zarr.storage.MemoryStore(), mode="w", zarr_format=2)
        ad.io.write_elem(group, "X", x)
        stores.append(ad.AnnData(X=ad.io.sparse_dataset(group["X"]), obs=labels))
        xs.append(x)
        obs.append(labels.astype({"cell_type": object}))
    return stores, Truth(sp.vstack(xs, format="csr"), pd.concat(obs))
