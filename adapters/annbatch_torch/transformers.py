"""How does a ``Trainer`` of Hugging Face transformers get its batches, and go on with the very next one?

1. `LoaderTrainer` takes a `TorchLoader` where a ``Trainer`` takes a dataset. Each rank reads its own rows.
2. Checkpoints hold where the loader stands, in a file of their own.
3. A ``Trainer`` that goes on asks for all batches of the epoch once more and drops those that it has had. It is given
   placeholders for these, so that nothing is read twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import torch.distributed
from torch.utils.data import DataLoader, IterableDataset

try:
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
except ImportError as error:
    raise ImportError(
        "annbatch_torch.transformers needs transformers and accelerate, which could not be imported: "
        "pip install transformers accelerate"
    ) from error

from annbatch.adapter import WHOLE
from annbatch.errors import InputError
from annbatch_torch._loader import TorchLoader

__all__ = ["LoaderTrainer"]

_POSITION = "annbatch_loader.json"


class LoaderTrainer(Trainer):  # type: ignore[misc]
    """A ``transformers.Trainer`` whose datasets may be ``TorchLoader(ds, form="dict")``.

    The entries of a batch are the arguments of the model: ``forward(self, data, index, cell_type)``. The batch size is
    that of the loader; ``per_device_train_batch_size`` only affects the trainer's logs. Under ``torchrun`` or
    ``accelerate launch``, each rank gets its own rows, and all get the same number of batches.

    ``train(resume_from_checkpoint=…)`` continues with the batch that would have come next, and reads none before it. It
    needs as many ranks as the checkpoint was saved with.

    Evaluation uses the order of epoch 0 each time. On several ranks, the number of rows must be a multiple of the
    number of ranks, since a ``Trainer`` gathers tensors of equal shapes.

    Parameters
    ----------
    *args, **options
        Those of ``Trainer``.

    Raises
    ------
    annbatch.errors.InputError
        If a loader does not yield dicts, or ``ignore_data_skip`` is set. From ``train``, if the checkpoint lacks the
        position of the loader, or belongs to other data, settings or another number of ranks.

    Examples
    --------
    >>> batches = TorchLoader(ds, form="dict", layout="dense")  # doctest: +SKIP
    >>> LoaderTrainer(
    ...     model=model, args=TrainingArguments("out"), train_dataset=batches
    ... ).train()  # doctest: +SKIP
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if isinstance(self.train_dataset, TorchLoader):
            if self.args.ignore_data_skip:
                raise InputError("ignore_data_skip must be False: a LoaderTrainer that resumes reads nothing twice")
            self._train_batches = _Batches(self.train_dataset)
            self.add_callback(_SavedPosition(self.train_dataset))

    def get_train_dataloader(self) -> Any:
        """Return the batches to train on."""
        if not isinstance(self.train_dataset, TorchLoader):
            return super().get_train_dataloader()
        return DataLoader(self._train_batches, batch_size=None)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return the batches to evaluate on."""
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(chosen, str):
            chosen = self.eval_dataset[chosen]
        return _measured(chosen) if isinstance(chosen, TorchLoader) else super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Return the batches to predict from."""
        return (
            _measured(test_dataset)
            if isinstance(test_dataset, TorchLoader)
            else super().get_test_dataloader(test_dataset)
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **options: Any) -> Any:
        """Train, as ``Trainer.train`` does."""
        found = get_last_checkpoint(self.args.output_dir) if resume_from_checkpoint is True else resume_from_checkpoint
        if found and isinstance(self.train_dataset, TorchLoader):
            self._train_batches.go_on(Path(found))
        return super().train(resume_from_checkpoint, *args, **options)


class _Batches(IterableDataset[Any]):
    """Batches of a loader, behind placeholders for those that were had before a checkpoint."""

    def __init__(self, batches: TorchLoader) -> None:
        if batches.form != "dict":
            raise InputError(f"form must be 'dict' for a LoaderTrainer, got TorchLoader(form={batches.form!r})")
        self._batches = batches
        self._n_had = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        n_had, self._n_had = self._n_had, 0
        yield from repeat(None, n_had)
        yield from self._batches

    def go_on(self, checkpoint: Path) -> None:
        """Stand where a checkpoint says."""
        try:
            state = json.loads((checkpoint / _POSITION).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"{checkpoint}: must hold {_POSITION}, as checkpoints of a LoaderTrainer do") from error
        self._batches.load_state_dict(state)
        core = self._batches.loader
        if core.at_end:
            self._batches.set_epoch(core.next_epoch + 1)
        elif state["parts"]:
            count = (self._batches.partition or WHOLE).count
            if [n_ranks for n_ranks, _ in state["parts"]] != [count]:
                raise InputError(
                    f"{checkpoint}: must have been saved with the current number of ranks, {count}, since a Trainer "
                    f"counts the batches of each rank; got {state['parts'][-1][0]}"
                )
            self._n_had = state["parts"][0][1]


class _SavedPosition(TrainerCallback):  # type: ignore[misc]
    """Puts into each checkpoint where the loader stands, which is the same on all ranks."""

    def __init__(self, batches: TorchLoader) -> None:
        self._batches = batches

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.should_save:
            folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
            (folder / _POSITION).write_text(json.dumps(self._batches.state_dict()), encoding="utf-8")


def _measured(batches: TorchLoader) -> Any:
    """Give the batches of epoch 0, of equal numbers of rows on all ranks."""
    count = (batches.partition or WHOLE).count
    if count > 1 and torch.distributed.is_initialized() and not batches.loader.drop_last and batches.n_obs % count:
        raise InputError(
            f"to evaluate on {count} ranks, a loader must have a multiple of {count} rows, got {batches.n_obs:,}: a "
            "Trainer gathers tensors of equal shapes; set drop_last=True to leave out the remaining rows"
        )
    batches.set_epoch(0)
    return DataLoader(_Batches(batches), batch_size=None)
