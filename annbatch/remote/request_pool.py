"""Who asks an object store for bytes, how many requests are under way, and what ends them?

1. One thread of the process, `_Loop`, runs all requests; it is a daemon, and waits for nothing but the network.
2. `Requests` are those of one epoch, or of one opening: they are cancelled together, at once, also at the interpreter's
   exit. Whoever waits for a result can be interrupted.
3. `slots` keeps the requests under way at most `max_requests`.
4. `together` awaits several coroutines, and leaves none of them behind if one fails.

After a fork nothing of this works in the child: what an object store's client did before the fork hangs there.
`check_process` refuses it with an error that says what to do instead.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterable
from concurrent.futures import CancelledError, Future
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from annbatch.counters import Counters, counted_by
from annbatch.errors import StoreError
from annbatch.plan.byte_ranges import MAX_GROUP

T = TypeVar("T")

RETRY_S = 60.0
"""Seconds after its first failure for which a read is tried again."""
IDLE_S = 20.0
"""Seconds of silence after which a request counts as failed."""

_process: int | None = None
_lock = threading.Lock()
_all: weakref.WeakSet[Requests] = weakref.WeakSet()


def check_process() -> None:
    """Refuse to read from object stores in a child that was forked after its parent had begun to.

    Raises
    ------
    StoreError
        Says which ways there are.
    """
    global _process
    if _process is None:
        _process = os.getpid()
    if _process != os.getpid():
        raise StoreError(
            "object stores cannot be read in a process forked from one that has used them; start processes with "
            'the method "spawn" or "forkserver", in torch DataLoader(multiprocessing_context="forkserver"), or '
            "open the collection in the child only"
        )


class _Loop:
    """The thread that runs requests; it is started when it is needed first."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def get(self) -> asyncio.AbstractEventLoop:
        """Give the running loop."""
        with _lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="annbatch-requests", daemon=True).start()
            return self._loop


_loop = _Loop()


class Requests:
    """Requests that are cancelled together, and counted by ``counters``."""

    def __init__(self, counters: Counters | None = None) -> None:
        self._counters = counters
        self._futures: set[Future[Any]] = set()
        self._is_cancelled = threading.Event()
        with _lock:
            _all.add(self)

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin to do something; its errors wait in the result."""
        try:
            check_process()
            if self._is_cancelled.is_set():
                raise CancelledError("the reader was closed")
        except BaseException:
            work.close()
            raise
        with counted_by(self._counters):
            future = asyncio.run_coroutine_threadsafe(work, _loop.get())
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        if self._is_cancelled.is_set():
            future.cancel()
        return future

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something and give its result; an interrupt ends it."""
        future = self.submit(work)
        try:
            return future.result()
        finally:
            future.cancel()

    def cancel(self) -> None:
        """End what is under way; nothing new is begun."""
        self._is_cancelled.set()
        for future in list(self._futures):
            future.cancel()


def _cancel_all() -> None:
    with _lock:
        found = list(_all)
    for requests in found:
        requests.cancel()


# Threads that wait for requests are waited for at exit: their requests are cancelled before.
getattr(threading, "_register_atexit", lambda function: None)(_cancel_all)


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


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all; if one fails, end the others and raise what it raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
