"""Is a file still the one that was opened?

A `FileStamp` remembers size and time of a file, and of the other files that hold parts of what it leads to. It can also
tell the contents from others, of which it reads samples.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from annbatch.errors import StoreError
from annbatch.shards.checksum import crc32c

_SAMPLES, _SAMPLE_NBYTES = 8, 4096


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What a file looked like when it was opened."""

    path: Path
    nbytes: int
    mtime_ns: int
    others: tuple[FileStamp, ...] = field(default=(), compare=False)
    """Other files in which parts of it lie, as HDF5 allows (`annbatch.stores.hdf5_links`)."""

    @property
    def each(self) -> tuple[FileStamp, ...]:
        """The file and the others."""
        return self, *self.others

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Look at a file; raises FileNotFoundError if there is none, OSError if that cannot be found out."""
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns)

    def check(self, status: os.stat_result | None = None) -> None:
        """Raise StoreError if the file is not there any more, or has changed, or one of the others.

        ``status`` is what ``os.stat`` gives of the file.
        """
        for other in self.others:
            other.check()
        try:
            found = self.path.stat() if status is None else status
        except OSError as e:
            raise StoreError(f"{self.path}: has been removed, or cannot be examined: {e}") from e
        if (found.st_size, found.st_mtime_ns) != (self.nbytes, self.mtime_ns):
            size = "" if found.st_size == self.nbytes else f" from {self.nbytes} to {found.st_size} bytes"
            raise StoreError(f"{self.path}: has changed{size} since it was opened; open it again")

    def digest(self) -> str:
        """Give what tells the contents of the file from others': the size, and a checksum of samples of all of it.

        It is the same for a copy of the file.
        """
        self.check()
        try:
            with self.path.open("rb") as file:
                last = max(0, self.nbytes - _SAMPLE_NBYTES)
                places = sorted({last * i // (_SAMPLES - 1) for i in range(_SAMPLES)})
                samples = [os.pread(file.fileno(), _SAMPLE_NBYTES, place) for place in places]
        except OSError as e:
            raise StoreError(f"{self.path}: cannot be read: {e}") from e
        return f"{self.nbytes}-{crc32c(np.frombuffer(bytearray(b''.join(samples)), np.uint8)):08x}"
