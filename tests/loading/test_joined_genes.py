"""Do stores with different genes give the rows that `anndata.concat` puts together?

One store has its genes in their order, one has others in another order, one has a part of them. They lie in collections
of two codecs, in a zarr store that AnnData wrote, and in memory, so that the kernels and zarr read them.
"""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from annbatch import Emit, InputError, Loader, LogNormalize, Partition, create_anndata_collection
from datagen import named_matrix
from epochs import each_batch

GENES = [list(range(9)), [12, 3, 1, 8, 11, 5], [2, 1, 3], [*range(3), 12]]
KINDS = ["B", "T", "NK", "DC"]
N_OBS = 11
OPTIONS: dict[str, Any] = {"batch_size": 7, "chunk_size": 3, "preload_nchunks": 5, "threads": 2}
ELEMENTS: dict[str, Any] = {"layers": ["doubled", "dense"], "obsm": ["pca"]}


def store(number: int, genes: list[int]) -> ad.AnnData:
    rng = np.random.default_rng(number)
    rows = range(N_OBS * number, N_OBS * (number + 1))
    x = named_matrix(rng, rows, genes, density=0.5)
    names = [f"g{gene}" for gene in genes]
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical([KINDS[(row + number) % 2 + number % 3] for row in rows]),
            "n": np.array(rows, np.int16 if number else np.int64),
        },
        index=[f"cell{row}" for row in rows],
    )
    return ad.AnnData(
        x,
        obs,
        pd.DataFrame({"id": [f"E{gene}" for gene in genes], "length": np.array(genes) * 7}, index=names),
        layers={"doubled": sp.csr_matrix(x * 2), "dense": x.toarray() + 1},
        obsm={"pca": np.array(rows)[:, None] + np.array([0, 0.5])},
    )


@pytest.fixture(scope="module")
def adatas() -> list[ad.AnnData]:
    return [store(number, genes) for number, genes in enumerate(GENES)]


@pytest.fixture(scope="module")
def stored(adatas: list[ad.AnnData], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Each of them where a loader can open it."""
    folder = tmp_path_factory.mktemp("stores")
    found: list[Any] = []
    for number, (adata, codec) in enumerate(zip(adatas[:2], ("blosc", "packed"), strict=True)):
        create_anndata_collection(
            adata, folder / str(number), shuffle=False, codec=codec, chunk_elements=16, rows_per_store=6,
            dense=["layers/dense"], progress=False,
        )  # fmt: skip
        found.append(folder / str(number))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adatas[2].write_zarr(folder / "2")
    group = zarr.open_group(folder / "2", mode="r")
    part = ad.AnnData(ad.io.sparse_dataset(group["X"]), adatas[2].obs, adatas[2].var, obsm={"pca": group["obsm/pca"]})
    part.layers["doubled"] = ad.io.sparse_dataset(group["layers/doubled"])
    part.layers["dense"] = group["layers/dense"]
    return [*found, part, adatas[3]]


def loader(stored: list[Any], **options: Any) -> Loader:
    ds = Loader(**(OPTIONS | ELEMENTS | options))
    for one in stored:
        ds = ds.use_collection(one, ["kind", "n"]) if isinstance(one, Path) else ds.add_anndatas([one], ["kind", "n"])
    return ds


def truth(adatas: list[ad.AnnData], join: str, names: list[str] | None = None) -> dict[str, Any]:
    """The columns of everything that has genes; zeros where a store lacks one, or all do."""
    found = ad.concat(adatas, join=join, fill_value=0)
    names = list(found.var_names) if names is None else names
    frames = {"X": found.X, **found.layers}
    return {"n": found.obs[["n"]]} | {
        element: pd.DataFrame(
            matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix), columns=found.var_names
        ).reindex(columns=names, fill_value=0)
        for element, matrix in frames.items()
        if element is not None
    }


def check(ds: Loader, expected: dict[str, pd.DataFrame], emit: Emit = Emit()) -> list[int]:  # noqa: B008
    seen: list[int] = []
    for batch in each_batch(ds.batches(emit), len(ds)):
        n = len(batch.index) - batch.n_padding
        rows = batch.index[:n]
        seen += rows.tolist()
        for element, found in {"X": batch.data, **(batch.layers or {})}.items():
            if hasattr(found, "to_scipy"):
                csr = found.to_scipy()
                assert all((np.diff(csr[i].indices) > 0).all() for i in range(n)), f"{element} is not sorted"
                found = csr.toarray()
            wanted = expected[element][list(ds.var.index)].to_numpy()
            np.testing.assert_array_equal(found[:n], wanted[rows], err_msg=element)
            assert not found[n:].any()
        numbers = expected["n"]["n"].to_numpy()[rows]
        if batch.obsm:
            np.testing.assert_array_equal(batch.obsm["pca"][:n, 0], numbers)
        assert batch.codes["n"][:n].tolist() == numbers.tolist()
    return seen


PANEL = ["g12", "g3", "g0", "no", "g1"]
CASES: dict[str, tuple[dict[str, Any], str, list[str] | None, list[int]]] = {
    "outer": ({"join": "outer"}, "outer", None, [0, 1, 2, 3]),
    "inner": ({"join": "inner"}, "inner", None, [0, 1, 2, 3]),
    "outer, the short one first": ({"join": "outer"}, "outer", None, [2, 3, 1, 0]),
    "one store": ({}, "inner", None, [1]),
    "names that all have": ({"var_names": ["g3", "g1"]}, "outer", ["g3", "g1"], [0, 1, 2]),
    "names, zeros": ({"var_names": PANEL, "absent": "zero"}, "outer", PANEL, [0, 1, 2, 3]),
    "names of the union": ({"var_names": ["g12", "g3"], "join": "outer"}, "outer", ["g12", "g3"], [1, 0, 2]),
    "ids of the union": ({"var_names": ["E1", "E4"], "var_key": "id", "join": "outer"}, "outer", ["g1", "g4"], [0, 1]),
    "a function of var": ({"var_names": lambda var: var["length"] > 20, "join": "outer"}, "outer", None, [0, 1, 2]),
    "a function of the shared": ({"var_names": lambda var: var["length"] > 7, "join": "inner"}, "inner", None, [0, 2]),
}


@pytest.mark.filterwarnings("ignore:genes of var_names are zeros")
@pytest.mark.filterwarnings("ignore:.* shares few genes")
@pytest.mark.parametrize("name", CASES)
def test_batches_are_those_of_concatenated_stores(adatas, stored, name):
    options, join, names, order = CASES[name]
    expected = truth([adatas[i] for i in order], join, names)
    ds = loader([stored[i] for i in order], **options)
    if names is not None:
        assert list(ds.var.index) == names
    elif "var_names" not in options:
        assert set(ds.var.index) == set(expected["X"].columns)
    known = ds.var["length"].notna()
    assert known.sum() == len(ds.var) - ("no" in ds.var.index)
    assert ds.var["length"][known].tolist() == [7 * int(gene[1:]) for gene in ds.var.index[known]]
    everything = list(range(N_OBS * len(order)))
    assert sorted(check(ds, expected)) == everything
    assert sorted(check(ds, expected, Emit(layout="dense"))) == everything
    kinds = [str(kind) for i in order for kind in adatas[i].obs["kind"]]
    for batch in ds:
        assert batch.labels["kind"].tolist() == [kinds[row] for row in batch.index]


@pytest.mark.filterwarnings("ignore:genes of var_names are zeros")
def test_batches_of_a_fixed_shape_and_those_of_ranks_and_processes(adatas, stored):
    expected = truth(adatas, "outer")
    ds = loader(stored, join="outer", layers=["doubled"], obsm=[], batch_size=6)
    ds = pickle.loads(pickle.dumps(ds))
    padded = Emit(dtype=np.dtype(np.float64), nse=lambda n: n + 5, pad_rows=True, alike=True)
    assert sorted(check(ds, expected, padded)) == list(range(4 * N_OBS))
    panel = ds.replace(var_names=["g1", "g2"])
    check(panel, expected, padded)
    seen = [row for rank in range(2) for row in check(ds.replace(partition=Partition(rank, 2)), expected)]
    assert sorted(seen) == list(range(4 * N_OBS))
    parts = ds.split({"train": 0.5, "test": None}, by=None, seed=3)
    assert sorted(check(parts["train"], expected) + check(parts["test"], expected)) == list(range(4 * N_OBS))


def test_totals_are_those_of_the_joined_genes(adatas, stored):
    transform = LogNormalize(100, elements=("X", "layers/dense"))
    for join in ("outer", "inner"):
        expected = {}
        for element, frame in truth(adatas[:3], join).items():
            if element == "n":
                continue
            totals = frame.sum(axis=1).to_numpy()[:, None]
            scaled = np.log1p(frame * 100 / np.where(totals > 0, totals, 1))
            expected[element] = frame if element == "doubled" else scaled
        one: Any = ["g3", "g1"] if join == "outer" else (lambda var: var["id"] == "E3")
        for options in ({}, {"var_names": one}):
            ds = loader(stored[:3], join=join, transform=transform, **options)
            for emit in (Emit(), Emit(layout="dense")):
                for batch in each_batch(ds.batches(emit), len(ds)):
                    for element, found in {"X": batch.data, **batch.layers}.items():
                        found = found.to_scipy().toarray() if hasattr(found, "to_scipy") else found
                        wanted = expected[element][list(ds.var.index)].to_numpy()[batch.index]
                        np.testing.assert_allclose(found, wanted, rtol=1e-6, err_msg=element)


@pytest.mark.filterwarnings("ignore:genes of var_names are zeros")
def test_names_that_no_single_store_has(adatas):
    ds = Loader(**OPTIONS, **ELEMENTS, var_names=["g12", "g0"], join="outer").add_anndatas(adatas)
    check(ds, truth(adatas, "outer", ["g12", "g0"]))


def test_a_permuted_store_needs_no_option(adatas):
    other = adatas[0][:, [4, 2, 0, 1, 3, 8, 7, 6, 5]].copy()
    ds = loader([adatas[0], other])
    assert list(ds.var.index) == list(adatas[0].var.index)
    columns = [other.var.index.get_loc(name) for name in ds.var.index]
    wanted = np.concatenate([adatas[0].X.toarray(), other.X.toarray()[:, columns]])
    for batch in each_batch(ds):
        np.testing.assert_array_equal(batch.data.to_scipy().toarray(), wanted[batch.index])


def test_a_state_is_of_a_join(adatas, stored):
    ds = loader(stored[:3], join="outer")
    batches = iter(ds)
    next(batches)
    state = json.loads(json.dumps(ds.state_dict()))
    again = loader(stored[:3], join="outer")
    again.load_state_dict(state)
    np.testing.assert_array_equal(next(iter(again)).index, next(batches).index)
    with pytest.raises(InputError, match="var_names|genes"):
        loader(stored[:3], join="inner").load_state_dict(state)
    other = adatas[2][:, [2, 1, 0]].copy()
    with pytest.raises(InputError, match="genes"):
        loader([*stored[:2], other], join="outer").load_state_dict(state)


def test_what_does_not_fit_is_refused_or_named(adatas, stored):
    with pytest.raises(InputError, match=r"adatas\[0\]: must have the same genes as .*join='outer' takes all genes"):
        loader([stored[0], stored[2]])
    with pytest.raises(InputError, match=r"of all stores, got 'g0', which adatas\[0\] lacks \(1 are not .*'zero'"):
        loader([stored[0], stored[2]], var_names=["g1", "g0"])
    with pytest.warns(UserWarning, match=r"genes of var_names are zeros .* \(1\): 'g0' is not in adatas\[0\]"):
        loader([stored[0], stored[2]], var_names=["g1", "g0"], absent="zero")
    apart = store(5, [20, 21])
    with pytest.raises(InputError, match="no genes are left: join='inner'"):
        loader([adatas[0], apart], join="inner")
    with pytest.warns(UserWarning, match=r"adatas\[0\] .* shares few genes with adatas\[1\]"):
        loader([adatas[0], apart], join="outer")
    twice = adatas[2].copy()
    twice.var.index = ["g1", "g1", "g3"]
    with pytest.raises(InputError, match=r"adatas\[1\]: var names must be unique .* got 'g1' more than once"):
        loader([adatas[0], twice], join="outer")
    with pytest.raises(ValueError, match="join must be"):
        Loader(batch_size=1, join="left")


def test_a_column_number_beyond_the_genes_of_its_store_is_found(adatas):
    """It may be one of another store's."""
    bad = adatas[2].copy()
    bad.X.indices[0] = 5
    row = int(np.flatnonzero(np.diff(bad.X.indptr))[0])
    for emit in (Emit(), Emit(layout="dense")):
        ds = loader([adatas[0], bad], join="outer", layers=[])
        with pytest.raises(ValueError, match=rf"adatas\[1\] X/indices: row {row}: .* limit of 3"):
            list(ds.batches(emit))
