"""What must a batch of any framework hold?

`Truth` compares it with the cells that `annbatch.testing.cells` gave: SciPy's ``X[index]`` and pandas' ``obs.iloc``. It
reads the batch by its keys, as a program that trains does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd

from annbatch.batch import CSR
from annbatch.testing.rules import expect, rule, same

LAYERS = ("doubled",)
OBSM = ("pca",)


def as_dense(matrix: Any) -> Any:
    """Make a dense array of an `annbatch.CSR` or of a sparse matrix as SciPy and CuPy have them."""
    if isinstance(matrix, CSR):
        return matrix.to_scipy().toarray()
    return matrix.toarray() if hasattr(matrix, "toarray") else matrix


@dataclass(frozen=True, eq=False)
class Framework:
    """How the batches of a framework are opened and read; `annbatch.testing.check_adapter` explains the fields."""

    to_numpy: Callable[[Any], Any] = np.asarray
    to_dense: Callable[[Any], Any] = as_dense
    address: Callable[[Any], int] | None = None
    code_dtypes: Mapping[str, npt.DTypeLike] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def array(self, array: Any) -> npt.NDArray[Any]:
        """Give an array of the framework."""
        return np.asarray(self.to_numpy(array))

    def matrix(self, matrix: Any) -> npt.NDArray[Any]:
        """Give a matrix as a dense array."""
        return self.array(self.to_dense(matrix))


@dataclass(frozen=True, eq=False)
class Truth:
    """The cells of a collection, in its order."""

    cells: ad.AnnData
    framework: Framework

    def check_matrices(self, held: Mapping[str, Any], index: npt.NDArray[np.int64], n_rows: int) -> None:
        """Compare ``data``, layers and obsm of a batch of ``n_rows`` rows, or of a modality in it."""
        with rule("data must hold X of the rows of index, and nothing in rows that only fill up"):
            self._check(held, "data", self.cells.X, index, n_rows)
        if "layers" in held:
            with rule("layers must hold each layer as data holds X"):
                for name in LAYERS:
                    self._check(held["layers"], name, self.cells.layers[name], index, n_rows)
        if "obsm" in held:
            with rule("obsm must hold each element of the rows of index"):
                for name in OBSM:
                    self._check(held["obsm"], name, self.cells.obsm[name], index, n_rows)

    def _check(self, held: Any, name: str, whole: Any, index: npt.NDArray[np.int64], n_rows: int) -> None:
        expected = np.zeros((n_rows, whole.shape[1]), whole.dtype)
        of_rows = whole[index]
        expected[: len(index)] = as_dense(of_rows)
        same(name, self.framework.matrix(held[name]), expected)

    def check_data(self, data: Any, index: npt.NDArray[np.int64]) -> None:
        """Compare ``data`` alone; more rows than ``index`` has must be empty."""
        found = self.framework.matrix(data)
        self._check({"data": data}, "data", self.cells.X, index, max(len(found), len(index)))

    def check_index(self, batch: Any, index: npt.NDArray[np.int64]) -> int:
        """Compare ``index`` with the core's; gives how many rows the batch has with those that fill it up."""
        with rule("index must be that of the core's batch, and -1 in rows that only fill up"):
            found = self.framework.array(batch["index"])
            expect(found.dtype == np.int64, f"index must be int64, got {found.dtype}")
            expect(len(found) >= len(index), f"index must have {len(index)} rows, got {len(found)}")
            same("index", found, np.append(index, np.full(len(found) - len(index), -1)))
        return len(found)

    def check_labels(
        self, batch: Any, index: npt.NDArray[np.int64], n_rows: int, categories: Mapping[str, Any]
    ) -> None:
        """Compare codes and labels of all label columns."""
        obs = self.cells.obs.iloc[index]
        with rule("codes must have every label column that was asked for"):
            expect(set(batch.codes) == set(obs.columns), f"got {sorted(batch.codes)} instead of {sorted(obs.columns)}")
        for column in obs.columns:
            with rule("codes must be those of the rows of index, and missing in rows that only fill up"):
                codes = self.framework.array(batch.codes[column])
                expected = _codes(obs[column], categories.get(column), n_rows)
                kinds = "iu" if expected.dtype.kind in "iu" else expected.dtype.kind
                what = f"codes[{column!r}]"
                expect(codes.dtype.kind in kinds, f"{what} must be {expected.dtype} or like it, got {codes.dtype}")
                wanted = np.dtype(self.framework.code_dtypes.get(column, codes.dtype))
                expect(codes.dtype == wanted, f"{what} must be {wanted}, got {codes.dtype}")
                same(what, codes, expected)
        with rule("labels must hold obs of the rows of index, without rows that only fill up"):
            labels = batch["labels"]
            expect(len(labels) == len(index), f"there are {len(labels)} rows instead of {len(index)}")
            for column in obs.columns:
                found, wanted_values = (_values(frame[column]) for frame in (labels, obs))
                expect(found == wanted_values, f"labels[{column!r}] is {found} instead of {wanted_values}")

    def check_names(self, batch: Any, index: npt.NDArray[np.int64], n_rows: int) -> None:
        """Compare names of cells."""
        with rule("names must be those of the rows of index, and empty in rows that only fill up"):
            wanted = [*self.cells.obs_names[index], *[""] * (n_rows - len(index))]
            found = list(batch["names"])
            expect(found == wanted, f"got {found} instead of {wanted}")


def _codes(column: pd.Series[Any], categories: Any, n_rows: int) -> npt.NDArray[Any]:
    """Give the codes, or the values, of a column: (n_rows,), missing behind its own rows."""
    if categories is not None:
        codes = pd.Index(categories).get_indexer(pd.Index(column.astype(object)))
        return np.append(codes, np.full(n_rows - len(column), -1)).astype(np.int64)
    if pd.api.types.is_bool_dtype(column.dtype):
        return np.append(column.to_numpy(bool), np.zeros(n_rows - len(column), bool))
    if column.dtype.kind in "iu" and not pd.api.types.is_extension_array_dtype(column.dtype):
        return np.append(column.to_numpy(), np.full(n_rows - len(column), -1))
    values = column.to_numpy(np.float64, na_value=np.nan)
    return np.append(values, np.full(n_rows - len(column), np.nan))


def _values(column: pd.Series[Any]) -> list[Any]:
    """Give the values of a column; None where they are missing."""
    return [None if missing else value for value, missing in zip(column.tolist(), column.isna(), strict=True)]
