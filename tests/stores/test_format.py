"""Is ``docs/format.md`` true: its example, its schema, and a reader that was written from it alone?

1. Whatever is built has a manifest that the schema allows.
2. What the schema forbids is refused, and what it allows is read: each field of a manifest is replaced by other values.
3. The reader agrees with the loader.
4. The folder of a collection is a zarr group that lists its stores.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from click.testing import CliRunner

import format_reader
from annbatch import Collection, Loader, append_to_collection, create_anndata_collection, reshuffle_collection
from annbatch.commands.collection_commands import COMMANDS
from annbatch.errors import CorruptStoreError, InputError, StoreError
from annbatch.shards.codecs import numcodecs_are_known
from annbatch.stores.root_group import ROOT_GROUP
from datagen import named_adata
from manifest_schema import SCHEMA, VALIDATOR
from modal_data import CUT, samples

DOCS = Path(__file__).parents[2] / "docs"
GOLDEN = Path(__file__).parents[1] / "data/golden_collections.tar.xz"
SMALL: dict[str, Any] = {"rows_per_store": 9, "chunk_elements": 16, "shard_elements": 64, "progress": False}


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "collection.json").read_text("utf-8"))
    return found


def awkward_input(rows: range) -> ad.AnnData:
    """Layers, obsm, a name that no store can hold, and an element that is left out."""
    cells = named_adata(np.random.default_rng(0), rows, range(7))
    cells.layers["LIVE/DEAD"] = cells.X.toarray()
    cells.obsm["X_pca"] = np.asarray(cells.X[:, :2].toarray(), np.float64)
    cells.var["length"] = cells.var["length"] + len(rows)
    return cells


def empty_input(n_obs: int) -> ad.AnnData:
    """Cells without a value, of which no chunk is written."""
    names = [f"cell{row}" for row in range(n_obs)]
    return ad.AnnData(sp.csr_matrix((n_obs, 3), dtype=np.float32), pd.DataFrame(index=names))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A collection of each kind that the golden ones do not cover."""
    folder = tmp_path_factory.mktemp("format")
    paths = {name: folder / name for name in ("appended", "empty")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        inputs = {"a": awkward_input(range(10)), "none": awkward_input(range(0)), "b": awkward_input(range(10, 23))}
        create_anndata_collection(
            inputs, paths["appended"], x="counts", groupby=["stage", "doublet"], codec="packed", **SMALL
        )
        append_to_collection([awkward_input(range(23, 30))], paths["appended"], x="counts", codec="zstd", **SMALL)
        create_anndata_collection(empty_input(4), paths["empty"], shuffle=False, **SMALL)
    return paths


@pytest.fixture(scope="module")
def modalities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("format") / "modalities"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        create_anndata_collection(samples(), path, join_obs="outer", dense=["adt:X"], **CUT)
        append_to_collection(samples(1, 7), path, **CUT)
    return path


@pytest.fixture(params=["appended", "empty", pytest.param("modalities", marks=pytest.mark.slow)])
def written(request: pytest.FixtureRequest) -> Path:
    """Each of them; the golden collections with modalities are always tested."""
    if request.param == "modalities":
        return request.getfixturevalue("modalities")
    return request.getfixturevalue("built")[request.param]


def test_the_schema_allows_what_is_written(written: Path) -> None:
    manifest = manifest_of(written)
    VALIDATOR.validate(manifest)
    assert manifest["format_version"] == (2 if written.name == "modalities" else 1)


def test_the_schema_is_one() -> None:
    VALIDATOR.check_schema(SCHEMA)


# --- the schema, and what is refused ----------------------------------------------------------------------------------

OTHERS: list[Any] = [None, True, -1, 2**32, 2**64, 1.5, "", "x", "uint16", [], [1], ["x"], {}, {"x": 1}, {"x": "y"}]
REPLACED: dict[str, list[str]] = {
    "files": ["a//b", "./a", "a/..", "../a", "/a", "a/", "", ".", "...", "..a/b.", ".a", "a\0b", "a\nb"],
    "modalities": ["data", "mask", "", "a:b", "a/b", "a\0", ".a", "__a", "_a", "a.b", "Ä", "a b"],
    "name": ["chunk_01.zarr", "chunk_7.zarr", "chunk_1234567890.zarr", "chunk_٣.zarr", "../chunk_0.zarr"],
}
"""Other names: keys of an object, or values of a field."""
NOT_IN_A_SCHEMA = re.compile(
    r"must be the stores' sum|must be the sum of the modalities|must have one entry for each of|store names must differ"
)


def small_manifest(version: int, built: dict[str, Path]) -> dict[str, Any]:
    """A manifest with two stores of one file, one element, and an input that has every field."""
    if version == 1:
        manifest = manifest_of(built["appended"])
    else:
        with tarfile.open(GOLDEN) as archive:
            manifest = json.load(archive.extractfile("2-packed/collection.json"))
    manifest["stores"] = manifest["stores"][:2]
    for store in manifest["stores"]:
        store["files"] = dict(list(store["files"].items())[:1])
    if version == 2:
        manifest["modalities"] = {"rna": manifest["modalities"]["rna"]}
        manifest["n_vars"] = manifest["modalities"]["rna"]["n_vars"]
    manifest["n_obs"] = sum(store["n_obs"] for store in manifest["stores"])
    for about in (manifest, *manifest.get("modalities", {}).values()):
        about.get("types", {}).pop("layers/LIVE_DEAD", None)
        about.get("types", {}).pop("layers/counts", None)
    manifest["inputs"] = manifest["inputs"][:1]
    manifest["inputs"][0] |= {"renamed": {"a": "b"}, "left_out": ["c"], "x": "X", "cells_lost": {"rna": 1}}
    return manifest


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Name every value in a manifest, once for entries of one list."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def changed(manifest: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Replace each value by others, rename it, and leave it out."""
    for path in places(manifest):
        *parents, key = path

        def edited(path: list[Any] = parents) -> tuple[Any, Any]:
            whole = copy.deepcopy(manifest)
            at: Any = whole
            for step in path:
                at = at[step]
            return whole, at

        for other in OTHERS + REPLACED.get(key, []):
            whole, at = edited()
            at[key] = other
            yield f"{path} = {other!r}", whole
        for other in REPLACED.get(parents[-1], []) if parents else []:
            whole, at = edited()
            at[other] = at.pop(key)
            yield f"{path} becomes {other!r}", whole
        whole, at = edited()
        del at[key]
        yield f"{path} is missing", whole
        if isinstance(key, str):
            whole, at = edited()
            at["unknown"] = at[key]
            yield f"{path} once more", whole


@pytest.mark.parametrize("version", [1, 2])
def test_the_schema_forbids_what_is_refused(version: int, built: dict[str, Path]) -> None:
    """Both ways, but for what a schema cannot say."""
    manifest, verdicts = small_manifest(version, built), {True: 0, False: 0}
    VALIDATOR.validate(manifest)
    for what, other in changed(manifest):
        refusal = ""
        try:
            Collection.from_json(json.dumps(other), "here")
        except StoreError as e:
            refusal = str(e)
        if not NOT_IN_A_SCHEMA.search(refusal):
            assert VALIDATOR.is_valid(other) == (not refusal), f"{what}: {refusal or 'is read'}"
            verdicts[not refusal] += 1
    assert min(verdicts.values()) > 50


# --- the reader -------------------------------------------------------------------------------------------------------


@numcodecs_are_known()
def test_another_reader_agrees_with_the_loader(written: Path) -> None:
    found = format_reader.read(written)
    parts = found.get("modalities", {"": found})
    prefixes = {part: f"{part}:" if part else "" for part in parts}
    options: dict[str, Any] = {
        key: [f"{prefixes[part]}{own}" for part in parts for own in parts[part][key]] for key in ("layers", "obsm")
    }
    with Loader(batch_size=100, shuffle=False, names=True, **options).use_collection(written) as ds:
        (batch,) = ds
    assert list(batch.names) == found["names"]
    columns = dict(found["obs"]) if "modalities" in found else {}
    for part, expected in parts.items():
        held, own = batch.modalities[part] if part else batch, prefixes[part]
        matrices = {"X": held.data} | {key.removeprefix(own): one for key, one in (held.layers or {}).items()}
        for key, matrix in matrices.items():
            dense = matrix.to_scipy().toarray() if hasattr(matrix, "to_scipy") else np.asarray(matrix)
            truth = expected["X"] if key == "X" else expected["layers"][key]
            assert dense.dtype == truth.dtype
            np.testing.assert_array_equal(dense, truth)
        assert len(matrices) == 1 + len(expected["layers"])
        for key, array in (held.obsm or {}).items():
            np.testing.assert_array_equal(array, expected["obsm"][key.removeprefix(own)])
        if expected.get("mask") is not None:
            np.testing.assert_array_equal(held.mask, expected["mask"])
        columns |= {f"{own}{column}": values for column, values in expected["obs"].items()}
    assert set(batch.labels) == set(columns)
    for column, values in columns.items():
        own_values = [None if pd.isna(value) else value for value in batch.labels[column]]
        assert own_values == [None if pd.isna(value) else value for value in values], column


# --- the example ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Object at collection.json is not recognized")
def test_the_example_is_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "format.md").read_text("utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    (shown,) = (json.loads(text) for text in re.findall(r"^```json\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example, "format.md", "exec"), names)
    written = manifest_of(tmp_path / "tiny")
    VALIDATOR.validate(shown)
    assert names["stores"] == ["chunk_0.zarr"] == [store["name"] for store in written["stores"]]
    assert shown.keys() == written.keys()
    assert shown["software"].partition(" ")[0] == written["software"].partition(" ")[0]
    assert written["stores"][0]["files"].items() > shown["stores"][0]["files"].items()
    for each in (shown, written):
        del each["software"], each["stores"][0]["files"]
    assert shown == written


# --- the root group ---------------------------------------------------------------------------------------------------


def stores_that_zarr_lists(place: Any) -> list[str]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Object at collection.json is not recognized")
        return sorted(zarr.open_group(place, mode="r", use_consolidated=False).group_keys())


def test_zarr_lists_the_stores(written: Path) -> None:
    stores = [store.name for store in Collection.open(written).stores]
    assert stores_that_zarr_lists(written) == stores
    store = zarr.open_group(written, mode="r")[stores[-1]]
    assert store.attrs["encoding-type"] == ("MuData" if written.name == "modalities" else "anndata")
    obstore = pytest.importorskip("obstore")
    bucket = obstore.store.MemoryStore()
    for file in filter(Path.is_file, written.rglob("*")):
        obstore.put(bucket, file.relative_to(written).as_posix(), file.read_bytes())
    remote = zarr.storage.ObjectStore(bucket, read_only=True)
    assert stores_that_zarr_lists(remote) == stores
    Collection.open(remote).verify()


def test_a_collection_is_no_input(built: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be AnnData, got a collection; pass the"):
        create_anndata_collection(built["empty"], tmp_path / "out", progress=False)


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part", "ignore:Object at collection.json")
def test_consolidated_metadata_never_hide_a_store(built: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "store"
    shutil.copytree(built["empty"], path)
    zarr.open_group(path).attrs["mine"] = 1
    zarr.consolidate_metadata(path)
    Collection.open(path).verify()
    stale = (path / ROOT_GROUP).read_bytes()
    more = empty_input(2)
    more.obs_names = ["new1", "new2"]
    append_to_collection(more, path, progress=False)
    Collection.open(path).verify()
    assert len(list(zarr.open_group(path, mode="r").group_keys())) == 2
    assert zarr.open_group(path, mode="r").attrs["mine"] == 1
    # As a program leaves it that appends and does not know of it.
    (path / ROOT_GROUP).write_bytes(stale)
    with pytest.raises(CorruptStoreError, match="consolidated metadata must have all stores, and lack chunk_1"):
        Collection.open(path).verify()


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON"), ("[]", "must be the metadata of a"), ('{"zarr_format": 2}', "must be the metadata of a")],
)
def test_a_root_group_that_is_none(text: str, message: str, built: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "store"
    shutil.copytree(built["empty"], path)
    (path / ROOT_GROUP).write_text(text)
    with pytest.raises(CorruptStoreError, match=rf"zarr\.json: {message}"):
        Collection.open(path).verify()
    told = CliRunner().invoke(COMMANDS["verify"], [str(path), "--json", "--no-progress"])
    assert told.exit_code == 3
    assert list(json.loads(told.stdout)["damage"]) == [ROOT_GROUP]
    (path / ROOT_GROUP).unlink()
    Collection.open(path).verify()


@pytest.mark.slow
def test_a_reshuffled_collection_is_a_group(built: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "store"
    shutil.copytree(built["empty"], path)
    (path / ROOT_GROUP).unlink()
    reshuffle_collection(path, path, overwrite=True, progress=False)
    assert stores_that_zarr_lists(path) == ["chunk_0.zarr"]
