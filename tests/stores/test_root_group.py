"""Is the folder of a collection made a zarr group, whatever lies there, and is metadata that is none found?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from annbatch.errors import CorruptStoreError
from annbatch.stores.location import LocalFolder
from annbatch.stores.root_group import COLLECTION, ROOT_GROUP, check_root_group, write_root_group

OURS = {"encoding-type": COLLECTION, "encoding-version": "0.1.0"}
GROUP: dict[str, Any] = {"zarr_format": 3, "node_type": "group"}
STORES = ["chunk_0.zarr", "chunk_1.zarr"]


@pytest.mark.parametrize("attributes", [{}, {"attributes": {}}, {"attributes": {"title": "cells"}}], ids=str)
def test_a_group_stays_as_it_is(attributes: dict[str, Any], tmp_path: Path):
    path = tmp_path / ROOT_GROUP
    for consolidated in ({}, {"consolidated_metadata": None}):
        path.write_text(text := json.dumps(GROUP | attributes | consolidated))
        write_root_group(tmp_path)
        assert path.read_text() == text
    # Metadata that were consolidated hide the stores that are added.
    path.write_text(json.dumps(GROUP | attributes | {"consolidated_metadata": {"metadata": {}}}))
    write_root_group(tmp_path)
    assert json.loads(path.read_text()) == GROUP | {"attributes": attributes.get("attributes", {}) | OURS}


@pytest.mark.parametrize(
    "there",
    [
        None,
        "no JSON",
        "[" * 100_000,
        "[]",
        json.dumps(GROUP | {"zarr_format": 2, "attributes": {"title": "cells"}}),
        json.dumps(GROUP | {"node_type": "array", "attributes": {"title": "cells"}}),
        json.dumps(GROUP | {"attributes": ["title"]}),
    ],
    ids=lambda there: str(there)[:60],
)
def test_what_is_no_group_becomes_one(there: str | None, tmp_path: Path):
    if there is not None:
        (tmp_path / ROOT_GROUP).write_text(there)
        is_json = there.endswith(("]", "}"))
        problem = "must be the metadata of a zarr v3 group" if is_json else "not JSON"
        with pytest.raises(CorruptStoreError, match=f"{ROOT_GROUP}: {problem}"):
            check_root_group(LocalFolder(tmp_path), [])
    write_root_group(tmp_path)
    text = (tmp_path / ROOT_GROUP).read_text()
    assert json.loads(text) == GROUP | {"attributes": OURS}
    assert text == json.dumps(json.loads(text), indent=1)
    check_root_group(LocalFolder(tmp_path), STORES)


def test_a_folder_without_group_metadata_is_sound(tmp_path: Path):
    check_root_group(LocalFolder(tmp_path), STORES)


@pytest.mark.parametrize(
    ("consolidated", "lacking"),
    [
        (None, None),
        ({}, None),
        ({"metadata": {store: {} for store in STORES}}, None),
        ({"metadata": {"chunk_0.zarr": {}}}, "chunk_1.zarr"),
        ({"metadata": {"other": {}}}, "chunk_0.zarr"),
        ({"metadata": ["chunk_0.zarr"]}, "chunk_0.zarr"),
        (["metadata"], "chunk_0.zarr"),
        ({"kind": "inline"}, "chunk_0.zarr"),
    ],
    ids=str,
)
def test_consolidated_metadata_must_have_all_stores(consolidated: Any, lacking: str | None, tmp_path: Path):
    (tmp_path / ROOT_GROUP).write_text(json.dumps(GROUP | {"consolidated_metadata": consolidated}))
    if lacking is None:
        check_root_group(LocalFolder(tmp_path), STORES)
    else:
        with pytest.raises(CorruptStoreError, match=rf"must have all stores, and lack {lacking};"):
            check_root_group(LocalFolder(tmp_path), STORES)
