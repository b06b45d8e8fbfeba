"""Does a build name what of its inputs no collection holds?"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from annbatch import append_to_collection, create_anndata_collection, reshuffle_collection
from datagen import named_adata, write_adata

ROWS, GENES = 12, 7
UNKEPT = ("raw", "uns", "varm/PCs", "obsp/distances", "varp/links")


def full() -> ad.AnnData:
    adata = named_adata(np.random.default_rng(0), range(ROWS), range(GENES))
    adata.raw = adata.copy()
    adata.uns["log1p"] = {"base": 2.0}
    adata.varm["PCs"] = np.ones((GENES, 2), np.float32)
    adata.obsp["distances"] = sp.identity(ROWS, format="csr")
    adata.varp["links"] = sp.identity(GENES, format="csr")
    return adata


def loom(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["matrix"] = np.ones((GENES, ROWS), np.float32)
        file["row_attrs/Gene"] = np.array([f"g{i}" for i in range(GENES)], "S")
        file["row_attrs/PCs"] = np.ones((GENES, 2))
        file["col_attrs/CellID"] = np.array([f"c{i}" for i in range(ROWS)], "S")
        for name in ("col_graphs/distances", "row_graphs/links"):
            for part in ("a", "b", "w"):
                file[f"{name}/{part}"] = np.zeros(3, np.int64)
    return path


KINDS: dict[str, Callable[[Path], Any]] = {
    "memory": lambda folder: full(),
    **{kind: lambda folder, kind=kind: write_adata(full(), folder / "a", kind) for kind in ("h5ad", "zarr2", "zarr3")},
    "loom": lambda folder: loom(folder / "a.loom"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_no_place_is_named(tmp_path: Path, kind: str) -> None:
    keys = UNKEPT if kind != "loom" else UNKEPT[2:]
    said = f"a collection keeps X, layers, obsm, obs and var; left out: {', '.join(sorted(keys))}$"
    given = KINDS[kind](tmp_path)
    with pytest.warns(UserWarning, match=said) as warned:
        collection = create_anndata_collection(given, tmp_path / "all", strict=True, progress=False)
    assert collection.inputs[0].left_out == keys
    with pytest.warns(UserWarning, match=said) as warned_again:
        collection = append_to_collection(given, tmp_path / "all", obs_names="unique", progress=False)
    assert {one.filename for one in (*warned, *warned_again)} == {__file__}
    assert [one.left_out for one in collection.inputs] == [keys, keys]
    # Nothing is left to be named.
    reshuffle_collection(tmp_path / "all", tmp_path / "again", progress=False)


def test_what_becomes_x_is_not_left_out(tmp_path: Path) -> None:
    adata = full()
    adata.uns, adata.varm = {}, {}
    with pytest.warns(UserWarning, match="left out: obsp/distances, varp/links$"):
        create_anndata_collection(adata, tmp_path / "all", x="raw/X", progress=False)


def test_raw_that_cannot_be_read_is_in_nobodys_way(tmp_path: Path) -> None:
    path = write_adata(full(), tmp_path / "a", "zarr2")
    (path / ".zmetadata").unlink()
    metadata = path / "raw/X/data/.zarray"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"filters": [{"id": "pickle"}]}))
    with pytest.warns(UserWarning, match="left out: obsp/distances, raw, uns"):
        create_anndata_collection(path, tmp_path / "all", progress=False)


def test_uns_that_looks_like_categories_of_older_files(tmp_path: Path) -> None:
    adata = named_adata(np.random.default_rng(0), range(ROWS), range(GENES))
    adata.uns["donor_categories"] = np.array(["a", "b"])
    with pytest.warns(UserWarning, match="left out: uns$"):
        create_anndata_collection(write_adata(adata, tmp_path / "a", "h5ad"), tmp_path / "all", progress=False)


def test_nothing_is_said_where_there_is_nothing(tmp_path: Path) -> None:
    adata = named_adata(np.random.default_rng(0), range(ROWS), range(GENES))
    for kind in ("h5ad", "zarr2", "zarr3"):
        create_anndata_collection(write_adata(adata, tmp_path / kind, kind), tmp_path / f"{kind} all", progress=False)


@pytest.mark.parametrize("stored", [False, True])
def test_mudata_and_its_modalities(tmp_path: Path, stored: bool) -> None:
    parts = {name: full() for name in ("rna", "adt")}
    for one in parts.values():
        one.raw = None
        del one.varm["PCs"], one.varp["links"]
    uns = {"title": "cells"}
    if stored:
        given: Any = tmp_path / "a.h5mu"
        with h5py.File(given, "w") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file.attrs["encoding-type"] = "MuData"
            ad.io.write_elem(file, "obs", pd.DataFrame(index=parts["rna"].obs_names))
            ad.io.write_elem(file, "uns", uns)
            # Says which cells a modality has.
            ad.io.write_elem(file, "varm", {"rna": np.ones(2 * GENES, bool), "adt": np.ones(2 * GENES, bool)})
            for name, one in parts.items():
                ad.io.write_elem(file.require_group("mod"), name, one)
    else:
        obs = pd.DataFrame(index=parts["rna"].obs_names)
        given = SimpleNamespace(mod=parts, obs=obs, obs_names=obs.index, obsm={}, uns=uns)
    with pytest.warns(UserWarning, match="a collection keeps") as seen:
        collection = create_anndata_collection(given, tmp_path / "all", progress=False)
    said = [str(one.message).rpartition("left out: ")[2] for one in seen if "a collection keeps" in str(one.message)]
    assert said == ["uns of MuData itself", "obsp/distances, uns", "obsp/distances, uns"]
    of_parts = [f"{name}:{key}" for name in collection.modalities for key in ("uns", "obsp/distances")]
    assert collection.inputs[0].left_out == ("uns", *of_parts)
