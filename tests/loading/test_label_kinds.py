"""Do building and loading join obs columns of different kinds by one rule, and as pandas does?

1. Each pair of columns, and any list of them, is accepted or refused by both.
2. What is accepted holds the values of `pandas.concat`, with the same codes and categories both ways.
3. The same holds for what `create_anndata_collection` and `append_to_collection` write, read by a `Loader`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annbatch import Loader, append_to_collection, create_anndata_collection
from annbatch.batches.label_rows import LabelReader
from annbatch.errors import InputError
from annbatch.plan.window import plan_readings
from annbatch.remote.request_pool import Requests
from annbatch.stores.column_join import join_column
from annbatch.stores.label_columns import Column, columns_of_frame
from annbatch.stores.united_columns import merge_columns

N_OBS = 3
ABC = ["a", "b", "c"]


def category(values: list[Any], categories: list[Any], ordered: bool = False) -> pd.Series[Any]:
    return pd.Series(pd.Categorical(values, categories=categories, ordered=ordered))


@dataclass
class Case:
    column: pd.Series[Any]
    kind: str | None
    """None if it has no value."""
    categories: list[Any] | None = None


CASES = {
    "None": Case(pd.Series([None] * N_OBS, dtype=object), None),
    "NaN": Case(pd.Series([np.nan] * N_OBS), None),
    "no string": Case(pd.Series([None] * N_OBS, dtype="string"), None),
    "no category": Case(category([None] * N_OBS, []), None),
    "no integer": Case(pd.Series([None] * N_OBS, dtype="Int32"), None),
    "no boolean": Case(pd.Series([None] * N_OBS, dtype="boolean"), None),
    "booleans": Case(pd.Series([True, False, True]), "boolean"),
    "nullable booleans": Case(pd.Series([True, None, False], dtype="boolean"), "boolean"),
    "boolean objects": Case(pd.Series([None, False, True], dtype=object), "boolean"),
    "integers": Case(pd.Series([1, -2, 3]), "number"),
    "small integers": Case(pd.Series([1, 2, 255], dtype=np.uint8), "number"),
    "nullable integers": Case(pd.Series([1, None, -(2**40) - 1], dtype="Int64"), "number"),
    "integer objects": Case(pd.Series([None, 2, 3], dtype=object), "number"),
    "floats": Case(pd.Series([0.5, 1.5, 2.0]), "number"),
    "floats and NaN": Case(pd.Series([0.5, np.nan, 2.0], dtype=np.float32), "number"),
    "nullable floats": Case(pd.Series([0.5, None, 2.0], dtype="Float64"), "number"),
    "sparse floats": Case(pd.Series([0.0, np.nan, 2.0]).astype(pd.SparseDtype(np.float64)), "number"),
    "text": Case(pd.Series(["c", "a", "c"]), "text", ["c", "a"]),
    "text and None": Case(pd.Series(["d", None, "a"]), "text", ["d", "a"]),
    "strings": Case(pd.Series(["d", None, "b"], dtype="string"), "text", ["d", "b"]),
    "digits": Case(pd.Series(["1", "2", "1"]), "text", ["1", "2"]),
    "categories": Case(category(["b", "a", None], ["b", "a", "x"]), "text", ["b", "a", "x"]),
    "permuted categories": Case(category(["b", "a", "x"], ["x", "a", "b"]), "text", ["x", "a", "b"]),
    "ordered categories": Case(category(["b", "a", "b"], ABC, True), "text", ABC),
    "categories in another order": Case(category(["b", "a", "c"], ABC[::-1], True), "text", ABC[::-1]),
    "declared categories": Case(category([None] * N_OBS, ["z"]), None, ["z"]),
    "integer categories": Case(category([1, 3, None], [3, 1]), "integer", [3, 1]),
    "float categories": Case(category([1.0, 3.5, None], [3.5, 1.0]), "float", [3.5, 1.0]),
    "boolean categories": Case(category([True, False, None], [True, False]), "boolean category", [True, False]),
}


def expected_kind(cases: list[Case]) -> str | None:
    """The rule: values are of one kind."""
    kinds = {case.kind for case in cases} - {None}
    if len(kinds) > 1:
        return "refused"
    return next(iter(kinds), None)


def expected_categories(cases: list[Case], kind: str | None) -> list[Any]:
    """Those of the kind, by first appearance; declared ones are text."""
    alike = [case for case in cases if case.kind == kind or (case.kind is None and kind == "text")]
    return list(dict.fromkeys(value for case in alike for value in case.categories or ()))


def objects(column: Any) -> list[Any]:
    return [None if pd.isna(value) else value for value in pd.Series(column).astype(object)]


def concatenated(cases: list[Case]) -> list[Any]:
    return objects(pd.concat([case.column.astype(object) for case in cases]))


def loaded(cases: list[Case]) -> tuple[Column, Any, np.ndarray]:
    """Join the columns as a loader does: the column, its values as users see them, and its codes."""
    stores = [
        (f"adatas[{i}]", N_OBS, columns_of_frame(pd.DataFrame({"x": c.column}), None, f"adatas[{i}]"))
        for i, c in enumerate(cases)
    ]
    (column,) = merge_columns(stores, asked=["x"]).columns
    rows = np.arange(N_OBS * len(cases))
    plan = plan_readings(rows, np.array([0, len(rows)]), np.arange(len(cases) + 1) * N_OBS)
    reader = LabelReader([column])
    (labels,) = reader.read(plan, rows, reader.begin(plan, Requests()))
    return column, labels.frame(rows)["x"], labels.codes("x")


def built(cases: list[Case]) -> pd.Series[Any]:
    names = [f"adata_{i}" for i in range(len(cases))]
    return join_column([case.column for case in cases], [N_OBS] * len(cases), "obs column 'x'", names)


def check(names: list[str]) -> None:
    cases = [CASES[name] for name in names]
    kind = expected_kind(cases)
    if kind == "refused":
        for join in (loaded, built):
            with pytest.raises(
                InputError, match="'x'.* must be of one kind everywhere, got .*; convert it with astype"
            ):
                join(cases)
        return
    values = concatenated(cases)
    column, shown, codes = loaded(cases)
    joined = built(cases)
    assert objects(shown) == values
    assert objects(joined) == values
    if isinstance(joined.dtype, pd.CategoricalDtype):
        assert column.categories is not None
        assert column.categories.tolist() == joined.cat.categories.tolist()
        assert kind is None or joined.cat.categories.tolist() == expected_categories(cases, kind)
        np.testing.assert_array_equal(codes, joined.cat.codes)
        if isinstance(shown.dtype, pd.CategoricalDtype):
            assert shown.cat.ordered == joined.cat.ordered
    else:
        # Codes of booleans that can be missing have -1 for it, numbers NaN.
        missing = [value is None for value in values]
        assert all(np.isnan(code) or code == -1 for code in codes[missing])
        there = np.array([value for value in values if value is not None], np.float32)
        np.testing.assert_array_equal(codes[~np.array(missing)].astype(np.float32), there)


@pytest.mark.parametrize("first", CASES)
def test_each_pair(first: str):
    names = list(CASES)
    for second in names[names.index(first) :]:
        check([second, first])


@given(st.lists(st.sampled_from(list(CASES)), min_size=1, max_size=5))
def test_any_stores(names: list[str]):
    check(names)


VALUELESS = [name for name, case in CASES.items() if case.kind is None]


@given(
    st.sampled_from([name for name, case in CASES.items() if case.kind is not None]),
    st.lists(st.sampled_from(VALUELESS), max_size=4),
    st.randoms(use_true_random=False),
)
def test_stores_without_a_value_fit_every_kind(name: str, others: list[str], random: Any):
    names = [name, *others]
    random.shuffle(names)
    check(names)


ORDERED = [
    (["ordered categories", "ordered categories"], True),
    (["ordered categories", "None"], True),
    (["no category", "ordered categories"], True),
    (["ordered categories", "categories in another order"], False),
    (["ordered categories", "categories"], False),
    (["ordered categories", "text"], False),
]


@pytest.mark.parametrize(("names", "ordered"), ORDERED)
def test_categories_are_ordered_where_all_agree(names: list[str], ordered: bool):
    cases = [CASES[name] for name in names]
    assert built(cases).cat.ordered is ordered
    assert loaded(cases)[1].cat.ordered is ordered


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, "1", None], "must hold values of one kind, got mixed-integer"),
        ([["a"], ["b"], None], "must hold values of one kind, got mixed"),
        ([1j, 2j, 3j], "must hold values of one kind, got complex"),
        ([2**64, None, 1], "values of one type of at most 64 bits, got integer"),
        ([2**53 + 1, 0.5, 1], "float64 does not hold all integers"),
    ],
)
def test_values_of_no_kind_are_refused(values: list[Any], message: str):
    case = Case(pd.Series(values, dtype=None if isinstance(values[0], complex) else object), None)
    for join in (loaded, built):
        with pytest.raises(InputError, match=message):
            join([case])


def test_what_no_file_holds_is_loaded_from_memory_and_not_built():
    """Dates and intervals make categories; AnnData does not write them."""
    for column in (pd.Series(pd.to_datetime(["2020-01-02", "2020-01-01", None])), pd.cut(pd.Series([1, 2, 3]), 2)):
        case = Case(column, None)
        assert objects(loaded([case, CASES["None"]])[1]) == [*objects(column), None, None, None]
        with pytest.raises(InputError, match=r"adata_0: obs column 'x' must hold strings.*astype\(str\)"):
            built([case])


@pytest.fixture(scope="module")
def tables() -> list[ad.AnnData]:
    """Pairs of columns, one of which has no value, are the columns of two tables."""
    pairs = [("None", "NaN"), ("no boolean", "no integer"), ("declared categories", "NaN"), ("text", "categories")]
    for i, none in enumerate(VALUELESS):
        for j, other in enumerate(["nullable booleans", "integers", "text", "ordered categories"]):
            pairs.append((none, other) if (i + j) % 2 else (other, none))
    tables = []
    for i in range(2):
        obs = pd.DataFrame({" + ".join(pair): CASES[pair[i]].column for pair in pairs})
        obs.index = [f"{i}{row}" for row in range(N_OBS)]
        adata = ad.AnnData(np.ones((N_OBS, 2), "f4"))
        # AnnData's setter would make categories of strings.
        adata._obs = obs
        tables.append(adata)
    return tables


def create(tables: list[ad.AnnData], path: Path) -> None:
    create_anndata_collection(tables, path, shuffle=False, progress=False)


def create_and_append(tables: list[ad.AnnData], path: Path) -> None:
    create_anndata_collection(tables[:1], path, shuffle=False, progress=False)
    append_to_collection(tables[1:], path, shuffle=False, progress=False)


@pytest.mark.parametrize("write", [create, create_and_append, None])
def test_all_pairs_from_end_to_end(tables: list[ad.AnnData], tmp_path: Path, write: Any):
    ds = Loader(batch_size=2 * N_OBS, shuffle=False)
    if write is None:
        ds.add_anndatas(tables)
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="anndata")
            write(tables, tmp_path / "store")
        ds.use_collection(tmp_path / "store")
    labels = next(iter(ds)).labels
    for name in tables[0].obs.columns:
        cases = [CASES[part] for part in name.split(" + ")]
        assert objects(labels[name]) == concatenated(cases), name
        if (kind := expected_kind(cases)) not in (None, "boolean", "number"):
            assert list(ds.categories[name]) == expected_categories(cases, kind), name


def test_integers_that_the_common_type_alters_are_refused():
    columns = [pd.Series([2**60 + 1]), pd.Series([0.5])]
    with pytest.raises(InputError, match="'x' must hold numbers that fit float64.* got 1152921504606846977"):
        join_column(columns, [1, 1], "obs column 'x'", ["a", "b"])
    # Without a value beside them they keep their type.
    found = join_column([columns[0], pd.Series([np.nan])], [1, 1], "obs column 'x'", ["a", "b"])
    assert objects(found) == [2**60 + 1, None]
