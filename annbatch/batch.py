"""What does a batch look like, and who decides that?

1. An `Emit` goes down with the plan: it says which value and index types, CSR or dense, exact or padded.
2. A `CSR` (or a dense array) comes up in a `Batch`, together with the labels and the row numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

import numpy as np

from annbatch import scverse_names, summary
from annbatch.summary import Summary

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp

Array = np.ndarray[Any, Any]
"""A NumPy array; on a GPU loader the same place holds a CuPy array."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many stored elements a padded CSR batch has room for: geometric buckets, or one fixed size.

    Few distinct capacities mean few compilations under ``jax.jit``.

    Raises
    ------
    ValueError
        If ``growth`` is not above 1, or ``smallest`` or ``fixed`` is below 1.
    """

    growth: float = 1.25
    """Ratio of one bucket to the next."""
    smallest: int = 1024
    """Elements in the smallest bucket."""
    fixed: int | None = None
    """If given, every batch has exactly this many elements."""

    def __post_init__(self) -> None:
        if not self.growth > 1:
            raise ValueError(f"growth must be > 1, got {self.growth}")
        if self.smallest < 1:
            raise ValueError(f"smallest must be >= 1, got {self.smallest}")
        if self.fixed is not None and self.fixed < 1:
            raise ValueError(f"fixed must be >= 1, got {self.fixed}")

    def __call__(self, nnz: int) -> int:
        """Give the capacity, in elements, for a batch of ``nnz`` elements.

        Raises
        ------
        ValueError
            If ``nnz`` exceeds the fixed capacity.
        """
        if self.fixed is not None:
            if nnz > self.fixed:
                raise ValueError(f"a batch has {nnz} elements, more than the fixed capacity of {self.fixed}")
            return self.fixed
        capacity = self.smallest
        while capacity < nnz:
            capacity = math.ceil(capacity * self.growth / 64) * 64
        return capacity


@dataclass(frozen=True, slots=True)
class Emit:
    """What a batch shall look like; an adapter passes one to `Loader.batches`.

    Raises
    ------
    ValueError
        If there are ``parts`` of something else than sparse matrices of equally many rows, or ``bfloat16`` that is not
        dense.
    """

    dtype: np.dtype[Any] | None = None
    """Type of the values; None gives the type that the data had before they were written. Which types are allowed, and
    what becomes of obsm, `annbatch.batches.casts` says."""
    narrowed: Literal["float16", "bfloat16"] | None = None
    """The 16-bit float to which the values are narrowed at last; it has to be allowed as ``dtype`` has."""
    index_dtype: np.dtype[Any] | None = None
    """Type of ``indices`` and ``indptr``; None gives int32, and int64 from 2**31 elements."""
    allocate: Callable[[int], Array] | None = None
    """Gives so many bytes of host memory, (n_bytes,) uint8: page-locked, say, for copies to a device. None means
    ordinary memory. What it gives is used again for later batches. A loader on a device takes memory of its own."""
    layout: Literal["csr", "dense"] = "csr"
    """A `CSR`, or a dense C-ordered (n_rows, n_vars) array."""
    bfloat16: bool = False
    """Whether dense values are bfloat16, rounded to nearest even, in an array of uint16 that holds their bits: neither
    NumPy nor CuPy has that type, and a view gives it to those who do. ``dtype`` then does not count. Only on a
    device."""
    nse: Callable[[int], int] | None = None
    """Capacity rule: elements needed -> elements allocated (zeros behind the last row); None means exact."""
    pad_rows: bool = False
    """Whether a short batch is filled up to ``batch_size`` with empty rows whose code and index are -1."""
    parts: int | None = None
    """If given, sparse matrices come as so many runs of ``batch_size / parts`` rows, one for each device: their arrays
    get a first axis, and all parts of a batch have the capacity of the largest. Needs ``pad_rows``."""
    alike: bool = False
    """Whether that capacity is also the one of all other consumers' batches of the same step."""

    def __post_init__(self) -> None:
        if self.parts is not None and (self.parts < 1 or self.layout != "csr" or not self.pad_rows):
            raise ValueError(f"parts must be >= 1, and of the layout 'csr' with pad_rows, got {self}")
        if self.bfloat16 and self.layout != "dense":
            raise ValueError(f"bfloat16 needs the layout 'dense', got {self.layout!r}")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CSR(Summary):
    """A sparse matrix in compressed rows, as three buffers.

    Elements from ``indptr[-1]`` on, if any, are padding and zero. In parts (`Emit.parts`) all three arrays have one
    more axis, (parts, …), and each part is such a matrix of equally many of the rows.
    """

    data: Array
    """(nse,) values."""
    indices: Array
    """(nse,) column numbers, ascending within a row if they are so in the store."""
    indptr: Array
    """(n_rows + 1,) where each row starts in ``data`` and ``indices``; ``indptr[0] == 0``."""
    shape: tuple[int, int]
    """(n_rows, n_vars)."""

    @property
    def nnz(self) -> int:
        """Number of stored elements, without padding."""
        return int(self.indptr[..., -1].sum())

    def replace(self, **changes: Any) -> CSR:
        """Give the matrix with other ``data``, ``indices``, ``indptr`` or ``shape``."""
        return replace(self, **changes)

    def to_scipy(self) -> sp.csr_matrix:
        """Give a `scipy.sparse.csr_matrix` on the same memory, without the padding; not for parts, nor on a device."""
        import scipy.sparse as sp

        # Not from its parts at once: SciPy would copy arrays that are less than half of the memory behind them.
        matrix = sp.csr_matrix(self.shape)
        matrix.data, matrix.indices, matrix.indptr = self.data[: self.nnz], self.indices[: self.nnz], self.indptr
        return matrix


@dataclass(frozen=True, eq=False, repr=False)
class Modality(Summary, Mapping[str, Any]):
    """What a batch holds of one modality: a read-only mapping whose keys are attributes too."""

    data: Any
    """A `CSR`, or a dense (n_rows, n_vars) array."""
    layers: Mapping[str, Any] | None = None
    """Per layer asked for: a matrix like ``data``; None if none were."""
    obsm: Mapping[str, Any] | None = None
    """Per element of obsm asked for: as `Batch.obsm`; None if none were."""
    mask: Any = None
    """Which cells have the modality, (n_rows,) bool; None where all have."""

    def __getitem__(self, key: str) -> Any:
        if key not in tuple(self):
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        yield "data"
        for optional in ("layers", "obsm", "mask"):
            if getattr(self, optional) is not None:
                yield optional

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def replace(self, **changes: Any) -> Self:
        """Give the modality with other ``data``, ``layers`` or ``obsm``, as `Batch.replace` does."""
        if others := [name for name in changes if name not in ("data", "layers", "obsm")]:
            raise TypeError(f"replace takes data, layers and obsm, got {', '.join(others)}")
        return replace(self, **changes)

    def _facts(self) -> dict[str, str]:
        return {key: _described(self[key]) for key in self}


def _described(value: Any) -> str:
    if isinstance(value, Mapping) and not isinstance(value, Summary):
        return f"{{{', '.join(f'{name}: {summary.array(one)}' for name, one in value.items())}}}"
    return summary.array(value)


@dataclass(frozen=True, eq=False, repr=False)
class Fields(Summary):
    """What a batch holds, whichever framework's arrays it holds."""

    data: Any
    """A `CSR`, or a dense (n_rows, n_vars) array; None where there are modalities."""
    codes: Mapping[str, Any]
    """Per label column (n_rows,) numbers, whose type follows from the column's: int32 codes into ``Loader.categories``
    (missing -1) for categories, text and nullable booleans; bool for booleans; int64 for integers; float64 (missing
    NaN) for integers of which some may be missing; float32 (missing NaN) for floats. A number that its type does not
    hold is an error, that floats are rounded is none. Padding rows are missing, or False."""
    index: Any
    """(n_rows,) int64 global row numbers, counted through the stores; None if they were not asked for."""
    make_labels: Callable[[], pd.DataFrame] = field(repr=False)
    """Builds ``labels``; called at most once, and only if somebody asks."""
    layers: Mapping[str, Any] | None = None
    """Per layer asked for: a matrix like ``data``; None if none were."""
    obsm: Mapping[str, Any] | None = None
    """Per element of obsm asked for: a dense (n_rows, width) array, or a matrix like ``data`` where it is stored
    sparse; None if none were."""
    n_padding: int = 0
    """How many of the last rows only fill the batch up (`Emit.pad_rows`)."""
    names: Any = None
    """(n_rows,) str objects: the names of the cells, ``""`` for padding rows; None if they were not asked for."""
    modalities: Mapping[str, Modality] | None = None
    """Of a collection with modalities: each of them, of the same rows; None of all others."""

    @cached_property
    def labels(self) -> pd.DataFrame:
        """The label columns as a DataFrame with their own dtypes, a row for each row of ``data`` that is no padding.

        Its index holds the names of the cells if the loader was asked for them, else the global row numbers.
        """
        return self.make_labels()

    @property
    def n_rows(self) -> int:
        """Rows of its matrices, those that only fill the batch up among them."""
        first = self if self.modalities is None else next(iter(self.modalities.values()))
        return int(first.data.shape[0])

    def _facts(self) -> dict[str, str]:
        facts = {}
        for key in self:
            facts[key] = summary.names(self.codes) if key == "labels" else _described(self[key])
        return facts | ({"n_padding": str(self.n_padding)} if self.n_padding else {})

    def __getitem__(self, key: str) -> Any:
        if key not in tuple(self):
            raise KeyError(scverse_names.unknown_key(key))
        if self.modalities is not None and key in self.modalities:
            return self.modalities[key]
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        if self.modalities is None:
            yield "data"
        else:
            yield from self.modalities
        yield "labels"
        for optional in ("index", "names", "layers", "obsm"):
            if getattr(self, optional) is not None:
                yield optional

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Batch(Fields, Mapping[str, Any]):
    """One mini-batch: a read-only mapping whose keys are attributes too.

    Keys are ``data``, ``labels``, ``index`` unless the loader was told otherwise, ``names``, ``layers`` and ``obsm``
    where asked for. Of a collection with modalities, the name of each of them comes instead of ``data``, ``layers`` and
    ``obsm``, with a mapping that has these: ``batch["rna"]["data"]``.

    With ``Loader(device="cuda")`` the arrays of ``data``, ``layers`` and ``obsm`` are CuPy's.
    """

    def replace(self, **changes: Any) -> Self:
        """Give the batch with other ``data``, ``layers`` or ``obsm``: what a transform returns.

        Parameters
        ----------
        **changes
            New values of ``data``, ``layers`` and ``obsm``, or of ``modalities``, a dict of all of them; all rows stay
            where they are.

        Raises
        ------
        TypeError
            If something else is to be changed.

        Examples
        --------
        >>> def scaled(batch):  # doctest: +SKIP
        ...     x = batch.data
        ...     return batch.replace(data=x.replace(data=x.data * 2))
        """
        if others := [name for name in changes if name not in ("data", "layers", "obsm", "modalities")]:
            raise TypeError(f"replace takes data, layers, obsm and modalities, got {', '.join(others)}")
        return replace(self, **changes)

    def to(self, *args: Any, **options: Any) -> NoReturn:
        """Refuse: trainers move batches of torch tensors to a device so, and this is none.

        Raises
        ------
        TypeError
            Says what makes batches of tensors.
        """
        raise TypeError(
            f"{type(self).__name__} holds no torch tensors: pass a trainer annbatch_torch.TorchLoader(ds), or "
            f"annbatch_torch.lightning.AnnDataModule(train=ds)"
        )
