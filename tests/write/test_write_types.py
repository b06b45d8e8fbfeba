"""In which type do values of inputs of several types come back, from one call and from several?"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from annbatch import Collection, Loader, append_to_collection, create_anndata_collection, reshuffle_collection

DTYPES = ("int32", "int64", "uint16", "float32", "float64", "bool")
WHAT = ("counts", "large counts", "fractions")
QUIET = {"shuffle": False, "progress": False}


def held(dtype: str, what: str) -> np.ndarray[Any, Any]:
    """Values of a type, as far as it has such."""
    if dtype == "bool":
        return np.array([True, False, True])
    if what == "fractions" and dtype.startswith("float"):
        # In double precision, one that float32 does not hold.
        return np.array([0.5, 0, 0.1], dtype)
    large = 2**24 + 1 if dtype in ("int32", "int64", "float64") else 60_000
    return np.array([large if what == "large counts" else 3, 0, 1], dtype)


def cells(number: int, dtype: str, what: str, form: Any) -> ad.AnnData:
    adata = ad.AnnData(form(np.diag(held(dtype, what))))
    adata.obs_names = [f"{number}:{i}" for i in range(3)]
    return adata


def batch(path: Path) -> Any:
    with Loader(batch_size=64, shuffle=False).use_collection(path) as loader:
        return next(iter(loader)).data


def exactly(found: Any, inputs: list[ad.AnnData]) -> bool:
    values = np.asarray(found.data)
    given = np.concatenate([np.asarray(a.X.data if sp.issparse(a.X) else a.X[a.X != 0]) for a in inputs], dtype=object)
    stored = values[values != 0]
    return [int(v) if float(v).is_integer() else float(v) for v in stored] == [
        int(v) if float(v).is_integer() else float(v) for v in given[given != 0]
    ]


@settings(max_examples=5)
@given(
    mix=st.lists(st.tuples(st.sampled_from(DTYPES), st.sampled_from(WHAT)), min_size=2, max_size=3),
    narrow=st.booleans(),
)
def test_one_call_and_several_give_the_same_values(mix: list[tuple[str, str]], narrow: bool):
    inputs = [cells(i, *kind, sp.csr_matrix) for i, kind in enumerate(mix)]
    values = [held(*kind) for kind in mix]
    with tempfile.TemporaryDirectory() as folder:
        at_once, grown = Path(folder) / "at_once", Path(folder) / "grown"
        create_anndata_collection(inputs, at_once, narrow=narrow, **QUIET)
        create_anndata_collection(inputs[0], grown, narrow=narrow, **QUIET)
        before = batch(grown).data.dtype
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for more in inputs[1:]:
                collection = append_to_collection(more, grown, narrow=narrow, **QUIET)
        whole, parts = batch(at_once), batch(grown)
    assert exactly(whole, inputs)
    assert exactly(parts, inputs)
    np.testing.assert_array_equal(whole.to_scipy().toarray(), parts.to_scipy().toarray())
    # float32 is known to hold what a collection stores in 16 bits; large values are stored in more.
    if narrow and all(v.max() < 2**16 for v in values if (v % 1 == 0).all()):
        assert parts.data.dtype == whole.data.dtype
    changes = [w for w in said if "the type of batches changes" in str(w.message)]
    assert bool(changes) == (parts.data.dtype != before)
    assert collection.types["X"].original == parts.data.dtype
    # Nobody gets wider numbers for what float32 holds.
    if len({v.dtype for v in values}) > 1 and whole.data.dtype == np.float64:
        assert not all((v.astype(np.float32) == v).all() for v in values)


@pytest.mark.parametrize("form", [sp.csr_matrix, np.asarray])
def test_counts_beside_float32_are_float32(tmp_path: Path, form: Any):
    inputs = [cells(i, dtype, "counts", form) for i, dtype in enumerate(["int32", "float32"])]
    for adata in inputs:
        adata.layers["counts"] = adata.X.copy()
    create_anndata_collection(inputs, tmp_path / "at_once", **QUIET)
    for name, (first, second) in {"grown": inputs, "backwards": inputs[::-1]}.items():
        create_anndata_collection(first, tmp_path / name, **QUIET)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            append_to_collection(second, tmp_path / name, **QUIET)
        assert any("layers/counts: the type of batches changes" in str(w.message) for w in said) == (name == "grown")
    for name in ("at_once", "grown", "backwards"):
        with Loader(batch_size=6, layers=["counts"]).use_collection(tmp_path / name) as loader:
            found = next(iter(loader))
        assert (found.data.data.dtype, found.layers["counts"].data.dtype) == (np.float32, np.float32)
        collection = Collection.open(tmp_path / name)
        found_types = {(str(types.stored), str(types.original)) for types in collection.types.values()}
        assert found_types == {("uint16", "float32")}


def test_a_change_of_type_is_announced_before_it_is_written(tmp_path: Path):
    create_anndata_collection(cells(0, "int32", "counts", sp.csr_matrix), tmp_path / "store", **QUIET)
    wider = cells(1, "float32", "fractions", sp.csr_matrix)
    with pytest.warns(UserWarning, match=r"X: the type of batches changes from int32 to float32, the common type"):
        append_to_collection(wider, tmp_path / "store", **QUIET)
    assert batch(tmp_path / "store").data.dtype == np.float32
    reshuffle_collection(tmp_path / "store", tmp_path / "mixed", progress=False)
    assert batch(tmp_path / "mixed").data.dtype == np.float32
    # As an error it leaves the collection as it was.
    create_anndata_collection(cells(0, "bool", "counts", sp.csr_matrix), tmp_path / "other", **QUIET)
    manifest = (tmp_path / "other" / "collection.json").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="changes from bool to float32, the common type of the collection"):
            append_to_collection(wider, tmp_path / "other", **QUIET)
    assert (tmp_path / "other" / "collection.json").read_bytes() == manifest
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_obsm_keeps_its_type_too(tmp_path: Path):
    def placed(number: int, values: Any) -> ad.AnnData:
        adata = cells(number, "float32", "counts", sp.csr_matrix)
        adata.obsm["spatial"] = np.asarray(values)
        return adata

    create_anndata_collection(placed(0, np.full((3, 2), 0.1, np.float32)), tmp_path / "store", **QUIET)
    append_to_collection(placed(1, np.arange(6, dtype=np.int64).reshape(3, 2)), tmp_path / "store", **QUIET)
    with Loader(batch_size=6, shuffle=False, obsm=["spatial"]).use_collection(tmp_path / "store") as loader:
        found = next(iter(loader)).obsm["spatial"]
    assert found.dtype == np.float32
    assert found[3:].tolist() == [[0, 1], [2, 3], [4, 5]]
    with pytest.warns(UserWarning, match="obsm/spatial: .* changes from float32 to float64"):
        append_to_collection(placed(2, np.full((3, 2), 0.1)), tmp_path / "store", **QUIET)
