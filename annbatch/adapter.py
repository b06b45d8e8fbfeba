"""What do the loaders of all frameworks share?

An adapter sends its `Emit` down to the core and wraps each `Batch` that comes up; it owns nothing. With
`annbatch.errors`, this module is all that an adapter imports: besides `Adapter` it gives the core's types and functions
that adapters need, from wherever in the core they stand.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from annbatch.batch import CSR, Array, Batch, Capacity, Emit, Fields, Modality
from annbatch.check import available_cores, integer
from annbatch.epoch import Epoch
from annbatch.errors import InputError
from annbatch.loader import WHOLE, Loader
from annbatch.order.consumers import Partition
from annbatch.stats import Stats
from annbatch.summary import Summary

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Adapter",
    "Loader",
    "Emit",
    "Capacity",
    "Batch",
    "Fields",
    "Modality",
    "CSR",
    "Array",
    "Epoch",
    "Partition",
    "Stats",
    "Summary",
    "WHOLE",
    "a_loader",
    "converted",
    "converted_modalities",
    "check_flat",
    "flat",
    "integer",
    "available_cores",
]


def converted(carried: Mapping[str, Any] | None, convert: Callable[[Any], Any]) -> dict[str, Any] | None:
    """Convert every value of a mapping that may be missing."""
    return None if carried is None else {name: convert(value) for name, value in carried.items()}


def converted_modalities(
    modalities: Mapping[str, Modality] | None,
    matrix: Callable[[Any], Any],
    obsm: Callable[[str, Any], Any],
    mask: Callable[[Any], Any],
) -> dict[str, Modality] | None:
    """Convert what a batch holds of its modalities, if it has any.

    Parameters
    ----------
    matrix, obsm, mask
        Convert ``data`` and layers; an element of obsm, whose name is given, too; and the mask.
    """
    if modalities is None:
        return None
    return {
        name: Modality(
            data=matrix(one.data),
            layers=converted(one.layers, matrix),
            obsm=None if one.obsm is None else {key: obsm(f"{name}:{key}", held) for key, held in one.obsm.items()},
            mask=None if one.mask is None else mask(one.mask),
        )
        for name, one in modalities.items()
    }


def flat(batch: Fields, **more: Any) -> dict[str, Any]:
    """Give a batch as a plain dict of arrays, for programs that collate, concatenate or move batches themselves.

    Parameters
    ----------
    batch
        The batch.
    **more
        Arrays that an adapter adds, like ``mask``.

    Returns
    -------
    dict
        ``data``, or a dict for each modality; the codes of each label column under the column's name; ``index``,
        ``layers`` and ``obsm`` where the batch has them, the last two as dicts.
    """
    if batch.modalities is None:
        arrays: dict[str, Any] = {"data": batch.data}
    else:
        arrays = {name: dict(one) for name, one in batch.modalities.items()}
    optional = {"index": batch.index, "layers": batch.layers, "obsm": batch.obsm, **more}
    return arrays | dict(batch.codes) | {name: value for name, value in optional.items() if value is not None}


def check_flat(loader: Loader, *, device: str | None = None) -> None:
    """Check that `flat` holds all that the batches of a loader do.

    Parameters
    ----------
    loader
        The loader.
    device
        The device whose arrays the dict must hold; None means that any will do.

    Raises
    ------
    InputError
        If the loader gives names of cells, which are no numbers, a label column has the name of another key, or its
        batches are on another device.
    """
    if device not in (None, loader.device):
        raise InputError(f"device must be {device!r} for a dict of its arrays, got Loader(device={loader.device!r})")
    if loader.names:
        raise InputError(
            "names must be False for a dict of arrays, which holds numbers alone: ds.obs([]) has the names, in the "
            "order of index"
        )
    keys = {"data", "index", "mask", "layers", "obsm", *loader.mod}
    if taken := [name for name in loader.label_names if name in keys]:
        raise InputError(
            f"in a dict of arrays label columns stand beside the keys {', '.join(sorted(keys))}, so that no column may "
            f"have one of these names, got {', '.join(taken)}: rename the column, or leave it out of labels="
        )


def a_loader(loader: Loader) -> Loader:
    """Give the loader.

    Raises
    ------
    TypeError
        If it is something else.
    """
    if not hasattr(loader, "batches"):
        raise TypeError(f"ds must be an annbatch.Loader, got {type(loader).__name__}")
    return loader


class Adapter(Summary, ABC):
    """A core `Loader` seen through one framework's arrays; epochs, threads and stores stay with the core loader.

    Parameters
    ----------
    loader
        The core loader, its data already added.
    emit
        What the framework takes without a copy.

    Raises
    ------
    InputError
        If the loader's ``casting`` does not allow the type of the values.
    """

    def __init__(self, loader: Loader, emit: Emit) -> None:
        self.loader = a_loader(loader)
        self._emitted = loader.emitted(emit)
        self._emit = emit

    @abstractmethod
    def _hand_over(self, batch: Batch) -> Any:
        """Give the batch with the framework's arrays in it; the memory stays the same where it can."""

    def __iter__(self) -> Iterator[Any]:
        # `map` rather than a generator: it keeps no reference to a batch that the user has let go.
        return map(self._hand_over, self.loader.batches(self._emit, self.partition))

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return self.loader.n_batches(self.partition)

    def __getitem__(self, number: Any) -> NoReturn:
        """Refuse: torch's ``DataLoader`` asks datasets for single rows so; raises TypeError that says what it takes."""
        self.loader.__getitem__(number)

    def _facts(self) -> dict[str, str]:
        own = {name: str(getattr(self, name)) for name in ("layout", "dtype", "device") if hasattr(self, name)}
        return own | dict(self.loader._facts())

    @property
    def partition(self) -> Partition | None:
        """Which of several consumers this one is: as the core loader was told, else as the framework knows it."""
        return self.loader.partition

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next ``iter`` gives, as `Loader.set_epoch` does."""
        self.loader.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Say where the run stands, as `Loader.state_dict` does."""
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next ``iter`` go on where a state was taken, as `Loader.load_state_dict` does."""
        self.loader.load_state_dict(state, self.partition)

    def stats(self) -> Stats:
        """Say what the running epoch did so far, or the last one, as `Loader.stats` does."""
        return self.loader.stats()

    def obs(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Read obs without the counts, as `Loader.obs` does."""
        return self.loader.obs(columns)

    @property
    def n_obs(self) -> int:
        """Number of rows."""
        return self.loader.n_obs

    @property
    def n_vars(self) -> int:
        """Number of columns."""
        return self.loader.n_vars

    @property
    def var(self) -> pd.DataFrame:
        """The columns' annotation."""
        return self.loader.var

    @property
    def mod(self) -> Mapping[str, Any]:
        """The modalities, as `Loader.mod` gives them."""
        return self.loader.mod

    @property
    def categories(self) -> Mapping[str, Any]:
        """Per categorical label column: the names of its codes."""
        return self.loader.categories
