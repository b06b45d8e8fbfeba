"""Which collections does an adapter read when it is checked, and through which loaders?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt

from annbatch.loader import Loader
from annbatch.testing.cells import make_collection, make_modalities
from annbatch.testing.truth import Framework, Truth

BATCHES: dict[str, Any] = {"batch_size": 16, "chunk_size": 4, "preload_nchunks": 8, "seed": 3}
"""Options with which an epoch of the cells has several windows and a short last batch."""

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Samples:
    """The collections that adapters are checked with."""

    path: Path
    cells: ad.AnnData
    """The cells of the collection at ``path``, in its order."""
    modal_path: Path
    modalities: dict[str, ad.AnnData]
    """Those of the collection at ``modal_path``, by modality."""

    @classmethod
    def written(cls, folder: Path) -> Samples:
        """Write them into a folder."""
        path, modal_path = folder / "cells", folder / "modalities"
        return cls(path, make_collection(path), modal_path, make_modalities(modal_path))

    def opened(self) -> Loader:
        """Open the collection of the cells."""
        return Loader(**BATCHES).use_collection(self.path, labels=list(self.cells.obs.columns))


@dataclass(frozen=True, eq=False)
class Subject:
    """The adapter to check, and the data that it is checked with."""

    make: Callable[[Loader], Any]
    opened: Loader
    """A loader of the cells, with all their label columns; others share its stores."""
    truth: Truth

    @property
    def framework(self) -> Framework:
        """How arrays are read."""
        return self.truth.framework

    def loader(self, **options: Any) -> Loader:
        """Give a loader of the collection for the adapter."""
        return self.opened.replace(**(self.framework.options | options))

    def core_epoch(self, epoch: int = 0, **options: Any) -> list[Index]:
        """Give the index of each batch of the core; where the matrices are does not change the order."""
        with self.opened.replace(**options) as core:
            core.set_epoch(epoch)
            return [np.asarray(batch.index) for batch in core]

    def index(self, batch: Any) -> list[int]:
        """Give the row numbers of a batch, without those that fill it up."""
        found = self.framework.array(batch["index"])
        return [int(row) for row in found if row >= 0]

    def epoch(self, batches: Iterable[Any]) -> list[list[int]]:
        """Give the row numbers of batches."""
        return [self.index(batch) for batch in batches]
