"""Does training with accelerate go on with the very next batch, on one and two ranks?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

pytest.importorskip("ray", reason="the clients are not installed: make test-clients")
pytest.importorskip("accelerate", reason="accelerate is not installed: make test-clients")
torch = pytest.importorskip("torch", reason="torch is not installed")

import torch.distributed as dist  # noqa: E402
from accelerate import Accelerator  # noqa: E402

from annbatch import Loader  # noqa: E402
from annbatch_torch import TorchLoader  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]

N_ROWS, N_EPOCHS = 107, 2


class Run:
    """A program of a user's: it saves all that training needs, or goes on from there."""

    def __init__(self) -> None:
        x = sp.csr_matrix(np.random.default_rng(0).poisson(1.0, (N_ROWS, 7)).astype(np.float32))
        names = [f"cell {row}" for row in range(N_ROWS)]
        obs = pd.DataFrame({"kind": pd.Categorical([("a", "b", "c")[row % 3] for row in range(N_ROWS)])}, index=names)
        self.core = Loader(batch_size=8, chunk_size=2, preload_nchunks=8, threads=1).add_anndatas([ad.AnnData(x, obs)])
        torch.manual_seed(0)
        model = torch.nn.Linear(7, 3)
        self.accelerator = Accelerator(cpu=True)
        self.model, self.optimizer, self.batches = self.accelerator.prepare(
            model, torch.optim.Adam(model.parameters()), TorchLoader(self.core, layout="dense", form="dict")
        )
        self.accelerator.register_for_checkpointing(self.batches)

    def train(self, folder: Path, *, save_at: tuple[int, ...] = ()) -> list[list[int]]:
        """Give the rows of all batches; save after those with the given numbers."""
        seen: list[list[int]] = []
        while self.core.next_epoch < N_EPOCHS:
            for batch in self.batches:
                self.optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(self.model(batch["data"]), batch["kind"])
                self.accelerator.backward(loss)
                self.optimizer.step()
                seen.append(batch["index"].tolist())
                if len(seen) in save_at:
                    self.accelerator.save_state(folder / f"{self.accelerator.num_processes} ranks, {len(seen)}")
        return seen

    @property
    def weights(self) -> Any:
        return self.accelerator.unwrap_model(self.model).weight


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def gathered(rows: list[list[int]]) -> list[list[int]]:
    """Give the rows of each rank."""
    if not dist.is_initialized():
        return [flat(rows)]
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, flat(rows))
    return ranks


def main(folder: Path) -> None:
    """What each rank does."""
    first = Run()
    n_ranks = first.accelerator.num_processes
    n_batches = len(first.batches)
    # In the middle of both epochs, and behind the last batch of the first one.
    save_at = (3, n_batches, n_batches + 2)
    seen = first.train(folder, save_at=save_at)
    assert len(seen) == N_EPOCHS * n_batches
    for epoch in range(N_EPOCHS):
        ranks = gathered(seen[epoch * n_batches : (epoch + 1) * n_batches])
        assert sorted(flat(ranks)) == list(range(N_ROWS))
    for n_had in save_at:
        again = Run()
        again.accelerator.load_state(folder / f"{n_ranks} ranks, {n_had}")
        assert again.train(folder) == seen[n_had:]
        assert torch.equal(again.weights, first.weights)

    # Two ranks had three batches each, and one goes on with the others' rows.
    former = folder / "2 ranks, 3"
    if n_ranks == 1 and former.exists():
        alone = Run()
        alone.accelerator.load_state(former)
        rows = alone.train(folder)
        rest = flat(rows[: len(rows) - n_batches])
        assert len(rest) == len(set(rest)) == N_ROWS - 2 * 3 * 8
    print("right", flush=True)


def test_ranks_go_on_with_the_very_next_batch(tmp_path: Path) -> None:
    for n_ranks in (2, 1):
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={n_ranks}", "--standalone"]
        done = subprocess.run(
            [*command, __file__, str(tmp_path)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=250,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout.count("right") == n_ranks


if __name__ == "__main__":
    main(Path(sys.argv[1]))
