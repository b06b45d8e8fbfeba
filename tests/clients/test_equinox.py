"""Does a batch pass through ``filter_jit`` of Equinox as it is, and does training continue with the very next batch?"""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

eqx = pytest.importorskip("equinox", reason="Equinox is not installed: make test-clients")
jax = pytest.importorskip("jax", reason="JAX is not installed")
optax = pytest.importorskip("optax", reason="Optax is not installed")

from annbatch import Loader  # noqa: E402
from annbatch_jax import JaxLoader, densify  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]

N_ROWS, N_EPOCHS = 107, 2
N_BATCHES = -(-N_ROWS // 8)


def loader() -> Loader:
    x = sp.csr_matrix(np.random.default_rng(0).poisson(1.0, (N_ROWS, 7)).astype(np.float32))
    names = [f"cell {row}" for row in range(N_ROWS)]
    obs = pd.DataFrame({"kind": pd.Categorical([("a", "b", "c")[row % 3] for row in range(N_ROWS)])}, index=names)
    return Loader(batch_size=8, chunk_size=2, preload_nchunks=8, threads=1).add_anndatas([ad.AnnData(x, obs)])


def trained(saved: Any = None, stop: int | None = None) -> tuple[list[list[int]], Any]:
    """Give the rows of all batches, and what a run needs to continue: model, optimizer and position."""
    batches, optimizer = JaxLoader(loader()), optax.adam(1e-2)
    model = eqx.nn.Linear(7, 3, key=jax.random.key(0))
    state = optimizer.init(eqx.filter(model, eqx.is_array))
    if saved is not None:
        model, state, position = saved
        batches.load_state_dict(position)

    @eqx.filter_jit
    def step(model: Any, state: Any, batch: Any) -> Any:
        def loss(model: Any) -> Any:
            logits = jax.vmap(model)(densify(batch["data"]))
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.codes["kind"])
            return losses.mean(where=batch["mask"])

        updates, state = optimizer.update(eqx.filter_grad(loss)(model), state)
        return eqx.apply_updates(model, updates), state

    rows: list[list[int]] = []
    while batches.loader.next_epoch < N_EPOCHS:
        for batch in batches:
            model, state = step(model, state, batch)
            rows.append(np.asarray(batch["index"])[np.asarray(batch["mask"])].tolist())
            if len(rows) == stop:
                return rows, (model, state, batches.state_dict())
    return rows, (model, state, batches.state_dict())


def test_every_row_once_and_exact_resume() -> None:
    whole, (model, _, _) = trained()
    core = loader()
    assert whole == [batch["index"].tolist() for _ in range(N_EPOCHS) for batch in core]
    for n_had in (5, N_BATCHES, N_BATCHES + 3):
        _, saved = trained(stop=n_had)
        rest, (resumed, _, _) = trained(saved)
        assert rest == whole[n_had:]
        assert eqx.tree_equal(resumed, model)
