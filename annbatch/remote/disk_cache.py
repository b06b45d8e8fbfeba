"""Which bytes of an object store lie on the local disk already, and can they be trusted?

A `DiskCache` is a folder that several processes may use at once. Nobody waits for anybody, and nothing is locked:

1. Each object has a sparse file with the object's own offsets. Behind its bytes stands a mark for each page: its crc32c
   and its number.
2. A page is written before its mark, and a page that does not match its mark is not there. So what a killed process, a
   full disk, a crash or a flipped bit leaves is read from the store again; processes that write the same page write
   the same bytes.
3. The file's name is a hash of the object's place, key, ETag and size: an object that changes has another file. Names
   and contents hold no secret.
4. Before more than a small share of the limit is written, the files that were used least recently are removed. Whoever
   reads one has it open, and goes on.
5. A disk that is full or may not be written is told once through `logging`; then nothing more is kept.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.counters import of_thread
from annbatch.errors import OutputError
from annbatch.native import READ_OK, Kernel, address_of, pread
from annbatch.shards.checksum import crc32c_at

Ints = NDArray[np.int64]

PAGE_NBYTES = 1 << 14
"""What is kept, or is not: a multiple of the blocks of file systems."""
_SCANS = 256
"""A process looks after the limit each time it has written such a part of it."""
_FULL, _ROOM = 15 / 16, 7 / 8
"""Shares of the limit: beyond the first, files are removed until the second is met. What is left is for what the other
processes write meanwhile."""
_NAME = re.compile(r"[0-9a-f]{32}\.annbatch-cache")

_log = logging.getLogger("annbatch")


class DiskCache:
    """A folder of cached objects.

    Parameters
    ----------
    folder
        The folder; it is made if it is not there, for its owner alone. Other files in it are left alone.
    max_nbytes
        What the cached files may take of the disk, in all processes together.

    Raises
    ------
    OutputError
        If there is no such folder and it cannot be made.
    """

    def __init__(self, folder: Path, max_nbytes: int) -> None:
        self.folder = folder.absolute()
        self.max_nbytes = max_nbytes
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as e:
            raise OutputError(f"{self.folder}: the cache folder cannot be created: {e}") from e
        self._begin()

    def __getstate__(self) -> tuple[Path, int]:
        return self.folder, self.max_nbytes

    def __setstate__(self, state: tuple[Path, int]) -> None:
        self.folder, self.max_nbytes = state
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._unseen: int | None = None
        """Bytes written since the files were counted; None if they never were."""
        self._told: set[str] = set()

    def file(self, place: str, key: str, etag: str, nbytes: int) -> CachedFile:
        """Give the file of an object, whether there is one or not; ``place`` says which store has the key."""
        name = hashlib.blake2b(
            "\0".join((place, key, etag, str(nbytes), str(PAGE_NBYTES))).encode(), digest_size=16
        ).hexdigest()
        return CachedFile(self, self.folder / f"{name}.annbatch-cache", nbytes)

    def make_room(self, nbytes: int) -> bool:
        """Say whether so many bytes may be written; files that were used least recently go first.

        Raises
        ------
        OSError
            If the folder cannot be read.
        """
        with self._lock:
            if "written" in self._told or nbytes > _ROOM * self.max_nbytes:
                return False
            if self._unseen is None or (self._unseen + nbytes) * _SCANS > self.max_nbytes:
                self._evict(nbytes)
                self._unseen = 0
            self._unseen += nbytes
            return True

    def _evict(self, nbytes: int) -> None:
        files = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name):
                    try:
                        found = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    files.append((found.st_mtime_ns, found.st_blocks * 512, entry.path))
        used = sum(size for _, size, _ in files) + nbytes
        if used <= _FULL * self.max_nbytes:
            return
        for _, size, path in sorted(files):
            if used <= _ROOM * self.max_nbytes:
                break
            # Another process may have removed it.
            Path(path).unlink(missing_ok=True)
            used -= size

    def complain(self, what: str, error: OSError) -> None:
        """Tell once that files cannot be read, or written; what cannot be written once is written no more."""
        with self._lock:
            is_news = what not in self._told
            self._told.add(what)
        if is_news:
            _log.warning(
                "the cache in %s cannot be %s; objects are read without it: %s", self.folder, what, error.strerror
            )


class CachedFile:
    """What is kept of one object.

    Parameters
    ----------
    cache
        The folder that it lies in.
    path
        The file, which need not be there.
    nbytes
        Size of the object.
    """

    __slots__ = ("_cache", "_marks_at", "_path", "nbytes")

    def __init__(self, cache: DiskCache, path: Path, nbytes: int) -> None:
        self._cache = cache
        self._path = path
        self.nbytes = nbytes
        self._marks_at = -(-nbytes // PAGE_NBYTES) * PAGE_NBYTES

    def load(self, pages: Ints, target: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Read pages, and say which of them were there.

        Parameters
        ----------
        pages
            (n,) their numbers, ascending.
        target
            (n * PAGE_NBYTES,) where they go, one behind the other; of those that are not there anything may be left.
        """
        found = np.zeros(len(pages), np.bool_)
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return found
        except OSError as e:
            self._cache.complain("read", e)
            return found
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                self._touch(fd)
                _load(fd, pages, self.nbytes, self._marks_at, target, found, of_thread())
        finally:
            os.close(fd)
        return found

    def _touch(self, fd: int) -> None:
        try:
            os.utime(fd)
        except OSError:
            # Another's file: it counts as unused.
            return

    def store(self, start: int, data: NDArray[np.uint8]) -> None:
        """Keep whole pages, unless there is no room for them.

        Parameters
        ----------
        start
            Their first byte in the object, a multiple of `PAGE_NBYTES`.
        data
            Their bytes; only the object's last page may be shorter.
        """
        marks = _marks(data, start // PAGE_NBYTES)
        marks_at = self._marks_at + marks.itemsize * (start // PAGE_NBYTES)
        try:
            # Beside the pages, a block or two for the marks.
            if not self._cache.make_room(-(-data.nbytes // PAGE_NBYTES) * PAGE_NBYTES + 2 * 4096):
                return
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(self._path, flags, 0o600)
            try:
                _write(fd, data.data, start)
                _write(fd, marks.view(np.uint8).data, marks_at)
            finally:
                os.close(fd)
        except OSError as e:
            self._cache.complain("written", e)

    def remove(self) -> None:
        """Keep nothing of the object any more."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as e:
            self._cache.complain("written", e)


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


@Kernel
def _marks(data: Any, first: Any) -> Any:
    """Give the marks of pages that lie one behind the other: the crc32c, and the number plus one in the low half."""
    marks = np.empty(-(-data.size // PAGE_NBYTES), np.int64)
    for i in range(marks.size):
        size = min(PAGE_NBYTES, data.size - i * PAGE_NBYTES)
        marks[i] = crc32c_at(address_of(data) + i * PAGE_NBYTES, size) << 32 | (first + i + 1)
    return marks


@Kernel
def _load(fd: Any, pages: Any, nbytes: Any, marks_at: Any, target: Any, found: Any, counts: Any) -> None:
    """Read neighbouring pages together, with their marks, and no page that has none."""
    marks = np.empty(256, np.int64)
    first = 0
    while first < pages.size:
        n = 1
        while first + n < pages.size and n < marks.size and pages[first + n] == pages[first] + n:
            n += 1
        i = n if pread(fd, address_of(marks), 8 * n, marks_at + 8 * pages[first], counts) != READ_OK else 0
        while i < n:
            stop = i
            while stop < n and marks[stop] & 0xFFFFFFFF == pages[first + stop] + 1:
                stop += 1
            start = pages[first + i] * PAGE_NBYTES
            at = address_of(target) + (first + i) * PAGE_NBYTES
            size = min((stop - i) * PAGE_NBYTES, nbytes - start)
            if stop > i and pread(fd, at, size, start, counts) == READ_OK:
                for k in range(i, stop):
                    length = min(PAGE_NBYTES, nbytes - pages[first + k] * PAGE_NBYTES)
                    place = address_of(target) + (first + k) * PAGE_NBYTES
                    found[first + k] = crc32c_at(place, length) == (marks[k] >> 32) & 0xFFFFFFFF
            i = max(stop, i + 1)
        first += n
