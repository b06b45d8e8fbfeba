"""Shuffled mini-batches from single-cell collections larger than memory."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from annbatch import samplers
from annbatch.batch import CSR, Batch, Capacity, Emit
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
from annbatch.stores.collection import Collection
from annbatch.write import append_to_collection, create_anndata_collection, reshuffle_collection

__version__ = version("annbatch-dlpack")

__all__ = [
    "CSR",
    "AnnbatchError",
    "Batch",
    "Capacity",
    "Collection",
    "CorruptStoreError",
    "DeviceMemoryError",
    "Emit",
    "InputError",
    "InputErrors",
    "Loader",
    "MissingInputError",
    "OutputError",
    "OutputExistsError",
    "Partition",
    "StoreError",
    "samplers",
    "append_to_collection",
    "create_anndata_collection",
    "reshuffle_collection",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        # Modules of earlier paths, which warn: `import annbatch` loaded them.
        if name in ("permutation", "stream"):
            return import_module(f"annbatch.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
