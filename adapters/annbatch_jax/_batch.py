"""What is a batch of JAX arrays, and what of it goes through ``jax.jit``?

1. A `JaxBatch` is a pytree: its leaves are the arrays of ``data``, ``layers``, ``obsm``, ``codes`` and ``mask``, and
   those of its modalities. Row numbers, names and labels stay on the host, so that no transformation narrows the former
   or asks for the latter.
2. `held` makes sure that JAX, which narrows 64-bit types wherever they are off, alters no value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from annbatch.adapter import Batch, Modality
from annbatch.errors import InputError

_LEAVES = ("data", "layers", "obsm", "codes", "mask", "modalities")
_STAYS = "is only in the batch that the loader yielded: JAX transformations pass on its arrays alone"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class JaxBatch(Batch):
    """A batch of JAX arrays, with the keys and attributes of `annbatch.Batch` and one more: ``mask``.

    It is a pytree: ``jax.jit(step)(batch)``, ``jax.grad`` and ``jax.tree.map`` accept it. Inside a transformation, and
    in what it returns, a batch has ``data``, ``layers``, ``obsm``, ``codes``, ``mask`` and modalities. ``index``,
    ``names`` and ``labels`` stay on the host: in a transformation, ``index``, ``names`` and ``n_padding`` are None, and
    asking for ``labels`` is an error.

    Batches of equal shapes share one compilation. That includes the last batch of an epoch, whose padding rows only
    show in ``mask``.
    """

    mask: jax.Array
    """Which rows are data, (n_rows,) bool; False for padding rows."""

    def __iter__(self) -> Iterator[str]:
        yield from (key for key in super().__iter__() if key != "labels" or self.make_labels is not _no_labels)
        yield "mask"

    def __getitem__(self, key: str) -> Any:
        if key in ("index", "names", "labels") and self.make_labels is _no_labels:
            raise KeyError(f"{key} {_STAYS}")
        return super().__getitem__(key)


def _no_labels() -> Any:
    raise AttributeError(f"labels {_STAYS}")


def _flatten(batch: JaxBatch) -> tuple[Iterable[tuple[Any, Any]], None]:
    return [(jax.tree_util.GetAttrKey(name), getattr(batch, name)) for name in _LEAVES], None


def _unflatten(_: None, leaves: Iterable[Any]) -> JaxBatch:
    # Not by the constructor: leaves may be anything, and what stays on the host is not there.
    batch = object.__new__(JaxBatch)
    batch.__dict__.update(
        zip(_LEAVES, leaves, strict=True), index=None, names=None, make_labels=_no_labels, n_padding=None
    )
    return batch


jax.tree_util.register_pytree_with_keys(JaxBatch, _flatten, _unflatten)
jax.tree_util.register_dataclass(Modality, ["data", "layers", "obsm", "mask"], [])


def held(array: Any, name: str) -> Any:
    """Give an array of the host or of a CUDA device in the type that JAX gives it, which holds its values exactly.

    Raises
    ------
    InputError
        If 64-bit types are off, and 32 bits do not hold one of the values; names the value.
    """
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    if dtype == array.dtype:
        return array
    with np.errstate(over="ignore"):
        narrowed = array.astype(dtype)
    altered = (narrowed != array) & (array == array)
    if altered.any():
        raise InputError(f"{name}: values must fit {dtype} unless jax_enable_x64 is set, got {array[altered][0]}")
    return narrowed
