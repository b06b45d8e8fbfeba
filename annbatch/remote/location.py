"""Where does a collection lie, if not in a local directory?

`locate` takes what users pass: a path, a URL of an object store, an obstore store, or any zarr store. It gives a
`Path`, or a `RemoteFolder`, which reads small objects and gives zarr what it needs to open groups.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import StorePath

from annbatch.errors import StoreError, naming
from annbatch.remote.cached_reads import cached, objects_of
from annbatch.remote.disk_cache import DiskCache
from annbatch.remote.object_reads import Objects
from annbatch.remote.urls import is_url, open_url


@dataclass(frozen=True, slots=True, eq=False)
class RemoteFolder:
    """What lies in a zarr store, beginning with its root."""

    store: Any
    """The zarr store."""
    name: str
    """What messages call it: a URL without secrets, or the store's description."""

    def __str__(self) -> str:
        return self.name

    @property
    def objects(self) -> Objects | None:
        """The object store behind the zarr store, if it is one."""
        return objects_of(self.store) if isinstance(self.store, zarr.storage.ObjectStore) else None

    @property
    def can_list(self) -> bool:
        """Whether the store says what is in it; plain web servers do not."""
        return not isinstance(self.store, zarr.storage.ObjectStore) or type(self.store.store).__name__ != "HTTPStore"

    def through(self, cache: DiskCache) -> RemoteFolder:
        """Give the same folder, read through a cache on the local disk if it lies in an object store."""
        return RemoteFolder(cached(self.store, cache), self.name)

    def read(self, key: str) -> bytes:
        """Give a whole object.

        Raises
        ------
        FileNotFoundError
            If there is none.
        StoreError
            If the store cannot be read.
        """
        if (objects := self.objects) is not None:
            return objects.read(key)
        with naming(f"{self.name}/{key}"):
            try:
                found = sync(self.store.get(key, default_buffer_prototype()))
            except Exception as e:
                # Stores of Icechunk hold nothing but what zarr writes, and refuse other keys.
                if "invalid zarr key" not in str(e):
                    raise
                found = None
        if found is None:
            raise FileNotFoundError(f"{self.name}: there is no {key}")
        return bytes(found.to_bytes())

    def sizes(self, prefixes: Iterable[str], keys: Iterable[str]) -> dict[str, int]:
        """Give the sizes of those of the keys, all below one of the prefixes, that exist; others may be among them."""
        if (objects := self.objects) is not None:
            return objects.sizes(list(prefixes), list(keys))
        return {key: sync(self.store.getsize(key)) for key in keys if sync(self.store.exists(key))}

    def group(self, path: str) -> zarr.Group:
        """Open a group.

        Raises
        ------
        StoreError
            If there is none, or it cannot be read.
        """
        with naming(f"{self.name}/{path}".rstrip("/")):
            return zarr.open_group(self.store, path=path, mode="r")


def open_group(path: Path) -> zarr.Group:
    """Open a group in a local directory; raises StoreError if there is none, or it cannot be read."""
    with naming(str(path)):
        return zarr.open_group(path, mode="r")


def locate(source: Any) -> Path | RemoteFolder:
    """Say where a path, URL, obstore store or zarr store leads.

    Raises
    ------
    ImportError
        If it needs obstore, which is not installed.
    StoreError
        If it is none of these.
    """
    if isinstance(source, str) and is_url(source):
        source = open_url(source)
    elif isinstance(source, (str, os.PathLike)):
        return Path(source)
    if type(source).__module__.split(".")[0] == "obstore":
        source = zarr.storage.ObjectStore(source, read_only=True)
    if isinstance(source, zarr.storage.LocalStore):
        return Path(source.root)
    if not isinstance(source, Store):
        raise StoreError(f"a collection must be a path, a URL or a store, got {type(source).__name__}")
    if isinstance(source, zarr.storage.ObjectStore):
        return RemoteFolder(source, Objects(source.store).name)
    # Some stores, zip files among them, are not open before somebody asks for it.
    return RemoteFolder(sync(StorePath.open(source, "", "r")).store, str(source))
