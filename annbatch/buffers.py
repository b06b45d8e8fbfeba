"""Where does the memory of a batch come from, and when may it be used again?

1. `SlabPool.arrays` takes a slab: one aligned piece of memory for everything that a batch holds. Fresh memory costs a
   page fault for each of its pages, so slabs are used again.
2. NumPy arrays carved from a slab keep it alive through their ``base``, and so does every torch tensor or JAX array
   made from them without a copy.
3. When nothing refers to the slab any more its memory returns to the pool. A batch that is kept is never overwritten.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT_BYTES = 64
"""JAX takes host memory without a copy only at this alignment."""

MIN_SLAB_BYTES = 1 << 16


def aligned(n_bytes: int) -> int:
    """Round up to the alignment."""
    return -(-n_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def slab_class(n_bytes: int) -> int:
    """Round up to one of eight sizes per power of two, so that slabs fit again at the cost of at most an eighth."""
    step = max(MIN_SLAB_BYTES, 1 << max(0, (n_bytes - 1).bit_length() - 4)) if n_bytes else MIN_SLAB_BYTES
    return max(MIN_SLAB_BYTES, -(-n_bytes // step) * step)


class Slab:
    """Memory that one batch owns; arrays carved from it keep it alive.

    The finaliser stands on this object and not on an array: NumPy lets views refer to the object that owns the
    memory, and drops arrays in between.
    """

    __slots__ = ("__array_interface__", "__weakref__", "_memory", "_pool", "_used")

    def __init__(self, memory: NDArray[np.uint8], pool: SlabPool) -> None:
        address = memory.ctypes.data
        self._memory = memory
        self._pool = pool
        self._used = -address % ALIGNMENT_BYTES
        self.__array_interface__ = {
            "version": 3,
            "shape": memory.shape,
            "typestr": "|u1",
            "data": (address, False),
        }

    def carve(self, *wanted: tuple[int, np.dtype[Any]]) -> list[NDArray[Any]]:
        """Give aligned arrays of so many elements each, uninitialised."""
        whole = np.asarray(self)
        arrays = []
        for n, dtype in wanted:
            start = self._used
            self._used += aligned(n * dtype.itemsize)
            if start + n * dtype.itemsize > len(self._memory):
                raise MemoryError(f"slab of {len(self._memory)} bytes is too small for {self._used}")
            arrays.append(np.ndarray((n,), dtype, whole, start))
        return arrays

    def __del__(self) -> None:
        self._pool._give_back(self._memory)


# One lock for all pools, held to add two numbers. A fork waits until that is done, and the child gets it free.
_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class SlabPool:
    """Recycles slabs; safe to use from any thread, and from finalisers.

    Parameters
    ----------
    max_idle_bytes
        How much memory may wait for its next use; what is given back beyond that is freed.
    allocate
        Gives so many bytes of memory, (n_bytes,) uint8; None means ordinary memory.
    """

    def __init__(self, max_idle_bytes: int = 0, allocate: Callable[[int], NDArray[np.uint8]] | None = None) -> None:
        self.max_idle_bytes = max_idle_bytes
        self.allocate = allocate
        self._idle: dict[int, deque[NDArray[np.uint8]]] = {}
        self._used_bytes = self._peak_bytes = 0
        # What was given back since `_used_bytes` was counted: finalisers must not wait for a lock.
        self._returned: deque[int] = deque()

    def __reduce__(self) -> tuple[type[SlabPool], tuple[int]]:
        return SlabPool, (self.max_idle_bytes,)

    @property
    def idle_bytes(self) -> int:
        """Memory that waits for its next use."""
        return sum(size * len(slabs) for size, slabs in list(self._idle.items()))

    @property
    def peak_bytes(self) -> int:
        """Most memory of slabs that was in use at once since `begin_peak`."""
        return self._peak_bytes

    def begin_peak(self) -> None:
        """Let `peak_bytes` begin anew, at what is in use now."""
        with _lock:
            self._peak_bytes = self._count(0)

    def arrays(self, *wanted: tuple[int, np.dtype[Any]]) -> list[NDArray[Any]]:
        """Give aligned arrays of so many elements each, uninitialised, that share a slab of their own."""
        return self.take(sum(aligned(n * dtype.itemsize) for n, dtype in wanted)).carve(*wanted)

    def take(self, n_bytes: int) -> Slab:
        """Give a slab with room for ``n_bytes``, counted with `aligned` for each array in it."""
        size = slab_class(n_bytes + ALIGNMENT_BYTES)
        for fitting in sorted(self._idle):
            if size <= fitting <= size + size // 4:
                with suppress(IndexError):
                    return self._slab(self._idle[fitting].pop())
        return self._slab(np.empty(size, np.uint8) if self.allocate is None else self.allocate(size))

    def clear(self) -> None:
        """Free what waits for its next use."""
        self._idle.clear()

    def _slab(self, memory: NDArray[np.uint8]) -> Slab:
        with _lock:
            self._peak_bytes = max(self._peak_bytes, self._count(len(memory)))
        return Slab(memory, self)

    def _count(self, n_bytes: int) -> int:
        """Count bytes that are taken, and those that were given back; gives what is in use. The lock is held."""
        self._used_bytes += n_bytes
        while self._returned:
            self._used_bytes -= self._returned.popleft()
        return self._used_bytes

    def _give_back(self, memory: NDArray[np.uint8], no_slabs: Callable[[], deque[NDArray[np.uint8]]] = deque) -> None:
        # Runs in finalisers, at any moment in any thread: only single operations that the interpreter makes atomic.
        # At the end of the interpreter the module's own names may be gone.
        self._returned.append(len(memory))
        if self.idle_bytes + len(memory) <= self.max_idle_bytes:
            self._idle.setdefault(len(memory), no_slabs()).append(memory)
