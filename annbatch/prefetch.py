"""How is the next window read while the user works with this one?

1. A thread of its own computes results in order, at most ``depth`` ahead of what was asked for.
2. An exception waits in its place in line and reaches the user's loop with its traceback.
3. `close` cancels what has not begun, and waits for what has. Dropping the iterator cancels, and waits for nothing.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Iterate over ``work(0)``, ``work(1)``, … ``work(n - 1)``, computed ahead in the background.

    Parameters
    ----------
    work
        Computes a result. It must not refer to this iterator, or nobody could drop it.
    n
        How many results there are.
    depth
        How many results may be ready or under way beyond the one asked for; 0 computes in the caller's thread.
    """

    def __init__(self, work: Callable[[int], T], n: int, depth: int) -> None:
        self._work = work
        self._pid = os.getpid()
        self._todo = iter(range(n))
        self._ahead: deque[Future[T]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="annbatch-prefetch") if depth else None
        for _ in range(depth):
            self._submit()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._pool is None:
            return self._work(next(self._todo))
        if not self._ahead:
            self.close()
            raise StopIteration
        result = self._ahead.popleft().result()
        self._submit()
        return result

    @property
    def is_ready(self) -> bool:
        """Whether the next result is there, and no exception."""
        return bool(self._ahead) and self._ahead[0].done() and self._ahead[0].exception() is None

    def close(self) -> None:
        """Give up what is still to come; returns when the thread has ended."""
        self._end(wait=True)

    def __del__(self) -> None:
        # The garbage collector may run in the very thread that would be waited for, or in one that it waits for.
        self._end(wait=False)

    def _end(self, *, wait: bool) -> None:
        self._todo = iter(())
        self._ahead.clear()
        # A forked child has no such thread, and no right to its locks.
        if self._pool is not None and self._pid == os.getpid():
            self._pool.shutdown(wait=wait, cancel_futures=True)

    def _submit(self) -> None:
        i = next(self._todo, None)
        if i is not None and self._pool is not None:
            self._ahead.append(self._pool.submit(self._work, i))
