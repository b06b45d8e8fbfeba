"""When may host memory be used again from which a copy to a device was queued, but perhaps not made yet?

1. The core takes the memory of its batches from `page_locked`, since only such memory is copied in the background.
2. `Copies.keep` owns a batch until the event behind its copies has passed; only then does its slab return to the pool.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

_MOST_UNDER_WAY = 2


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

    def keep(self, memory: Any, copied: Event) -> None:
        """Own ``memory`` until ``copied`` has passed."""
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
