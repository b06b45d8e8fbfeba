"""What does a manifest say of modalities, groups and files, and is it so?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr

from annbatch.errors import CorruptStoreError, InputError, StoreError
from annbatch.stores.collection import FORMAT, Collection
from annbatch.stores.location import LocalFolder
from annbatch.stores.manifest import ElementTypes, FileEntry, InputEntry, StoreEntry, checksum
from annbatch.stores.modality import ModalityEntry
from nested import put

U2, F4 = np.dtype("u2"), np.dtype("f4")
TYPES = ElementTypes(U2, F4, U2)
RNA = ModalityEntry(2, "1" * 64, ("cell_type",), {"X": TYPES, "layers/raw": TYPES}, (4, 5), False)
ADT = ModalityEntry(3, "2" * 64, (), {"X": ElementTypes(F4, F4, None)}, (None, None), True)


def plain(path: Path = Path("here"), **changes: Any) -> Collection:
    store = StoreEntry("chunk_0.zarr", 3, 4, {})
    found = Collection(path, FORMAT, 3, 2, "0" * 64, (store,), {"X": TYPES}, ("kind", "plate"), True, 5, "test")
    return replace(found, **changes)


def modal() -> Collection:
    stores = tuple(
        StoreEntry(
            f"chunk_{i}.zarr",
            3 + i,
            0,
            {"zarr.json": FileEntry(1, 2), "mod/rna/X/c/0": FileEntry(3, i), "mod/adt/X/c/0": FileEntry(5, 6)},
        )
        for i in range(2)
    )
    types = {"rna:X": TYPES, "rna:layers/raw": TYPES, "adt:X": ADT.types["X"]}
    return plain(n_obs=7, n_vars=5, stores=stores, types=types, modalities={"rna": RNA, "adt": ADT})


ENTRY = InputEntry("a.h5ad", 3, 2, 1, 5, 7, {"obs/a/b": "obs/a_b"}, ("var/x",), "raw/X", {"rna": 2})


@pytest.mark.parametrize(
    "collection",
    [
        plain(),
        plain(seed=None, shuffled=False),
        plain(grouped_by="kind"),
        plain(grouped_by=("kind", "plate")),
        plain(inputs=(ENTRY, InputEntry("b.h5ad", 0, 2, 0, 0, None))),
        modal(),
    ],
    ids=["plain", "stored in order", "grouped", "grouped by two", "inputs", "modalities"],
)
def test_a_manifest_is_read_back(collection: Collection):
    assert Collection.from_json(collection.to_json(), "here") == collection
    assert json.loads(collection.to_json())["format_version"] == (2 if collection.modalities else 1)
    # A line for each field.
    assert collection.to_json().startswith('{\n "format": "annbatch-dlpack-collection",\n "format_version"')


def test_manifests_of_earlier_versions_have_no_inputs_and_groups():
    manifest = json.loads(plain(grouped_by="kind", inputs=(ENTRY,)).to_json())
    del manifest["inputs"], manifest["grouped_by"]
    assert Collection.from_json(json.dumps(manifest), "here") == plain()


@pytest.mark.parametrize(
    ("edit", "value", "message"),
    [
        (put("modalities"), {}, "modalities must name at least one, got none"),
        (put("modalities", "a/b"), RNA.to_json(), "the name of a modality must not contain"),
        (put("modalities", "rna", "n_vars"), 3, "n_vars must be the sum of the modalities, 6, got 5"),
        (put("modalities", "rna", "nnz"), [4], r"modalities\['rna'\]: nnz must have one entry for each of the 2"),
        (put("format_version"), 0, "got 0$"),
        (put("format_version"), 3, "got 3; 'test' wrote it: upgrade annbatch-dlpack"),
        (put("grouped_by"), [], r"grouped_by must be of type str, got \[\]"),
        (put("grouped_by"), ["kind", 1], "grouped_by must be of type str"),
        (put("inputs"), [3], r"inputs\[0\] must be an object, got 3"),
        (put("inputs"), {}, "inputs must be of type list"),
        (put("seed"), -1, "seed must be >= 0, got -1"),
        (put("n_obs"), 8, "n_obs must be the stores' sum 7, got 8"),
    ],
)
def test_manifests_that_are_none(edit: Callable[[Any, Any], None], value: Any, message: str):
    manifest = json.loads(modal().to_json())
    edit(manifest, value)
    with pytest.raises(StoreError, match=message):
        Collection.from_json(json.dumps(manifest), "here")


def test_the_largest_seed():
    assert Collection.from_json(plain(seed=2**64 - 1).to_json(), "here").seed == 2**64 - 1


def test_a_modality_is_a_collection():
    found = modal().modality("rna")
    assert (found.n_obs, found.n_vars, found.var_digest, found.obs_columns) == (7, 2, "1" * 64, ("cell_type",))
    assert (found.types, found.modalities) == (RNA.types, {})
    assert [(store.name, store.n_obs, store.nnz) for store in found.stores] == [
        ("chunk_0.zarr/mod/rna", 3, 4),
        ("chunk_1.zarr/mod/rna", 4, 5),
    ]
    assert [store.files for store in found.stores] == [{"X/c/0": FileEntry(3, i)} for i in range(2)]
    with pytest.raises(InputError, match="'atac' must be one of the modalities"):
        modal().modality("atac")


def test_a_collection_on_disk(tmp_path: Path):
    for name in ("chunk_0.zarr/zarr.json", "chunk_0.zarr/X/c/0"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    files = {key: checksum(tmp_path / "chunk_0.zarr" / key) for key in ("zarr.json", "X/c/0")}
    found = plain(tmp_path, stores=(StoreEntry("chunk_0.zarr", 3, 4, files),))
    assert found.recorded(found.stores[0]) == {key: entry.crc32c for key, entry in files.items()}
    assert found.store_paths == (tmp_path / "chunk_0.zarr",)
    found.save(tmp_path)
    assert Collection.open(tmp_path) == found
    assert Collection.open(found) is found
    assert found.through(lambda: None) is found
    found.check_sizes()
    found.verify()
    plain(tmp_path / "gone", stores=(replace(found.stores[0], files={}),)).check_sizes()

    (tmp_path / "chunk_0.zarr" / "X" / "c" / "0").write_bytes(b"x" * files["X/c/0"].nbytes)
    found.check_sizes()
    with pytest.raises(CorruptStoreError, match="X/c/0: must have 18 bytes of crc32c 0x.*, as written, got 18 bytes"):
        found.verify()
    (tmp_path / "chunk_0.zarr" / "X" / "c" / "0").write_bytes(b"x")
    with pytest.raises(CorruptStoreError, match="X/c/0: must have 18 bytes, as written, got 1"):
        found.check_sizes()
    (tmp_path / "chunk_0.zarr" / "X" / "c" / "0").unlink()
    with pytest.raises(CorruptStoreError, match="X/c/0: cannot be read: it is missing"):
        found.check_sizes()
    with pytest.raises(CorruptStoreError, match="X/c/0: cannot be read: "):
        found.verify()


def test_a_damaged_root_group_is_found(tmp_path: Path):
    found = plain(tmp_path)
    (tmp_path / "zarr.json").write_text("[]")
    with pytest.raises(CorruptStoreError, match="must be the metadata of a zarr v3 group"):
        found.verify()
    # That of another program is not ours to judge.
    replace(found, format="annbatch-preshuffled").verify()


def test_a_collection_is_described():
    text = repr(modal())
    assert "n_obs=7, n_vars=5, stores=2" in text
    assert "modalities=[rna, adt]" in text
    assert "modalities" not in repr(plain())


def test_a_modality_has_a_number_of_elements_for_each_store():
    with pytest.raises(ValueError, match="zip"):
        replace(modal(), modalities={"rna": replace(RNA, nnz=(4,))}).modality("rna")


@pytest.mark.filterwarnings("ignore:zarr v3 autosharding")
def test_obs_of_stores(tmp_path: Path):
    obs = pd.DataFrame({"kind": ["a", "b", "a"], "n": [1, 2, 3]}, index=["c0", "c1", "c2"])
    obs["kind"] = obs["kind"].astype("category")
    root = zarr.open_group(tmp_path / "chunk_0.zarr", mode="w", zarr_format=3)
    ad.io.write_elem(root, "obs", obs)
    found = plain(tmp_path, obs_columns=("kind", "n"))
    assert found.obs().astype(object).equals(obs.astype(object))
    assert found.obs(["n"])["n"].tolist() == [1, 2, 3]
    assert found.obs([]).index.tolist() == ["c0", "c1", "c2"]
    with pytest.raises(ValueError, match="columns must be distinct"):
        found.obs(["n", "n"])


def test_the_digest_stays_what_it_is():
    """States hold it."""
    text = f"2 {'0' * 64}\nchunk_0.zarr 3 4\nX/c/0 10 7"
    found = plain(stores=(StoreEntry("chunk_0.zarr", 3, 4, {"X/c/0": FileEntry(10, 7)}),))
    assert found.digest() == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def test_consolidated_metadata_have_all_stores(tmp_path: Path):
    found = plain(tmp_path)
    root: dict[str, Any] = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    for names in (["chunk_0.zarr"], []):
        consolidated = {"consolidated_metadata": {"metadata": {name: {} for name in names}}}
        (tmp_path / "zarr.json").write_text(json.dumps(root | consolidated))
        if names:
            found.verify()
    with pytest.raises(CorruptStoreError, match="lack chunk_0.zarr; consolidate them again"):
        found.verify()


def test_sizes_that_cannot_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def sizes(*arguments: Any) -> dict[str, int]:
        raise PermissionError("odd")

    monkeypatch.setattr(LocalFolder, "sizes", sizes)
    found = plain(tmp_path, stores=(StoreEntry("chunk_0.zarr", 3, 4, {"X/c/0": FileEntry(10, 7)}),))
    with pytest.raises(CorruptStoreError, match="cannot be read: odd"):
        found.check_sizes()


@pytest.mark.filterwarnings("ignore:zarr v3 autosharding")
def test_obs_of_modalities(tmp_path: Path):
    root = zarr.open_group(tmp_path / "chunk_0.zarr", mode="w", zarr_format=3)
    for group, name in ((root, "n"), (root.require_group("mod/rna"), "own")):
        ad.io.write_elem(group, "obs", pd.DataFrame({name: [1, 2, 3]}, index=["c0", "c1", "c2"]))
    found = plain(tmp_path, modalities={"rna": replace(RNA, nnz=(4,))})
    assert list(found.obs().columns) == ["n", "rna:own"]
