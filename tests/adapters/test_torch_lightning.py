"""Does a Lightning trainer get the batches of each stage, of its rank, and those that are left when it goes on?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("torch", reason="torch is not installed")
lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")

import torch  # noqa: E402
from conftest import MakeLoader  # noqa: E402

from adapter_truth import STORE_ROWS, Truth  # noqa: E402
from annbatch import Loader  # noqa: E402
from annbatch.errors import InputError  # noqa: E402
from annbatch_torch import TorchLoader  # noqa: E402
from annbatch_torch.lightning import AnnDataModule  # noqa: E402
from epochs import each_batch  # noqa: E402
from stores import named_stores  # noqa: E402
from train_lightning import RowModel, make_trainer  # noqa: E402

N_OBS = sum(STORE_ROWS)

pytestmark = [
    # What Lightning has to say about loggers, workers and devices.
    pytest.mark.filterwarnings("ignore:::lightning"),
    pytest.mark.filterwarnings("ignore:::pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*isinstance.*LeafSpec"),
]


def epochs_of(loader: Loader, n: int) -> list[list[list[int]]]:
    loader.set_epoch(0)
    return [[batch["index"].tolist() for batch in each_batch(TorchLoader(loader))] for _ in range(n)]


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


SPLITS: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[Truth, np.ndarray], bool]]] = {
    "by seed": (
        lambda: {"parts": {"train": 0.8, "val": 0.2}, "seed": 3},
        lambda truth, val: len(val) == round(0.2 * N_OBS),
    ),
    "by column": (
        lambda: {"parts": {"train": None, "val": ["NK", "mono"]}, "by": "cell_type"},
        lambda truth, val: set(val) == set(np.flatnonzero(truth.obs["cell_type"].isin(["NK", "mono"]))),
    ),
    "by rows": (
        lambda: {"parts": {"train": None, "val": np.arange(0, N_OBS, 5)}},
        lambda truth, val: set(val) == set(range(0, N_OBS, 5)),
    ),
}


@pytest.mark.parametrize("split", SPLITS)
def test_training_and_validation(split: str, make_loader: MakeLoader, truth: Truth) -> None:
    options, is_right = SPLITS[split]
    loaders = make_loader().split(**options())
    model = RowModel(make_loader().n_vars)
    make_trainer(max_epochs=2).fit(model, datamodule=AnnDataModule(**loaders))
    n_train, n_val = (len(loader) for loader in loaders.values())
    epochs = [model.train_rows[:n_train], model.train_rows[n_train:]]
    assert epochs == epochs_of(loaders["train"], 2)
    assert epochs[0] != epochs[1]
    train, val = (np.array(flat(rows)) for rows in (epochs[0], model.val_rows[:n_val]))
    assert is_right(truth, val)
    np.testing.assert_array_equal(np.sort(np.append(train, val)), np.arange(N_OBS))
    assert sorted(flat(model.val_rows[n_val:])) == sorted(val)


class SaveBehind(lightning.Callback):
    """Writes a checkpoint behind a training step."""

    def __init__(self, n_steps: int, path: Path) -> None:
        self._n_steps, self._path = n_steps, path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self._n_steps:
            trainer.save_checkpoint(self._path)


@pytest.mark.parametrize("n_steps", [5, 7, 9])
def test_a_trainer_goes_on(n_steps: int, make_loader: MakeLoader, tmp_path: Path) -> None:
    """Seven batches are an epoch: it goes on within one, and from the end of one."""
    whole = [batch for epoch in epochs_of(make_loader(), 3) for batch in epoch]
    first, resumed = RowModel(make_loader().n_vars), RowModel(make_loader().n_vars)
    checkpoint = tmp_path / "step.ckpt"
    trainer = make_trainer(max_epochs=3, callbacks=[SaveBehind(n_steps, checkpoint)])
    trainer.fit(first, datamodule=AnnDataModule(train=make_loader()))
    assert first.train_rows == whole
    make_trainer(max_epochs=3).fit(resumed, datamodule=AnnDataModule(train=make_loader()), ckpt_path=checkpoint)
    assert resumed.train_rows == whole[n_steps:]


def test_a_trainer_that_had_ended_goes_on(make_loader: MakeLoader, tmp_path: Path) -> None:
    whole = [batch for epoch in epochs_of(make_loader(), 3) for batch in epoch]
    for n_epochs in (1, 2, 3):
        model = RowModel(make_loader().n_vars)
        trainer = make_trainer(max_epochs=n_epochs)
        module = AnnDataModule(train=make_loader())
        trainer.fit(model, datamodule=module, ckpt_path=None if n_epochs == 1 else tmp_path / "last.ckpt")
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        assert model.train_rows == whole[7 * (n_epochs - 1) : 7 * n_epochs]


def test_testing_and_prediction(make_loader: MakeLoader) -> None:
    model = RowModel(make_loader().n_vars)
    module = AnnDataModule(test=make_loader(), predict=make_loader(), layout="dense", dtype=torch.float64)
    model.double()
    make_trainer().test(model, datamodule=module, verbose=False)
    assert sorted(flat(model.test_rows)) == list(range(N_OBS))
    predictions = make_trainer().predict(model, datamodule=module)
    assert sum(len(scores) for scores in predictions) == N_OBS
    assert module.stats("test").cells == module.stats("predict").cells == N_OBS


def test_a_stage_without_a_loader(make_loader: MakeLoader) -> None:
    model = RowModel(make_loader().n_vars)
    with pytest.raises(InputError, match=r"must have a loader for 'test' here, got loaders only for \['train'\]"):
        make_trainer().test(model, datamodule=AnnDataModule(train=make_loader()), verbose=False)
    with pytest.raises(InputError, match="must have a loader for 'val' here"):
        AnnDataModule(train=make_loader()).stats("val")


def test_missing_lightning_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "annbatch_torch.lightning")
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    with pytest.raises(ImportError, match="pip install lightning"):
        import annbatch_torch.lightning  # noqa: F401


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    """Both make the same number of steps in each epoch, on rows that do not overlap."""
    named_stores(tmp_path / "stores", "v3 sharded")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    script = Path(__file__).parents[1] / "support/train_lightning.py"
    subprocess.run([sys.executable, script, tmp_path / "stores", tmp_path], env=environment, check=True, timeout=250)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) > 4
    half = len(ranks[0]) // 2
    for epoch in (slice(half), slice(half, None)):
        assert sorted(flat(ranks[0][epoch] + ranks[1][epoch])) == list(range(98))
    assert ranks[0][:half] != ranks[0][half:]


def test_frames_come_with_the_batches(make_loader: MakeLoader) -> None:
    module = AnnDataModule(train=make_loader())
    assert isinstance(next(iter(module.train_dataloader()))["labels"], pd.DataFrame)
    module.teardown("fit")


def test_a_trainer_takes_no_core_loader(make_loader: MakeLoader) -> None:
    with pytest.raises(TypeError, match="give the trainer annbatch_torch.TorchLoader"):
        make_trainer(max_epochs=1).fit(RowModel(4), make_loader())


def parts_of_epochs(rows: list[list[int]], n: int) -> list[list[list[int]]]:
    return [rows[start : start + n] for start in range(0, len(rows), n)]


@pytest.mark.parametrize("n_sanity", [0, 2])
def test_what_is_measured_is_comparable(n_sanity: int, make_loader: MakeLoader) -> None:
    """Some batches of validation are the same ones in each epoch, whatever a trainer tries before it begins."""
    loaders = make_loader().split({"train": 0.6, "val": 0.4})
    assert len(loaders["val"]) > 2
    first = epochs_of(loaders["val"], 1)[0][:2]
    loaders["val"].set_epoch(0)
    model = RowModel(make_loader().n_vars)
    trainer = make_trainer(max_epochs=3, limit_val_batches=2, num_sanity_val_steps=n_sanity)
    trainer.fit(model, datamodule=AnnDataModule(**loaders))
    assert parts_of_epochs(model.val_rows, 2) == [first] * (3 + n_sanity // 2)
    n_train = len(loaders["train"])
    assert parts_of_epochs(model.train_rows, n_train) == epochs_of(loaders["train"], 3)


def test_a_trainer_that_overfits_gets_the_same_rows(make_loader: MakeLoader, tmp_path: Path) -> None:
    model = RowModel(make_loader().n_vars)
    first = epochs_of(make_loader(), 1)[0][:3]
    checkpoint = tmp_path / "step.ckpt"
    make_trainer(max_epochs=3, overfit_batches=3, callbacks=[SaveBehind(4, checkpoint)]).fit(
        model, datamodule=AnnDataModule(train=make_loader())
    )
    assert parts_of_epochs(model.train_rows, 3) == [first] * 3
    resumed = RowModel(make_loader().n_vars)
    trainer = make_trainer(max_epochs=3, overfit_batches=3)
    trainer.fit(resumed, datamodule=AnnDataModule(train=make_loader()), ckpt_path=checkpoint)
    assert resumed.train_rows == model.train_rows[4:]
