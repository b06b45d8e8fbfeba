"""How does JAX get what the core has made on a CUDA device, though it works on streams of its own?

1. Batches are made on a stream that belongs to nobody else. JAX gets one when it is ready: not every version of JAX
   waits for the stream of whoever lends it memory. They are made ahead, so that the host seldom has to wait.
2. A `Lender` gives arrays to JAX by DLPack, without a copy, and hears when JAX lets go of them. Computations that read
   them may be queued still: XLA may give memory back in the order of its own stream.
3. So `Returned` keeps what has come back until a computation is over that was begun after that, on the same device, and
   only then does the memory go back to CuPy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp

from annbatch.errors import InputError

_MOST_UNDER_WAY = 2


class Mark(Protocol):
    """What `jax.Array` does, as far as it is needed here."""

    def is_ready(self) -> bool:
        """Say whether it is computed, and with it all that was begun before."""

    def block_until_ready(self) -> Any:
        """Wait until it is."""


class Returned:
    """Keeps memory that JAX has let go until nothing reads it any more.

    No more than two times memory that came back together is kept: whoever asks for more waits for the first of them, so
    that memory does not pile up where the device is slower than the host.

    Parameters
    ----------
    begin
        Begins a computation on the device.
    """

    def __init__(self, begin: Callable[[], Mark]) -> None:
        self._begin = begin
        # Appended to in finalisers, at any moment in any thread.
        self._back: deque[Any] = deque()
        self._under_way: deque[tuple[list[Any], Mark]] = deque()

    def append(self, memory: Any) -> None:
        """Take what JAX has let go."""
        self._back.append(memory)

    def settle(self) -> None:
        """Drop what nothing reads any more; to be called before new memory is taken."""
        back = [self._back.popleft() for _ in range(len(self._back))]
        if back:
            self._under_way.append((back, self._begin()))
        while len(self._under_way) > _MOST_UNDER_WAY or (self._under_way and self._under_way[0][1].is_ready()):
            self._under_way[0][1].block_until_ready()
            self._under_way.popleft()


class _Loan:
    """Owns an array for as long as JAX refers to its memory."""

    __slots__ = ("_array", "_returned")

    def __init__(self, array: Any, returned: Returned) -> None:
        self._array, self._returned = array, returned

    def __del__(self) -> None:
        self._returned.append(self._array)


class _Ready:
    """An array that is ready: whoever takes it need not wait for a stream."""

    __slots__ = ("_array",)

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self._array.__dlpack_device__()
        return device

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> Any:
        return self._array.__dlpack__(stream=-1, **options)


class Lender:
    """A CUDA device and a stream on it, both current in CuPy inside ``with``; see `lender`.

    Parameters
    ----------
    number
        The device's number.

    Raises
    ------
    InputError
        If JAX does not see the device.
    """

    def __init__(self, number: int) -> None:
        import cupy

        try:
            devices = jax.local_devices(backend="cuda")
        except RuntimeError as error:
            raise InputError(f"device 'cuda:{number}' must be one that JAX sees: {error}") from error
        found = [device for device in devices if device.local_hardware_id == number]
        if not found:
            raise InputError(f"device 'cuda:{number}' must be one that JAX sees, got {devices}")
        self.device = found[0]
        self._cupy_device = cupy.cuda.Device(number)
        with self._cupy_device:
            self._stream = cupy.cuda.Stream(non_blocking=True)
        zero, successor = jax.device_put(jnp.zeros((), jnp.int32), self.device), jax.jit(lambda x: x + 1)
        self.returned = Returned(lambda: successor(zero))

    def __enter__(self) -> Self:
        self._cupy_device.__enter__()
        self._stream.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.__exit__(kind, error, traceback)
        self._cupy_device.__exit__(kind, error, traceback)

    def wait_for_made(self) -> Callable[[], None]:
        """Give a function that waits for all that was made so far."""
        import cupy

        with self:
            event = cupy.cuda.Event(disable_timing=True)
            event.record(self._stream)
        wait: Callable[[], None] = event.synchronize
        return wait

    def put(self, tree: Any) -> Any:
        """Make JAX arrays of a tree: the same memory where it is the device's, which has to be made; else a copy."""
        with self:
            return jax.tree.map(self._put, tree)

    def _put(self, array: Any) -> Any:
        import cupy

        if not isinstance(array, cupy.ndarray):
            return jax.device_put(array, self.device)
        owner = _Loan(array, self.returned)
        memory = cupy.cuda.UnownedMemory(array.data.ptr, array.nbytes, owner, self._cupy_device.id)
        view = cupy.ndarray(array.shape, array.dtype, cupy.cuda.MemoryPointer(memory, 0))
        return jax.dlpack.from_dlpack(_Ready(view))


@cache
def lender(number: int) -> Lender:
    """Give the lender of a device: one, that outlives all loaders, since computations may outlive them too.

    Its stream is used by nobody else, so that memory of CuPy's pool that was taken on it is used again only here.
    """
    return Lender(number)
