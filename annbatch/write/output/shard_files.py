"""How do rows that come a piece at a time become the shards of a zarr array?

1. Rows are cut into inner chunks; what does not fill one waits for the next piece.
2. Threads compress chunks, checksums included, outside Python's lock.
3. The caller's thread appends them to the shard's file in their order, and closes a full shard with its index.
4. The file's own checksum grows with it, and a thread of its own waits until its bytes are on the disk.

zarr would do 1 to 3 as well, but takes a whole shard at a time and several times its memory. The bytes are the same.

Format: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import IO, Any, Literal

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
from numcodecs.blosc import Blosc
from numcodecs.zstd import Zstd

from annbatch.shards.packed_encoder import packed
from annbatch.stores.manifest import FileEntry

Cname = Literal["lz4", "lz4hc"]

Encode = Callable[[npt.NDArray[Any]], bytes]
"""Compresses a chunk; gives all its stored bytes, checksums included."""

_CHUNKS_PER_TASK = 8
_TASKS_AHEAD = 16
_SHUFFLE = 1


def blosc(cname: Cname, clevel: int) -> Encode:
    """Give what compresses with blosc, bytes shuffled by the size of the elements, and puts a crc32c behind."""
    codec = Blosc(cname=cname, clevel=clevel, shuffle=_SHUFFLE)
    return lambda chunk: _with_crc32c(bytes(codec.encode(chunk)))


def packing(*, delta: bool) -> Encode:
    """Give what packs integers, as ``docs/packed.md`` describes; they have checksums of their own."""
    return lambda chunk: packed(chunk, delta=delta).tobytes()


def _with_crc32c(stored: bytes) -> bytes:
    crc: int = google_crc32c.value(stored)
    return stored + crc.to_bytes(4, "little")


def shuffled_zstd(itemsize: int, level: int, *, delta: bool) -> Encode:
    """Give what shuffles bytes by the size of the elements, compresses with zstd, and puts a crc32c behind.

    With ``delta``, elements become differences from the one before in their chunk first, which may wrap.
    """
    codec = Zstd(level=level)

    def encode(chunk: npt.NDArray[Any]) -> bytes:
        if delta:
            chunk = np.diff(chunk, prepend=chunk.dtype.type(0))
        planes = chunk.reshape(-1).view(np.uint8).reshape(-1, itemsize).T
        return _with_crc32c(bytes(codec.encode(np.ascontiguousarray(planes))))

    return encode


class ShardFiles:
    """Fills the shards of a new local zarr array from the front; cut along the first axis only.

    Parameters
    ----------
    array
        An array of shards with their index at the end.
    encode
        The codecs of its inner chunks.
    workers
        Compress chunks.
    syncing
        Waits for the disk.
    """

    def __init__(self, array: zarr.Array[Any], encode: Encode, workers: Executor, syncing: Executor) -> None:
        assert array.shards is not None
        self._root = Path(array.store.root)  # type: ignore[attr-defined]
        self._path, self._shape = array.path, array.shape
        self._dtype = np.dtype(array.dtype).newbyteorder("<")
        self._chunk, self._chunks_per_shard = array.chunks[0], array.shards[0] // array.chunks[0]
        self._encode_chunk = encode
        self._workers, self._syncing = workers, syncing
        self._tail = np.empty((0, *array.shape[1:]), self._dtype)
        self._pending: deque[Future[list[bytes]]] = deque()
        self._n_rows = self._n_shards = 0
        self._file: IO[bytes] | None = None
        self._index: list[tuple[int, int]] = []
        self._entry = FileEntry(0, 0)
        self._entries: dict[str, FileEntry] = {}
        self._synced: list[Future[None]] = []

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Add rows; when this returns, nothing refers to them any more."""
        self._n_rows += len(rows)
        missing = self._chunk - len(self._tail) if len(self._tail) else 0
        if len(rows) < missing:
            self._tail = np.concatenate([self._tail, rows])
            return
        chunks = [np.concatenate([self._tail, rows[:missing]])] if missing else []
        n_whole = (len(rows) - missing) // self._chunk
        ends = range(missing, missing + n_whole * self._chunk, self._chunk)
        chunks += [rows[start : start + self._chunk] for start in ends]
        self._tail = rows[missing + n_whole * self._chunk :].copy()
        for start in range(0, len(chunks), _CHUNKS_PER_TASK):
            self._pending.append(self._workers.submit(self._encode, chunks[start : start + _CHUNKS_PER_TASK]))
            self._write_out(_TASKS_AHEAD)
        self._write_out(0)

    def finish(self) -> dict[str, FileEntry]:
        """Write what is left, and give each file's size and checksum, by its path in the store.

        Raises
        ------
        ValueError
            If there were fewer or more rows than the array has.
        """
        if self._n_rows != self._shape[0]:
            raise ValueError(f"{self._path}: must get the {self._shape[0]} rows announced, got {self._n_rows}")
        if len(self._tail):
            last = np.zeros((self._chunk, *self._shape[1:]), self._dtype)
            last[: len(self._tail)] = self._tail
            self._pending.append(self._workers.submit(self._encode, [last]))
        self._write_out(0)
        if self._file is not None:
            self._close_shard()
        for synced in self._synced:
            synced.result()
        return self._entries

    def abandon(self) -> None:
        """Close what is open, after an error."""
        for task in self._pending:
            task.cancel()
        if self._file is not None:
            self._file.close()

    def _encode(self, chunks: Sequence[npt.NDArray[Any]]) -> list[bytes]:
        return [self._encode_chunk(np.ascontiguousarray(chunk, self._dtype)) for chunk in chunks]

    def _write_out(self, n_left: int) -> None:
        while len(self._pending) > n_left:
            for raw in self._pending.popleft().result():
                self._write(raw)

    def _write(self, raw: bytes) -> None:
        if self._file is None:
            path = self._root / self._path / self._shard_key()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
        self._index.append((self._entry.nbytes, len(raw)))
        self._put(raw)
        if len(self._index) == self._chunks_per_shard:
            self._close_shard()

    def _put(self, raw: bytes) -> None:
        assert self._file is not None
        self._file.write(raw)
        self._entry = FileEntry(self._entry.nbytes + len(raw), google_crc32c.extend(self._entry.crc32c, raw))

    def _close_shard(self) -> None:
        assert self._file is not None
        # Chunks behind the end of the array do not exist: all bits set.
        index = np.full((self._chunks_per_shard, 2), 2**64 - 1, "<u8")
        index[: len(self._index)] = self._index
        raw = index.tobytes()
        self._put(raw + google_crc32c.value(raw).to_bytes(4, "little"))
        self._file.flush()
        self._entries[f"{self._path}/{self._shard_key()}"] = self._entry
        self._synced.append(self._syncing.submit(_sync_and_close, self._file))
        self._n_shards += 1
        self._file, self._index, self._entry = None, [], FileEntry(0, 0)

    def _shard_key(self) -> str:
        return "/".join(["c", str(self._n_shards), *("0" for _ in self._shape[1:])])


def _sync_and_close(file: IO[bytes]) -> None:
    with file:
        os.fsync(file.fileno())
