"""How is an HDF5 file opened through h5py, by any thread of any process?

HDF5 does one thing at a time: whoever opens a file here holds one lock until it is closed. A fork takes the lock, too,
so that the child finds the library in order. No file stays open, so that others may write it. How files are locked is
left to HDF5 and its variable ``HDF5_USE_FILE_LOCKING``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import h5py

from annbatch.errors import StoreError
from annbatch.shards.file_stamp import FileStamp

_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@contextmanager
def open_hdf5(stamp: FileStamp) -> Iterator[h5py.File]:
    """Open a file, and close it behind what is done with it.

    Raises
    ------
    StoreError
        If it has changed, is being written, or is no HDF5 file that can be opened.
    """
    with _lock:
        stamp.check()
        try:
            file = h5py.File(stamp.path, mode="r")
        except BlockingIOError as e:
            raise StoreError(
                f"{stamp.path}: is locked, because a program is writing it; close it there, or set "
                f"HDF5_USE_FILE_LOCKING=FALSE if no program is"
            ) from e
        except OSError as e:
            raise StoreError(f"{stamp.path}: cannot be read as HDF5: {e}") from e
        with file:
            if file.mode != "r":
                raise StoreError(f"{stamp.path}: is open for writing in this process; close it there")
            yield file
