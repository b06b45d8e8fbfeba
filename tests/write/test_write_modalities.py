"""Do inputs with several modalities become one collection, with the same cells in every modality?

The oracle is pandas' join of the modalities by the names of the cells, and mudata for the stores.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from annbatch import (
    Binarize,
    Collection,
    CorruptStoreError,
    InputError,
    Loader,
    append_to_collection,
    create_anndata_collection,
    reshuffle_collection,
)
from annbatch.cli import main
from annbatch.stores.modality import MEASURED
from annbatch.verify import verify_store
from annbatch.write import build_modalities as build_module
from annbatch.write.inputs.chosen_rows import choose_rows
from annbatch.write.inputs.matrix_rows import matrix_of, read_dense
from annbatch.write.inputs.transpose import transpose, transposed
from epochs import each_batch
from modal_data import CUT, GENES, PROTEINS, joined, samples
from small_budget import small_budget

pytestmark = pytest.mark.filterwarnings("ignore:cells are left out:UserWarning")


@pytest.fixture(scope="module")
def inputs() -> list[dict[str, ad.AnnData]]:
    return samples()


@pytest.fixture(scope="module")
def built(tmp_path_factory, inputs) -> dict[str, Collection]:
    folder = tmp_path_factory.mktemp("modalities")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "cells are left out", UserWarning)
        return {
            how: create_anndata_collection(inputs, folder / how, join_obs=how, dense=["adt:X"], **CUT)
            for how in ("inner", "outer")
        }


def stores_of(collection: Collection, name: str) -> ad.AnnData:
    return ad.concat([ad.read_zarr(path / "mod" / name) for path in collection.store_paths])


def names_of(collection: Collection) -> list[str]:
    groups: list[Any] = [zarr.open_group(path, mode="r") for path in collection.store_paths]
    return [name for group in groups for name in ad.io.read_elem(group["obs"]).index]


@pytest.mark.parametrize("how", ["inner", "outer"])
def test_modalities_share_the_rows_of_their_cells(built, inputs, how):
    collection = built[how]
    truth = joined(inputs, how)
    assert list(collection.modalities) == ["rna", "adt"]
    assert collection.n_obs == len(truth["rna"])
    assert len(collection.stores) > 1
    assert set(names_of(collection)) == set(truth["rna"].index)
    for name, n_vars in (("rna", GENES), ("adt", PROTEINS)):
        found = stores_of(collection, name)
        assert list(found.obs_names) == names_of(collection)
        expected = truth[name].loc[found.obs_names]
        lacking = expected.isna().all(axis=1).to_numpy()
        np.testing.assert_array_equal(sp.csr_matrix(found.X).toarray(), expected.fillna(0).to_numpy())
        np.testing.assert_array_equal(found.layers["counts"].toarray(), 2 * expected.fillna(0).to_numpy())
        np.testing.assert_array_equal(found.obsm["X_pca"], expected.fillna(0).to_numpy()[:, :3])
        assert collection.modalities[name].n_vars == n_vars
        assert collection.modalities[name].masked == (how == "outer")
        if how == "outer":
            np.testing.assert_array_equal(found.obs[MEASURED], ~lacking)
            assert lacking.any()
        assert found.obs["cell_type"].isna().tolist() == lacking.tolist()
        rows = np.array([int(cell.partition("-")[0].removeprefix("cell")) for cell in found.obs_names])
        rows += np.where([cell.endswith("-1") for cell in found.obs_names], 30, 0)
        depth = pd.array(rows, "Int32")
        depth[lacking] = pd.NA
        assert pd.Series(found.obs["depth"].array).astype("Int32").equals(pd.Series(depth))
    assert collection.types["rna:X"].indices == np.uint16
    assert collection.types["adt:X"].indices is None
    collection.verify()
    for store in collection.stores:
        verify_store(collection, store)


# What mudata asks of pandas 3.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_mudata_reads_what_it_wrote_itself(tmp_path, inputs):
    mudata = pytest.importorskip("mudata")
    given: list[Any] = []
    for k, sample in enumerate(inputs):
        mdata = mudata.MuData(sample)
        mdata.obs = pd.DataFrame({"donor": [f"d{k}"] * mdata.n_obs}, index=mdata.obs_names)
        mdata.obsm["X_umap"] = np.zeros((mdata.n_obs, 2))
        given.append(tmp_path / (f"{k}.h5mu" if k else f"{k}.zarr"))
        (mdata.write if k else mdata.write_zarr)(str(given[-1]))
    extra = samples(3)[2]
    given.append(mudata.MuData(extra))
    with pytest.warns(UserWarning, match="X_umap"):
        collection = create_anndata_collection(given, tmp_path / "out", join_obs="outer", progress=False)
    for path in collection.store_paths:
        store = mudata.read_zarr(path)
        assert list(store.mod) == ["rna", "adt"]
        assert list(store.var_names) == [*store["rna"].var_names, *store["adt"].var_names]
        for name in store.mod:
            assert list(store[name].obs_names) == list(store.obs_names)
            truth = joined([*inputs, extra], "outer")[name].fillna(0)
            np.testing.assert_array_equal(store[name].X.toarray(), truth.loc[store.obs_names].to_numpy())
        sample = store.obs["src_path"].astype(str).str[-6:]
        of_file = sample != "data_2"
        donors = sample.map({"0.zarr": "d0", "1.h5mu": "d1"})[of_file]
        assert store.obs["donor"].astype(str)[of_file].equals(donors)
        assert store.obs["donor"][~of_file].isna().all()
    assert collection.inputs[1].left_out == ("obsm/X_umap",)


def test_neither_order_nor_memory_changes_the_bytes(tmp_path, monkeypatch):
    straight = samples(1, aligned=True)
    turned = [{"rna": one["rna"], "adt": one["adt"][::-1].copy()} for one in straight]
    first = create_anndata_collection(straight, tmp_path / "straight", groupby="rna:cell_type", **CUT)
    small_budget(monkeypatch, run_bytes=5000, piece_bytes=5000)
    assemble = build_module.assemble

    def with_room(*args: Any) -> Any:
        # What was read of the inputs takes no room any more.
        assert not [*tmp_path.rglob("runs"), *tmp_path.rglob("by_rows")]
        return assemble(*args)

    monkeypatch.setattr(build_module, "assemble", with_room)
    second = create_anndata_collection(turned, tmp_path / "turned", groupby="rna:cell_type", **CUT)
    assert first.digest() == second.digest()
    types = stores_of(second, "rna").obs["cell_type"].astype(str).tolist()
    assert types == sorted(types, key=["B", "NK", "T"].index)


@pytest.mark.slow
def test_an_interrupted_build_goes_on(tmp_path, inputs, monkeypatch):
    cut = CUT | {"rows_per_store": 20}
    whole = create_anndata_collection(inputs[:1], tmp_path / "whole", **cut)
    assemble, calls = build_module.assemble, []

    def once(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return assemble(*args)

    monkeypatch.setattr(build_module, "assemble", once)
    with pytest.raises(KeyboardInterrupt):
        create_anndata_collection(inputs[:1], tmp_path / "out", **cut)
    monkeypatch.setattr(build_module, "write_rows", None)
    assert create_anndata_collection(inputs[:1], tmp_path / "out", **cut).digest() == whole.digest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_append_and_reshuffle_know_modalities(tmp_path, inputs):
    truth = joined(inputs, "outer")
    options: dict[str, Any] = {"join_obs": "outer", "dense": ["adt:X"], "groupby": "src_path"}
    first = create_anndata_collection(inputs[:1], tmp_path / "out", **options, **CUT)
    grown = append_to_collection(inputs[1:], tmp_path / "out", progress=False)
    assert (first.grouped_by, grown.grouped_by) == ("src_path", None)
    mixed = reshuffle_collection(
        tmp_path / "out", tmp_path / "mixed", layers=["rna:counts"], obs_columns=["adt:depth"], progress=False
    )
    for collection in (grown, mixed):
        assert collection.n_obs == len(truth["rna"])
        for store in collection.stores:
            verify_store(collection, store)
        for name in ("rna", "adt"):
            found = stores_of(collection, name)
            expected = truth[name].loc[found.obs_names]
            np.testing.assert_array_equal(sp.csr_matrix(found.X).toarray(), expected.fillna(0).to_numpy())
            np.testing.assert_array_equal(found.obs[MEASURED], ~expected.isna().all(axis=1).to_numpy())
    assert mixed.modalities["rna"].obs_columns == (MEASURED, "src_path")
    assert mixed.modalities["adt"].obs_columns == ("depth", MEASURED, "src_path")
    assert list(mixed.types) == ["rna:X", "rna:layers/counts", "adt:X"]
    assert mixed.types["adt:X"].indices is None
    with pytest.raises(InputError, match="inputs without modalities"):
        append_to_collection(inputs[0]["rna"], tmp_path / "out", progress=False)


def test_multiome_has_as_wide_indices_as_each_modality_needs(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"cell{i}" for i in range(20)]
    wide = {}
    for name, n_vars in (("rna", 30_000), ("atac", 200_000)):
        x = sp.random(20, n_vars, 0.0005, format="csr", dtype=np.float32, random_state=rng)
        wide[name] = ad.AnnData(x, pd.DataFrame(index=names), pd.DataFrame(index=[f"{name}{i}" for i in range(n_vars)]))
    collection = create_anndata_collection([wide], tmp_path / "out", progress=False)
    assert [collection.types[key].indices for key in ("rna:X", "atac:X")] == [np.uint16, np.uint32]
    for name, adata in wide.items():
        found = stores_of(collection, name)
        assert (found.X != adata[found.obs_names].X).nnz == 0
    numbers = [199_999, 70_000, 5, 131_072]
    for genes in (None, {"atac": [f"atac{i}" for i in numbers]}):
        options: dict[str, Any] = {"names": True, "transform": Binarize(["atac:X"]), "var_names": genes}
        for batch in each_batch(Loader(batch_size=8, **options).use_collection(collection)):
            rows = [names.index(name) for name in batch["names"]]
            atac = wide["atac"].X[rows] if genes is None else wide["atac"].X[rows][:, numbers]
            assert (batch["rna"]["data"].to_scipy() != wide["rna"].X[rows]).nnz == 0
            assert (batch["atac"]["data"].to_scipy() != (atac > 0)).nnz == 0


BAD: list[tuple[str, Any, dict[str, Any], str]] = [
    ("no common cell", lambda s: [{"rna": s[0]["rna"][2:], "adt": s[1]["adt"]}], {}, "a cell in common.*cell2.*adt"),
    ("one without", lambda s: [s[0], {"rna": s[1]["rna"]}], {}, r"lacks \['adt'\]"),
    ("a plain input", lambda s: [s[0], s[1]["rna"]], {}, "all inputs must have modalities or none, got AnnData"),
    ("unknown", lambda s: s, {"modalities": ["atac"]}, r"must have the modalities \['atac'\]"),
    ("none at all", lambda s: [s[0]["rna"]], {"modalities": ["rna"]}, "got inputs without modalities"),
    ("a reserved name", lambda s: [{"data": s[0]["rna"]}], {}, "keys of batches, got 'data'"),
    ("a path", lambda s: [{"r/a": s[0]["rna"]}], {}, "must not contain '/'"),
    ("a layer of none", lambda s: s, {"layers": ["counts"]}, "must name modality and element, such as 'rna:counts'"),
    ("an absent layer", lambda s: s, {"layers": ["rna:raw"]}, r"layers must be in all inputs, got \['raw'\]"),
    ("an absent column", lambda s: s, {"obs_columns": ["adt:x"]}, r"in at least one input, got \['x'\]"),
    ("genes of none", lambda s: s, {"var_names": ["g1"]}, "must be a dict of lists by modality"),
    ("genes of another", lambda s: s, {"var_names": {"atac": ["g1"]}}, r"by modality, .*got \['atac'\]"),
    ("absent genes", lambda s: s, {"var_names": {"adt": ["p1", "g1"]}}, r"var_names must be in .*got \['g1'\]"),
    ("a group", lambda s: s, {"groupby": "rna:x"}, "groupby must be an obs column, got 'rna:x'"),
    ("another join", lambda s: s, {"join_obs": "left"}, "join_obs must be one of 'inner', 'outer', got 'left'"),
    ("lost cells", lambda s: s, {"strict": True}, "no cell may be left out.*join_obs='outer' keeps them"),
    ("a join of none", lambda s: [s[0]["rna"]], {"join_obs": "outer"}, "join_obs must be 'inner' for inputs without"),
]  # fmt: skip


@pytest.mark.parametrize(("give", "options", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_refused_before_anything_is_written(tmp_path, inputs, give, options, message):
    with pytest.raises(InputError, match=message):
        create_anndata_collection(give(inputs), tmp_path / "out", **CUT, **options)
    assert not list(tmp_path.iterdir())


def test_parts_of_another_length_are_refused(tmp_path, inputs):
    """Some rows are chosen: nobody would see that others are missing, or too many."""
    path, names = tmp_path / "cells.h5mu", [f"cell{row}" for row in range(30)]
    with h5py.File(path, "w") as file:
        file.attrs["encoding-type"] = "MuData"
        for name, adata in inputs[0].items():
            ad.io.write_elem(file.require_group("mod"), name, adata)
        ad.io.write_elem(file, "obs", pd.DataFrame({"donor": np.arange(30)}, index=names))
    for key in ("obs/donor", "mod/rna/obs/depth", "mod/rna/X", "mod/adt/X", "mod/adt/obsm/X_pca"):
        damaged = Path(shutil.copyfile(path, tmp_path / "damaged.h5mu"))
        with h5py.File(damaged, "r+") as file:
            held = ad.io.read_elem(file[key])
            del file[key]
            group, _, name = key.rpartition("/")
            ad.io.write_elem(file[group], name, held[:-1])
        with pytest.raises(InputError, match=rf"{name}.* must have \d+ rows, got \d+"):
            create_anndata_collection(damaged, tmp_path / "out", **CUT)
    collection = create_anndata_collection(path, tmp_path / "out", **CUT)
    assert collection.n_obs == len(joined(inputs[:1], "inner")["rna"])


def test_names_that_repeat_within_a_modality_are_refused(tmp_path):
    sample = samples(1, aligned=True)[0]
    sample["adt"].obs_names = ["cell0", *sample["adt"].obs_names[:-1]]
    with pytest.raises(InputError, match="'adt' must be unique to join cells by them, got 'cell0' more than once"):
        create_anndata_collection([sample], tmp_path / "out", **CUT)


def swap(names: Any) -> None:
    names[:2] = names[:2][::-1]


@pytest.mark.parametrize(
    ("obs", "damage", "message"),
    [
        ("mod/adt/obs", swap, "must have the cells of the store in their order, got another name than .* in row 0"),
        ("mod/adt/obs", lambda names: names.resize((names.shape[0] - 1,)), r"must have the \d+ rows of the manifest"),
        ("mod/rna/obs", lambda names: names.resize((names.shape[0] + 1,)), r"must have the \d+ rows of the manifest"),
        ("obs", lambda names: names.resize((names.shape[0] - 1,)), r"must have the \d+ rows of the manifest"),
    ],
    ids=["swapped", "fewer", "more", "fewer in the store"],
)
def test_verify_sees_cells_that_do_not_match(tmp_path, built, obs, damage, message):
    shutil.copytree(built["inner"].path, tmp_path / "out")
    manifest = tmp_path / "out" / "collection.json"
    found = json.loads(manifest.read_text())
    for store in found["stores"]:
        store["files"] = {}
    manifest.write_text(json.dumps(found))
    damage(zarr.open_array(tmp_path / "out" / "chunk_1.zarr" / obs / "_index", mode="r+"))
    collection = Collection.open(tmp_path / "out")
    verify_store(collection, collection.stores[0])
    with pytest.raises(CorruptStoreError, match=f"chunk_1.zarr/{obs}: {message}"):
        verify_store(collection, collection.stores[1])


def test_the_command_line_knows_modalities(built, inputs):
    def run(*arguments: str) -> str:
        return CliRunner().invoke(main, arguments, catch_exceptions=False).stdout

    found = json.loads(run("info", str(built["outer"].path), "--json"))
    assert found["modalities"]["adt"]["masked"] is True
    assert found["modalities"]["rna"]["n_vars"] == GENES
    assert found["types"]["rna:X"]["stored"] == "uint16"
    assert "cells left out: 4 of rna, 2 of adt" in run("info", str(built["inner"].path))
    assert "2 of 2 stores are whole" in run("verify", str(built["outer"].path), "--no-progress")
    rows = json.loads(run("head", str(built["outer"].path), "--json"))
    truth = joined(inputs, "outer")["rna"]
    assert [row["rna:X sum"] for row in rows] == [truth.loc[row["obs_name"]].sum() for row in rows]


@given(st.data())
def test_chosen_rows_are_those_of_scipy(tmp_path_factory, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n_rows, form = data.draw(st.integers(1, 40)), data.draw(st.sampled_from(["csr", "csc", "dense"]))
    x = sp.random(n_rows, 13, 0.3, format="csr", random_state=rng, dtype=np.float32)
    kept = np.flatnonzero(rng.random(n_rows) < data.draw(st.sampled_from([0.1, 0.5, 1])))
    rows = np.concatenate([kept, np.full(data.draw(st.integers(0 if len(kept) else 1, 5)), -1)])
    folder = tmp_path_factory.mktemp("rows")
    stored = {"csr": x, "csc": sp.csc_matrix(x), "dense": x.toarray()}[form]
    chosen = choose_rows(matrix_of(stored, "x"), rows, "x", folder / "starts" / "x")
    if form == "csc":
        transpose(folder / "turned", chosen, "x", 2000, 20, lambda: None)
        chosen = transposed(folder / "turned", chosen)
    if form != "dense":
        chosen.row_starts("x")
    truth = np.zeros((len(rows), 13), np.float32)
    truth[: len(kept)] = x[kept].toarray()
    start = data.draw(st.integers(0, len(rows) - 1))
    stop = data.draw(st.integers(start + 1, len(rows)))
    found = read_dense(chosen, slice(start, stop), np.arange(13), 13, "x")
    np.testing.assert_array_equal(found, truth[start:stop])
