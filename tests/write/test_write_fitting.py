"""What becomes of elements that the inputs do not hold alike, in a build and in an append to one?"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from annbatch import Loader, append_to_collection, create_anndata_collection, reshuffle_collection
from annbatch.errors import InputError, InputErrors
from annbatch.stores.collection import Collection
from datagen import named_adata

OPTIONS: dict[str, Any] = {"shuffle": False, "progress": False}


def adata(rows: range = range(4), genes: range = range(3)) -> ad.AnnData:
    obs = pd.DataFrame(index=[f"cell{row}" for row in rows])
    return named_adata(np.random.default_rng(0), rows, genes, density=1.0, obs=obs)


def pair() -> tuple[ad.AnnData, ad.AnnData]:
    return adata(), adata(range(4, 8))


def backs(collection: Collection) -> ad.AnnData:
    return ad.concat([ad.read_zarr(path) for path in collection.store_paths], join="outer")


def layers_of(adata: ad.AnnData) -> list[str]:
    # anndata 0.13 lists X among the layers, under None.
    return [name for name in adata.layers if name is not None]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_obsm_of_several_widths_is_left_out(tmp_path: Path):
    a, b = pair()
    a.obsm["X_pca"], b.obsm["X_pca"] = np.zeros((4, 2)), np.zeros((4, 3))
    a.obsm["spatial"], b.obsm["spatial"] = np.ones((4, 2)), np.ones((4, 2))
    said = "'obsm/X_pca' has 2 columns in adata_0, 3 columns in adata_1"
    with pytest.warns(UserWarning, match=f"^elements are left out: {said}$"):
        collection = create_anndata_collection([a, b], tmp_path / "store", **OPTIONS)
    assert list(backs(collection).obsm) == ["spatial"]
    assert [entry.left_out for entry in collection.inputs] == [("obsm/X_pca",)] * 2
    with pytest.raises(InputError, match=rf"no element may be left out \(strict=True\), but {said}$"):
        create_anndata_collection([a, b], tmp_path / "strict", strict=True, **OPTIONS)
    with pytest.raises(InputError, match="obsm 'X_pca' must be one array of all inputs, but has 2 columns in adata_0"):
        create_anndata_collection([a, b], tmp_path / "asked", obsm=["X_pca"], **OPTIONS)
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_obs_columns_of_several_kinds_are_left_out(tmp_path: Path):
    a, b = pair()
    a.obs["cluster"], b.obs["cluster"] = [1, 2, 1, 2], ["1", "2", "3", None]
    a.obs["age"], b.obs["age"] = 1.5, 2.5
    with pytest.warns(UserWarning, match="left out: 'obs/cluster' cannot be joined .*number in adata_0.* in adata_1"):
        collection = create_anndata_collection([a, b], tmp_path / "store", **OPTIONS)
    assert collection.obs_columns == ("age", "src_path")
    assert [entry.left_out for entry in collection.inputs] == [("obs/cluster",)] * 2
    for chosen in ({"strict": True}, {"obs_columns": ["cluster"]}, {"groupby": "cluster"}):
        with pytest.raises(InputError, match="obs column 'cluster' must be of one kind everywhere"):
            create_anndata_collection([a, b], tmp_path / "refused", **chosen, **OPTIONS)


@pytest.mark.parametrize(
    ("values", "strings"),
    [
        ([1, 2, 1, 2], ["1", "2", "1", "2"]),
        ([1.0, np.nan, 1.0, 2.0], ["1", None, "1", "2"]),
        ([1.0, np.nan, 0.5, 2.0], ["1.0", None, "0.5", "2.0"]),
        ([True, False, True, True], ["True", "False", "True", "True"]),
        (pd.array([1, None, 3, 2], dtype="Int64"), ["1", None, "3", "2"]),
        (pd.Categorical([3, 1, None, 3], categories=[3, 1]), ["3", "1", None, "3"]),
        (["b", "a", None, "b"], ["b", "a", None, "b"]),
    ],
    ids=["integers", "whole floats", "floats", "booleans", "nullable", "categories", "strings"],
)
def test_columns_as_strings(tmp_path: Path, values: Any, strings: list[str | None]):
    a, b = pair()
    a.obs["cluster"], b.obs["cluster"] = values, ["1", "x", None, "1"]
    collection = create_anndata_collection(
        [a, b], tmp_path / "store", obs_as_strings=["cluster"], strict=True, **OPTIONS
    )
    found = backs(collection).obs["cluster"].astype(object)
    assert found.where(found.notna(), None).tolist() == [*strings, "1", "x", None, "1"]
    more = append_to_collection([adata(range(8, 12))], collection.path, obs_columns=[], **OPTIONS)
    assert backs(more).obs["cluster"].isna().sum() == strings.count(None) + 5
    c = adata(range(12, 16))
    c.obs["cluster"] = [1, 2, 3, 4]
    with pytest.raises(InputError, match="of one kind everywhere, .* the collection, number in adata"):
        append_to_collection([c], collection.path, **OPTIONS)
    more = append_to_collection([c], collection.path, obs_as_strings=["cluster"], **OPTIONS)
    assert backs(more).obs["cluster"].tolist()[-4:] == ["1", "2", "3", "4"]


def test_unknown_columns_as_strings(tmp_path: Path):
    with pytest.raises(InputError, match=r"obs_as_strings must be in at least one input, got \['x'\]"):
        create_anndata_collection([adata()], tmp_path / "store", obs_as_strings=["x"], **OPTIONS)


def test_an_append_needs_all_elements_of_the_collection(tmp_path: Path):
    a = adata()
    a.layers["counts"], a.layers["spliced"] = a.X.copy(), a.X.copy()
    for name, width in (("X_pca", 2), ("spatial", 2), ("X_umap", 2)):
        a.obsm[name] = np.zeros((4, width))
    collection = create_anndata_collection([a], tmp_path / "store", **OPTIONS)
    before = contents(collection.path)
    b = adata(range(4, 8))
    b.layers["spliced"] = b.X.copy()
    b.obsm["X_pca"] = np.zeros((4, 3))
    b.obsm["X_umap"] = sp.csr_matrix((4, 2))
    with pytest.raises(InputErrors) as raised:
        append_to_collection([b, b], collection.path, **OPTIONS)
    way_out = "reshuffle_collection(obsm=[…]) writes the collection with fewer"
    assert [str(error) for error in raised.value.errors] == [
        "adata_0 and 1 more inputs: layers/counts is missing, which all stores of the collection have; "
        + way_out.replace("obsm", "layers"),
        "adata_0 and 1 more inputs: obsm 'X_pca' must have 2 columns, as in the collection, got 3; " + way_out,
        "adata_0 and 1 more inputs: obsm 'X_umap' is missing or not numeric, "
        "which all stores of the collection have; " + way_out,
        "adata_0 and 1 more inputs: obsm 'spatial' is missing or not numeric, "
        "which all stores of the collection have; " + way_out,
    ]
    assert contents(tmp_path) == {f"store/{name}": data for name, data in before.items()}
    fewer = reshuffle_collection(collection.path, tmp_path / "fewer", layers=["spliced"], obsm=[], progress=False)
    more = append_to_collection([b], fewer.path, layers=["spliced"], obsm=[], strict=True, **OPTIONS)
    more.verify()
    assert (layers_of(backs(more)), list(backs(more).obsm)) == (["spliced"], [])


def test_an_append_writes_what_the_collection_has(tmp_path: Path):
    a = adata()
    a.obs["age"] = 1
    a.layers["counts"] = a.X.copy()
    collection = create_anndata_collection([a], tmp_path / "store", dense=["layers/counts"], **OPTIONS)
    for chosen, message in (
        ({"layers": []}, r"layers must be those of the collection, \['counts'\], got \[\]"),
        ({"obsm": ["X_pca"]}, r"obsm must be those of the collection, \[\], got \['X_pca'\]"),
        ({"obs_columns": ["sex"]}, r"obs_columns must be in the collection, got \['sex'\]; there are \['age'"),
    ):
        with pytest.raises(InputError, match=message):
            append_to_collection([a], collection.path, **chosen, **OPTIONS)
    b = adata(range(4, 8))
    b.obs["sex"], b.layers["counts"] = "f", b.X.copy()
    with pytest.raises(InputError, match="strict=True.*'obs/sex' is not in the collection"):
        append_to_collection([b], collection.path, strict=True, **OPTIONS)
    mixed = reshuffle_collection(collection.path, tmp_path / "mixed", layers=[], obs_columns=["age"], progress=False)
    assert (layers_of(backs(mixed)), list(backs(mixed).obs)) == ([], ["age", "src_path"])


COLUMNS: dict[str, Any] = {
    "none": None,
    "int": [1, 2, 3, 4],
    "float": [0.5, np.nan, 2.0, 1.0],
    "text": ["B", "T", "B", "NK"],
    "empty": [np.nan] * 4,
    "bool": [True, False, True, True],
    "nullable": pd.array([1, None, 2, 3], dtype="Int64"),
    "numbers as categories": pd.Categorical([1, 2, 1, None]),
}
OBSM: dict[str, Any] = {
    "none": None,
    "two": np.arange(8.0).reshape(4, 2),
    "three": np.zeros((4, 3), np.float32),
    "sparse": sp.csr_matrix((4, 2)),
}


@st.composite
def inputs(draw: st.DrawFn, rows: range) -> ad.AnnData:
    found = adata(rows, range(draw(st.sampled_from([3, 2]))) if rows.start else range(3))
    column, obsm = draw(st.sampled_from(list(COLUMNS))), draw(st.sampled_from(list(OBSM)))
    if COLUMNS[column] is not None:
        found.obs["x"] = COLUMNS[column]
    if OBSM[obsm] is not None:
        found.obsm["X_pca"] = OBSM[obsm]
    if draw(st.booleans()):
        found.X = found.X.toarray().astype(np.int32)
    if draw(st.booleans()):
        found.layers["counts"] = found.X
    return found


def batch_of_all(collection: Collection) -> tuple[np.ndarray, pd.DataFrame]:
    with Loader(batch_size=64, shuffle=False).use_collection(collection.path) as ds:
        (batch,) = list(ds)
        data = batch.data.to_scipy().toarray() if hasattr(batch.data, "to_scipy") else batch.data
        return np.array(data), batch.labels.drop(columns="src_path")


def as_objects(labels: pd.DataFrame) -> list[list[Any]]:
    return [[None if pd.isna(value) else value for value in column] for _, column in labels.astype(object).items()]


# Shrinking builds collections again and again: a failing example is small as it is.
@settings(max_examples=6, phases=[Phase.explicit, Phase.generate])
@given(inputs(range(4)), inputs(range(4, 8)))
def test_what_one_build_joins_an_append_joins(a: ad.AnnData, b: ad.AnnData):
    """And it refuses, before it writes, what one build leaves out."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "elements are left out")
        together = create_anndata_collection([a, b], Path(folder) / "together", **OPTIONS)
        alone = create_anndata_collection([a], Path(folder) / "alone", **OPTIONS)
        before = contents(alone.path)
        wanted, had = backs(together), backs(alone)
        all_kept = {*had.obs, *had.obsm, *had.layers} <= {*wanted.obs, *wanted.obsm, *wanted.layers}
        if not all_kept:
            with pytest.raises(InputError):
                append_to_collection([b], alone.path, **OPTIONS)
            assert contents(Path(folder) / "alone") == before
            return
        grown = append_to_collection([b], alone.path, **OPTIONS)
        grown.verify()
        (x, labels), (wanted_x, wanted_labels) = batch_of_all(grown), batch_of_all(together)
        np.testing.assert_array_equal(x, wanted_x)
        # A collection keeps its type where that holds all values.
        assert x.dtype == alone.types["X"].original
        assert as_objects(labels) == as_objects(wanted_labels[list(labels)])
        mixed = backs(reshuffle_collection(grown.path, Path(folder) / "mixed", progress=False))[wanted.obs_names]
        assert as_objects(mixed.obs[list(labels)]) == as_objects(wanted.obs[list(labels)])
        assert set(mixed.obsm) == set(had.obsm)
        for name, array in mixed.obsm.items():
            np.testing.assert_array_equal(array, wanted.obsm[name])
