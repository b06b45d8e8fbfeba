"""How fast could any loader be on this machine, if one stage were all that it did?

Each function opens a store and gives an epoch that does one thing for all of X, and yields one matrix without values:

1. `open_read` reads the stored bytes from the page cache, on all cores, into memory that is used again.
2. `open_copy` copies as many bytes from page-locked memory to the GPU: those of the elements as they are stored, or of
   the compressed chunks.
3. `open_decode` lets nvCOMP decode the compressed chunks, which lie on the GPU already.
4. `open_kvikio` reads the stored bytes into memory of the GPU with KvikIO (https://docs.rapids.ai/api/kvikio): past the
   host where GPUDirect Storage is set up, through its page cache where not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from annbatch.shards.local_array import ShardedArray
from annbatch.shards.shard_index import Located
from harness.contenders.registry import Epoch, Job, Matrix
from harness.environments import Unavailable

PIECE_BYTES = 1 << 26
"""Bytes of one copy."""
FRAMES = 4096
"""Chunks that are decoded in one call: about those of a window of 65,536 rows."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An array of X, and where its chunks are."""

    array: ShardedArray
    located: Located

    @property
    def sizes(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """(n_chunks,) bytes of each compressed chunk, its checksum left out."""
        return self.located.nbytes - (4 if self.array.decoder.crc32c else 0)


def stored_arrays(collection: str) -> tuple[list[Stored], int]:
    """Open ``data`` and ``indices`` of all stores; give them and the number of rows.

    Raises
    ------
    Unavailable
        If the store has another form than this project writes.
    """
    found, n_rows = [], 0
    for store in sorted(path for path in Path(collection).iterdir() if (path / "X" / "data").is_dir()):
        for name in ("data", "indices"):
            array = ShardedArray.open(store / "X" / name)
            if isinstance(array, str):
                raise Unavailable(f"{store} X/{name}: {array}")
            located = array.locate(np.arange(-(-array.shape[0] // array.chunk_elements)))
            if (located.offsets < 0).any():
                raise Unavailable(f"{store} X/{name} has chunks that are not stored")
            found.append(Stored(array, located))
        indptr = ShardedArray.open(store / "X" / "indptr")
        if isinstance(indptr, str):
            raise Unavailable(f"{store} X/indptr: {indptr}")
        n_rows += indptr.shape[0] - 1
    return found, n_rows


def _repeated(run: Callable[[], None], n_rows: int) -> Epoch:
    def epoch() -> Iterator[Matrix]:
        run()
        empty = np.empty(0, np.int32)
        yield Matrix(empty, empty, n_rows)

    return epoch


def open_read(job: Job) -> Epoch:
    """Read all files of X; they are in the page cache from the second epoch on."""
    arrays, n_rows = stored_arrays(job.store)
    files = sorted(path for one in arrays for path in one.array.path.rglob("*") if path.is_file())
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def read(path: Path) -> None:
        buffer = memoryview(bytearray(1 << 23))
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    return _repeated(lambda: list(pool.map(read, files)) and None, n_rows)


def open_copy(job: Job, *, compressed: bool) -> Epoch:
    """Copy the bytes of all elements of X as they are stored, or of its compressed chunks, to the GPU."""
    device = _device(job)
    arrays, n_rows = stored_arrays(job.store)
    n_bytes = 0
    for one in arrays:
        n_bytes += int(one.sizes.sum()) if compressed else one.array.shape[0] * one.array.dtype.itemsize
    source = device.page_locked(PIECE_BYTES)
    source[:] = 1
    target = device.copying.memory(PIECE_BYTES)

    def run() -> None:
        for start in range(0, n_bytes, PIECE_BYTES):
            device.copying.copy(target.ptr, source.ctypes.data, min(PIECE_BYTES, n_bytes - start))
        device.copying.record().synchronize()

    return _repeated(run, n_rows)


def _device(job: Job) -> Any:
    from annbatch.device.cuda import open_device

    if job.setting.device == "cpu":
        raise Unavailable("there is no GPU")
    return open_device(job.setting.device)


def open_decode(job: Job) -> Epoch:
    """Decode all chunks of X, which were copied to the GPU before, with nvCOMP, as they are: shuffled."""
    from annbatch.device.cuda import Frames
    from annbatch.device.nvcomp import missing

    device = _device(job)
    if (why := missing()) is not None:
        raise Unavailable(why)
    arrays, n_rows = stored_arrays(job.store)
    stream = device.copying
    kept: list[Any] = []
    calls: list[Frames] = []
    largest = max(one.array.form.nbytes for one in arrays)
    room = -(-largest // 16) * 16
    target = stream.memory(FRAMES * room)
    scratch_nbytes = device.scratch_nbytes(FRAMES, largest, FRAMES * largest)
    scratch = stream.memory(max(1, scratch_nbytes))
    host = device.page_locked(FRAMES * room)
    for one in arrays:
        for first in range(0, len(one.sizes), FRAMES):
            part = slice(first, first + FRAMES)
            sizes, n = one.sizes[part], len(one.sizes[part])
            places = np.cumsum(-(-sizes // 16) * 16) - (-(-sizes // 16) * 16)
            for fd, offset, size, place in zip(
                one.located.fds[part], one.located.offsets[part], sizes, places, strict=True
            ):
                os.preadv(int(fd), [memoryview(host)[place : place + size]], int(offset))
            n_bytes = int(places[-1] + sizes[-1])
            frames, table = stream.memory(n_bytes), stream.memory(48 * n)
            stream.copy(frames.ptr, host.ctypes.data, n_bytes)
            stream.record().synchronize()
            columns = frames.ptr + places, sizes, target.ptr + room * np.arange(n), np.full(n, one.array.form.nbytes)
            host[: 32 * n].view(np.int64).reshape(4, n)[:] = columns
            stream.copy(table.ptr, host.ctypes.data, 32 * n)
            stream.record().synchronize()
            kept += [frames, table]
            calls.append(
                Frames(
                    n,
                    sources=table.ptr,
                    source_nbytes=table.ptr + 8 * n,
                    targets=table.ptr + 16 * n,
                    target_nbytes=table.ptr + 24 * n,
                    decoded_nbytes=table.ptr + 32 * n,
                    statuses=table.ptr + 40 * n,
                    scratch=scratch.ptr,
                    scratch_nbytes=scratch_nbytes,
                )
            )

    stream.decompress(calls[0])
    stream.copy(host.ctypes.data, calls[0].statuses, 4 * calls[0].n)
    stream.record().synchronize()
    if host[: 4 * calls[0].n].any():
        raise Unavailable("nvCOMP could not decode the store's chunks")

    def run(kept: Any = kept) -> None:
        # `kept` is the memory that the calls refer to.
        for frames in calls:
            stream.decompress(frames)
        stream.record().synchronize()

    return _repeated(run, n_rows)


def open_kvikio(job: Job) -> Epoch:
    """Read all files of X into the GPU's memory."""
    device = _device(job)
    try:
        import cupy
        import kvikio
    except ImportError as e:
        raise Unavailable(f"kvikio cannot be imported: {e}") from e
    arrays, n_rows = stored_arrays(job.store)
    paths = sorted(path for one in arrays for path in one.array.path.rglob("*") if path.is_file())
    files = [(kvikio.CuFile(path, "r"), path.stat().st_size) for path in paths]
    with cupy.cuda.Device(int(device.name.partition(":")[2])):
        target = cupy.empty(max(size for _, size in files), np.uint8)

    def run() -> None:
        # KvikIO has threads of its own. All files go to one place: nobody looks at what was read.
        reads = [(file.pread(target, size), size) for file, size in files]
        for read, size in reads:
            if (found := read.get()) != size:
                raise OSError(f"KvikIO read {found} of {size} bytes")

    return _repeated(run, n_rows)


STAGES: dict[str, Callable[[Job], Epoch]] = {
    "read": open_read,
    "copy": partial(open_copy, compressed=False),
    "copy-zstd": partial(open_copy, compressed=True),
    "nvcomp": open_decode,
    "kvikio": open_kvikio,
}
"""Name -> function that opens it."""
