"""How is an HDF5 file read through h5py, by any thread of any process?

HDF5 does one thing at a time: whoever reads through it here holds one lock, also while a process forks, so that the
child finds the library in order.

1. `open_once` opens a file for one purpose and closes it behind that, so that others may write it again.
2. `kept_open` gives a file that is read again and again; a bounded number of them stays open.

How files are locked is left to HDF5 and its variable ``HDF5_USE_FILE_LOCKING``.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from annbatch.errors import StoreError
from annbatch.shards.file_stamp import FileStamp

_MAX_OPEN = 32

_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)

_kept: OrderedDict[Path, tuple[FileStamp, h5py.File]] = OrderedDict()


@contextmanager
def open_once(stamp: FileStamp) -> Iterator[h5py.File]:
    """Open a file and close it.

    Raises
    ------
    StoreError
        If it has changed, or is no HDF5 file that can be opened.
    """
    with _lock:
        stamp.check()
        with _open(stamp.path) as file:
            yield file


@contextmanager
def kept_open(stamp: FileStamp) -> Iterator[h5py.File]:
    """Give a file that stays open for the next one who asks; raises as `open_once` does."""
    with _lock:
        stamp.check()
        known, file = _kept.pop(stamp.path, (None, None))
        if file is not None and known != stamp:
            # HDF5 would go on with what it knows of the file.
            file.close()
        if file is None or known != stamp:
            file = _open(stamp.path)
        _kept[stamp.path] = stamp, file
        while len(_kept) > _MAX_OPEN:
            _kept.popitem(last=False)[1][1].close()
        yield file


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, mode="r")
    except BlockingIOError as e:
        raise StoreError(
            f"{path}: is locked, since a program writes it; close it there, or set HDF5_USE_FILE_LOCKING=FALSE if that "
            f"is not so"
        ) from e
    except OSError as e:
        raise StoreError(f"{path}: cannot be read as HDF5: {e}") from e

