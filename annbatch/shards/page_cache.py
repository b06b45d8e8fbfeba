"""Are stored chunks in the system's page cache, and how do they get there before they are decoded?

1. `are_cached` says whether chunks can be read without waiting for a disk.
2. `announce` asks the system to read chunks. It merges those that lie close together, and keeps many reads under way.
3. `room` says how much the page cache can hold at all.

Where a platform lacks a call, chunks are read when they are decoded, and no earlier.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
import numpy as np

from annbatch.native import Kernel
from annbatch.plan.byte_ranges import merge
from annbatch.shards.shard_index import Located

CAN_ANNOUNCE = sys.platform == "linux"

MAX_GAP_NBYTES = 1 << 15
"""Bytes between two chunks of a file that are read with them: on a disk that takes no longer than a read of its own."""

_WILLNEED = 3


def are_cached(chunks: Iterable[Located]) -> bool:
    """Say whether the last bytes of local chunks lie in the page cache; False if the file system cannot say.

    Without `announce` it does not matter: True.
    """
    if not CAN_ANNOUNCE:
        return True
    one = bytearray(1)
    for located in chunks:
        found = located.fds.tolist(), located.offsets.tolist(), located.sizes.tolist()
        for fd, offset, nbytes in zip(*found, strict=True):
            if offset >= 0:
                try:
                    os.preadv(fd, [one], offset + nbytes - 1, os.RWF_NOWAIT)
                except OSError:
                    return False
    return True


def announce(located: Located) -> None:
    """Ask the system to read local chunks into the page cache; wait for none of them."""
    if CAN_ANNOUNCE:
        ranges = merge(located.fds.astype(np.int64), located.offsets, located.sizes, MAX_GAP_NBYTES)
        _announce(ranges.objects, ranges.starts, ranges.stops)


if CAN_ANNOUNCE:
    _types: Any = numba.types
    _posix_fadvise = _types.ExternalFunction(
        "posix_fadvise", _types.int32(_types.int32, _types.int64, _types.int64, _types.int32)
    )

    @Kernel
    def _announce(fds: Any, starts: Any, stops: Any) -> Any:
        for i in range(fds.size):
            # Whatever it returns: a chunk that cannot be read is reported when it is decoded.
            _posix_fadvise(np.int32(fds[i]), starts[i], stops[i] - starts[i], np.int32(_WILLNEED))


def room() -> int:
    """Say how many bytes the page cache can hold: what memory programs leave, or less in a control group.

    The largest integer there is where nobody knows.
    """
    found = [sys.maxsize]
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        for file in _limits():
            # There is none where it says "max".
            with suppress(OSError, ValueError):
                found.append(int(file.read_text(encoding="ascii")))
    return min(found)


def _limits() -> Iterator[Path]:
    """Give the files that may hold the memory limit of this process's control group, of version 1 and 2."""
    groups = Path("/sys/fs/cgroup")
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, group = line.split(":", 2)
        # In a container its own group may be all that there is to see.
        for folder in (group.lstrip("/"), ""):
            if not controllers:
                yield groups / folder / "memory.max"
            elif controllers == "memory":
                yield groups / "memory" / folder / "memory.limit_in_bytes"
