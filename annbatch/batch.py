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
    """Capacity of padded CSR batches, in elements: geometric buckets, or one fixed size.

    Call it with the number of elements of a batch, to get the number to allocate. Few distinct capacities mean few
    compilations under ``jax.jit``.

    Raises
    ------
    ValueError
        If ``growth`` is not above 1, or ``smallest`` or ``fixed`` is below 1.

    Examples
    --------
    >>> from annbatch import Capacity
    >>> capacity = Capacity(growth=2)
    >>> capacity(1000), capacity(1500), capacity(2000)
    (1024, 2048, 2048)
    """

    growth: float = 1.25
    """Ratio of each bucket to the previous one; bucket sizes are rounded up to multiples of 64."""
    smallest: int = 1024
    """Elements in the smallest bucket."""
    fixed: int | None = None
    """Elements of every batch; None means buckets."""

    def __post_init__(self) -> None:
        if not self.growth > 1:
            raise ValueError(f"growth must be > 1, got {self.growth}")
        if self.smallest < 1:
            raise ValueError(f"smallest must be >= 1, got {self.smallest}")
        if self.fixed is not None and self.fixed < 1:
            raise ValueError(f"fixed must be >= 1, got {self.fixed}")

    def __call__(self, nnz: int) -> int:
        """Return the capacity, in elements, of a batch of ``nnz`` elements.

        Raises
        ------
        ValueError
            If ``nnz`` exceeds the fixed capacity.
        """
        if self.fixed is not None:
            if nnz > self.fixed:
                raise ValueError(f"fixed must be at least the elements of every batch, {nnz}, got {self.fixed}")
            return self.fixed
        capacity = self.smallest
        while capacity < nnz:
            capacity = math.ceil(capacity * self.growth / 64) * 64
        return capacity


@dataclass(frozen=True, slots=True)
class Emit:
    """The form of batches: types, layout and padding. An adapter passes one to `Loader.batches`.

    Raises
    ------
    ValueError
        If ``parts`` is below 1, or set without ``layout="csr"`` and ``pad_rows``; or if ``bfloat16`` is set without
        ``layout="dense"``.
    """

    dtype: np.dtype[Any] | None = None
    """Type of the values; None means the type that the data had before they were written. The loader's ``casting`` says
    which types are allowed. If given, floats of obsm become float32, or float64 if ``dtype`` is; integers and booleans
    of obsm do not change."""
    narrowed: Literal["float16", "bfloat16"] | None = None
    """16-bit float to which the adapter converts the values; ``casting`` must allow it, as for ``dtype``."""
    index_dtype: np.dtype[Any] | None = None
    """Type of ``indices`` and ``indptr``; None means int32, or int64 from 2**31 elements on."""
    allocate: Callable[[int], Array] | None = None
    """Function that takes a number of bytes and returns host memory, (n_bytes,) uint8, such as page-locked memory for
    copies to a device. None means ordinary memory. The memory is reused for later batches. A loader on a device uses
    its own."""
    layout: Literal["csr", "dense"] = "csr"
    """``"csr"`` for a `CSR`, ``"dense"`` for a C-ordered (n_rows, n_vars) array."""
    bfloat16: bool = False
    """Whether dense values are bfloat16, rounded to nearest even; ``dtype`` is then ignored. The array has the type
    uint16 and holds their bits, since neither NumPy nor CuPy has bfloat16: view it as bfloat16 where that exists. Only
    for loaders on a device."""
    nse: Callable[[int], int] | None = None
    """Capacity rule, a function that takes the number of elements of a batch and returns the number to allocate, with
    zeros after the last row; see `Capacity`. None means no padding."""
    pad_rows: bool = False
    """Whether to pad short batches to ``batch_size`` with empty rows, whose code and index are -1."""
    parts: int | None = None
    """Number of parts into which to cut each sparse matrix, one for each device, of ``batch_size / parts`` rows each.
    The arrays get a first axis, (parts, …), and all parts of a batch have the capacity of the largest. Needs
    ``pad_rows``. None means no parts."""
    alike: bool = False
    """Whether the batches of all consumers have the same capacity in each step."""

    def __post_init__(self) -> None:
        if self.parts is not None and (self.parts < 1 or self.layout != "csr" or not self.pad_rows):
            raise ValueError(f"parts must be >= 1 and needs layout='csr' and pad_rows=True, got {self}")
        if self.bfloat16 and self.layout != "dense":
            raise ValueError(f"bfloat16 needs layout='dense', got layout={self.layout!r}")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CSR(Summary):
    """A sparse matrix in compressed sparse row format, as three arrays.

    Elements from ``indptr[-1]`` on, if any, are padding and zero. With `Emit.parts`, the three arrays have a first
    axis, (parts, …), and each part is such a matrix with an equal share of the rows.
    """

    data: Array
    """Values, (nse,)."""
    indices: Array
    """Column numbers, (nse,); ascending within each row if they are in the store."""
    indptr: Array
    """Where each row begins in ``data`` and ``indices``, (n_rows + 1,); ``indptr[0] == 0``."""
    shape: tuple[int, int]
    """Shape of the matrix, (n_rows, n_vars)."""

    @property
    def nnz(self) -> int:
        """Number of stored elements, without padding."""
        return int(self.indptr[..., -1].sum())

    def replace(self, **changes: Any) -> CSR:
        """Return the matrix with other ``data``, ``indices``, ``indptr`` or ``shape``."""
        return replace(self, **changes)

    def to_scipy(self) -> sp.csr_matrix:
        """Return the matrix as a `scipy.sparse.csr_matrix` on the same memory, without the padding.

        Works for NumPy arrays, but not for matrices in parts.
        """
        import scipy.sparse as sp

        # Not from its parts at once: SciPy would copy arrays that are less than half of the memory behind them.
        matrix = sp.csr_matrix(self.shape)
        matrix.data, matrix.indices, matrix.indptr = self.data[: self.nnz], self.indices[: self.nnz], self.indptr
        return matrix


@dataclass(frozen=True, eq=False, repr=False)
class Modality(Summary, Mapping[str, Any]):
    """One modality of a batch: a read-only mapping whose keys are also attributes.

    Its keys are ``data`` and, unless None, ``layers``, ``obsm`` and ``mask``.
    """

    data: Any
    """Counts, as a `CSR` or a dense (n_rows, n_vars) array."""
    layers: Mapping[str, Any] | None = None
    """Layers by name, matrices like ``data``; None if none were requested."""
    obsm: Mapping[str, Any] | None = None
    """Elements of obsm by name, as in `Fields.obsm`; None if none were requested."""
    mask: Any = None
    """Which cells have the modality, (n_rows,) bool; None if all have."""

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
        """Return the modality with other ``data``, ``layers`` or ``obsm``, as `Batch.replace` does."""
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
    """The contents of a batch, in the arrays of any framework."""

    data: Any
    """Counts, as a `CSR` or a dense (n_rows, n_vars) array; None if there are modalities."""
    codes: Mapping[str, Any]
    """Label columns by name, as (n_rows,) numbers. Categories, text and nullable booleans are int32 codes into
    ``Loader.categories`` (missing -1). Booleans are bool. Integers are int64, or float64 if some may be missing
    (missing NaN). Floats are float32 (missing NaN). Floats are rounded; any other number that the type cannot represent
    raises an error. Padding rows are missing, or False."""
    index: Any
    """Global row numbers, counted through the stores, (n_rows,) int64; None if they were not requested."""
    make_labels: Callable[[], pd.DataFrame] = field(repr=False)
    """Makes `labels` when it is first accessed."""
    layers: Mapping[str, Any] | None = None
    """Layers by name, matrices like ``data``; None if none were requested."""
    obsm: Mapping[str, Any] | None = None
    """Elements of obsm by name, as dense (n_rows, width) arrays, or matrices like ``data`` if they are stored sparse;
    None if none were requested."""
    n_padding: int = 0
    """Number of rows at the end that are padding (`Emit.pad_rows`)."""
    names: Any = None
    """Names of the cells, (n_rows,) str objects, ``""`` for padding rows; None if they were not requested."""
    modalities: Mapping[str, Modality] | None = None
    """Modalities by name, all with the same rows; None if the data have none."""

    @cached_property
    def labels(self) -> pd.DataFrame:
        """The label columns as a DataFrame, with their own dtypes and without padding rows.

        Its index holds the names of the cells if the loader has ``names=True``, otherwise the global row numbers.
        """
        return self.make_labels()

    @property
    def n_rows(self) -> int:
        """Number of rows of the matrices, including padding."""
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
    """A mini-batch: a read-only mapping whose keys are also attributes.

    Its keys are ``data``, ``labels`` and ``index`` (unless ``return_index=False``), and ``names``, ``layers`` and
    ``obsm`` if they were requested from the loader. For a collection with modalities, the keys ``data``, ``layers`` and
    ``obsm`` are in a mapping for each modality: ``batch["rna"]["data"]``.

    With ``Loader(device="cuda")``, the arrays of ``data``, ``layers`` and ``obsm`` are CuPy arrays.

    Examples
    --------
    >>> from annbatch import Loader
    >>> batch = next(
    ...     iter(Loader(batch_size=32).use_collection("collection", labels=["donor"]))
    ... )
    >>> list(batch)
    ['data', 'labels', 'index']
    >>> batch["data"].shape, batch.codes["donor"].shape
    ((32, 6), (32,))
    """

    def replace(self, **changes: Any) -> Self:
        """Return the batch with other ``data``, ``layers`` or ``obsm``, for use in a transform.

        Parameters
        ----------
        **changes
            New values of ``data``, ``layers`` and ``obsm``, or of ``modalities``, a dict of all modalities. Rows must
            keep their order.

        Raises
        ------
        TypeError
            If anything else is passed.

        Examples
        --------
        >>> from annbatch import Loader
        >>> def doubled(batch):
        ...     x = batch.data
        ...     return batch.replace(data=x.replace(data=x.data * 2))
        >>> ds = Loader(batch_size=32, transform=doubled).use_collection("collection")
        """
        if others := [name for name in changes if name not in ("data", "layers", "obsm", "modalities")]:
            raise TypeError(f"replace takes data, layers, obsm and modalities, got {', '.join(others)}")
        return replace(self, **changes)

    def to(self, *args: Any, **options: Any) -> NoReturn:
        """Raise TypeError: trainers call this to move torch tensors to a device, and this batch holds none."""
        raise TypeError(
            f"{type(self).__name__} holds no torch tensors; give the trainer annbatch_torch.TorchLoader(ds) or "
            f"annbatch_torch.lightning.AnnDataModule(train=ds) instead of a Loader"
        )
