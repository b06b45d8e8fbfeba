"""Are var columns merged as `anndata.concat` merges them?"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, get_args

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from annbatch import create_anndata_collection
from annbatch.errors import InputError
from annbatch.stores.merged_var_column import Merge
from annbatch.stores.var_columns import VarColumns

MERGES = get_args(Merge)


def column(kind: str, genes: list[int]) -> Any:
    """A column that is a function of the gene, or differs from it in one place."""
    values = np.array(genes)
    made: dict[str, Any] = {
        "integer": values,
        "another integer": values + (values == 2),
        "float": values.astype(float),
        "missing": np.where(values == 1, np.nan, values),
        "boolean": values % 2 == 0,
        "text": np.array([f"s{value}" for value in genes], dtype=object),
        "other text": np.array([f"s{value}" if value else "other" for value in genes], dtype=object),
        "category": pd.Categorical([f"c{value % 2}" for value in genes], categories=["c0", "c1"]),
        "turned category": pd.Categorical([f"c{value % 2}" for value in genes], categories=["c1", "c0"]),
        "nullable": pd.array(values, dtype="Int64"),
    }
    return made[kind]


KINDS = [
    "integer",
    "another integer",
    "float",
    "missing",
    "boolean",
    "text",
    "other text",
    "category",
    "turned category",
    "nullable",
]
INPUT = st.tuples(
    st.lists(st.integers(0, 4), min_size=1, unique=True), st.dictionaries(st.sampled_from("ab"), st.sampled_from(KINDS))
)


def as_objects(frame: pd.DataFrame) -> dict[str, list[Any]]:
    plain = {name: frame[name].astype(object) for name in sorted(frame.columns)}
    return {name: values.where(values.notna(), None).tolist() for name, values in plain.items()}


@settings(max_examples=50)
@given(
    inputs=st.lists(INPUT, min_size=1, max_size=3),
    merge=st.sampled_from(MERGES),
    join=st.sampled_from(["inner", "outer"]),
)
def test_columns_are_those_of_anndata(inputs: list[Any], merge: Any, join: Any):
    made = []
    for genes, kinds in inputs:
        frame = pd.DataFrame(
            {name: column(kind, genes) for name, kind in kinds.items()}, index=[f"g{g}" for g in genes]
        )
        made.append(ad.AnnData(sp.csr_matrix((1, len(genes)), dtype="f4"), var=frame))
    expected = ad.concat(made, join=join, merge=merge, index_unique="-").var
    columns = VarColumns(merge)
    for adata, (genes, _) in zip(made, inputs, strict=True):
        columns.add(adata.var, np.array(genes))
    found = columns.joined(pd.Index(expected.index, dtype=object), {f"g{g}": g for g in range(5)})
    assert as_objects(found) == as_objects(expected)


def test_merged_columns_are_written(tmp_path: Path):
    def cells(number: int, genes: list[int], **kinds: str) -> ad.AnnData:
        var = pd.DataFrame({name: column(kind, genes) for name, kind in kinds.items()}, index=[f"g{g}" for g in genes])
        obs = pd.DataFrame(index=[f"{number}:{i}" for i in range(2)])
        return ad.AnnData(sp.csr_matrix(np.ones((2, len(genes)), "f4")), obs=obs, var=var)

    inputs = [
        cells(0, [0, 1, 2], same="text", differs="text", kind="integer"),
        cells(1, [2, 1, 0], same="text", differs="other text", kind="category", alone="category"),
    ]
    for merge in MERGES:
        expected = ad.concat(inputs, merge=merge).var
        options: Any = {"shuffle": False, "progress": False, "merge": merge}
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            collection = create_anndata_collection(inputs, tmp_path / merge, **options)
        found = ad.read_zarr(collection.store_paths[0]).var
        assert as_objects(found.loc[expected.index]) == as_objects(expected)
        missing = {f"'var/{name}' is not taken by merge={merge!r}" for name in {"same", "differs", "kind", "alone"}}
        missing -= {f"'var/{name}' is not taken by merge={merge!r}" for name in expected.columns}
        assert [all(text in str(w.message) for text in missing) for w in said] == [True] * bool(missing)
        if missing:
            with pytest.raises(InputError, match=r"no element may be left out \(strict=True\), but 'var/"):
                create_anndata_collection(inputs, tmp_path / "strict", strict=True, **options)
    with pytest.raises(InputError, match="merge must be"):
        create_anndata_collection(inputs, tmp_path / "store", merge="only", progress=False)
