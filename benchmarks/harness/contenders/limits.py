"""How fast could any loader be on this machine, if one stage were all that it did?

Each function opens a store and gives an epoch that does one thing for all of X, and yields one matrix without values:

1. `open_decode` decodes every inner chunk on all cores, in storage order, each into a scratch of its own that stays in
   the cache: no plan, no cast, no copy to a batch. It is the decoder that the Loader's direct path uses, checksums
   included where the store has them, asked for no elements.
2. `open_read` reads the stored bytes from the page cache, on all cores, into memory that is used again.
3. `open_copy` copies as many bytes from page-locked memory to the GPU: those of the elements as they are stored, or of
   the compressed chunks.
4. `open_nvcomp` lets nvCOMP decode the compressed chunks, which lie on the GPU already.
5. `open_kvikio` reads the stored bytes into memory of the GPU with KvikIO (https://docs.rapids.ai/api/kvikio): past the
   host where GPUDirect Storage is set up, through its page cache where not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import local
from typing import Any

import numpy as np

from annbatch.plan.chunk_pieces import Pieces
from annbatch.shards.codecs import Workspace
from annbatch.shards.local_array import ShardedArray
from annbatch.shards.shard_index import Located
from harness.environments import Unavailable
from harness.jobs import Epoch, Job, Matrix
from harness.machine import cores

TASK_BYTES = 1 << 23
"""Decoded bytes of one call into the decoder of the CPU."""
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


def arrays_of_x(collection: str) -> tuple[list[ShardedArray], int]:
    """Open ``data`` and ``indices`` of all stores; give them and the number of rows.

    Raises
    ------
    Unavailable
        If there is no native decoder for a store.
    """
    found, n_rows = [], 0
    for store in sorted(path for path in Path(collection).iterdir() if (path / "X" / "data").is_dir()):
        found += [_array(store, "data"), _array(store, "indices")]
        n_rows += _array(store, "indptr").shape[0] - 1
    return found, n_rows


def _array(store: Path, name: str) -> ShardedArray:
    array = ShardedArray.open(store / "X" / name)
    if isinstance(array, str):
        raise Unavailable(f"{store} X/{name}: {array}")
    return array


def located_arrays(collection: str) -> tuple[list[Stored], int]:
    """Open ``data`` and ``indices`` of all stores and find their chunks; give them and the number of rows.

    Raises
    ------
    Unavailable
        If the store has another form than this project writes.
    """
    arrays, n_rows = arrays_of_x(collection)
    found = [Stored(array, array.locate(np.arange(-(-array.shape[0] // array.chunk_elements)))) for array in arrays]
    for one in found:
        if (one.located.offsets < 0).any():
            raise Unavailable(f"{one.array.path} has chunks that are not stored")
    return found, n_rows


def _repeated(run: Callable[[], None], n_rows: int) -> Epoch:
    def epoch() -> Iterator[Matrix]:
        run()
        empty = np.empty(0, np.int32)
        yield Matrix(empty, empty, n_rows)

    return epoch


def open_decode(job: Job) -> Epoch:
    """Decode all chunks of X on the CPU, with the setting's threads."""
    arrays, n_rows = arrays_of_x(job.store)
    pool = ThreadPoolExecutor(job.setting.threads or cores())
    of_thread = local()
    nothing = np.zeros(0, np.int64)

    def decode(array: ShardedArray, first: int, stop: int) -> None:
        if not hasattr(of_thread, "workspace"):
            of_thread.workspace = Workspace()
        bounds = np.zeros(stop - first + 1, np.int64)
        chunks = np.arange(first, stop)
        array.scatter(
            of_thread.workspace, Pieces(chunks, (0, len(chunks)), bounds, nothing, nothing, nothing), array.dtype
        )

    def run() -> None:
        tasks = []
        for array in arrays:
            n_chunks = -(-array.shape[0] // array.chunk_elements)
            step = max(1, TASK_BYTES // (array.chunk_elements * array.dtype.itemsize))
            for first in range(0, n_chunks, step):
                tasks.append(pool.submit(decode, array, first, min(first + step, n_chunks)))
        for task in tasks:
            task.result()

    return _repeated(run, n_rows)


def open_read(job: Job) -> Epoch:
    """Read all files of X; they are in the page cache from the second epoch on."""
    arrays, n_rows = located_arrays(job.store)
    files = sorted(path for one in arrays for path in one.array.path.rglob("*") if path.is_file())
    pool = ThreadPoolExecutor(cores())

    def read(path: Path) -> None:
        buffer = memoryview(bytearray(1 << 23))
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    return _repeated(lambda: list(pool.map(read, files)) and None, n_rows)


def open_copy(job: Job, *, compressed: bool) -> Epoch:
    """Copy the bytes of all elements of X as they are stored, or of its compressed chunks, to the GPU."""
    device = _device(job)
    arrays, n_rows = located_arrays(job.store)
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


def open_nvcomp(job: Job) -> Epoch:
    """Decode all chunks of X, which were copied to the GPU before, with nvCOMP, as they are: shuffled."""
    from annbatch.device.nvcomp import Frames, missing

    device = _device(job)
    if (why := missing()) is not None:
        raise Unavailable(why)
    arrays, n_rows = located_arrays(job.store)
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
    arrays, n_rows = located_arrays(job.store)
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
    "decode": open_decode,
    "read": open_read,
    "copy": partial(open_copy, compressed=False),
    "copy-zstd": partial(open_copy, compressed=True),
    "nvcomp": open_nvcomp,
    "kvikio": open_kvikio,
}
"""Name -> function that opens it."""
