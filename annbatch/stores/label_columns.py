"""How do columns of obs become codes that every store agrees on?

1. `columns_of_frame`, `columns_of_group` and `columns_of_file` describe the obs columns of one store: in memory, in
   zarr, in an HDF5 file.
2. `annbatch.stores.united_columns` unites the stores' columns of a name into one `Column`.
3. `annbatch.batches.label_rows` gathers the rows of a window; `Column.numbers` and `Column.series` say what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray

from annbatch import summary
from annbatch.errors import InputError, StoreError, naming
from annbatch.plan.window import Ranges
from annbatch.remote.request_pool import Requests
from annbatch.stores.column_kinds import (
    as_categories,
    kind_of,
    kind_of_categories,
    plain,
)
from annbatch.stores.lazy_tables import in_memory
from annbatch.stores.slices import ArraySlices, slices_of
from annbatch.stores.stored_frame import categories_of, is_array

_ROWS_AT_ONCE = 1 << 20
"""Values that are read at a time to find one that is there."""


@dataclass(frozen=True, slots=True, eq=False)
class StoreColumn:
    """One obs column of one store."""

    name: str
    """What error messages call it."""
    values: ArraySlices
    """(n_obs,) codes if there are categories, else values."""
    mask: ArraySlices | None
    """(n_obs,) bool, true where a value is missing."""
    categories: pd.Index[Any] | None
    """What the codes mean; None for numbers."""
    dtype: Any
    """The pandas dtype that users see."""

    @property
    def kind(self) -> str:
        """What it holds, as `annbatch.stores.column_kinds` names it."""
        return _kind(self.categories, self.dtype, self.name)


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One obs column of all stores."""

    name: str
    categories: pd.Index[Any] | None
    """What the codes mean, in the collection's order; None for numbers."""
    dtype: Any
    """The pandas dtype that users see."""
    parts: tuple[StoreColumn, ...]
    """The column in each store."""
    recodes: tuple[NDArray[np.int32] | None, ...]
    """Per store: store's code -> collection's code, the last entry for missing (-1); None where they are the same."""

    @property
    def kind(self) -> str:
        """What it holds, as `annbatch.stores.column_kinds` names it."""
        return _kind(self.categories, self.dtype, self.name)

    @property
    def gathered_dtype(self) -> np.dtype[Any]:
        """Type in which rows of all stores are gathered: int32 codes, or what the stores' numbers promote to."""
        if self.categories is not None:
            return np.dtype(np.int32)
        return promoted([part.values.dtype for part in self.parts])

    @property
    def code_dtype(self) -> np.dtype[Any]:
        """Type of what a batch's ``codes`` hold, which follows from the types of the column alone."""
        if self.categories is not None:
            return np.dtype(np.bool_ if self.is_boolean else np.int32)
        of_integers = [part.values.dtype.kind in "iu" for part in self.parts]
        if not any(of_integers):
            return np.dtype(np.float32)
        # Beside missing values integers become float64, never float32, which would alter those from 2**24.
        can_miss = not all(of_integers) or any(part.mask is not None for part in self.parts)
        return np.dtype(np.float64 if can_miss else np.int64)

    @property
    def is_boolean(self) -> bool:
        """Whether the values are booleans, none of which can be missing: they stand for themselves, not for codes."""
        return isinstance(self.dtype, np.dtype) and self.dtype.kind == "b"

    def numbers(self, gathered: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Give what a batch's ``codes`` hold for gathered rows, in `code_dtype`.

        Raises
        ------
        InputError
            If that type does not hold one of the values; names the column and the value.
        """
        if self.categories is not None:
            return gathered == 1 if dtype.kind == "b" else gathered
        where = f"obs[{self.name!r}]"
        if not isinstance(gathered, np.ma.MaskedArray):
            return held(gathered, dtype, where)
        missing = np.ma.getmaskarray(gathered)
        found = np.full(len(gathered), np.nan, dtype)
        found[~missing] = held(gathered.data[~missing], dtype, where)
        return found

    def series(self, gathered: NDArray[Any]) -> Any:
        """Give gathered rows as users know the column."""
        if isinstance(self.dtype, pd.CategoricalDtype):
            return pd.Series(pd.Categorical.from_codes(gathered, dtype=self.dtype))
        if self.categories is not None:
            missing = pd.NA if pd.api.types.is_extension_array_dtype(self.dtype) else None
            # Code -1 picks the last one.
            values = np.append(self.categories.to_numpy(object), np.array([missing], object))
            return pd.Series(values[gathered], dtype=self.dtype)
        if isinstance(gathered, np.ma.MaskedArray):
            series = pd.Series(np.asarray(gathered.data), dtype=self.dtype)
            return series.mask(np.ma.getmaskarray(gathered))
        return pd.Series(gathered, dtype=self.dtype)


def _kind(categories: pd.Index[Any] | None, dtype: Any, name: str) -> str:
    if categories is None:
        return "number"
    is_boolean = not isinstance(dtype, pd.CategoricalDtype) and pd.api.types.is_bool_dtype(dtype)
    return "boolean" if is_boolean else kind_of_categories(categories, name)


def columns_of_frame(
    obs: Any, names: Sequence[str] | None, store: str, asked_by: str = "labels"
) -> dict[str, StoreColumn]:
    """Describe the obs columns of an AnnData in memory, or of one whose obs is lazy; None means all."""
    chosen = _chosen(names, [str(name) for name in obs.columns], store, asked_by)
    table = obs if isinstance(obs, pd.DataFrame) else in_memory(obs, [own for own in obs.columns if str(own) in chosen])
    available = [str(name) for name in table.columns]
    columns = {}
    for name in chosen:
        if (n_found := available.count(name)) > 1:
            raise InputError(
                f"{store}: obs must have one column {name!r}, got {n_found}; "
                f"rename or drop all but one, or select other columns with labels="
            )
        columns[name] = _of_series(table.iloc[:, available.index(name)], f"{store} obs[{name!r}]")
    return columns


def columns_of_group(
    obs: zarr.Group, names: Sequence[str] | None, store: str, recorded: Mapping[str, int], asked_by: str = "labels"
) -> dict[str, StoreColumn]:
    """Describe the obs columns of a stored AnnData without reading them; None means all.

    What is ``recorded`` (keys of the group's store, and checksums) must be there, and as it was, when it is read.
    """
    available = [str(name) for name in obs.attrs.get("column-order", ())]  # type: ignore[union-attr]
    columns = {}
    for name in _chosen(names, available, store, asked_by):
        where = f"{store} obs[{name!r}]"
        with naming(where):
            columns[name] = _of_element(obs, name, where, partial(slices_of, where, recorded=recorded))
    return columns


def columns_of_file(
    available: list[str],
    read: Callable[[str], Any],
    names: Sequence[str] | None,
    store: str,
    asked_by: str = "labels",
) -> dict[str, StoreColumn]:
    """Read obs columns of an HDF5 file, of those that are ``available``; None means all."""
    columns = {}
    for name in _chosen(names, available, store, asked_by):
        where = f"{store} obs[{name!r}]"
        with naming(where):
            columns[name] = _of_series(pd.Series(read(name)), where)
    return columns


def _chosen(names: Sequence[str] | None, available: list[str], store: str, asked_by: str) -> list[str]:
    for name in names or ():
        if name not in available:
            raise InputError(
                f"{store}: {asked_by} must be obs columns, got {name!r}; there are {summary.short(available)}"
            )
    return available if names is None else list(names)


def _of_series(series: pd.Series[Any], where: str) -> StoreColumn:
    flat, given = partial(slices_of, where), series.dtype
    series = plain(series, where)
    dtype, kind = series.dtype, kind_of(series, where)
    if isinstance(dtype, pd.CategoricalDtype):
        return StoreColumn(where, flat(series.cat.codes.to_numpy()), None, dtype.categories, dtype)
    if kind == "boolean":
        missing = series.isna().to_numpy()
        codes = np.where(missing, -1, series.fillna(False).to_numpy(np.int8)).astype(np.int8)
        return StoreColumn(where, flat(codes), None, pd.Index([False, True]), dtype)
    if kind == "number":
        if pd.api.types.is_extension_array_dtype(dtype):
            filled = series.fillna(0).to_numpy(dtype.numpy_dtype)  # type: ignore[union-attr]
            return StoreColumn(where, flat(filled), flat(series.isna().to_numpy()), None, dtype)
        return StoreColumn(where, flat(series.to_numpy()), None, None, dtype)
    text = as_categories(series)
    return StoreColumn(where, flat(text.codes), None, text.categories, given)


def _of_element(obs: zarr.Group, name: str, where: str, slices_of: Callable[[Any], ArraySlices]) -> StoreColumn:
    element: Any = obs[name]
    encoding = element.attrs.get("encoding-type")
    if is_array(element) and encoding is None:
        # AnnData 0.7 wrote arrays without an encoding.
        known = categories_of(obs, name)
        if known is not None:
            return StoreColumn(where, slices_of(element), None, known.categories, known)
        encoding = "array" if element.dtype.kind in "biuf" else "string-array"
    if encoding == "categorical":
        categories = pd.Index(ad.io.read_elem(element["categories"]))
        ordered = bool(element.attrs.get("ordered", False))
        return StoreColumn(
            where, slices_of(element["codes"]), None, categories, pd.CategoricalDtype(categories, ordered)
        )
    if encoding == "nullable-integer":
        values, mask = slices_of(element["values"]), slices_of(element["mask"])
        return StoreColumn(where, values, mask, None, pd.api.types.pandas_dtype(nullable(values.dtype)))
    if encoding == "nullable-boolean":
        mask = slices_of(element["mask"])
        return StoreColumn(where, slices_of(element["values"]), mask, pd.Index([False, True]), pd.BooleanDtype())
    if encoding == "array" and element.dtype.kind == "b":
        return StoreColumn(where, slices_of(element), None, pd.Index([False, True]), element.dtype)
    if encoding == "array" and element.dtype.kind in "iuf":
        return StoreColumn(where, slices_of(element), None, None, element.dtype)
    if encoding in ("string-array", "nullable-string-array"):
        return _of_series(pd.Series(ad.io.read_elem(element)), where)
    raise StoreError(f"{where}: encoding {encoding!r} cannot be read as a label column")


def held(values: NDArray[Any], dtype: np.dtype[Any], where: str) -> NDArray[Any]:
    """Cast numbers to a type that holds them: integers exactly, floats rounded to its precision.

    Raises
    ------
    InputError
        If it does not hold one of them; names that value.
    """
    if values.dtype == dtype:
        return values
    is_float = values.dtype.kind == "f"
    if not is_float and np.can_cast(values.dtype, dtype) and (dtype.kind != "f" or values.itemsize < 8):
        # NumPy lets float64 hold all 64-bit integers, which it does not.
        return values.astype(dtype)
    # R's NA is a signalling NaN, of which NumPy warns when it casts it.
    with np.errstate(over="ignore", invalid="ignore"):
        found = values.astype(dtype)
    if is_float:
        bad = np.isinf(found)
        bad &= np.isfinite(values) if bad.any() else False
    else:
        # Signed integers go to integers as wide as they are, so that these have no lower limit to break.
        largest = int(np.iinfo(dtype).max) if dtype.kind in "iu" else 2 ** (np.finfo(dtype).nmant + 1)
        bad = (values > largest) | ((values < -largest) if dtype.kind == "f" else False)
    if bad.any():
        raise InputError(
            f"{where}: must hold numbers that fit {dtype}, got {values[bad][0]}; leave it out of labels=, or read it "
            f"from the labels of the core loader's batches"
        )
    return found


def promoted(dtypes: Sequence[Any]) -> np.dtype[Any]:
    """Give the type that numbers of several types share."""
    found = np.result_type(*dtypes)
    # Of int64 and uint64 NumPy makes float64, which holds neither; what int64 does not hold is refused when it is read.
    return np.dtype(np.int64) if found.kind == "f" and all(np.dtype(d).kind in "iu" for d in dtypes) else found


def nullable(dtype: np.dtype[Any]) -> str:
    """Name the nullable pandas dtype of an integer dtype."""
    return f"{'Int' if dtype.kind == 'i' else 'UInt'}{dtype.itemsize * 8}"


def has_value(column: StoreColumn) -> bool:
    """Read a column until there is a value."""
    for start in range(0, len(column.values), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(column.values))
        there = np.ones(stop - start, bool)
        if column.mask is not None:
            there &= ~_read(column.mask, start, stop)
        values = _read(column.values, start, stop)
        if column.categories is not None:
            there &= values != -1
        elif values.dtype.kind == "f":
            there &= ~np.isnan(values)
        if there.any():
            return True
    return False


def _read(array: ArraySlices, start: int, stop: int) -> NDArray[Any]:
    rows = np.arange(start, stop)
    ranges = Ranges(rows, np.array([start]), np.array([stop]), rows - start, np.zeros_like(rows))
    found = array.begin(ranges, 0, Requests())()
    return found.values[found.places]
