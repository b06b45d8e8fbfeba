"""A Lightning model that remembers which rows it was given; as a script, two ranks train it.

Usage: train_lightning.py STORES OUT

Each rank writes the rows of its steps to ``OUT/rank{RANK}.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from annbatch import Loader
from annbatch_torch.lightning import AnnDataModule


class RowModel(LightningModule):
    """A linear layer."""

    def __init__(self, n_vars: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(n_vars, 2)
        self.train_rows: list[list[int]] = []
        self.val_rows: list[list[int]] = []
        self.test_rows: list[list[int]] = []

    def scores(self, batch: Any) -> torch.Tensor:
        return self.layer(batch["data"].to_dense())

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        self.train_rows.append(batch["index"].tolist())
        return self.scores(batch).square().mean()

    def validation_step(self, batch: Any, number: int) -> None:
        self.val_rows.append(batch["index"].tolist())
        self.log("loss", self.scores(batch).square().mean(), batch_size=len(batch["index"]))

    def test_step(self, batch: Any, number: int) -> None:
        self.test_rows.append(batch["index"].tolist())

    def predict_step(self, batch: Any, number: int) -> torch.Tensor:
        return self.scores(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-12)


def make_trainer(**options: Any) -> Trainer:
    return Trainer(
        **{"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0} | options,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def main(stores: Path, out: Path) -> None:
    from train_rank import opened

    core = Loader(batch_size=8, chunk_size=3, preload_nchunks=5, threads=1, seed=3).add_anndatas(opened(stores))
    model = RowModel(core.n_vars)
    trainer = make_trainer(max_epochs=2, devices=2, strategy="ddp")
    trainer.fit(model, datamodule=AnnDataModule(train=core))
    (out / f"rank{trainer.global_rank}.json").write_text(json.dumps(model.train_rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
