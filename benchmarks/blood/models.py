"""Which models predict the type of a cell from its counts?

1. `train_torch`: a logistic regression on dense torch tensors.
2. `train_flax`: an MLP on padded sparse JAX arrays.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import torch
from flax import nnx

import annbatch
from annbatch_jax import JaxLoader, densify
from annbatch_torch import TorchLoader
from blood.cells import LABEL
from blood.course import Course, run_course

SEED = 0


def train_torch(train: annbatch.Loader, test: annbatch.Loader, n_types: int) -> Course:
    """Fit a logistic regression on dense torch tensors."""
    torch.manual_seed(SEED)
    model = torch.nn.Linear(train.n_vars, n_types)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)

    def logits(counts: torch.Tensor) -> torch.Tensor:
        return model(torch.log1p(1000 * counts / counts.sum(dim=1, keepdim=True)))

    def fit(batch: Any) -> float:
        loss = torch.nn.functional.cross_entropy(logits(batch["data"]), batch.codes[LABEL])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    @torch.no_grad()
    def score(batch: Any) -> tuple[float, int, int]:
        scores, codes = logits(batch["data"]), batch.codes[LABEL]
        loss = torch.nn.functional.cross_entropy(scores, codes, reduction="sum")
        return loss.item(), int((scores.argmax(dim=1) == codes).sum()), len(codes)

    return run_course(
        "torch, logistic regression", TorchLoader(train, layout="dense"), TorchLoader(test, layout="dense"), fit, score
    )


class MLP(nnx.Module):
    """Two layers; takes the padded sparse batch and makes it dense under jit."""

    def __init__(self, n_vars: int, n_types: int, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(n_vars, 64, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(64, n_types, rngs=rngs)

    def __call__(self, batch: Any) -> jax.Array:
        counts = densify(batch)
        total = jnp.maximum(counts.sum(axis=1, keepdims=True), 1)
        return self.out(self.dropout(nnx.relu(self.hidden(jnp.log1p(1000 * counts / total)))))


def train_flax(train: annbatch.Loader, test: annbatch.Loader, n_types: int) -> Course:
    """Fit an MLP on padded sparse JAX arrays; a short batch is filled with rows of code -1, which count nothing."""
    model = MLP(train.n_vars, n_types, nnx.Rngs(SEED))
    optimiser = nnx.Optimizer(model, optax.adamw(2e-3, weight_decay=1e-2), wrt=nnx.Param)

    def summed_loss(model: MLP, data: Any, codes: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores, real = model(data), codes >= 0
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, jnp.maximum(codes, 0))
        return jnp.where(real, losses, 0).sum(), scores

    @nnx.jit
    def step(model: MLP, optimiser: nnx.Optimizer, data: Any, codes: jax.Array) -> jax.Array:
        def mean_loss(model: MLP) -> jax.Array:
            return summed_loss(model, data, codes)[0] / (codes >= 0).sum()

        loss, gradient = nnx.value_and_grad(mean_loss)(model)
        optimiser.update(model, gradient)
        return loss

    @nnx.jit
    def evaluate(model: MLP, data: Any, codes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        loss, scores = summed_loss(model, data, codes)
        return loss, (scores.argmax(axis=1) == codes).sum(), (codes >= 0).sum()

    def fit(batch: Any) -> float:
        model.train()
        return float(step(model, optimiser, batch["data"], batch.codes[LABEL]))

    def score(batch: Any) -> tuple[float, int, int]:
        model.eval()
        loss, right, count = evaluate(model, batch["data"], batch.codes[LABEL])
        return float(loss), int(right), int(count)

    return run_course("Flax, MLP with 64 hidden units", JaxLoader(train), JaxLoader(test), fit, score)
