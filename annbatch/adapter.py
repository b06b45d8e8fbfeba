"""What do the loaders of all frameworks share?

An adapter passes its `Emit` to the core loader and wraps each `Batch` that it gets; it owns no data. This module and
`annbatch.errors` are all that an adapter imports from the core: besides `Adapter`, they have the types and functions
that adapters need.
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
    """Convert every value of a mapping; None stays None."""
    return None if carried is None else {name: convert(value) for name, value in carried.items()}


def converted_modalities(
    modalities: Mapping[str, Modality] | None,
    matrix: Callable[[Any], Any],
    obsm: Callable[[str, Any], Any],
    mask: Callable[[Any], Any],
) -> dict[str, Modality] | None:
    """Convert the modalities of a batch; None stays None.

    Parameters
    ----------
    modalities
        The modalities by name.
    matrix
        Converts ``data`` and each layer.
    obsm
        Converts an element of obsm; its first argument is the name of the element, ``"rna:X_pca"``.
    mask
        Converts the mask.
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
    """Return a batch as a plain dict of arrays, for libraries that collate, concatenate or move batches themselves.

    Parameters
    ----------
    batch
        The batch.
    **more
        Arrays that an adapter adds, such as ``mask``.

    Returns
    -------
    dict
        ``data``, or a dict for each modality; the codes of each label column under the column's name; and ``index``,
        ``layers`` and ``obsm`` if the batch has them, the last two as dicts.
    """
    if batch.modalities is None:
        arrays: dict[str, Any] = {"data": batch.data}
    else:
        arrays = {name: dict(one) for name, one in batch.modalities.items()}
    optional = {"index": batch.index, "layers": batch.layers, "obsm": batch.obsm, **more}
    return arrays | dict(batch.codes) | {name: value for name, value in optional.items() if value is not None}


def check_flat(loader: Loader, *, device: str | None = None) -> None:
    """Check that `flat` can hold the batches of a loader.

    Parameters
    ----------
    loader
        The loader.
    device
        The device on which the arrays must be; None means any.

    Raises
    ------
    InputError
        If batches carry the names of cells, which are not numbers; if a label column has the name of another key; or if
        the batches are on another device.
    """
    if device not in (None, loader.device):
        raise InputError(f"device must be {device!r} for dicts of arrays, got Loader(device={loader.device!r})")
    if loader.names:
        raise InputError(
            "names must be False for dicts of arrays, which hold only numbers; ds.obs([]) has the names of the cells, "
            "in the order of the global row numbers"
        )
    keys = {"data", "index", "mask", "layers", "obsm", *loader.mod}
    if taken := [name for name in loader.label_names if name in keys]:
        raise InputError(
            f"label columns must not be named like another key of a dict of arrays ({', '.join(sorted(keys))}), got "
            f"{', '.join(taken)}: rename the column, or leave it out of labels="
        )


def a_loader(loader: Loader) -> Loader:
    """Check that an argument is a `Loader`, and return it.

    Raises
    ------
    TypeError
        If it is something else.
    """
    if not hasattr(loader, "batches"):
        raise TypeError(f"ds must be an annbatch.Loader, got {type(loader).__name__}")
    return loader


class Adapter(Summary, ABC):
    """Base class of loaders that yield the arrays of a framework.

    The core `Loader` manages epochs, threads and stores. Subclasses implement ``_hand_over(batch)``, which returns a
    batch with the framework's arrays, on the same memory if possible.

    Parameters
    ----------
    loader
        The core loader, to which data have been added. It stays reachable as ``.loader``.
    emit
        The form of batches that the framework accepts without a copy.

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
        """Return the batch with the framework's arrays in it, on the same memory if possible."""

    def __iter__(self) -> Iterator[Any]:
        # `map` rather than a generator: it keeps no reference to a batch that the user has let go.
        return map(self._hand_over, self.loader.batches(self._emit, self.partition))

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return self.loader.n_batches(self.partition)

    def __getitem__(self, number: Any) -> NoReturn:
        """Raise TypeError: torch's ``DataLoader`` would ask for single rows this way."""
        self.loader.__getitem__(number)

    def _facts(self) -> dict[str, str]:
        own = {name: str(getattr(self, name)) for name in ("layout", "dtype", "device") if hasattr(self, name)}
        return own | dict(self.loader._facts())

    @property
    def partition(self) -> Partition | None:
        """The consumer that this process is, by the core loader's ``partition`` or else by the framework."""
        return self.loader.partition

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next ``iter`` starts, as `Loader.set_epoch` does."""
        self.loader.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the run, as `Loader.state_dict` does."""
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next ``iter`` continue where a state was taken, as `Loader.load_state_dict` does."""
        self.loader.load_state_dict(state, self.partition)

    def stats(self) -> Stats:
        """Return the speed of the running or last epoch, as `Loader.stats` does."""
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
        """Number of genes, as `Loader.n_vars`."""
        return self.loader.n_vars

    @property
    def var(self) -> pd.DataFrame:
        """The var of the genes, as `Loader.var`."""
        return self.loader.var

    @property
    def mod(self) -> Mapping[str, Any]:
        """The modalities by name, as `Loader.mod`."""
        return self.loader.mod

    @property
    def categories(self) -> Mapping[str, Any]:
        """Categories of each label column, as `Loader.categories`."""
        return self.loader.categories
