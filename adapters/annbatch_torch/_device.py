"""Whose memory is it, and on which stream, while a CUDA device works later than the host asks it to?

Batches that are copied to a device:

1. The core takes the memory of its batches from `page_locked`, since only such memory is copied in the background.
2. `Copies.keep` owns a batch until the event behind its copies has passed; only then does its slab return to the pool.

Batches that the core makes on the device, on the stream that is current in CuPy:

3. `OnCurrentStream` asks for each while torch's current stream is that stream (`current_in_cupy`). Its memory is then
   used first, and used again, in the order of what torch does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

_MOST_UNDER_WAY = 2

_Batch = TypeVar("_Batch")


class Event(Protocol):
    """What `torch.cuda.Event` does, as far as it is needed here."""

    def query(self) -> bool:
        """Say whether the work before the event is done."""

    def synchronize(self) -> None:
        """Wait until it is."""


class Copies:
    """Owns the host memory of the last few batches until they have been copied.

    No more than two batches are under way: whoever asks for more waits for the first of them, so that page-locked
    memory does not pile up where the device is slower than the loader.
    """

    def __init__(self) -> None:
        self._under_way: deque[tuple[Any, Event]] = deque()
        # Threads may share an iterator.
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[Copies], tuple[()]]:
        # Another process has copies of its own.
        return Copies, ()

    def keep(self, memory: Any, copied: Event) -> None:
        """Own ``memory`` until ``copied`` has passed."""
        with self._lock:
            self._under_way.append((memory, copied))
            while len(self._under_way) > _MOST_UNDER_WAY or (self._under_way and self._under_way[0][1].query()):
                self._under_way[0][1].synchronize()
                self._under_way.popleft()

    def __del__(self) -> None:
        for _, copied in self._under_way:
            copied.synchronize()


def page_locked(n_bytes: int) -> NDArray[np.uint8]:
    """Give page-locked memory, (n_bytes,) uint8."""
    memory: NDArray[np.uint8] = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True).numpy()
    return memory


def event_behind_copies(device: torch.device) -> Event:
    """Give an event behind everything that the current stream of a CUDA device has been given to do."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


@dataclass(frozen=True, slots=True)
class _Stream:
    """A stream as CUDA's stream protocol has it."""

    handle: int
    """The driver's."""

    def __cuda_stream__(self) -> tuple[int, int]:
        """Give the protocol's version, and the handle."""
        return 0, self.handle


@contextmanager
def current_in_cupy(device: torch.device) -> Iterator[None]:
    """Let the stream that is current in torch, for a CUDA device, be current in CuPy, and that device too."""
    import cupy

    stream = torch.cuda.current_stream(device).cuda_stream
    with cupy.cuda.Device(device.index), cupy_stream(stream, device.index):
        yield


def cupy_stream(handle: int, device: int) -> Any:
    """Give CuPy's view of a stream of others."""
    import cupy

    # CuPy 13 knows only the latter, CuPy 14 warns of it.
    if hasattr(cupy.cuda.Stream, "from_external"):
        return cupy.cuda.Stream.from_external(_Stream(handle))
    return cupy.cuda.ExternalStream(handle, device)


class OnCurrentStream(Iterator[_Batch], Generic[_Batch]):
    """Asks for batches, and hands them over, on the stream that is current in torch at that moment.

    Parameters
    ----------
    epoch
        Makes the core's batches on CuPy's current stream.
    hand_over
        Makes torch's of them.
    device
        The device.
    """

    def __init__(self, epoch: Iterator[Any], hand_over: Callable[[Any], _Batch], device: torch.device) -> None:
        self._epoch, self._hand_over, self._device = epoch, hand_over, device

    def __next__(self) -> _Batch:
        with current_in_cupy(self._device):
            return self._hand_over(next(self._epoch))
