"""What does each input add to a build: memory, opened files, ways of joining genes?"""

from __future__ import annotations

import pickle
import resource
from itertools import chain
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from annbatch import create_anndata_collection
from annbatch.errors import InputError
from annbatch.stores import column_join
from annbatch.stores.column_join import join_column
from annbatch.stores.gene_join import fit_genes, join_genes
from annbatch.stores.var_columns import VarColumns
from annbatch.write.inputs.contents import describe
from annbatch.write.inputs.opening import Origin, as_origins
from annbatch.write.inputs.spilled_genes import SpilledGeneLists

GENES = [f"g{i}" for i in range(6)]
LISTS = st.lists(st.lists(st.sampled_from(GENES), min_size=1, unique=True), min_size=1, max_size=5)


def lists_of(folder: Path, inputs: list[list[str]]) -> SpilledGeneLists:
    for path in folder.iterdir():
        path.unlink()
    lists = SpilledGeneLists(folder)
    for names in inputs:
        lists.add(pd.Index(names, dtype=object))
    return lists


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("genes")


@given(inputs=LISTS, join=st.sampled_from(["outer", "inner", "same"]))
def test_joined_genes_are_those_of_all_inputs(folder: Path, inputs: list[list[str]], join: Any):
    known = list(dict.fromkeys(chain.from_iterable(inputs)))
    shared = [gene for gene in known if all(gene in names for names in inputs)]
    lists, paths = lists_of(folder, inputs), [f"file{i}" for i in range(len(inputs))]
    if join == "same" and shared != known:
        other = next(i for i, names in enumerate(inputs) if set(names) != set(inputs[0]))
        with pytest.raises(InputError, match=rf"file{other}: must have the same genes as file0"):
            join_genes(lists, paths, join, None)
        return
    expected = shared if join == "inner" else known
    if not expected:
        with pytest.raises(InputError, match="no genes are left"):
            join_genes(lists, paths, join, None)
        return
    found = join_genes(lists, paths, join, None)
    assert found.names.tolist() == expected
    for i, names in enumerate(inputs):
        places = [expected.index(name) if name in expected else -1 for name in names]
        assert found.columns(i).tolist() == places
        assert found.n_lost()[i] == (len(names), places.count(-1))
    assert len(list(folder.iterdir())) == len({tuple(names) for names in inputs})


@given(inputs=LISTS, present=st.lists(st.sampled_from(GENES), min_size=1, unique=True))
def test_genes_of_inputs_among_those_of_a_collection(folder: Path, inputs: list[list[str]], present: list[str]):
    lists, paths = lists_of(folder, inputs), [f"file{i}" for i in range(len(inputs))]
    strange = next((i for i, names in enumerate(inputs) if not set(names) & set(present)), None)
    if strange is not None:
        with pytest.raises(InputError, match=f"file{strange}: must share a gene with the collection"):
            fit_genes(lists, paths, pd.Index(present, dtype=object))
        return
    found = fit_genes(lists, paths, pd.Index(present, dtype=object))
    for i, names in enumerate(inputs):
        assert found.columns(i).tolist() == [present.index(name) if name in present else -1 for name in names]


def of_kind(kind: str, numbers: np.ndarray[Any, Any]) -> Any:
    """Values that follow from numbers, as a column of some kind."""
    texts = [f"t{i}" for i in numbers]
    return {
        "int8": numbers.astype(np.int8),
        "int64": numbers.astype(np.int64),
        "float32": np.where(numbers % 3 == 2, np.nan, numbers).astype(np.float32),
        "float64": numbers.astype(np.float64),
        "bool": numbers % 2 == 0,
        "Int64": pd.arrays.IntegerArray(numbers.astype(np.int64), numbers % 3 == 1),
        "boolean": pd.arrays.BooleanArray(numbers % 2 == 0, numbers % 3 == 1),
        "text": np.array(texts, object),
        "gaps": np.array([None if i % 3 == 0 else f"t{i}" for i in numbers], object),
        "category": pd.Categorical(texts, categories=[f"t{i}" for i in range(9, -1, -1)]),
        "ordered": pd.Categorical(texts, categories=[f"t{i}" for i in range(10)], ordered=True),
        "missing": np.full(len(numbers), np.nan),
        "nothing": np.full(len(numbers), None, object),
    }[kind]


KINDS = ("int8", "int64", "float32", "float64", "bool", "Int64", "boolean", "text", "gaps", "category", "ordered")
COLUMNS = st.one_of(
    st.sampled_from(
        [("text", "gaps", "category"), ("int8", "int64", "Int64"), ("bool", "boolean"), ("ordered",), KINDS]
    )
).flatmap(lambda kinds: st.lists(st.sampled_from([*kinds, "missing", "nothing", None]), min_size=5, max_size=5))


def stacked(frames: list[pd.DataFrame], names: list[str]) -> Any:
    """The column of all inputs one below the other, each gene's first value; None if two contradict each other."""
    genes = np.concatenate([frame.index for frame in frames])
    try:
        whole = join_column([f.get("x") for f in frames], [len(f) for f in frames], "x", ["" for _ in frames])
    except InputError:
        return None
    present = whole.notna().to_numpy()
    rows = []
    for name in names:
        of_gene = np.flatnonzero(present & (genes == name))
        if len({whole.iloc[i] for i in of_gene}) > 1:
            return None
        rows.append(of_gene[0] if len(of_gene) else -1)
    return whole.reindex(rows).array


@settings(max_examples=200)
@given(inputs=LISTS, kinds=COLUMNS, odd=st.lists(st.sampled_from([0, 0, 0, 3]), min_size=5, max_size=5), data=st.data())
def test_var_columns_are_those_of_all_inputs_stacked(
    inputs: list[list[str]], kinds: list[str | None], odd: list[int], data: st.DataObject
):
    known = {name: i for i, name in enumerate(dict.fromkeys(chain.from_iterable(inputs)))}
    frames = []
    columns = VarColumns()
    for names, kind, add in zip(inputs, kinds, odd, strict=False):
        values = np.array([GENES.index(name) + add for name in names])
        frames.append(pd.DataFrame({} if kind is None else {"x": of_kind(kind, values)}, index=names))
        columns.add(frames[-1], np.array([known[name] for name in names]))
    names = data.draw(st.lists(st.sampled_from(list(known)), min_size=1, unique=True))
    found, expected = columns.joined(pd.Index(names, dtype=object), known), stacked(frames, names)
    if expected is None or all(kind is None for kind in kinds[: len(inputs)]):
        assert list(found) == []
        return
    one = pd.Series(expected, dtype=expected.dtype)
    if isinstance(one.dtype, pd.CategoricalDtype) and one.notna().all() and one.is_unique:
        one = one.astype(object)
    shown = found["x"].reset_index(drop=True)
    # pandas 3 has a type of its own for strings.
    pd.testing.assert_series_equal(shown.astype(object) if one.dtype == object else shown, one, check_names=False)


@pytest.mark.parametrize(("kind", "stays"), [("text", True), ("gaps", False)])
def test_identifiers_stay_strings_unless_some_are_missing(monkeypatch: pytest.MonkeyPatch, kind: str, stays: bool):
    monkeypatch.setattr(column_join, "MAX_CATEGORIES", 2)
    columns = VarColumns()
    columns.add(pd.DataFrame({"x": of_kind(kind, np.arange(6))}, index=GENES), np.arange(6))
    found = columns.joined(pd.Index(GENES, dtype=object), {name: i for i, name in enumerate(GENES)})
    assert isinstance(found["x"].dtype, pd.CategoricalDtype) != stays


def test_what_is_kept_of_an_input_does_not_grow_with_its_genes(tmp_path: Path):
    sizes = []
    for n_vars in (100, 5000):
        path = tmp_path / f"{n_vars}.h5ad"
        ad.AnnData(sp.csr_matrix((2, n_vars), dtype=np.float32)).write_h5ad(path)
        (origin,) = as_origins(str(path), None)
        source, var = describe(origin)
        assert len(var) == n_vars
        sizes.append(len(pickle.dumps(source)))
    assert sizes[1] < sizes[0] + 100


def tiny(n: int, n_columns: int = 1) -> list[ad.AnnData]:
    found = []
    for i in range(n):
        obs = pd.DataFrame({f"c{c}": [c, i] for c in range(n_columns)}, index=[f"{i}:0", f"{i}:1"])
        found.append(ad.AnnData(sp.csr_matrix(np.full((2, 3), i + 1, np.float32)), obs=obs))
    return found


def test_inputs_are_opened_equally_often_however_many_columns_obs_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    opened, really_open = [], Origin.open
    monkeypatch.setattr(Origin, "open", lambda self: opened.append(self.name) or really_open(self))
    numbers = []
    for n_columns in (1, 12):
        opened.clear()
        collection = create_anndata_collection(
            tiny(3, n_columns), tmp_path / f"{n_columns}", shuffle=False, progress=False
        )
        obs = ad.read_zarr(collection.store_paths[0]).obs
        assert obs[f"c{n_columns - 1}"].tolist() == [n_columns - 1, 0, n_columns - 1, 1, n_columns - 1, 2]
        numbers.append(len(opened))
    assert numbers[0] == numbers[1]
    assert numbers[0] <= 3 * 4


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in Linux's /proc")
def test_many_inputs_need_few_open_files(tmp_path: Path):
    create_anndata_collection(tiny(1), tmp_path / "small", progress=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # New files get the lowest numbers that are free: fifty are left.
    used = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    limit = [number for number in range(2**12) if number not in used][50]
    inputs = tiny(80)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        collection = create_anndata_collection(inputs, tmp_path / "many", seed=1, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    found = ad.read_zarr(collection.store_paths[0])
    assert sorted(found.obs_names) == sorted(name for one in inputs for name in one.obs_names)
    assert [row.split(":")[0] for row in found.obs_names] == [str(int(x) - 1) for x in found.X.toarray()[:, 0]]
