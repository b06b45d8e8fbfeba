"""How does a build stop when it is interrupted?"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

from annbatch.warn import with_caller

T = TypeVar("T")

_LOOK_S = 0.2


def finish_before_raising(work: Callable[[Callable[[], None]], T]) -> T:
    """Run ``work`` in a thread, and if this one is interrupted, let ``work`` stop before the exception goes on.

    zarr writes on threads of its own and does not stop them when the waiting thread is interrupted; they would write on
    into a directory that somebody else claims or removes. ``work`` is given a function to call between its steps, which
    raises when it shall stop.
    """
    stop = Event()

    def checkpoint() -> None:
        if stop.is_set():
            raise InterruptedError("stopped")

    with ThreadPoolExecutor(1, thread_name_prefix="annbatch-write") as pool:
        future = pool.submit(with_caller(work), checkpoint)
        try:
            # Where the system hands a signal to another thread, this one does not wake for it: it looks every so often.
            while not wait([future], timeout=_LOOK_S).done:
                pass
            return future.result()
        except BaseException:
            stop.set()
            wait([future])
            raise
