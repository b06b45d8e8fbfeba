"""Shuffled mini-batches from single-cell collections larger than memory."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from annbatch import scverse_names

if sys.platform == "win32":
    raise ImportError(
        "annbatch does not support Windows; install it in the Windows Subsystem for Linux (WSL)", name=__name__
    )

if TYPE_CHECKING:
    from annbatch import samplers
    from annbatch.batch import CSR, Batch, Capacity, Emit, Modality
    from annbatch.errors import (
        AnnbatchError,
        CorruptStoreError,
        DeviceMemoryError,
        InputError,
        InputErrors,
        MissingInputError,
        OutputError,
        OutputExistsError,
        StoreError,
    )
    from annbatch.loader import Loader
    from annbatch.order.consumers import Partition
    from annbatch.stats import Stats
    from annbatch.stores.collection import Collection
    from annbatch.transform import Binarize, LogNormalize
    from annbatch.write import append_to_collection, create_anndata_collection, reshuffle_collection

__version__ = version("annbatch-dlpack")

__all__ = [
    "CSR",
    "AnnbatchError",
    "Batch",
    "Binarize",
    "Capacity",
    "Collection",
    "CorruptStoreError",
    "DeviceMemoryError",
    "Emit",
    "InputError",
    "InputErrors",
    "Loader",
    "LogNormalize",
    "MissingInputError",
    "Modality",
    "OutputError",
    "OutputExistsError",
    "Partition",
    "Stats",
    "StoreError",
    "samplers",
    "append_to_collection",
    "create_anndata_collection",
    "reshuffle_collection",
]

_HOMES = {
    "annbatch.batch": ("CSR", "Batch", "Capacity", "Emit", "Modality"),
    "annbatch.errors": (
        "AnnbatchError",
        "CorruptStoreError",
        "DeviceMemoryError",
        "InputError",
        "InputErrors",
        "MissingInputError",
        "OutputError",
        "OutputExistsError",
        "StoreError",
    ),
    "annbatch.loader": ("Loader",),
    "annbatch.order.consumers": ("Partition",),
    "annbatch.stats": ("Stats",),
    "annbatch.stores.collection": ("Collection",),
    "annbatch.transform": ("Binarize", "LogNormalize"),
    "annbatch.write": ("append_to_collection", "create_anndata_collection", "reshuffle_collection"),
}
"""Where the public names come from; each is imported when it is first asked for, so that `annbatch --help` is quick."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        # The last two are modules of earlier paths, which warn.
        if name in ("errors", "samplers", "permutation", "stream"):
            return import_module(f"annbatch.{name}")
        for module, names in _HOMES.items():
            if name in names:
                globals()[name] = getattr(import_module(module), name)
                return globals()[name]
        raise scverse_names.missing(__name__, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
