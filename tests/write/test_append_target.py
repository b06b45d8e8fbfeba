"""What must cells fit that are added to a collection, and what does its manifest say then?"""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from annbatch import create_anndata_collection
from annbatch.errors import InputError
from annbatch.stores.collection import FORMAT, Collection
from annbatch.stores.manifest import ElementTypes, InputEntry, StoreEntry
from annbatch.write.inputs.append_target import AppendTarget, _empty
from annbatch.write.inputs.contents import MatrixInfo, Source

U2, F4 = np.dtype("u2"), np.dtype("f4")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """Three stores; obs has a column of each kind, some without a value, one with values in the first store only."""
    n = 6
    obs = pd.DataFrame(
        {
            "ordered": pd.Categorical(["b", "a"] * 3, ["b", "a"], ordered=True),
            "declared": pd.Categorical([None] * n, ["z"]),
            "first": pd.array([5, *[None] * 5], dtype="Int16"),
            "nullable": pd.array([None] * n, dtype="Int8"),
            "flag": pd.array([True, None] * 3, dtype="boolean"),
            "number": np.arange(n, dtype=np.int32),
            "nan": np.full(n, np.nan),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    x = sp.csr_matrix(np.arange(n * 3, dtype=np.float32).reshape(n, 3))
    adata = ad.AnnData(x, obs, layers={"raw": x, "dense": x.toarray()}, obsm={"pca": x.toarray()[:, :2]})
    path = tmp_path_factory.mktemp("written") / "store"
    with warnings.catch_warnings():
        # anndata 0.13 has reasons of its own to warn of nullable columns.
        warnings.simplefilter("ignore")
        return create_anndata_collection(
            adata, path, shuffle=False, rows_per_store=2, dense=["layers/dense"], progress=False
        )


def test_what_a_collection_has(written: Collection):
    found = AppendTarget.open(written.directory)
    assert found.collection == written
    assert found.var.index.tolist() == ["0", "1", "2"]
    assert list(found.schema) == list(written.obs_columns)
    assert {name: known.has_value for name, known in found.schema.items()} == {
        "ordered": True,
        "declared": False,
        "first": True,
        "nullable": False,
        "flag": True,
        "number": True,
        "nan": False,
        "src_path": True,
    }
    assert {name: str(known.column.dtype) for name, known in found.schema.items()} == {
        "ordered": "category",
        "declared": "category",
        "first": "Int16",
        "nullable": "Int8",
        "flag": "boolean",
        "number": "int32",
        "nan": "float64",
        "src_path": "category",
    }
    assert all(len(known.column) == 0 for known in found.schema.values())
    assert (found.schema["ordered"].column.cat.ordered, found.schema["declared"].column.cat.ordered) == (True, False)
    assert found.schema["ordered"].column.cat.categories.tolist() == ["b", "a"]
    assert (tuple(sorted(found.layers)), found.obsm, found.dense) == (("dense", "raw"), {"pca": 2}, ("layers/dense",))
    assert found.types == {**written.types, "obsm/pca": ElementTypes(F4, F4, None)}
    assert found.next_store == 3


@pytest.mark.filterwarnings("ignore:zarr v3 autosharding")
def test_the_last_store_has_all_categories(written: Collection, tmp_path: Path):
    copy = replace(written, path=Path(shutil.copytree(written.directory, tmp_path / "copy")))
    obs: Any = zarr.open_group(copy.store_paths[-1], mode="r+")["obs"]
    ad.io.write_elem(obs, "ordered", pd.Categorical(["b", "a", "b"], ["b", "a", "c"], ordered=True))
    found = AppendTarget.of(copy).schema["ordered"].column
    assert found.cat.categories.tolist() == ["b", "a", "c"]


def test_names_of_cells_are_copied(written: Collection, tmp_path: Path):
    target = AppendTarget.of(written)
    for _ in range(2):
        (names,) = target.names(tmp_path / "names")
        assert names.read(0, len(names)).tolist() == [f"cell{i}" for i in range(6)]


def test_something_is_in_the_way_of_a_new_store(written: Collection):
    (written.directory / "chunk_3.zarr").mkdir()
    try:
        with pytest.raises(InputError, match=r"chunk_3\.zarr: is in the way of a new store"):
            AppendTarget.of(written)
    finally:
        (written.directory / "chunk_3.zarr").rmdir()


def test_what_cannot_grow(tmp_path: Path):
    with pytest.raises(InputError, match="only a complete collection can be appended to"):
        AppendTarget.check(tmp_path)
    empty = Collection(tmp_path, FORMAT, 0, 2, "0" * 64, (), {}, (), True, 0, "test")
    empty.save(tmp_path)
    with pytest.raises(InputError, match="only a collection that annbatch-dlpack wrote can be appended to, got"):
        AppendTarget.check(tmp_path)


def collection(number: int = 0, **changes: Any) -> Collection:
    store = StoreEntry(f"chunk_{number}.zarr", 3, 4, {})
    types = {"X": ElementTypes(U2, F4, U2)}
    return replace(Collection(Path("here"), FORMAT, 3, 2, "0" * 64, (store,), types, (), True, 5, "test"), **changes)


def target(**changes: Any) -> AppendTarget:
    schema: dict[str, Any] = dict.fromkeys(["kind", "plate"])
    found = AppendTarget(collection(), pd.DataFrame(), schema, ("raw", "log"), {"pca": 4, "umap": 2}, (), {})
    return replace(found, **changes)


@pytest.mark.parametrize(
    "choice",
    [(None, None, None), (["log", "raw"], None, None), (None, ["umap", "pca"], []), (None, None, ["plate"])],
    ids=str,
)
def test_a_choice_that_fits(choice: Any):
    target().check_choice(*choice)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ((["raw"], None, None), r"layers must be those of the collection, \['raw', 'log'\], got \['raw'\]; reshuffle"),
        (([], None, None), "layers must be those of the collection"),
        ((None, ["pca", "umap", "x"], None), r"obsm must be those of the collection, \['pca', 'umap'\], got .*'x'"),
        ((None, None, ["plate", "age"]), r"obs_columns must be in the collection, got \['age'\]; there are \['kind'"),
    ],
)
def test_a_choice_that_does_not(choice: Any, message: str):
    with pytest.raises(InputError, match=message):
        target().check_choice(*choice)


def given(name: str, layers: tuple[str, ...] = ("raw", "log"), **widths: int | None) -> Source:
    class Origin:
        pass

    origin: Any = Origin()
    origin.name = name
    info = MatrixInfo("csr", (3, 2), F4, 4)
    obsm = {key: None if width is None else MatrixInfo("dense", (3, width), F4, 3) for key, width in widths.items()}
    return Source(origin, 3, {}, None, {"X": info, **{f"layers/{layer}": info for layer in layers}}, obsm)


def test_elements_that_fit():
    target().check_elements([given("a", pca=4, umap=2), given("b", ("log", "raw", "more"), umap=2, pca=4, x=None)])


@pytest.mark.parametrize(
    ("sources", "messages"),
    [
        ([given("a", ("raw",), pca=4, umap=2)], ["a: layers/log is missing, which all stores of the collection have"]),
        ([given("a", pca=4)], ["a: obsm 'umap' is missing or not numeric"]),
        ([given("a", pca=4, umap=None)], ["a: obsm 'umap' is missing or not numeric"]),
        ([given("a", pca=4, umap=3)], ["a: obsm 'umap' must have 2 columns, as in the collection, got 3"]),
        (
            [given("a", (), pca=5, umap=2), given("b", pca=6), given("c", pca=5, umap=1)],
            [
                "a: layers/raw is missing",
                "a: layers/log is missing",
                "a and 2 more inputs: obsm 'pca' must have 4 columns, as in the collection, got 5, 6",
                "b: obsm 'umap' is missing or not numeric",
                "c: obsm 'umap' must have 2 columns, as in the collection, got 1",
            ],
        ),
    ],
    ids=["layer", "obsm", "no numbers", "width", "all"],
)
def test_elements_that_do_not(sources: list[Source], messages: list[str]):
    with pytest.raises(InputError) as caught:
        target().check_elements(sources)
    for message in messages:
        assert message in str(caught.value)


def test_the_manifest_of_both():
    entries = [InputEntry(name, 3, 2, 0, 0, None) for name in "ab"]
    old = collection(3, grouped_by="kind", inputs=(entries[0],))
    types = {"X": ElementTypes(np.dtype("u4"), F4, U2)}
    added = collection(4, n_obs=7, types=types, inputs=(entries[1],), software="newer")
    found = target(collection=old).extended(added)
    assert found == replace(
        old,
        n_obs=10,
        stores=(*old.stores, *added.stores),
        types=types,
        software="newer",
        grouped_by=None,
        inputs=tuple(entries),
    )
    assert target(collection=old).next_store == 4


@pytest.mark.filterwarnings("ignore:zarr v3 autosharding")
def test_columns_without_rows():
    group = zarr.create_group({})
    kinds: dict[str, Any] = {
        "array": np.arange(2, dtype=np.int8),
        "text": np.array(["a", "b"], object),
        "category": pd.Categorical(["a", "b"], ["b", "a"], ordered=True),
        "integer": pd.array([1, None], dtype="UInt16"),
        "boolean": pd.array([True, None], dtype="boolean"),
    }
    for name, column in kinds.items():
        ad.io.write_elem(group, name, column)
    found = {name: _empty(group[name]) for name in kinds}
    assert [len(column) for column in found.values()] == [0] * 5
    assert found["array"].dtype == np.int8
    assert found["category"].cat.categories.tolist() == ["b", "a"]
    assert found["category"].cat.ordered
    assert (str(found["integer"].dtype), str(found["boolean"].dtype)) == ("UInt16", "boolean")
    assert found["text"].dtype == object
