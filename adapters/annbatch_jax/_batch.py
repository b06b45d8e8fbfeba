"""What is a batch of JAX arrays?

`held` makes sure that JAX, which narrows 64-bit types wherever they are off, alters no value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from annbatch.batch import Batch
from annbatch.errors import InputError


@dataclass(frozen=True, eq=False, kw_only=True)
class JaxBatch(Batch):
    """A batch in JAX arrays, with one more key: ``mask``."""

    mask: jax.Array
    """(n_rows,) bool: True for rows of the data, False for those that only fill the batch up."""

    def __iter__(self) -> Iterator[str]:
        yield from super().__iter__()
        yield "mask"


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
        raise InputError(
            f"{name}: must hold values that {dtype} holds unless jax_enable_x64 is set, got {array[altered][0]}"
        )
    return narrowed
