"""What do the models of the GPU benchmark do, and for which share of the time?

1. A logistic regression on log-transformed counts, and a small variational autoencoder, in torch.
2. `Trainer` trains one of them on the batches that it is given. CUDA events around each step say how long the GPU
   worked on steps; nothing waits for them before the end. What is not a step is idle time, as far as the model is
   concerned: that the GPU may be busy with decoding then does not help the model.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from harness.jobs import Matrix

CLASSES = 100


class Regression(nn.Module):
    """Scores of ``CLASSES`` classes."""

    def __init__(self, n_vars: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_vars, CLASSES)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Give the loss."""
        return nn.functional.cross_entropy(self.linear(torch.log1p(x)), y)


class Autoencoder(nn.Module):
    """A variational autoencoder of two layers each way, with a Gaussian loss on log-transformed counts."""

    def __init__(self, n_vars: int, n_hidden: int = 256, n_latent: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(n_vars, n_hidden), nn.ReLU(), nn.Linear(n_hidden, 2 * n_latent))
        self.decoder = nn.Sequential(nn.Linear(n_latent, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_vars))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Give the loss; classes do not matter."""
        x = torch.log1p(x)
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        return nn.functional.mse_loss(self.decoder(z), x) * x.shape[1] + divergence


MODELS: dict[str, type[nn.Module]] = {"regression": Regression, "vae": Autoencoder}


class Trainer:
    """Trains a new model on the batches that it is given.

    Parameters
    ----------
    name
        Key of `MODELS`.
    """

    def __init__(self, name: str) -> None:
        torch.set_float32_matmul_precision("high")
        torch.manual_seed(0)
        self._make = MODELS[name]
        self._model: nn.Module | None = None
        self._losses: list[torch.Tensor] = []
        self._spans: list[tuple[Any, Any]] = []

    def step(self, matrix: Matrix) -> None:
        """Train on one batch."""
        assert matrix.for_training is not None
        x, y = matrix.for_training()
        if self._model is None:
            self._model = self._make(x.shape[1]).to(x.device)
            self._optimiser = torch.optim.Adam(self._model.parameters(), lr=1e-3)
        start = self._now(x.device)
        self._optimiser.zero_grad(set_to_none=True)
        loss = self._model(x, y)
        loss.backward()
        self._optimiser.step()
        self._spans.append((start, self._now(x.device)))
        self._losses.append(loss.detach())

    def finish(self) -> dict[str, Any]:
        """Wait for all steps; give the seconds that they took, and the first and the last loss."""
        if self._losses[0].device.type == "cuda":
            torch.cuda.synchronize()
            step_s = sum(start.elapsed_time(end) for start, end in self._spans) / 1000
        else:
            step_s = sum(end - start for start, end in self._spans)
        return {"train_s": step_s, "losses": [self._losses[0].item(), self._losses[-1].item()]}

    @staticmethod
    def _now(device: torch.device) -> Any:
        if device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
