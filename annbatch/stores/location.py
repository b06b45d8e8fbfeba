"""Where does a collection lie, and how are its files read?

`locate` takes what users pass: a path, a URL of an object store, an obstore store, or any zarr store. It gives a
`LocalFolder` or a `RemoteFolder`. Both read small files whole, tell their sizes, and open groups for zarr; nobody else
needs to know which of them it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import StorePath

from annbatch.check import expanded
from annbatch.errors import StoreError, naming
from annbatch.remote.cached_reads import cached, objects_of, uncached
from annbatch.remote.disk_cache import DiskCache
from annbatch.remote.object_reads import Objects
from annbatch.remote.urls import is_url, open_url
from annbatch.stores.manifest import FileEntry, checksum, checksum_of


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A local directory."""

    path: Path

    can_list = True

    def __str__(self) -> str:
        return str(self.path)

    def through(self, open_cache: Callable[[], DiskCache | None]) -> LocalFolder:
        """Give the folder itself: what is on the local disk needs no cache."""
        return self

    def read(self, key: str) -> bytes:
        """Give a whole file; raises FileNotFoundError if there is none, OSError if it cannot be read."""
        return (self.path / key).read_bytes()

    def sizes(self, prefixes: Iterable[str], keys: Iterable[str]) -> dict[str, int]:
        """Give the sizes of those of the keys that exist; raises OSError if that cannot be found out."""
        found = {}
        for key in keys:
            with suppress(FileNotFoundError, NotADirectoryError):
                found[key] = (self.path / key).stat().st_size
        return found

    def checksum(self, key: str) -> FileEntry:
        """Read a file and give its size and checksum; raises OSError if it cannot be read."""
        return checksum(self.path / key)

    def group(self, path: str) -> zarr.Group:
        """Open a group; raises StoreError if there is none, or it cannot be read."""
        with naming(str(self.path / path)):
            return zarr.open_group(self.path / path, mode="r")


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
    def can_list(self) -> bool:
        """Whether the store says what is in it; plain web servers do not."""
        return not isinstance(self.store, zarr.storage.ObjectStore) or type(self.store.store).__name__ != "HTTPStore"

    def through(self, open_cache: Callable[[], DiskCache | None]) -> RemoteFolder:
        """Give the same folder, read through a cache on the local disk, if there is one."""
        return RemoteFolder(cached(uncached(self.store), open_cache()), self.name)

    def read(self, key: str) -> bytes:
        """Give a whole object.

        Raises
        ------
        FileNotFoundError
            If there is none.
        StoreError
            If the store cannot be read.
        """
        if (objects := self._objects) is not None:
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
        if (objects := self._objects) is not None:
            return objects.sizes(list(prefixes), list(keys))
        return {key: sync(self.store.getsize(key)) for key in keys if sync(self.store.exists(key))}

    def checksum(self, key: str) -> FileEntry:
        """Read an object and give its size and checksum; raises as `read` does."""
        return checksum_of(self.read(key))

    def group(self, path: str) -> zarr.Group:
        """Open a group.

        Raises
        ------
        StoreError
            If there is none, or it cannot be read.
        """
        with naming(f"{self.name}/{path}".rstrip("/")):
            return zarr.open_group(self.store, path=path, mode="r")

    @property
    def _objects(self) -> Objects | None:
        """The object store behind the zarr store, if it is one."""
        return objects_of(self.store) if isinstance(self.store, zarr.storage.ObjectStore) else None


Folder = LocalFolder | RemoteFolder


def locate(source: Any) -> Folder:
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
        return LocalFolder(Path(expanded(source)))
    if type(source).__module__.split(".")[0] == "obstore":
        source = zarr.storage.ObjectStore(source, read_only=True)
    if isinstance(source, zarr.storage.LocalStore):
        return LocalFolder(Path(source.root))
    if not isinstance(source, Store):
        raise StoreError(f"a collection must be a path, a URL or a store, got {type(source).__name__}")
    if isinstance(source, zarr.storage.ObjectStore):
        return RemoteFolder(source, Objects(source.store).name)
    # Some stores, zip files among them, are not open before somebody asks for it.
    return RemoteFolder(sync(StorePath.open(source, "", "r")).store, str(source))
