"""Which type do the values of an element come in, and may the stored ones be cast to it?

1. `check_casts` refuses a type of `Loader(dtype=)` that may not hold what is stored, in the terms of ``casting``.
2. `emitted` does the same for the type that an adapter asks for, and says in which type each element comes. float32 is
   what adapters ask for unless they are told otherwise, so that it is always to be had: wider floats are rounded,
   and integers are looked at when they have been read (`annbatch.batches.exact`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from annbatch.batch import Emit
from annbatch.errors import InputError
from annbatch.stores.anndata_store import Matrix, SparseMatrix, Store
from annbatch.transform import LogNormalize, ValueKernel

Casting = Literal["safe", "same_kind", "unsafe"]


@dataclass(frozen=True, slots=True)
class Emitted:
    """The values of an element in the batches that an `Emit` asks for."""

    dtype: np.dtype[Any]
    """Their type."""
    limit: int | None
    """Size from which stored integers are an error, since the type does not hold all of them; None if none is."""
    is_sparse: bool
    """Whether they are stored as a sparse matrix."""


def check_casts(element: str, stores: Sequence[Store], dtype: np.dtype[Any] | str, casting: Casting) -> None:
    """Refuse a type of the values, or ``"bfloat16"``.

    Raises
    ------
    InputError
        If ``casting`` does not allow to cast to it what one of the stores holds; names the store and the element.
    """
    for store in stores:
        stored = stored_type(store.matrices[element])
        if not _can_cast(stored, dtype, casting):
            enough = "same_kind" if _can_cast(stored, dtype, "same_kind") else "unsafe"
            raise InputError(
                f"{store.name} {element}: dtype {dtype} cannot hold all values of {stored}; allow the cast with "
                f"Loader(casting={enough!r})"
            )


def emitted(
    stores: Sequence[Store],
    dtypes: Mapping[str, np.dtype[Any]],
    emit: Emit,
    casting: Casting,
    kernels: Mapping[str, ValueKernel],
) -> dict[str, Emitted]:
    """Say in which type each element comes in the batches that ``emit`` asks for.

    Elements of obsm keep integers and booleans as they are; floats are float32, or float64 where ``emit`` asks for
    that. What `LogNormalize` changes comes as float32, or float64 where that is stored or asked for.

    Parameters
    ----------
    stores
        The stores.
    dtypes
        Per element: its type where ``emit`` leaves it open.
    emit
        What batches shall look like.
    casting
        Which casts are allowed, in NumPy's terms.
    kernels
        Per element: what is done with its values.

    Raises
    ------
    InputError
        If they do not allow the type that ``emit`` asks for, or it does not hold what a kernel gives.
    """
    found = {}
    for element, own in dtypes.items():
        dtype, limit, asked = own, None, emit.dtype
        if isinstance(kernels.get(element), LogNormalize):
            asked = asked or np.dtype(np.float64 if own == np.float64 else np.float32)
            if asked.kind != "f":
                raise InputError(f"{element}: dtype must be floating with LogNormalize, got {asked}")
        if asked is not None and element.startswith("obsm/"):
            if own.kind == "f":
                dtype = np.dtype(np.float64 if asked == np.float64 else np.float32)
        elif asked is not None:
            dtype = asked
            if emit.narrowed is not None or dtype != np.float32:
                check_casts(element, stores, emit.narrowed or dtype, casting)
        if casting == "safe" and not element.startswith("obsm/"):
            limit = _limit(dtype, [store.matrices[element] for store in stores])
        found[element] = Emitted(dtype, limit, isinstance(stores[0].matrices[element], SparseMatrix))
    return found


def stored_type(matrix: Matrix) -> np.dtype[Any]:
    """Give the type in which the values of a matrix are stored."""
    return matrix.data.dtype if isinstance(matrix, SparseMatrix) else matrix.values.dtype


def _limit(dtype: np.dtype[Any], matrices: Sequence[Matrix]) -> int | None:
    """Give the size from which a type does not hold all stored integers, if it is a float and they may be as large."""
    if dtype.kind != "f":
        return None
    limit = 1 << np.finfo(dtype).nmant + 1
    for matrix in matrices:
        stored, was_held = stored_type(matrix), matrix.dtype.kind == "f" and np.can_cast(matrix.dtype, dtype)
        # NumPy lets float64 hold all 64-bit integers, which it does not.
        if stored.kind in "iu" and np.iinfo(stored).max > limit and not was_held:
            return limit
    return None


def _can_cast(stored: np.dtype[Any], dtype: np.dtype[Any] | str, casting: Casting) -> bool:
    """Do what `numpy.can_cast` does, and know bfloat16: a float with the range of float32 and eight bits."""
    if dtype != "bfloat16":
        return np.can_cast(stored, dtype, casting)
    return casting != "safe" or (stored.kind in "biu" and stored.itemsize == 1)
