"""What do files cost that the operating system does not have in memory?

1. `forget` lets the system drop them: all that it keeps, where this process is root, else those of one folder.
2. `load` reads files, so that the system keeps them in memory.
3. `device_bytes` says what this process has had read from devices since it began.

This runs in the environments of all contenders and imports nothing but the standard library.
"""

from __future__ import annotations

import os
from pathlib import Path

_DROP = Path("/proc/sys/vm/drop_caches")


def forget(folder: Path) -> str:
    """Let the system drop the files of a folder from memory; say how.

    Raises
    ------
    OSError
        If this system has no way to do that.
    """
    try:
        os.sync()
        _DROP.write_text("1\n")
    except OSError:
        return _forget_each(folder)
    return "drop_caches"


def _forget_each(folder: Path) -> str:
    if not hasattr(os, "posix_fadvise"):
        raise OSError("this system drops no files from memory: it has neither drop_caches nor posix_fadvise")
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fdatasync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
    return "posix_fadvise"


def load(path: Path) -> None:
    """Read a file, or all files of a folder, so that the system has them in memory."""
    for file in [path, *path.rglob("*")]:
        if file.is_file():
            with file.open("rb", buffering=0) as opened:
                while opened.read(1 << 24):
                    pass


def device_bytes() -> int | None:
    """Give the bytes that this process has had read from devices; None where the system does not count them."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes")), None)
