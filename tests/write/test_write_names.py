"""Are names that a collection cannot hold found when inputs are opened, and what becomes of them said?"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from annbatch import append_to_collection, create_anndata_collection
from annbatch.cli import main
from annbatch.errors import InputErrors, MissingInputError
from annbatch.stores.collection import Collection
from datagen import named_adata, write_adata

OPTIONS: dict[str, Any] = {"shuffle": False, "progress": False}


def adata(rows: range = range(6)) -> ad.AnnData:
    return named_adata(np.random.default_rng(0), rows, range(4))


def renamed_in_file(path: Path, table: str, old: str, new: str) -> None:
    """Give a column, or the index, another name, as writers do that AnnData's own does not stop."""
    with h5py.File(path, "r+") as file:
        file.move(f"{table}/{old}", f"{table}/{new}")
        attrs = file[table].attrs
        if old == attrs["_index"]:
            attrs["_index"] = new
        else:
            attrs["column-order"] = np.array([new if n == old else n for n in attrs["column-order"]], dtype=object)


def backs(collection: Collection) -> ad.AnnData:
    return ad.concat([ad.read_zarr(path) for path in collection.store_paths], join="outer", merge="same")


def test_columns_with_slashes_are_renamed_and_said_so(tmp_path: Path):
    path = write_adata(adata(), tmp_path / "facs", "h5ad")
    renamed_in_file(path, "obs", "cell_type", "LIVE/DEAD")
    renamed_in_file(path, "var", "length", "bp/kb")
    with (
        pytest.warns(UserWarning, match="facs.h5ad: obs: .* are renamed: 'LIVE/DEAD' as 'LIVE_DEAD'$"),
        pytest.warns(UserWarning, match="var: .* are renamed: 'bp/kb' as 'bp_kb'$"),
    ):
        collection = create_anndata_collection(path, tmp_path / "store", groupby="LIVE/DEAD", **OPTIONS)
    expected = ad.read_h5ad(path)
    found = backs(collection)
    of_cell = expected.obs.loc[found.obs_names, "LIVE/DEAD"].astype(object)
    assert found.obs["LIVE_DEAD"].astype(object).fillna("-").tolist() == of_cell.fillna("-").tolist()
    assert found.var["bp_kb"].tolist() == expected.var["bp/kb"].tolist()
    assert collection.grouped_by == "LIVE_DEAD"
    (entry,) = Collection.open(collection.path).inputs
    assert entry.renamed == {"obs/LIVE/DEAD": "obs/LIVE_DEAD", "var/bp/kb": "var/bp_kb"}
    assert entry.left_out == ()
    shown = CliRunner().invoke(main, ["info", str(collection.path)]).output
    assert "renamed: obs/LIVE/DEAD to obs/LIVE_DEAD, var/bp/kb to var/bp_kb" in shown
    with pytest.warns(UserWarning, match="'LIVE/DEAD' as 'LIVE_DEAD'"):
        more = append_to_collection(path, collection.path, **OPTIONS)
    assert backs(more).obs["LIVE_DEAD"].value_counts().equals(2 * found.obs["LIVE_DEAD"].value_counts())


@pytest.mark.parametrize("asked", ["LIVE/DEAD", "LIVE_DEAD"])
def test_renamed_columns_may_be_asked_for_by_either_name(tmp_path: Path, asked: str):
    path = write_adata(adata(), tmp_path / "facs", "h5ad")
    renamed_in_file(path, "obs", "donor", "LIVE/DEAD")
    with pytest.warns(UserWarning, match="'LIVE/DEAD' as 'LIVE_DEAD'"):
        collection = create_anndata_collection(path, tmp_path / "store", obs_columns=[asked], **OPTIONS)
    assert list(backs(collection).obs) == ["LIVE_DEAD", "src_path"]


def test_a_name_means_the_same_column_in_all_files(tmp_path: Path):
    """The second file has a column of its own under the name that the first one's is renamed to."""
    paths = [write_adata(adata(rows), tmp_path / f"{rows.start}", "h5ad") for rows in (range(6), range(6, 12))]
    for path in paths:
        renamed_in_file(path, "obs", "n_counts", "n/counts")
    renamed_in_file(paths[1], "obs", "score", "n_counts")
    with pytest.warns(UserWarning, match="0.h5ad and 1 more inputs: obs: .* 'n/counts' as 'n_counts_1'"):
        found = backs(create_anndata_collection(paths, tmp_path / "store", **OPTIONS)).obs
    assert found["n_counts_1"].tolist() == [row * 10 for row in range(12)]
    expected = [*[np.nan] * 6, *ad.read_h5ad(paths[1]).obs["n_counts"]]
    np.testing.assert_array_equal(found["n_counts"], expected)


def test_the_index_as_a_column(tmp_path: Path):
    """Converters from R list ``_index`` among the columns, too."""
    a = adata()
    a.raw = a
    path = write_adata(a, tmp_path / "seurat", "h5ad")
    with h5py.File(path, "r+") as file:
        for table in ("obs", "raw/var"):
            names = [*file[table].attrs["column-order"], "_index"]
            file[table].attrs["column-order"] = np.array(names, dtype=object)
    with (
        pytest.warns(UserWarning, match="var: .* '_index' as 'index_'"),
        pytest.warns(UserWarning, match="obs: .* '_index' as 'index_'"),
    ):
        found = backs(create_anndata_collection(path, tmp_path / "store", x="raw/X", **OPTIONS))
    assert found.obs_names.tolist() == found.obs["index_"].tolist() == a.obs_names.tolist()
    assert found.var_names.tolist() == found.var["index_"].tolist() == a.var_names.tolist()


def test_an_index_with_a_slash_in_its_name(tmp_path: Path):
    path = write_adata(adata(), tmp_path / "a", "h5ad")
    renamed_in_file(path, "obs", "_index", "cell/id")
    with pytest.warns(UserWarning, match="a.h5ad: obs index: .* 'cell/id' as 'cell_id'"):
        found = backs(create_anndata_collection(path, tmp_path / "store", **OPTIONS))
    assert found.obs_names.tolist() == adata().obs_names.tolist()


def test_layers_and_obsm_with_slashes_in_memory(tmp_path: Path):
    a = adata()
    a.layers["a/b"] = a.X * 2
    a.obsm["X/pca"] = np.arange(12.0).reshape(6, 2)
    with (
        pytest.warns(UserWarning, match="adata_0: layers: .* 'a/b' as 'a_b'"),
        pytest.warns(UserWarning, match="adata_0: obsm: .* 'X/pca' as 'X_pca'"),
    ):
        collection = create_anndata_collection([a], tmp_path / "store", dense=["layers/a/b"], **OPTIONS)
    found = backs(collection)
    np.testing.assert_array_equal(found.layers["a_b"], a.layers["a/b"].toarray())
    np.testing.assert_array_equal(found.obsm["X_pca"], a.obsm["X/pca"])
    assert collection.inputs[0].renamed == {"layers/a/b": "layers/a_b", "obsm/X/pca": "obsm/X_pca"}


def test_what_some_inputs_lack_is_left_out_and_said_so(tmp_path: Path):
    a, b = adata(), adata(range(6, 12))
    a.layers["counts"] = a.X.copy()
    b.obsm["X_pca"] = np.zeros((6, 2))
    with pytest.warns(
        UserWarning, match="left out: 'layers/counts' is not in adata_1, 'obsm/X_pca' is not in adata_0$"
    ):
        collection = create_anndata_collection([a, b], tmp_path / "store", **OPTIONS)
    assert [entry.left_out for entry in collection.inputs] == [("layers/counts",), ("obsm/X_pca",)]
    b.obs["fresh"] = 1
    b.layers["late"] = b.X.copy()
    said = ", ".join(f"'{key}' is not in the collection" for key in ("layers/late", "obs/fresh", "obsm/X_pca"))
    with pytest.warns(UserWarning, match=f"left out: {said}$"):
        more = append_to_collection([b], collection.path, **OPTIONS)
    assert more.inputs[-1].left_out == ("obs/fresh", "layers/late", "obsm/X_pca")
    assert "left out: obs/fresh, layers/late, obsm/X_pca" in CliRunner().invoke(main, ["info", str(more.path)]).output


def test_manifests_without_renames_are_as_they_were(tmp_path: Path):
    collection = create_anndata_collection([adata()], tmp_path / "store", **OPTIONS)
    (entry,) = json.loads((collection.path / "collection.json").read_text())["inputs"]
    assert list(entry) == ["name", "n_obs", "n_vars", "genes_lost", "elements_lost", "counts_lost"]


Edit = Callable[[h5py.File], None]


def of_another_length(file: h5py.File) -> None:
    del file["obs/n_counts"]
    file["obs/n_counts"] = np.arange(4)


def of_another_encoding(file: h5py.File) -> None:
    file["obs/cell_type"].attrs["encoding-type"] = "awkward-array"


def without_a_column(file: h5py.File) -> None:
    del file["obs/donor"]


def of_two_dimensions(file: h5py.File) -> None:
    del file["obs/score"]
    file["obs/score"] = np.zeros((6, 2))


def with_a_repeated_gene(file: h5py.File) -> None:
    file["var/_index"][1] = "g0"


def with_a_name_that_leads_out(file: h5py.File) -> None:
    file["obs"].attrs["column-order"] = np.array(["../X"], dtype=object)


def without_x(file: h5py.File) -> None:
    del file["X"]


def with_categories_that_lead_out(file: h5py.File) -> None:
    file["obs/n_counts"].attrs["categories"] = file["/"].ref


def with_codes_without_a_category(file: h5py.File) -> None:
    file["obs/few"] = np.array(["a"], dtype=object)
    file["obs/n_counts"].attrs["categories"] = file["obs/few"].ref


def with_a_layer_of_another_shape(file: h5py.File) -> None:
    file["layers/wide"] = np.zeros((6, 5))


FAULTS: dict[str, tuple[Edit, str]] = {
    "length": (of_another_length, r"obs column 'n_counts' must have 6 rows, got 4"),
    "encoding": (of_another_encoding, r"obs column 'cell_type' is a group .* got 'awkward-array'; obs_columns= takes"),
    "gone": (without_a_column, r"obs column 'donor' is listed in column-order, but missing"),
    "two dimensions": (of_two_dimensions, r"obs column 'score' must have one dimension, got 2"),
    "genes": (with_a_repeated_gene, r"var names must be unique, got more than one of \['g0'\]"),
    "way out": (with_a_name_that_leads_out, r"obs must have columns with names, got '\.\./X'"),
    "no X": (without_x, r"X is missing"),
    "layer": (with_a_layer_of_another_shape, r"layers/wide must have the shape of obs and var \(6, 4\), got \(6, 5\)"),
}


def faulty(path: Path, edit: Edit, rows: range = range(6)) -> Path:
    written = write_adata(adata(rows), path, "h5ad")
    with h5py.File(written, "r+") as file:
        edit(file)
    return written


def test_all_faults_of_all_inputs_are_named_at_once(tmp_path: Path):
    (tmp_path / "in").mkdir()
    paths = [faulty(tmp_path / "in" / f"{i}", edit) for i, (edit, _) in enumerate(FAULTS.values())]
    gone, fine = tmp_path / "in" / "gone.h5ad", write_adata(adata(range(6, 9)), tmp_path / "in" / "fine", "h5ad")
    with pytest.raises(InputErrors) as raised:
        create_anndata_collection([*paths, gone, fine], tmp_path / "out" / "store", **OPTIONS)
    first, *lines = str(raised.value).splitlines()
    assert first == "9 faults in the inputs:"
    for line, path, message in zip(lines, paths, [message for _, message in FAULTS.values()], strict=False):
        assert re.search(rf"{path.name}: .*{message}", line), line
    assert lines[-1] == f"  {gone}: no such file or directory"
    assert not list((tmp_path / "out").iterdir())


def test_all_faults_of_one_input_are_named_at_once(tmp_path: Path):
    def edit(file: h5py.File) -> None:
        for change in (of_another_length, of_another_encoding, with_a_layer_of_another_shape):
            change(file)

    path = faulty(tmp_path / "a", edit)
    with pytest.raises(InputErrors, match=r"3 faults[^$]*'cell_type'[^$]*'n_counts'[^$]*layers/wide"):
        create_anndata_collection(path, tmp_path / "store", **OPTIONS)
    found = create_anndata_collection(path, tmp_path / "store", obs_columns=["donor"], layers=[], **OPTIONS)
    assert list(backs(found).obs) == ["donor", "src_path"]


def test_many_faults_are_counted(tmp_path: Path):
    paths = [tmp_path / f"{i}.h5ad" for i in range(300)]
    with pytest.raises(MissingInputError) as raised:
        create_anndata_collection(paths, tmp_path / "store", **OPTIONS)
    lines = str(raised.value).splitlines()
    assert lines[0] == "300 faults in the inputs:"
    assert lines[-1] == "  … and 280 more"
    assert len(lines) == 22


def test_faults_that_inputs_have_together_are_named_at_once(tmp_path: Path):
    a, b = adata(), adata(range(6, 12))
    a.obsm["X_pca"], b.obsm["X_pca"] = np.zeros((6, 2)), np.zeros((6, 3))
    for name in ("donor", "stage"):
        b.obs[name] = 1
    with pytest.raises(InputErrors, match=r"3 faults[^$]*obsm 'X_pca'[^$]*'stage'[^$]*'donor'"):
        create_anndata_collection([a, b], tmp_path / "store", obsm=["X_pca"], obs_columns=["stage", "donor"], **OPTIONS)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::anndata.OldFormatWarning")
def test_faults_that_only_values_show_are_named_together(tmp_path: Path):
    """They are found when obs is read, which is still before any pass."""
    edits = [with_categories_that_lead_out, with_codes_without_a_category]
    paths = [faulty(tmp_path / f"{i}", edit, range(6 * i, 6 * i + 6)) for i, edit in enumerate(edits)]
    with pytest.raises(InputErrors) as raised:
        create_anndata_collection(paths, tmp_path / "store", **OPTIONS)
    lines = str(raised.value).splitlines()
    assert re.search(r"0\.h5ad: .*column 'n_counts': categories must be an array", lines[1])
    assert re.search(r"1\.h5ad: .*obs column 'n_counts': cannot be read: ValueError", lines[2])
    assert not (tmp_path / "store").exists()
