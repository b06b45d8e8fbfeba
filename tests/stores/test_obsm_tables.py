"""Is a table in obsm the array of its columns, in memory and in a store, or refused by name?"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from annbatch import Loader
from annbatch.errors import InputError
from annbatch.stores.anndata_store import Wanted, open_store
from annbatch.stores.obsm_tables import array_of_table
from stores import write_store

X = csr_matrix(np.eye(3, dtype="f4"))
NAMES = [f"cell{i}" for i in range(3)]


def table(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns, index=NAMES)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"a": [1, 2, 3], "b": [4, 5, 6]}, np.array([[1, 4], [2, 5], [3, 6]])),
        ({"a": [1, 2, 3], "b": [0.5, np.nan, 1]}, np.array([[1, 0.5], [2, np.nan], [3, 1]])),
        ({"a": np.array([0.5, 1, 2], "f4")}, np.array([[0.5], [1], [2]], "f4")),
        ({"a": [True, False, True]}, np.array([[True], [False], [True]])),
        ({"a": pd.array([1, 2, 3], "Int16"), "b": [True, False, True]}, np.array([[1, 1], [2, 0], [3, 1]], "i2")),
        ({"a": pd.array([0.5, None, 2], "Float32")}, np.array([[0.5], [np.nan], [2]], "f4")),
        ({"a": [2**53 - 1, 0, 1], "b": [0.5, 0, 1]}, np.array([[2**53 - 1, 0.5], [0, 0], [1, 1]])),
        ({}, np.empty((3, 0))),
    ],
    ids=str,
)
def test_numbers_become_an_array(columns: dict[str, Any], expected: np.ndarray) -> None:
    found = array_of_table(table(**columns), "obsm/t")
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1, 2, 3], "b": list("xyz")}, "column 'b': must be numbers"),
        ({"b": pd.Categorical(["x", "y", "x"])}, "column 'b': must be numbers.*got category; .*select_dtypes"),
        (
            {"b": pd.array([1, None, 2], "Int64")},
            "column 'b': must be numbers, none of .* missing, got Int64",
        ),
        ({"b": pd.array([True, None, False], "boolean")}, "column 'b': must be numbers"),
        ({"b": [1j, 2, 3]}, "column 'b': must be numbers.*got complex128"),
        ({"a": [0.5, 1, 2], "b": [2**53 + 1, 0, 0]}, r"column 'b': must be below 2\*\*53 beside columns .* float64"),
        ({"a": np.array([2**63, 1, 2], "u8"), "b": [-1, 0, 0]}, r"column 'a': must be below 2\*\*53"),
    ],
    ids=str,
)
def test_other_tables_are_refused(columns: dict[str, Any], message: str) -> None:
    adata = ad.AnnData(np.eye(3, dtype="f4"), obs=table(), obsm={"t": table(**columns)})
    with pytest.raises(InputError, match=rf"adatas\[0\] obsm/t {message}"):
        Loader(batch_size=2, obsm=["t"]).add_anndatas([adata])


def test_batches_carry_tables_of_anndata() -> None:
    scores = table(a=[1, 2, 3], b=[0.5, 0, 1])
    adata = ad.AnnData(X, obs=table(), obsm={"t": scores})
    ds = Loader(batch_size=2, obsm=["t"], shuffle=False).add_anndatas([adata])
    np.testing.assert_array_equal(np.concatenate([batch["obsm"]["t"] for batch in ds]), scores)


def test_stored_tables(tmp_path: Path) -> None:
    root = write_store(str(tmp_path / "s.zarr"), X, table())
    with warnings.catch_warnings():
        # What anndata has to say about shards is no concern here.
        warnings.simplefilter("ignore")
        ad.io.write_elem(root, "obsm", {"t": table(a=[1, 2, 3], b=[0.5, 0, 1]), "text": table(c=list("xyz"))})
    matrix = open_store(root, Wanted(None, ("X", "obsm/t")), "store").matrices["obsm/t"]
    assert (matrix.shape, matrix.dtype) == ((3, 2), np.float64)
    with pytest.raises(InputError, match="store obsm/text column 'c': must be numbers"):
        open_store(root, Wanted(None, ("X", "obsm/text")), "store")
