"""Is a manifest read back as it was written, and refused when it is not one?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from annbatch.errors import CorruptStoreError, StoreError
from annbatch.stores.collection import FORMAT, Collection, digest_names
from annbatch.stores.manifest import ElementTypes, FileEntry, StoreEntry
from annbatch.write import create_anndata_collection
from datagen import named_adata, write_inputs
from nested import put

COUNTS = st.integers(0, 2**40)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
DTYPES = st.sampled_from(["uint16", "uint32", "float32", "float64", "bool"]).map(np.dtype)


@st.composite
def collections(draw: st.DrawFn) -> Collection:
    entries = st.builds(FileEntry, nbytes=COUNTS, crc32c=st.integers(0, 2**32 - 1))
    paths = st.sampled_from(["zarr.json", "X/data/c/0", "obs/cell type/codes/c/0"])
    stores = tuple(
        StoreEntry(f"chunk_{i}.zarr", draw(COUNTS), draw(COUNTS), draw(st.dictionaries(paths, entries)))
        for i in range(draw(st.integers(0, 12)))
    )
    return Collection(
        path=Path("somewhere"),
        format=FORMAT,
        n_obs=sum(store.n_obs for store in stores),
        n_vars=draw(COUNTS),
        var_digest=draw(st.text("0123456789abcdef", min_size=64, max_size=64)),
        stores=stores,
        types=draw(st.dictionaries(NAMES, st.builds(ElementTypes, stored=DTYPES, original=DTYPES, indices=DTYPES))),
        obs_columns=tuple(draw(st.lists(NAMES))),
        shuffled=draw(st.booleans()),
        seed=draw(st.none() | st.integers(0, 2**64 - 1)),
        software=draw(st.text()),
    )


@given(collection=collections())
def test_json_both_ways(collection: Collection):
    assert Collection.from_json(collection.to_json(), "somewhere") == collection


def test_stores_come_in_numeric_order():
    names = [f"chunk_{i}.zarr" for i in (10, 2, 0, 1)]
    manifest = json.loads(minimal().to_json())
    manifest["stores"] = [{"name": name, "n_obs": 1, "nnz": 0, "files": {}} for name in names]
    manifest["n_obs"] = 4
    found = Collection.from_json(json.dumps(manifest), "here")
    assert found.store_paths == tuple(Path("here") / f"chunk_{i}.zarr" for i in (0, 1, 2, 10))


def minimal() -> Collection:
    return Collection(
        path=Path("here"),
        format=FORMAT,
        n_obs=3,
        n_vars=2,
        var_digest="0" * 64,
        stores=(StoreEntry("chunk_0.zarr", 3, 4, {"zarr.json": FileEntry(10, 7)}),),
        types={"X": ElementTypes(np.dtype("uint16"), np.dtype("float32"), np.dtype("uint16"))},
        obs_columns=("cell_type",),
        shuffled=True,
        seed=0,
        software="test",
    )


STORE = ("stores", 0)
FILE = (*STORE, "files", "zarr.json")
BROKEN = [
    (put("format"), "other", "format must be 'annbatch-dlpack-collection', got 'other'"),
    (put("format_version"), 3, "format_version must be 1, or 2 with modalities, for this version, got 3"),
    (put("format_version"), True, "format_version must be of type int, got True"),
    (put("n_obs"), 4, "n_obs must be the stores' sum 3, got 4"),
    (put("n_obs"), "3", "n_obs must be of type int, got '3'"),
    (put("n_vars"), -1, "n_vars must be >= 0, got -1"),
    (put("var_digest"), None, "var_digest must be of type str, got None"),
    (put("var_digest"), "A" * 64, "var_digest must be a SHA-256, 64 digits 0-9 and a-f, got 'AA"),
    (put("stores"), {}, "stores must be of type list"),
    (put(*STORE), 5, r"stores\[0\] must be an object, got 5"),
    (put(*STORE, "name"), "../chunk_0.zarr", "name must be chunk_{i}.zarr, got '../chunk_0.zarr'"),
    (put(*STORE, "name"), "chunk_00.zarr", "name must be chunk_{i}.zarr, got 'chunk_00.zarr'"),
    (put(*STORE, "nnz"), "many", "nnz must be of type int, got 'many'"),
    (put(*STORE, "files", "../secret"), {"nbytes": 1, "crc32c": 1}, "files must lie inside the store, got '../secret'"),
    (put(*STORE, "files", "/secret"), {"nbytes": 1, "crc32c": 1}, "files must lie inside the store"),
    (put(*STORE, "files", "X//data"), {"nbytes": 1, "crc32c": 1}, "files must lie inside the store"),
    (put(*FILE), 3, "must be an object, got 3"),
    (put(*FILE, "crc32c"), 2**32, r"crc32c must be < 2\*\*32, got 4294967296"),
    (put("types", "X"), "uint16", r"types\['X'\] must be an object"),
    (put("types", "X", "stored"), "uint17", "stored must be one of bool, float16, .*, uint8, got 'uint17'"),
    (put("obs_columns"), [1], r"obs_columns must be strings, got \[1\]"),
    (put("shuffled"), 1, "shuffled must be of type bool, got 1"),
    (put("seed"), "x", "seed must be of type int, got 'x'"),
    (put("seed"), 2**64, r"seed must be < 2\*\*64, got 18446744073709551616"),
]


@pytest.mark.parametrize(("edit", "value", "message"), BROKEN)
def test_a_broken_manifest_is_refused(edit: Callable[[Any, Any], None], value: Any, message: str):
    manifest = json.loads(minimal().to_json())
    edit(manifest, value)
    with pytest.raises(StoreError, match=rf"collection\.json.*{message}"):
        Collection.from_json(json.dumps(manifest), "here")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": "annbatch-dlpack-collection"}'])
def test_what_is_no_manifest(text: str):
    with pytest.raises(StoreError, match=r"collection\.json"):
        Collection.from_json(text, "here")


def test_repeated_stores_are_refused():
    manifest = json.loads(minimal().to_json())
    manifest["stores"] *= 2
    with pytest.raises(StoreError, match="store names must differ"):
        Collection.from_json(json.dumps(manifest), "here")


def test_digest():
    assert digest_names(["a", "bc"]) == hashlib.sha256(b"a\0bc\0").hexdigest()
    assert digest_names(["ab", "c"]) != digest_names(["a", "bc"])


def test_verify_finds_every_kind_of_damage(tmp_path: Path):
    collection = create_anndata_collection(write_inputs(tmp_path), tmp_path / "store", progress=False)
    Collection.open(collection.path).verify()
    shard = collection.store_paths[0] / "X/data/c/0"
    good = shard.read_bytes()
    for bad in (bytes([good[0] ^ 1]) + good[1:], good[:-1], good + b"\0"):
        shard.write_bytes(bad)
        with pytest.raises(CorruptStoreError, match=r"X/data/c/0: must have .*, as written, got"):
            collection.verify()
    shard.unlink()
    with pytest.raises(CorruptStoreError, match="X/data/c/0: cannot be read"):
        collection.verify()


def preshuffled(directory: Path, stores: list[ad.AnnData]) -> Path:
    root = zarr.open_group(
        directory,
        mode="w",
        zarr_format=3,
        attributes={"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"},
    )
    for i, adata in enumerate(stores):
        ad.io.write_elem(root, f"dataset_{i}", adata)
    return directory


@pytest.mark.filterwarnings("ignore:zarr v3 autosharding")
def test_opening_a_preshuffled_collection(tmp_path: Path):
    rng = np.random.default_rng(0)
    adatas = [named_adata(rng, range(i * 2, i * 2 + 2), range(4)) for i in range(11)]
    adatas[3].X = adatas[3].X.toarray()
    collection = Collection.open(preshuffled(tmp_path / "theirs", adatas))
    assert (collection.n_obs, collection.n_vars) == (22, 4)
    assert [path.name for path in collection.store_paths] == [f"dataset_{i}" for i in range(11)]
    assert [store.nnz for store in collection.stores] == [None if i == 3 else a.X.nnz for i, a in enumerate(adatas)]
    assert collection.var_digest == digest_names([f"g{c}" for c in range(4)])
    assert collection.obs_columns == tuple(adatas[0].obs)
    assert (collection.shuffled, collection.seed) == (True, None)


@pytest.mark.filterwarnings("ignore:zarr v3 autosharding")
def test_broken_preshuffled_collections(tmp_path: Path):
    rng = np.random.default_rng(0)
    with pytest.raises(StoreError, match=r"no dataset_\{i\} groups"):
        Collection.open(preshuffled(tmp_path / "empty", []))
    uneven = [named_adata(rng, range(2), range(4)), named_adata(rng, range(2), range(5))]
    with pytest.raises(StoreError, match=r"must have the same n_vars, got \[4, 5\]"):
        Collection.open(preshuffled(tmp_path / "uneven", uneven))
    directory = preshuffled(tmp_path / "torn", [named_adata(rng, range(2), range(4))])
    (directory / "dataset_0" / "X" / "zarr.json").unlink()
    with pytest.raises(StoreError, match="torn: cannot be read as a collection of scverse annbatch"):
        Collection.open(directory)


def test_what_is_no_collection(tmp_path: Path):
    with pytest.raises(StoreError, match="gone: no such directory"):
        Collection.open(tmp_path / "gone")
    with pytest.raises(StoreError, match=r"not a collection: it has no collection\.json"):
        Collection.open(tmp_path)
    (tmp_path / "collection.json").write_bytes(b"\xff\xfe")
    with pytest.raises(StoreError, match="cannot be read"):
        Collection.open(tmp_path)
