"""How are objects read through a cache on the local disk?

1. What is asked for is rounded to pages; those that the cache holds are taken from it (`annbatch.remote.disk_cache`).
2. The others are fetched, in merged ranges, and kept. Each answer must have the ETag that the cache's file has: bytes
   of two versions of an object never meet.
3. The ETag comes from the listing that a collection is opened with, or else is asked for when an object is read first.
   An object that changes meanwhile is read anew; one without a strong ETag, or that keeps changing, without the cache.
4. An object that turns out to be corrupt is removed from the cache: it may have been damaged on its way.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray

from annbatch.counters import count
from annbatch.errors import CorruptStoreError, StoreError, redacted
from annbatch.plan.byte_ranges import merge
from annbatch.remote.disk_cache import PAGE_NBYTES, CachedFile, DiskCache
from annbatch.remote.object_reads import Fetched, Ints, Objects, array_of
from annbatch.remote.request_pool import slots, together

_log = logging.getLogger("annbatch")


@dataclass(frozen=True, slots=True)
class Version:
    """Which state of an object is meant."""

    etag: str | None
    """None if nothing tells it from others."""
    nbytes: int
    """Its size."""

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> Version:
        """Take it from what obstore says of an object; weak ETags do not promise equal bytes."""
        etag = meta.get("e_tag")
        return cls(None if not etag or etag.startswith("W/") else str(etag), int(meta["size"]))


class _Changed(Exception):
    """An object has another version than was thought."""

    def __init__(self, version: Version) -> None:
        self.version = version


class CachedObjects(Objects):
    """An obstore store that is read through a `DiskCache`.

    Parameters
    ----------
    store
        The obstore store.
    cache
        The cache.
    """

    is_cached = True

    def __init__(self, store: Any, cache: DiskCache) -> None:
        super().__init__(store)
        self._cache = cache
        self._place = _place_of(store, self.name)
        self._versions: dict[str, Version] = {}
        self._changed: set[str] = set()

    async def whole(self, key: str) -> NDArray[np.uint8] | None:
        """Give a whole object; None if there is none."""
        version = await self._version(key)
        if version is None or version.etag is None:
            return await super().whole(key)
        return await self._part(key, 0, version.nbytes)

    async def size(self, key: str) -> int | None:
        """Give the size of an object; None if there is none."""
        version = await self._version(key)
        return None if version is None else version.nbytes

    async def edge(self, key: str, nbytes: int, *, at_end: bool) -> tuple[NDArray[np.uint8], int] | None:
        """Give the first or last bytes of an object, and its size; None if there is none."""
        version = await self._version(key)
        if version is None or version.etag is None:
            return await super().edge(key, nbytes, at_end=at_end)
        nbytes = min(nbytes, version.nbytes)
        return await self._part(key, version.nbytes - nbytes if at_end else 0, nbytes), version.nbytes

    async def pieces(self, key: str, starts: Ints, nbytes: Ints) -> Fetched:
        """Have pieces of one object in memory, as `annbatch.remote.object_reads.fetch` does."""
        if not len(starts):
            return Fetched(starts, [])
        while (version := await self._version(key)) is not None and version.etag is not None:
            end = int((starts + nbytes).max())
            if end > version.nbytes:
                raise CorruptStoreError(f"{self.name}/{key}: must have at least {end} bytes, got {version.nbytes}")
            try:
                return await self._through(self._file(key, version), key, version, starts, nbytes)
            except _Changed as change:
                self._change(key, change.version)
        return await super().pieces(key, starts, nbytes)

    def forget(self, key: str) -> None:
        """Keep nothing of an object that is corrupt."""
        version = self._versions.get(key)
        if version is not None and version.etag is not None:
            self._file(key, version).remove()

    def _note(self, key: str, meta: Mapping[str, Any]) -> None:
        # What was read of an object stays what it is asked for.
        self._versions.setdefault(key, Version.of(meta))

    async def _version(self, key: str) -> Version | None:
        if key not in self._versions:
            await super().size(key)
        return self._versions.get(key)

    def _change(self, key: str, version: Version) -> None:
        if key in self._changed:
            _log.warning("%s/%s: keeps changing, so it is read without the cache", self.name, key)
            version = Version(None, version.nbytes)
        self._changed.add(key)
        self._versions[key] = version

    def _file(self, key: str, version: Version) -> CachedFile:
        return self._cache.file(self._place, key, str(version.etag), version.nbytes)

    async def _part(self, key: str, start: int, nbytes: int) -> NDArray[np.uint8]:
        if not nbytes:
            return np.empty(0, np.uint8)
        found = await self.pieces(key, np.array([start]), np.array([nbytes]))
        holder = found.holders[0]
        offset = int(found.addresses[0]) - holder.ctypes.data
        return holder[offset : offset + nbytes]

    async def _through(self, file: CachedFile, key: str, version: Version, starts: Ints, nbytes: Ints) -> Fetched:
        first, last = starts // PAGE_NBYTES, (starts + nbytes - 1) // PAGE_NBYTES
        pages = _pages(first, last)
        memory = np.empty(len(pages) * PAGE_NBYTES, np.uint8)
        found = await asyncio.to_thread(file.load, pages, memory)
        missing = pages[~found]
        count(cache_hits=len(pages) - len(missing), cache_misses=len(missing))
        if len(missing):
            at = missing * PAGE_NBYTES
            ranges = merge(np.zeros_like(missing), at, np.minimum(PAGE_NBYTES, file.nbytes - at))

            async def fill(group: slice) -> None:
                spans = list(zip(ranges.starts[group].tolist(), ranges.stops[group].tolist(), strict=True))
                parts = await self._of_version(key, version, spans)

                def keep() -> None:
                    for (start, _), part in zip(spans, parts, strict=True):
                        _place(pages, memory, start, part)
                        file.store(start, part)

                await asyncio.to_thread(keep)

            await together(map(fill, ranges.groups()))
        at_page = np.searchsorted(pages, first) - first
        return Fetched(memory.ctypes.data + at_page * PAGE_NBYTES + starts, [memory])

    async def _of_version(
        self, key: str, version: Version, spans: Sequence[tuple[int, int]]
    ) -> list[NDArray[np.uint8]]:
        """Give byte ranges of an object, all of one version."""
        import obstore

        async def one(start: int, stop: int) -> NDArray[np.uint8] | str:
            count(requests=1)
            answer = await obstore.get_async(self.store, key, options={"range": (start, stop)})
            if Version.of(answer.meta) != version:
                raise _Changed(Version.of(answer.meta))
            part: Any = await answer.bytes_async()
            count(bytes_read=len(part))
            return array_of(part) if len(part) == stop - start else f"got {len(part)} of the {stop - start} bytes"

        async def attempt() -> list[NDArray[np.uint8]] | str:
            answers = await together(one(*span) for span in spans)
            problem = next((answer for answer in answers if isinstance(answer, str)), None)
            return problem or [answer for answer in answers if not isinstance(answer, str)]

        try:
            async with slots(len(spans)):
                return await self._until_whole(key, spans[-1][1], attempt)
        except FileNotFoundError:
            raise StoreError(f"{self.name}/{key}: has been removed since it was first read") from None


if TYPE_CHECKING:
    _ObjectStore = zarr.storage.ObjectStore[Any]
else:
    # It has no type parameter in zarr 3.1.0.
    _ObjectStore = zarr.storage.ObjectStore


class CachedStore(_ObjectStore):
    """An object store as zarr opens it, read-only, whose arrays are read through a cache."""

    def __init__(self, store: Any, cache: DiskCache) -> None:
        super().__init__(store, read_only=True)
        self.objects = CachedObjects(store, cache)


def cached(store: Any, cache: DiskCache | None) -> Any:
    """Give a zarr store that is read through a cache, if it is an object store that is not in memory."""
    if cache is None or not isinstance(store, zarr.storage.ObjectStore):
        return store
    return store if type(store.store).__name__ == "MemoryStore" else CachedStore(store.store, cache)


def uncached(store: Any) -> Any:
    """Give a zarr store that is read without a cache, if `cached` made it."""
    return zarr.storage.ObjectStore(store.store, read_only=True) if isinstance(store, CachedStore) else store


def objects_of(store: Any) -> Objects:
    """Give what reads the objects of a `zarr.storage.ObjectStore`."""
    return store.objects if isinstance(store, CachedStore) else Objects(store.store)


def _place_of(store: Any, name: str) -> str:
    """Say which store this is, without secrets: stores of one name may lie with different providers."""
    config: Mapping[str, Any] = getattr(store, "config", None) or {}
    endpoint = config.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
    return f"{type(store).__name__} {redacted(str(endpoint))} {name}"


def _pages(first: Ints, last: Ints) -> Ints:
    """Give the pages of pieces that reach from their first one to their last one, ascending, each once."""
    n = last - first + 1
    within = np.arange(int(n.sum())) - np.repeat(np.cumsum(n) - n, n)
    return np.unique(np.repeat(first, n) + within)


def _place(pages: Ints, memory: NDArray[np.uint8], start: int, part: NDArray[np.uint8]) -> None:
    """Copy those of a range's pages that are wanted to their places."""
    first = start // PAGE_NBYTES
    a, b = np.searchsorted(pages, (first, first + -(-len(part) // PAGE_NBYTES))).tolist()
    for i in range(a, b):
        page = part[(int(pages[i]) - first) * PAGE_NBYTES :][:PAGE_NBYTES]
        memory[i * PAGE_NBYTES :][: len(page)] = page
