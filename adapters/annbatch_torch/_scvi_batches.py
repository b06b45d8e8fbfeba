"""How do batches become what the modules of scvi-tools take?

1. `ScviBatches` turns each batch into a dictionary of tensors.
2. `ScviPairs` adds a batch of labelled cells to each, for semi-supervised models.
3. Both say where they stand, and go on there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain, repeat
from typing import Any

import torch

from annbatch.errors import InputError
from annbatch_torch._loader import TorchBatch, TorchLoader

Tensors = dict[str, torch.Tensor]


class ScviBatches:
    """Batches as dictionaries of tensors; what a stage of a `ScviDataModule` gives.

    Parameters
    ----------
    batches
        The batches of a loader.
    tensors
        Gives the dictionary of a batch.
    """

    def __init__(self, batches: TorchLoader, tensors: Callable[[TorchBatch], Tensors]) -> None:
        self.batches = batches
        self._tensors = tensors

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensors]:
        return map(self._tensors, self.batches)

    def state_dict(self) -> dict[str, Any]:
        """Say where the batches stand."""
        return self.batches.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken."""
        self.batches.load_state_dict(state)


class ScviPairs:
    """Pairs of a batch of all cells and one of labelled cells, which come round as often as it takes.

    Which labelled cells come in an epoch depends on the epoch alone.

    Parameters
    ----------
    whole
        Batches of all cells.
    labelled
        Batches of those that have a label.

    Raises
    ------
    annbatch.errors.InputError
        If there are too few labelled cells for a batch.
    """

    def __init__(self, whole: ScviBatches, labelled: ScviBatches) -> None:
        if not len(labelled):
            raise InputError(
                "labelled cells must make at least one batch on each rank, got none: label more cells, or drop fewer "
                "with drop_last"
            )
        self.whole = whole
        self.labelled = labelled
        self._n_given = 0
        self._goes_on = False

    def __len__(self) -> int:
        return len(self.whole)

    def __iter__(self) -> Iterator[tuple[Tensors, Tensors]]:
        endless: Iterator[Tensors] | None = None
        for batch in self.whole:
            if endless is None:
                if not self._goes_on:
                    rounds = -(-len(self.whole) // len(self.labelled))
                    self.labelled.batches.set_epoch(self.whole.state_dict()["epoch"] * rounds)
                    self._n_given = 0
                self._goes_on = False
                endless = chain.from_iterable(repeat(self.labelled))
            self._n_given += 1
            yield batch, next(endless)

    def state_dict(self) -> dict[str, Any]:
        """Say where both stand."""
        return {"whole": self.whole.state_dict(), "labelled": self.labelled.state_dict(), "n_given": self._n_given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken."""
        self.whole.load_state_dict(state["whole"])
        self.labelled.load_state_dict(state["labelled"])
        self._n_given = state["n_given"]
        self._goes_on = 0 < self._n_given < len(self)
