"""How does memory that was freed go back to the system?

glibc keeps freed memory for later, up to 32 MiB a piece, in heaps of each thread. A build frees thousands of buffers of
such sizes from many threads: without `give_back` it would hold several times what it uses. Other allocators decide for
themselves.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

_trim: Callable[[int], Any] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> None:
    """Give free pages of all heaps back."""
    if _trim is not None:
        _trim(0)
