"""How is the folder of a collection a zarr group, so that ``zarr.open_group`` lists its stores?

1. `write_root_group` writes ``zarr.json`` beside the manifest. It says that the folder is a group, and nothing of what
   is in it, so that it stays true when stores are added.
2. `check_root_group` says whether such a file is sound. Collections of earlier versions have none, and no reader needs
   it.

The metadata of the stores are not consolidated there: zarr would parse all of them to open the group, which fails if
the codec of a single array is not installed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

from annbatch.errors import CorruptStoreError, naming
from annbatch.stores.location import Folder
from annbatch.stores.manifest import write_whole

ROOT_GROUP = "zarr.json"
"""The metadata of the group, beside the manifest."""

COLLECTION = "annbatch-dlpack-collection"
"""``encoding-type`` of the group."""

_ATTRIBUTES = {"encoding-type": COLLECTION, "encoding-version": "0.1.0"}


def write_root_group(directory: Path) -> None:
    """Make the directory of a collection a zarr group, unless it is one.

    Attributes of a group that is there stay. Metadata that somebody consolidated there go: they would hide the stores
    that are added.
    """
    try:
        found = json.loads((directory / ROOT_GROUP).read_bytes())
    except (OSError, ValueError, RecursionError):
        found = None
    attributes = {}
    if _is_group(found):
        if not found.get("consolidated_metadata"):
            return
        attributes = found.get("attributes", {})
    root = {"zarr_format": 3, "node_type": "group", "attributes": attributes | _ATTRIBUTES}
    write_whole(directory / ROOT_GROUP, json.dumps(root, indent=1))


def check_root_group(folder: Folder, stores: Iterable[str]) -> None:
    """Check the metadata of a collection's group, if there are any.

    Parameters
    ----------
    stores
        Names of the collection's stores.

    Raises
    ------
    CorruptStoreError
        If they are not those of a zarr v3 group, or consolidated metadata among them lack a store.
    StoreError
        If they cannot be read.
    """
    where = f"{folder}/{ROOT_GROUP}"
    with naming(where):
        try:
            text = folder.read(ROOT_GROUP)
        except FileNotFoundError:
            return
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise CorruptStoreError(f"{where}: not JSON: {e}") from e
    if not _is_group(found):
        raise CorruptStoreError(f"{where}: must be the metadata of a zarr v3 group, got other JSON; remove the file")
    consolidated = found.get("consolidated_metadata")
    if not consolidated:
        return
    metadata = consolidated.get("metadata") if isinstance(consolidated, dict) else None
    if lacking := [name for name in stores if not isinstance(metadata, dict) or name not in metadata]:
        raise CorruptStoreError(
            f"{where}: consolidated metadata must have all stores, and lack {lacking[0]}; consolidate them again"
        )


def _is_group(found: Any) -> TypeGuard[dict[str, Any]]:
    return (
        isinstance(found, dict)
        and (found.get("zarr_format"), found.get("node_type")) == (3, "group")
        and isinstance(found.get("attributes", {}), dict)
    )
