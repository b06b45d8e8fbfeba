"""Do collections of every version of the format, and of every codec, give the rows that they were written with?

``data/golden_collections.tar.xz`` holds them, as the code of their time wrote them. ``data/make_golden_collections.py``
states what is in them: every value follows from the number of its cell.
"""

from __future__ import annotations

import json
import runpy
import shutil
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr

import format_reader
from annbatch import Collection, Loader, append_to_collection
from annbatch.errors import StoreError
from annbatch.shards.codecs import numcodecs_are_known
from annbatch.stores.root_group import ROOT_GROUP
from annbatch.verify import verify_store
from manifest_schema import VALIDATOR

MADE: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[1] / "data/make_golden_collections.py"))
NAMES = sorted(MADE["COLLECTIONS"])
SIZES = {"": MADE["N_VARS"], "rna": MADE["N_VARS"], "adt": MADE["N_PROTEINS"]}


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(MADE["ARCHIVE"]) as archive:
        archive.extractall(folder, filter="data")
    return folder


def of_earlier_code() -> list[Any]:
    """Give all names; those that today's code wrote are ``slow``, as other tests read what it writes."""
    commits = {name: MADE["COLLECTIONS"][name][0] for name in NAMES}
    return [pytest.param(name, marks=[] if commits[name] else pytest.mark.slow) for name in NAMES]


def numbers(names: Any) -> np.ndarray:
    return np.array([int(name.removeprefix("cell")) for name in names])


def dense(matrix: Any) -> np.ndarray:
    return np.asarray(matrix.to_scipy().toarray() if hasattr(matrix, "to_scipy") else matrix)


def measured(name: str, modality: str, rows: np.ndarray) -> np.ndarray:
    return np.isin(rows, MADE["proteins_of"](name)) if modality == "adt" else np.ones(len(rows), bool)


def check_matrices(name: str, modality: str, rows: np.ndarray, x: Any, counts: Any, obsm: Any) -> None:
    """Compare what was read of these cells with what was written; cells that lack a modality have zeros."""
    there = measured(name, modality, rows)[:, None]
    expected = MADE["matrix"](rows, SIZES[modality]) * there
    np.testing.assert_array_equal(x, expected)
    np.testing.assert_array_equal(counts, 2 * expected)
    np.testing.assert_array_equal(obsm, MADE["obsm"](rows) * there)
    assert {np.asarray(x).dtype, np.asarray(counts).dtype, np.asarray(obsm).dtype} == {np.dtype(np.float32)}


def check_obs(name: str, modality: str, rows: np.ndarray, columns: Any) -> None:
    for row, is_there, *found in zip(rows, measured(name, modality, rows), *columns.values(), strict=True):
        of_cell = MADE["labels"](row)
        expected = [of_cell[column] if is_there else None for column in columns]
        assert [None if pd.isna(value) else value for value in found] == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_collection_gives_its_rows(name: str, golden: Path) -> None:
    collection = Collection.open(golden / name)
    for store in collection.stores:
        verify_store(collection, store)
    manifest = json.loads((golden / name / "collection.json").read_text())
    VALIDATOR.validate(manifest)
    assert manifest["format_version"] == int(name[0])
    prefixes = [f"{modality}:" for modality in collection.modalities] or [""]
    options: dict[str, Any] = {
        "layers": [f"{prefix}counts" for prefix in prefixes],
        "obsm": [f"{prefix}X_pca" for prefix in prefixes],
    }
    with Loader(batch_size=5, names=True, **options).use_collection(golden / name) as ds:
        seen: list[int] = []
        for batch in ds:
            rows = numbers(batch.names)
            seen += rows.tolist()
            for prefix in prefixes:
                modality = prefix.removesuffix(":")
                part = batch.modalities[modality] if modality else batch
                (counts,), (obsm,) = part.layers.values(), part.obsm.values()
                check_matrices(name, modality, rows, dense(part.data), dense(counts), obsm)
                own = {column: batch.labels[f"{prefix}{column}"] for column in MADE["labels"](0)}
                check_obs(name, modality, rows, own)
        assert sorted(seen) == list(range(MADE["N_OBS"]))


@pytest.mark.parametrize("name", of_earlier_code())
@numcodecs_are_known()
def test_another_reader_finds_the_same_in_a_golden_collection(name: str, golden: Path) -> None:
    found = format_reader.read(golden / name)
    rows = numbers(found["names"])
    assert sorted(rows) == list(range(MADE["N_OBS"]))
    for modality, part in found.get("modalities", {"": found}).items():
        check_matrices(name, modality, rows, part["X"], part["layers"]["counts"], part["obsm"]["X_pca"])
        check_obs(name, modality, rows, {column: part["obs"][column] for column in MADE["labels"](0)})
        if part.get("mask") is not None:
            np.testing.assert_array_equal(part["mask"], measured(name, modality, rows))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "1-first" else pytest.mark.slow) for name in NAMES]
)
@pytest.mark.filterwarnings("ignore:.*numcodecs.delta.*is no longer written")
def test_a_golden_collection_can_be_appended_to(name: str, golden: Path, tmp_path: Path) -> None:
    """Also those of before the root group: then they have one."""
    path = tmp_path / name
    shutil.copytree(golden / name, path)
    more = range(MADE["N_OBS"], MADE["N_OBS"] + 3)
    cells: Any = MADE["cells"](more, MADE["N_VARS"], "g")
    if name.startswith("2"):
        cells = [{"rna": cells, "adt": MADE["cells"](more, MADE["N_PROTEINS"], "p")}]
    before = Collection.open(path)
    after = append_to_collection(cells, path, progress=False)
    assert after.n_obs == MADE["N_OBS"] + 3
    assert after.types.keys() == before.types.keys()
    after.verify()
    VALIDATOR.validate(json.loads(after.to_json()))
    assert (path / ROOT_GROUP).exists()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Object at collection.json is not recognized")
        assert sorted(zarr.open_group(path, mode="r").group_keys()) == [store.name for store in after.stores]
    with numcodecs_are_known():
        rows = numbers(format_reader.read(path)["names"])
    assert sorted(rows) == list(range(MADE["N_OBS"] + 3))


@pytest.mark.parametrize("version", [3, 17])
def test_a_newer_version_is_refused_by_name(version: int, golden: Path, tmp_path: Path) -> None:
    manifest = json.loads((golden / "1-blosc" / "collection.json").read_text())
    manifest |= {"format_version": version, "software": "annbatch-dlpack 9.1"}
    (tmp_path / "collection.json").write_text(json.dumps(manifest))
    with pytest.raises(
        StoreError,
        match=rf"format_version must be 1, or 2 with modalities, for this version, got {version}; "
        r"'annbatch-dlpack 9\.1' wrote it: upgrade annbatch-dlpack",
    ):
        Collection.open(tmp_path)
    with pytest.raises(ValueError, match=f"format_version {version} of annbatch-dlpack 9.1"):
        format_reader.read(tmp_path)
