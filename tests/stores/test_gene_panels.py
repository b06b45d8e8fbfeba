"""Do panels of genes give the columns that AnnData would, whether they are names, ids, masks or functions of var?"""

from __future__ import annotations

import pickle
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from annbatch import Emit, InputError, Loader, create_anndata_collection
from datagen import named_matrix

N_OBS, N_VARS = 60, 23


@pytest.fixture(scope="module")
def table() -> ad.AnnData:
    rng = np.random.default_rng(5)
    x = named_matrix(rng, range(N_OBS), range(N_VARS))
    var = pd.DataFrame(
        {
            "gene_ids": [f"ENSG{c:03}" for c in range(N_VARS)],
            "family": pd.Categorical([f"f{c // 3}" for c in range(N_VARS)]),
            "length": np.arange(N_VARS) * 7,
            "highly_variable": [c % 4 == 1 for c in range(N_VARS)],
        },
        index=[f"g{c}" for c in range(N_VARS)],
    )
    values = {"dense": x.toarray() + 1, "doubled": sp.csr_matrix(x * 2)}
    return ad.AnnData(x, var=var, layers=values, obsm={"X_pca": rng.random((N_OBS, 3))})


@pytest.fixture(scope="module")
def path(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("panels")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table.write_h5ad(folder / "a.h5ad")
    create_anndata_collection(
        [folder / "a.h5ad"], folder / "store", rows_per_store=25, chunk_elements=17, shard_elements=100, shuffle=False,
        progress=False,
    )  # fmt: skip
    return folder / "store"


def wide(table: ad.AnnData, columns: list[int]) -> dict[str, np.ndarray]:
    """The columns, zeros for -1, of everything that has genes."""

    def chosen(matrix) -> np.ndarray:
        full = matrix.toarray() if sp.issparse(matrix) else matrix
        return np.concatenate([full, np.zeros((N_OBS, 1))], axis=1)[:, columns]

    return {"X": chosen(table.X)} | {name: chosen(table.layers[name]) for name in ("dense", "doubled")}


def by_family(var: pd.DataFrame) -> pd.Series:
    return var["family"].isin(["f1", "f4"])


SOME = [c % 4 == 1 for c in range(N_VARS)]
PANELS = {
    "names": ({"var_names": ["g20", "g0", "g7"]}, [20, 0, 7]),
    "an index": ({"var_names": pd.Index(["g2", "g3"])}, [2, 3]),
    "ids": ({"var_names": ["ENSG004", "ENSG001"], "var_key": "gene_ids"}, [4, 1]),
    "numbers as names": ({"var_names": ["21", "7"], "var_key": "length"}, [3, 1]),
    "absent": ({"var_names": ["no", "g9", "g3", "nor", "g4"], "absent": "zero"}, [-1, 9, 3, -1, 4]),
    "ascending with absent": ({"var_names": ["g3", "no", "g9"], "absent": "zero"}, [3, -1, 9]),
    "none absent": ({"var_names": ["g3", "g2"], "absent": "zero"}, [3, 2]),
    "absent ids": ({"var_names": ["no", "ENSG002"], "var_key": "gene_ids", "absent": "zero"}, [-1, 2]),
    "a mask": ({"var_names": np.array(SOME)}, [1, 5, 9, 13, 17, 21]),
    "a list of booleans": ({"var_names": SOME}, [1, 5, 9, 13, 17, 21]),
    "a shuffled series": (
        {"var_names": pd.Series(SOME, [f"g{c}" for c in range(N_VARS)])[::-1]},
        [1, 5, 9, 13, 17, 21],
    ),
    "a function": ({"var_names": lambda var: var["highly_variable"]}, [1, 5, 9, 13, 17, 21]),
    "a function that pickles": ({"var_names": by_family}, [3, 4, 5, 12, 13, 14]),
}


@pytest.mark.parametrize("name", PANELS)
def test_panels(table, path, name):
    options, columns = PANELS[name]
    expected = wide(table, columns)
    common = {
        "batch_size": 16,
        "chunk_size": 4,
        "preload_nchunks": 4,
        "layers": ["dense", "doubled"],
        "obsm": ["X_pca"],
    }
    for opened in (
        Loader(**common, **options).use_collection(path),
        Loader(**common, **options).add_anndatas([table[:40].copy(), table[40:].copy()]),
    ):
        ds = pickle.loads(pickle.dumps(opened)).replace(seed=5)
        assert ds.n_vars == len(columns)
        present = np.array(columns) >= 0
        if "absent" in options:
            assert ds.var["absent"].tolist() == (~present).tolist()
            assert list(ds.var.index[~present]) == [n for n in options["var_names"] if n.startswith("no")]
            if "var_key" in options:
                assert ds.var[options["var_key"]].tolist() == options["var_names"]
        else:
            assert "absent" not in ds.var
        assert list(ds.var.index[present]) == [f"g{c}" for c in columns if c >= 0]
        assert ds.var["length"][present].tolist() == [7 * c for c in columns if c >= 0]
        assert ds.var["length"][~present].isna().all()
        seen = []
        for batch in ds.batches(Emit(layout="dense")):
            for element, found in {"X": batch.data, **batch.layers}.items():
                np.testing.assert_array_equal(found, expected[element][batch.index])
            np.testing.assert_array_equal(batch.obsm["X_pca"], table.obsm["X_pca"][batch.index])
            seen += batch.index.tolist()
        assert sorted(seen) == list(range(N_OBS))
        for batch in ds:
            assert batch.data.shape == batch.layers["doubled"].shape == (len(batch.index), len(columns))
            for element, found in (("X", batch.data), ("doubled", batch.layers["doubled"])):
                assert found.to_scipy().has_canonical_format
                np.testing.assert_array_equal(found.to_scipy().toarray(), expected[element][batch.index])
            # A collection stores it sparse.
            found = batch.layers["dense"]
            found = found if isinstance(found, np.ndarray) else found.to_scipy().toarray()
            np.testing.assert_array_equal(found, expected["dense"][batch.index])


def test_a_vocabulary_may_be_far_larger_than_a_store(table, path):
    """Column numbers are then wider than those that are stored."""
    words = [f"word{i}" for i in range(70_000)]
    words[300], words[69_999], words[5] = "g3", "g9", "g20"
    for layout in ("csr", "dense"):
        ds = Loader(batch_size=N_OBS, shuffle=False, var_names=words, absent="zero").use_collection(path)
        (batch,) = ds.batches(Emit(layout=layout))
        found = batch.data.to_scipy() if layout == "csr" else sp.csr_matrix(batch.data)
        np.testing.assert_array_equal(found[:, [300, 69_999, 5]].toarray(), table.X.toarray()[:, [3, 9, 20]])
        assert found.nnz == table.X[:, [3, 9, 20]].nnz


def test_a_panel_goes_on_where_it_stopped(path):
    options = {"batch_size": 16, "var_names": ["no", "g9", "g3"], "absent": "zero"}
    ds = Loader(**options).use_collection(path)
    batches = iter(ds)
    next(batches)
    state = ds.state_dict()
    rest = [batch.data.to_scipy().toarray() for batch in batches]
    resumed = Loader(**options).use_collection(path)
    resumed.load_state_dict(state)
    for expected, batch in zip(rest, resumed, strict=True):
        np.testing.assert_array_equal(batch.data.to_scipy().toarray(), expected)


def test_only_the_genes_asked_for_have_to_be_unique(table):
    twice = table.copy()
    twice.var["symbol"] = ["A", "A", *(f"S{c}" for c in range(2, N_VARS))]
    ds = Loader(batch_size=N_OBS, var_names=["S4", "S2"], var_key="symbol").add_anndatas([twice])
    assert list(ds.var.index) == ["g4", "g2"]
    with pytest.raises(InputError, match=r"adatas\[0\]: var\['symbol'\] must be unique .* got 'A' more than once"):
        Loader(batch_size=N_OBS, var_names=["A"], var_key="symbol").add_anndatas([twice])


MISSING = pd.array([True, None] + [False] * (N_VARS - 2), "boolean")
BAD = {
    "an absent gene": ({"var_names": ["g1", "no"]}, "got 'no' (1 unknown); absent='zero' gives zeros"),
    "all genes absent": ({"var_names": ["x"], "absent": "zero"}, "'x' (1 unknown); the var names are 'g0', 'g1', 'g2'"),
    "ids without var_key": ({"var_names": ["ENSG001"]}, "use var_key='gene_ids'"),
    "names with var_key": ({"var_names": ["g1"], "var_key": "gene_ids"}, "leave out var_key"),
    "an unknown column": ({"var_names": ["g1"], "var_key": "ids"}, "var_key must be a column of var, got 'ids'"),
    "a short mask": ({"var_names": [True, False]}, f"for each of the {N_VARS} genes of adatas[0], got 2"),
    "an empty mask": ({"var_names": np.zeros(N_VARS, bool)}, "must choose at least one gene"),
    "a mask of other genes": ({"var_names": pd.Series([True], ["no"])}, "index of var_names must be the var names"),
    "missing values": ({"var_names": MISSING}, "got missing values"),
    "a function of numbers": ({"var_names": lambda var: var["length"]}, "what var_names returned must be a boolean"),
    "the column is taken": ({"var_names": ["g1"], "absent": "zero"}, "must have no column 'absent'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_the_stores(table, name):
    options, message = BAD[name]
    if name == "the column is taken":
        table = table.copy()
        table.var["absent"] = 1
    with pytest.raises(InputError) as error:
        Loader(batch_size=8, **options).add_anndatas([table])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"absent": "zero"}, "absent='zero' needs names in var_names, got None"),
        ({"var_names": [True], "absent": "zero"}, "absent='zero' needs names in var_names, got a mask"),
        ({"var_names": len, "var_key": "ids"}, "var_key needs names in var_names, got a function"),
        ({"var_names": ["a"], "absent": "nan"}, "absent must be one of 'error', 'zero', got 'nan'"),
        ({"var_names": []}, "var_names must name at least one gene"),
        ({"var_names": np.ones((2, 2), bool)}, "one dimension"),
        ({"var_names": ["a"], "var_key": 3}, "var_key must be the name of a column"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises((TypeError, ValueError)) as error:
        Loader(batch_size=8, **options)
    assert message in str(error.value)
