"""How are bytes read from an object store, so that they are all there or there is an error that says why?

obstore does the requests (https://developmentseed.org/obstore). `Objects` adds what it leaves open:

1. Answers that are short, or break off, are asked for again, with growing pauses, until `RETRY_S` have passed since the
   first failure; a smaller object than it should be is an error at once.
2. At most `max_requests` are under way in the process.
3. Errors name the object. Nothing that might be a secret is in them: no query of a URL, no configuration.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from annbatch.errors import AnnbatchError, CorruptStoreError, StoreError
from annbatch.ranges import MAX_GROUP, merge
from annbatch.requests import Requests, check_process, together

Ints = NDArray[np.int64]
T = TypeVar("T")

RETRY_S = 60.0
"""Seconds after its first failure for which a read is tried again."""
IDLE_S = 20.0
"""Seconds of silence after which a request counts as failed."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "http", "https", "file", "memory")
_URL = re.compile(rf"({'|'.join(_SCHEMES)})://", re.IGNORECASE)


def is_url(text: str) -> bool:
    """Say whether a text is the URL of an object store, rather than a path."""
    return _URL.match(text) is not None


def open_url(url: str) -> Any:
    """Give the obstore store of a URL; keys and regions come from the environment, as obstore documents.

    Raises
    ------
    ImportError
        If obstore is not installed.
    StoreError
        If it cannot make a store of the URL.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as e:
        raise ImportError(f"reading {redacted(url)} needs obstore: pip install obstore") from e
    check_process()
    idle = timedelta(seconds=IDLE_S)
    options: Any = {"connect_timeout": idle, "read_timeout": idle, "timeout": timedelta(hours=1)}
    # obstore takes these options instead of those of the environment, of which this one is in use.
    allowed = (os.environ.get(f"{cloud}_ALLOW_HTTP", "").lower() for cloud in ("AWS", "GOOGLE", "AZURE"))
    options["allow_http"] = url.lower().startswith("http://") or any(text in ("1", "true", "yes") for text in allowed)
    retries: Any = {"max_retries": 100, "retry_timeout": timedelta(seconds=RETRY_S)}
    scheme = _URL.match(url)
    more = {} if scheme and scheme[1].lower() in ("file", "memory") else {"client_options": options}
    try:
        return from_url(url, retry_config=retries, **more) if more else from_url(url)
    except (BaseError, ValueError, TypeError, OSError) as e:
        raise StoreError(f"{redacted(url)}: is no URL that obstore can open: {_reason(e)}") from None


def redacted(text: str) -> str:
    """Give a text without the parts of its URLs that may be secret: user, password and query."""
    text = re.sub(r"(\w://)[^/@\s\"']*@", r"\1…@", text)
    return re.sub(r"\?[^\s\"',)]+", "?…", text)


def _reason(error: BaseException) -> str:
    """Say in one line what an error of obstore says first."""
    return redacted(str(error).split("\n\n")[0].strip()) or type(error).__name__


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Turn whatever libraries raise of what a store holds into a StoreError that names it, and holds no secret.

    zarr and anndata raise whatever their code trips over where metadata make no sense: no list of types is complete.
    """
    try:
        yield
    except AnnbatchError:
        raise
    except Exception as e:
        found = StoreError(f"{name}: cannot be read: {type(e).__name__}: {_reason(e)}")
        # What obstore says of an error may hold secrets, so that it is not chained.
        if type(e).__module__.startswith("obstore"):
            raise found from None
        raise found from e


def name_of(store: Any) -> str:
    """Give the URL of an obstore store, as people know it and without secrets."""
    kind, prefix = type(store).__name__, getattr(store, "prefix", None)
    place = f"/{prefix}" if prefix else ""
    if kind == "HTTPStore":
        return redacted(str(store.url)).rstrip("/")
    if kind in ("S3Store", "GCSStore"):
        return f"{'s3' if kind == 'S3Store' else 'gs'}://{store.config.get('bucket', '')}{place}"
    if kind == "AzureStore":
        return f"az://{store.config.get('container_name', '')}{place}"
    return f"file://{place}" if kind == "LocalStore" else "memory://"


def _max_requests() -> int:
    """Give how many requests may be under way: each may need a connection, and so a descriptor."""
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    except ImportError:
        return 250
    return 250 if soft == resource.RLIM_INFINITY else max(MAX_GROUP, min(250, soft // 4))


max_requests = _max_requests()
_free = asyncio.Semaphore(max_requests)
_turn = asyncio.Lock()


@asynccontextmanager
async def slots(n: int = 1) -> AsyncIterator[None]:
    """Wait until so many more requests may be under way."""
    n_taken = 0
    try:
        # One after the other: two that have taken some might wait for each other.
        async with _turn:
            for _ in range(n):
                await _free.acquire()
                n_taken += 1
        yield
    finally:
        for _ in range(n_taken):
            _free.release()


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
            answer = await obstore.get_async(self.store, key)
            found = bytes(await answer.bytes_async())
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
            try:
                wanted: Any = {"suffix": nbytes} if at_end else (0, nbytes)
                answer = await obstore.get_async(self.store, key, options={"range": wanted})
                size = int(answer.meta["size"])
                found: Any = await answer.bytes_async()
            except obstore.exceptions.NotSupportedError:
                size = int((await obstore.head_async(self.store, key))["size"])
                first = max(0, size - nbytes)
                found = await obstore.get_range_async(self.store, key, start=first, end=size)
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
            found = await obstore.get_ranges_async(self.store, key, starts=starts, ends=stops, coalesce=0)
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
                raise StoreError(f"{name}: access was denied: {_reason(e)}") from None
            except obstore.exceptions.GenericError as e:
                problem = _reason(e)
                if "builder error" in problem:
                    raise StoreError(f"{name}: cannot be asked for: {problem}") from None
            except Exception as e:
                if not type(e).__module__.startswith("obstore"):
                    raise
                raise StoreError(f"{name}: cannot be read: {_reason(e)}") from None
            # The client has its own retries: they count from the beginning of the attempt.
            first_failure = asked if first_failure is None else first_failure
            if time.monotonic() - first_failure + pause > RETRY_S:
                raise StoreError(
                    f"{name}: could not be read within {time.monotonic() - began:.0f} s: {problem}"
                ) from None
            if end and (size := await self._size_now(key)) is not None and size < end:
                raise CorruptStoreError(f"{name}: has {size} bytes, and byte {end - 1} is wanted")
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
