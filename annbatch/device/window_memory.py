"""Which memory of a device does a window lie in, and when may it be written again?

1. `WindowMemoryPool.take` gives memory for a window; a `WindowMemory` returns to the pool when the last batch
   of the window was made or dropped, with marks of the streams that read it.
2. Whoever takes it next lets the stream for copies wait for these marks. Nobody waits on the host.
3. `WindowMemoryPool.keep` owns page-locked memory until it has been copied.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from annbatch.buffers import slab_class
from annbatch.device.cuda import Device, Event, Stream
from annbatch.errors import DeviceMemoryError

_MOST_COPIES = 2
"""Copies from page-locked memory under way; whoever wants another one waits for the first of them."""


@dataclass(frozen=True, slots=True, eq=False)
class _Idle:
    """Memory that waits for its next use."""

    memory: Any
    n_bytes: int
    uses: tuple[Event, ...]
    """What has to be over before it is written again."""


class WindowMemory:
    """Memory of a device that one window lies in; when nothing refers to it any more, it returns to its pool."""

    __slots__ = ("_memory", "_n_bytes", "_pool", "_uses", "ptr")

    def __init__(self, memory: Any, n_bytes: int, pool: WindowMemoryPool) -> None:
        self.ptr = int(memory.ptr)
        """Its address."""
        self._memory = memory
        self._n_bytes = n_bytes
        self._pool = pool
        self._uses: dict[int, Event] = {}

    def used_on(self, stream: Stream) -> None:
        """Note that what a stream has been given so far reads this memory."""
        self._uses[stream.key] = stream.record()

    def __del__(self, idle: Callable[..., _Idle] = _Idle) -> None:
        # At the end of the interpreter the module's own names may be gone.
        self._pool._idle.append(idle(self._memory, self._n_bytes, tuple(self._uses.values())))


class WindowMemoryPool:
    """Recycles the memory of windows on a device, and owns page-locked memory until it has been copied.

    Parameters
    ----------
    device
        The device.
    n_windows
        How much memory may wait for its next use.
    """

    def __init__(self, device: Device, n_windows: int) -> None:
        self.device = device
        self._n_windows = n_windows
        # Finalisers append to the first one, at any moment in any thread; everything else holds the lock.
        self._idle: deque[_Idle] = deque()
        self._copies: deque[tuple[Any, Event]] = deque()
        self._scratch: Any = None
        self._scratch_nbytes = 0
        self._lock = threading.Lock()

    def take(self, n_bytes: int) -> WindowMemory:
        """Give memory that the stream for copies may write.

        Raises
        ------
        DeviceMemoryError
            If there is not so much left.
        """
        size, found = slab_class(n_bytes), None
        with self._lock:
            for _ in range(len(self._idle)):
                one = self._idle.popleft()
                if found is None and size <= one.n_bytes <= size + size // 4:
                    found = one
                else:
                    self._idle.append(one)
            while len(self._idle) > self._n_windows:
                self._wait(self._idle.popleft())
            if found is None:
                try:
                    return WindowMemory(self.device.copying.memory(size), size, self)
                except DeviceMemoryError:
                    if not self._idle:
                        raise
                self._free()
                return WindowMemory(self.device.copying.memory(size), size, self)
            self._wait(found)
        return WindowMemory(found.memory, found.n_bytes, self)

    def scratch(self, n_bytes: int) -> int:
        """Give the address of memory that only the stream for copies uses: the same one each time, if it suffices."""
        with self._lock:
            if self._scratch is None or n_bytes > self._scratch_nbytes:
                self._scratch = None
                self._scratch_nbytes = slab_class(n_bytes)
                self._scratch = self.device.copying.memory(self._scratch_nbytes)
            return int(self._scratch.ptr)

    def keep(self, memory: Any, copied: Event) -> None:
        """Own page-locked memory until its copy is over."""
        with self._lock:
            self._copies.append((memory, copied))
            while len(self._copies) > _MOST_COPIES or (self._copies and self._copies[0][1].done):
                self._copies[0][1].synchronize()
                self._copies.popleft()

    def clear(self) -> None:
        """Give back what waits for its next use, and wait for the copies under way."""
        with self._lock:
            self._free()
            self._scratch = None
            while self._copies:
                self._copies[0][1].synchronize()
                self._copies.popleft()

    def __del__(self) -> None:
        # At the interpreter's end there may be no CuPy any more.
        with suppress(Exception):
            self.clear()

    def _wait(self, idle: _Idle) -> None:
        # Memory returns to CuPy, or to RMM, in the order of the stream that it was taken on.
        for event in idle.uses:
            self.device.copying.wait(event)

    def _free(self) -> None:
        with suppress(IndexError):
            while True:
                self._wait(self._idle.popleft())
