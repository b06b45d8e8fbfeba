"""What becomes of a batch before it is handed over?

1. `LogNormalize` and `Binarize` say what compiled kernels do with the values of a matrix while a batch is made.
2. Any other transform is a function of a `Batch`; what it returns is checked.
3. `Transforms` holds what a loader was given, in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from annbatch.batch import CSR, Batch, Modality
from annbatch.check import distinct_names
from annbatch.errors import InputError


@dataclass(frozen=True, slots=True)
class LogNormalize:
    """Normalise and log-transform counts: ``log1p(count / total * target_sum)``.

    The result is that of scanpy's ``normalize_total`` and ``log1p``. ``total`` is the sum of the cell's counts over all
    genes of the store, even if ``var_names`` selects only some. Cells without counts stay zero. There is no check
    whether values are counts, and no warning about data that were normalised before.

    Batches hold float32, or float64 if that is requested or stored. float32 values differ from scanpy's only by
    rounding, since totals and logarithms are computed in float64. A GPU gives the same values, bit for bit.

    Parameters
    ----------
    target_sum
        Sum of the counts of each cell before the logarithm.
    elements
        Matrices to normalise, each by its own totals: ``"X"``, or ``"layers/…"`` for layers that the loader carries.
        For a collection with modalities, ``"rna:X"`` and the like.

    Raises
    ------
    TypeError, ValueError
        If ``target_sum`` is not a positive number, or ``elements`` names something else.

    Examples
    --------
    >>> from annbatch import Loader, LogNormalize
    >>> ds = Loader(batch_size=32, transform=LogNormalize(target_sum=1e4)).use_collection(
    ...     "collection"
    ... )
    >>> next(iter(ds)).data.data.dtype
    dtype('float32')
    """

    target_sum: float = 1e4
    elements: tuple[str, ...] = ("X",)

    def __post_init__(self) -> None:
        if self.target_sum is None:
            raise TypeError(
                "target_sum must be a number, got None: scanpy's default, the median of all cells' totals, is not "
                "known while cells are read. Compute it once, as np.median(X.sum(axis=1)), and pass it"
            )
        if isinstance(self.target_sum, bool) or not isinstance(self.target_sum, (int, float, np.number)):
            raise TypeError(f"target_sum must be a number, got {self.target_sum!r}")
        if not (math.isfinite(self.target_sum) and self.target_sum > 0):
            raise ValueError(f"target_sum must be > 0 and finite, got {self.target_sum}")
        object.__setattr__(self, "target_sum", float(self.target_sum))
        object.__setattr__(self, "elements", _elements(self.elements))


@dataclass(frozen=True, slots=True)
class Binarize:
    """Replace values above 0 by 1, and all others by 0, as is often done for chromatin accessibility.

    The type of the values does not change.

    Parameters
    ----------
    elements
        Matrices to binarise: ``"X"``, or ``"layers/…"`` for layers that the loader carries. For a collection with
        modalities, ``"atac:X"`` and the like.

    Raises
    ------
    TypeError, ValueError
        If ``elements`` names something else.

    Examples
    --------
    >>> from annbatch import Binarize, Loader
    >>> ds = Loader(batch_size=32, transform=Binarize()).use_collection("collection")
    >>> set(next(iter(ds)).data.data.tolist())
    {1.0}
    """

    elements: tuple[str, ...] = ("X",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "elements", _elements(self.elements))


ValueKernel = LogNormalize | Binarize
Function = Callable[[Batch], Batch]
Transform = ValueKernel | Function


def _elements(elements: Sequence[str]) -> tuple[str, ...]:
    found = distinct_names("elements", elements)
    for element in found:
        own = _modality_of(element)[1]
        if own != "X" and not own.startswith("layers/"):
            raise ValueError(f"elements must be 'X' or 'layers/…', got {element!r}")
    if not found:
        raise ValueError("elements must name at least one matrix, got none")
    return found


def _modality_of(element: str) -> tuple[str, str]:
    """Tell a modality, ``""`` for none, from its element."""
    if element == "X" or element.startswith("layers/"):
        return "", element
    modality, _, own = element.partition(":")
    return modality, own


@dataclass(frozen=True, slots=True, eq=False)
class Transforms:
    """What a loader does with its batches."""

    kernels: Mapping[str, ValueKernel] = field(default_factory=dict)
    """Per element of the stores: what compiled kernels do with its values."""
    functions: tuple[Function, ...] = ()
    """What is called with each batch, in order."""

    @classmethod
    def of(
        cls, transform: Transform | Sequence[Transform] | None, layers: Sequence[str], dtype: np.dtype[Any] | None
    ) -> Transforms:
        """Check what a user gave.

        Parameters
        ----------
        transform
            One, several in order, or none.
        layers
            The layers that batches carry.
        dtype
            The type that was asked for.

        Raises
        ------
        TypeError, ValueError
            If something is no transform, or does not fit the others, the layers or the type.
        """
        if transform is None:
            return cls()
        several = transform if isinstance(transform, (list, tuple)) else [transform]
        kernels: dict[str, ValueKernel] = {}
        functions: list[Function] = []
        for one in several:
            if isinstance(one, ValueKernel):
                if functions:
                    raise ValueError(f"transform must list {type(one).__name__} before functions, got it after one")
                for element in one.elements:
                    if element in kernels:
                        before = type(kernels[element]).__name__
                        raise ValueError(
                            f"transform must change {element} only once, got {before} and {type(one).__name__}"
                        )
                    modality, own = _modality_of(element)
                    layer = f"{modality}:{own.removeprefix('layers/')}" if modality else own.removeprefix("layers/")
                    if own != "X" and layer not in layers:
                        raise ValueError(
                            f"elements of {type(one).__name__} must be carried by batches, got {element!r}: add "
                            f"{layer!r} to layers="
                        )
                    kernels[element] = one
                if isinstance(one, LogNormalize) and dtype is not None and dtype not in _FLOATS:
                    raise ValueError(f"dtype must be float32 or float64 with LogNormalize, got {dtype}")
            elif callable(one) and not isinstance(one, type):
                functions.append(one)
            else:
                raise TypeError(
                    f"transform must be a function of a Batch, LogNormalize() or Binarize(), or a list of these, got "
                    f"{one!r}"
                )
        return cls(kernels, tuple(functions))

    def check_modalities(self, modalities: Sequence[str]) -> None:
        """Refuse elements that are not those of data with these modalities, or without any; raises InputError."""
        for element, kernel in self.kernels.items():
            if _modality_of(element)[0] not in (modalities or [""]):
                rule = "have no prefix for data without modalities"
                if modalities:
                    rule = f"begin with one of the modalities, such as '{modalities[0]}:X'"
                raise InputError(f"elements of {type(kernel).__name__} must {rule}, got {element!r}")

    def of_modality(self, modality: str) -> dict[str, ValueKernel]:
        """Give the kernels of one modality, ``""`` where there is none, by its own elements."""
        named = ((*_modality_of(element), kernel) for element, kernel in self.kernels.items())
        return {own: kernel for name, own, kernel in named if name == modality}

    def __call__(self, batch: Batch) -> Batch:
        """Give a batch to the functions, one after the other; what they raise is not caught.

        Raises
        ------
        InputError
            If one returns something that is no batch of the same rows; names the function.
        """
        for function in self.functions:
            try:
                found = function(batch)
            except StopIteration as error:
                # It would end the user's loop as if the epoch were over.
                raise RuntimeError(f"transform {_name(function)} raised StopIteration") from error
            _check(found, batch, f"transform {_name(function)}")
            batch = found
        return batch


_FLOATS = (np.float32, np.float64)


def _name(function: Function) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


def _check(found: Any, before: Batch, name: str) -> None:
    """Refuse what is no batch of the rows of the one before."""
    if not isinstance(found, Batch):
        raise InputError(
            f"{name} must return an annbatch.Batch, got {type(found).__name__}; return batch.replace(data=…)"
        )
    for kept in ("index", "names", "codes", "make_labels", "n_padding"):
        if getattr(found, kept) is not getattr(before, kept):
            raise InputError(f"{name} must change only data, layers or obsm, but changed {kept}")
    known = before.modalities
    modalities: Any = found.modalities
    if known is None:
        _check_matrices(found, before.n_rows, name)
        return
    if found.data is not None or not isinstance(modalities, Mapping) or set(modalities) != set(known):
        raise InputError(f"{name} must change only the modalities, and keep all of {list(known)}")
    for key, one in modalities.items():
        if not isinstance(one, Modality) or one.mask is not known[key].mask:
            raise InputError(f"{name}: make the modality {key!r} by its replace(data=…), which keeps its mask")
        _check_matrices(one, before.n_rows, f"{name}: {key}")


def _check_matrices(found: Batch | Modality, n_rows: int, name: str) -> None:
    _check_matrix(found.data, n_rows, f"{name}: data")
    for part in ("layers", "obsm"):
        held = getattr(found, part)
        if held is not None and not isinstance(held, Mapping):
            raise InputError(f"{name}: {part} must be a mapping or None, got {type(held).__name__}")
        for key, matrix in (held or {}).items():
            _check_matrix(matrix, n_rows, f"{name}: {part}[{key!r}]")


def _check_matrix(matrix: Any, n_rows: int, name: str) -> None:
    if isinstance(matrix, CSR):
        for array in (matrix.data, matrix.indices, matrix.indptr):
            _check_array(array, f"{name}: each array of a CSR")
        if matrix.data.shape != matrix.indices.shape:
            raise InputError(
                f"{name} must have as many indices as values, got the shapes {matrix.indices.shape} and "
                f"{matrix.data.shape}"
            )
        n_parts = math.prod(matrix.indptr.shape[:-1])
        if matrix.indptr.shape[-1] != matrix.shape[0] // n_parts + 1:
            raise InputError(
                f"{name} must have an indptr for its {matrix.shape[0]} rows, got the shape {matrix.indptr.shape}"
            )
    else:
        _check_array(matrix, name)
    if matrix.shape[:1] != (n_rows,):
        raise InputError(f"{name} must have the {n_rows} rows of the batch, got the shape {tuple(matrix.shape)}")


def _check_array(array: Any, name: str) -> None:
    is_array = isinstance(array, np.ndarray) or (
        type(array).__module__.partition(".")[0] == "cupy" and hasattr(array, "__cuda_array_interface__")
    )
    if not is_array or array.dtype.kind not in "biuf":
        kind = f"{type(array).__name__} of {array.dtype}" if is_array else type(array).__name__
        remedy = ""
        if getattr(array, "format", None) == "csr":
            remedy = "; write annbatch.CSR(m.data, m.indices, m.indptr, m.shape)"
        raise InputError(f"{name} must be a NumPy array of numbers, a CuPy array, or a CSR, got {kind}{remedy}")
