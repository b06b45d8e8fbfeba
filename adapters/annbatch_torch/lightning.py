"""How does a Lightning trainer get its batches?

1. `AnnDataModule` is given a loader for each stage, such as `annbatch.Loader.split` makes them.
2. The trainer says which device it uses and, by its process group, which rank it is; it gets a `TorchLoader` for that.
3. Checkpoints hold where the training loader stands: Lightning asks loaders themselves for their state, but forgets it
   where an epoch has ended, and then begins the order anew; so the module says it too.
4. Training gets another order in each epoch. What is measured is comparable: the other stages get the order of epoch 0
   each time, and so does training with ``Trainer(overfit_batches=…)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch

try:
    from lightning.pytorch import LightningDataModule
except ImportError as error:
    raise ImportError(
        "annbatch_torch.lightning needs Lightning, which could not be imported: pip install lightning"
    ) from error

from annbatch.adapter import Stats
from annbatch.errors import InputError
from annbatch_torch._loader import TorchBatch, TorchLoader

if TYPE_CHECKING:
    from annbatch import Loader

__all__ = ["AnnDataModule"]


class AnnDataModule(LightningDataModule):
    """The data of a Lightning trainer: `TorchBatch` for training, validation, test and prediction.

    Batches are on the trainer's device. Under ``strategy="ddp"``, each rank gets its own windows, and all get the same
    number of batches. A trainer that resumes from a checkpoint (``fit(…, ckpt_path=…)``) gets the batches that would
    have come next. The loader reads on threads of its own and needs no worker processes.

    Each epoch of training has a different order. Validation, test and prediction always use the order of epoch 0, so
    that ``limit_val_batches=`` measures on the same rows each time. So does training with ``overfit_batches=``.

    Lightning cannot tell how many cells are in a batch: pass ``self.log(…, batch_size=len(batch["index"]))``.

    Parameters
    ----------
    train, val, test, predict
        Loaders of the stages; None for a stage without one. ``Loader.split`` makes them by fraction, by an obs column
        or from given rows.
    layout, dtype
        As in `TorchLoader`.

    Raises
    ------
    annbatch.errors.InputError
        If a trainer asks for a stage other than validation that has no loader.

    Examples
    --------
    >>> import annbatch
    >>> from annbatch_torch.lightning import AnnDataModule
    >>> ds = annbatch.Loader(batch_size=32).use_collection(
    ...     "collection", labels=["cell_type"]
    ... )
    >>> parts = ds.split({"train": None, "val": ["donor 3"]}, by="donor")
    >>> module = AnnDataModule(**parts)

    Pass it to a trainer: ``Trainer(max_epochs=10).fit(model, datamodule=module)``.
    """

    def __init__(
        self,
        train: Loader | None = None,
        val: Loader | None = None,
        test: Loader | None = None,
        predict: Loader | None = None,
        *,
        layout: Literal["csr", "dense"] = "csr",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        loaders = {"train": train, "val": val, "test": test, "predict": predict}
        self.loaders = {stage: loader for stage, loader in loaders.items() if loader is not None}
        self._layout: Literal["csr", "dense"] = layout
        self._dtype = dtype

    def train_dataloader(self) -> TorchLoader:
        """Return the batches to train on."""
        return self._batches("train")

    def val_dataloader(self) -> TorchLoader | list[Any]:
        """Return the batches to validate on; an empty list if there is no loader for them."""
        return self._batches("val") if "val" in self.loaders else []

    def test_dataloader(self) -> TorchLoader:
        """Return the batches to test on."""
        return self._batches("test")

    def predict_dataloader(self) -> TorchLoader:
        """Return the batches to predict from."""
        return self._batches("predict")

    def stats(self, stage: str = "train") -> Stats:
        """Return the speed of the running or last epoch of a stage, as `annbatch.Loader.stats` does."""
        return self._loader(stage).stats()

    def state_dict(self) -> dict[str, Any]:
        """Return the position in training; the trainer puts it into checkpoints."""
        return {"train": self.loaders["train"].state_dict()} if "train" in self.loaders else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Make training continue where a state was taken."""
        if "train" in state_dict:
            go_on(self.loaders["train"], state_dict["train"])

    def teardown(self, stage: str) -> None:
        """Stop reading ahead."""
        for loader in self.loaders.values():
            loader.close()

    def _loader(self, stage: str) -> Loader:
        if stage not in self.loaders:
            raise InputError(
                f"AnnDataModule must have a loader for {stage!r} here, got loaders only for {sorted(self.loaders)}"
            )
        return self.loaders[stage]

    def _batches(self, stage: str) -> TorchLoader:
        loader = self._loader(stage)
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        # To a device of another kind, the trainer itself moves batches.
        device = device if device.type == "cuda" else torch.device("cpu")
        repeats = stage != "train" or getattr(self.trainer, "overfit_batches", 0) > 0
        kind = _FirstEpoch if repeats else _Epochs
        return kind(loader, device=device, layout=self._layout, dtype=self._dtype)


class _Epochs(TorchLoader):
    """A loader whose epochs are those of a trainer."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        go_on(self.loader, state)


class _FirstEpoch(_Epochs):
    """A loader that gives epoch 0 each time."""

    def __iter__(self) -> Iterator[TorchBatch]:
        # Runs when the first batch is asked for: trainers ask for iterators that they do not use. What is left of
        # epoch 0 after a state was loaded comes first.
        if self.loader.next_epoch != 0:
            self.loader.set_epoch(0)
        yield from super().__iter__()


def go_on(loader: Loader, state: Mapping[str, Any]) -> None:
    """Load a state as a trainer means it: behind the last batch of an epoch the next one begins."""
    loader.load_state_dict(state)
    if loader.at_end:
        loader.set_epoch(loader.next_epoch + 1)
