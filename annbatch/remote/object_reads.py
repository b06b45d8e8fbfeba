"""How are bytes read from an object store, so that they are all there or there is an error that says why?

obstore does the requests (https://developmentseed.org/obstore). `Objects` adds what it leaves open:

1. Answers that are short, or break off, are asked for again, with growing pauses, until `request_pool.RETRY_S` have
   passed since the first failure; a smaller object than it should be is an error at once.
2. Errors name the object. Nothing that might be a secret is in them: no query of a URL, no configuration.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from annbatch.counters import count
from annbatch.errors import CorruptStoreError, StoreError, naming, reason
from annbatch.plan.byte_ranges import merge
from annbatch.remote import request_pool
from annbatch.remote.request_pool import Requests, check_process, slots, together
from annbatch.remote.urls import name_of

Ints = NDArray[np.int64]
T = TypeVar("T")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0


@dataclass(frozen=True, slots=True, eq=False)
class Fetched:
    """Pieces of objects, in memory."""

    addresses: Ints
    """(n_pieces,) where each lies; -1 where none was to be fetched."""
    holders: list[NDArray[np.uint8]]
    """What keeps them there."""


class Objects:
    """An obstore store that is read by byte ranges; its pickle holds what the store's own does, secrets included.

    Parameters
    ----------
    store
        The obstore store.
    """

    is_cached = False
    """Whether `pieces` may know pieces without fetching them."""

    def __init__(self, store: Any) -> None:
        check_process()
        self.store = store
        self.name = name_of(store)

    def read(self, key: str) -> bytes:
        """Give a whole object.

        Raises
        ------
        FileNotFoundError
            If there is none.
        StoreError
            If it cannot be read.
        """
        return Requests().run(self._whole(key))

    def sizes(self, prefixes: Sequence[str], keys: Sequence[str]) -> dict[str, int]:
        """Give the sizes of objects: those below the prefixes, or, where the store cannot list, of the keys.

        Raises
        ------
        StoreError
            If the store cannot be read.
        """
        return Requests().run(self._sizes(prefixes, keys))

    async def _whole(self, key: str) -> bytes:
        import obstore

        async def attempt() -> bytes | str:
            count(requests=1)
            answer = await obstore.get_async(self.store, key)
            found = bytes(await answer.bytes_async())
            count(bytes_read=len(found))
            wanted = int(answer.meta["size"])
            return found if len(found) == wanted else f"got {len(found)} of its {wanted} bytes"

        return await self._until_whole(key, 0, attempt)

    async def _sizes(self, prefixes: Sequence[str], keys: Sequence[str]) -> dict[str, int]:
        import obstore

        async def of_prefix(prefix: str) -> dict[str, int]:
            async with slots():
                found: dict[str, int] = {}
                async for part in obstore.list(self.store, prefix, chunk_size=1000):
                    for entry in part:
                        found[str(entry["path"])] = int(entry["size"])
                        self._note(str(entry["path"]), entry)
                return found

        async def of_key(key: str) -> dict[str, int]:
            size = await self.size(key)
            return {} if size is None else {key: size}

        with naming(self.name):
            if type(self.store).__name__ == "HTTPStore":
                found = await together(of_key(key) for key in keys)
            else:
                found = await together(of_prefix(prefix) for prefix in prefixes)
        return {key: size for part in found for key, size in part.items()}

    async def whole(self, key: str) -> NDArray[np.uint8] | None:
        """Give a whole object; None if there is none."""
        try:
            async with slots():
                return array_of(await self._whole(key))
        except FileNotFoundError:
            return None

    async def size(self, key: str) -> int | None:
        """Give the size of an object; None if there is none."""
        import obstore

        async def attempt() -> int:
            count(requests=1)
            meta = await obstore.head_async(self.store, key)
            self._note(key, meta)
            return int(meta["size"])

        try:
            async with slots():
                return await self._until_whole(key, 0, attempt)
        except FileNotFoundError:
            return None

    async def edge(self, key: str, nbytes: int, *, at_end: bool) -> tuple[NDArray[np.uint8], int] | None:
        """Give the first or last bytes of an object, and its size; None if there is none."""
        import obstore

        async def attempt() -> tuple[NDArray[np.uint8], int] | str:
            count(requests=1)
            try:
                wanted: Any = {"suffix": nbytes} if at_end else (0, nbytes)
                answer = await obstore.get_async(self.store, key, options={"range": wanted})
                size = int(answer.meta["size"])
                found: Any = await answer.bytes_async()
            except obstore.exceptions.NotSupportedError:
                size = int((await obstore.head_async(self.store, key))["size"])
                first = max(0, size - nbytes)
                found = await obstore.get_range_async(self.store, key, start=first, end=size)
            count(bytes_read=len(found))
            # An object that is smaller than that gives all that it has.
            if len(found) != min(nbytes, size):
                return f"got {len(found)} of {nbytes} bytes"
            return array_of(found), size

        try:
            async with slots():
                return await self._until_whole(key, nbytes, attempt)
        except FileNotFoundError:
            return None

    async def ranges(self, key: str, starts: list[int], stops: list[int]) -> list[NDArray[np.uint8]]:
        """Give at most `MAX_GROUP` byte ranges of an object.

        Raises
        ------
        CorruptStoreError
            If the object ends before.
        StoreError
            If it is not there, or cannot be read.
        """
        import obstore

        async def attempt() -> list[NDArray[np.uint8]] | str:
            count(requests=len(starts))
            found = await obstore.get_ranges_async(self.store, key, starts=starts, ends=stops, coalesce=0)
            count(bytes_read=sum(map(len, found)))
            for one, start, stop in zip(found, starts, stops, strict=True):
                if len(one) != stop - start:
                    return f"got {len(one)} of the {stop - start} bytes from {start}"
            return [array_of(one) for one in found]

        try:
            async with slots(len(starts)):
                return await self._until_whole(key, max(stops), attempt)
        except FileNotFoundError:
            raise StoreError(f"{self.name}/{key}: has been removed since it was first read") from None

    async def pieces(self, key: str, starts: Ints, nbytes: Ints) -> Fetched:
        """Have pieces of one object in memory, as `fetch` does."""
        return await fetch_uncached([(self, key)], np.zeros_like(starts), starts, nbytes)

    def forget(self, key: str) -> None:
        """Hear that an object is corrupt."""

    def _note(self, key: str, meta: Mapping[str, Any]) -> None:
        """Hear what the store says of an object."""

    async def _until_whole(self, key: str, end: int, attempt: Callable[[], Awaitable[T | str]]) -> T:
        """Try until an attempt gives something else than a text that says what is wrong with the answer.

        An object that has fewer than ``end`` bytes is given up at once, and so is one that the store refuses to give.
        """
        import obstore

        name, began, pause = f"{self.name}/{key}", time.monotonic(), _FIRST_PAUSE_S
        first_failure: float | None = None
        while True:
            asked = time.monotonic()
            try:
                answer = await attempt()
                if not isinstance(answer, str):
                    return answer
                problem = answer
            except FileNotFoundError:
                raise
            except (obstore.exceptions.PermissionDeniedError, obstore.exceptions.UnauthenticatedError) as e:
                raise StoreError(f"{name}: access was denied: {reason(e)}") from None
            except obstore.exceptions.GenericError as e:
                problem = reason(e)
                if "builder error" in problem:
                    raise StoreError(f"{name}: cannot be requested: {problem}") from None
            except Exception as e:
                if not type(e).__module__.startswith("obstore"):
                    raise
                raise StoreError(f"{name}: cannot be read: {reason(e)}") from None
            # The client has its own retries: they count from the beginning of the attempt.
            first_failure = asked if first_failure is None else first_failure
            if time.monotonic() - first_failure + pause > request_pool.RETRY_S:
                raise StoreError(
                    f"{name}: could not be read within {time.monotonic() - began:.0f} s: {problem}"
                ) from None
            if end and (size := await self._size_now(key)) is not None and size < end:
                raise CorruptStoreError(f"{name}: must have at least {end} bytes, got {size}")
            count(retries=1)
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _size_now(self, key: str) -> int | None:
        """Give an object's size if the store says it soon."""
        import obstore

        try:
            return int((await asyncio.wait_for(obstore.head_async(self.store, key), 5))["size"])
        except FileNotFoundError:
            raise
        except (obstore.exceptions.BaseError, TimeoutError):
            return None


def array_of(buffer: Any) -> NDArray[np.uint8]:
    """Give a view of what obstore returned."""
    return np.frombuffer(buffer, np.uint8)


async def fetch(sources: Sequence[tuple[Objects, str]], of_piece: Ints, starts: Ints, nbytes: Ints) -> Fetched:
    """Have pieces of objects in memory, those that a cache holds without fetching them.

    Parameters
    ----------
    sources
        The objects: stores and keys.
    of_piece
        (n_pieces,) which of them each piece is of, ascending.
    starts
        (n_pieces,) first byte; -1 where there is none to fetch.
    nbytes
        (n_pieces,) at least 1.

    Raises
    ------
    CorruptStoreError, StoreError
        As `Objects.ranges` does.
    """
    parts, works = [], []
    edges = np.searchsorted(of_piece, np.arange(len(sources) + 1)).tolist()
    rest = starts.copy()
    for (objects, key), a, b in zip(sources, edges[:-1], edges[1:], strict=True):
        if objects.is_cached:
            own = a + np.flatnonzero(starts[a:b] >= 0)
            parts.append(own)
            works.append(objects.pieces(key, starts[own], nbytes[own]))
            rest[a:b] = -1
    found = await together([fetch_uncached(sources, of_piece, rest, nbytes), *works])
    addresses = found[0].addresses
    for own, one in zip(parts, found[1:], strict=True):
        addresses[own] = one.addresses
    return Fetched(addresses, [holder for one in found for holder in one.holders])


async def fetch_uncached(sources: Sequence[tuple[Objects, str]], of_piece: Ints, starts: Ints, nbytes: Ints) -> Fetched:
    """Fetch pieces of objects; see `fetch`."""
    ranges = merge(of_piece, starts, nbytes)
    groups = ranges.groups()
    works = []
    for group in groups:
        objects, key = sources[int(ranges.objects[group.start])]
        works.append(objects.ranges(key, ranges.starts[group].tolist(), ranges.stops[group].tolist()))
    holders = [one for found in await together(works) for one in found]
    bases = np.array([*(one.ctypes.data for one in holders), -1], np.int64)
    return Fetched(bases[ranges.of_piece] + ranges.offsets, holders)
