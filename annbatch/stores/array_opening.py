"""How is an array of a store opened: by the kernels, or by zarr, and with which codecs?

1. `reopened` opens it with zarr. Arrays with checksums get zarr's own codec pipeline, others that of zarrs. zarr
   chooses it when an array is opened, by a setting that the whole process shares: it is set for that moment, in the
   caller's thread, and put back (`codec_pipeline`).
2. `own_array` opens it for the kernels, on a disk or in an object store, or says why zarr has to read it. A dataset of
   an HDF5 file (`annbatch.stores.hdf5_arrays`) has been described before.
3. What zarr has to read is read through `ThisProcess`, also after a fork.
4. `open_each` opens what lies in object stores many at a time: each step of it costs a round trip.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import zarr

from annbatch.errors import StoreError, naming
from annbatch.remote.remote_array import RemoteArray
from annbatch.shards.local_array import ShardedArray
from annbatch.shards.packed_codec import NAME
from annbatch.stores.hdf5_arrays import Hdf5Array

DIRECT = True
"""Whether the direct path is taken where it can be; benchmarks and tests turn it off to measure and compare."""

_OPENERS = 32
"""Stores that are opened at a time where each step costs a round trip."""

Source = TypeVar("Source")
Opened = TypeVar("Opened")

ZARR = "zarr.core.codec_pipeline.BatchedCodecPipeline"
ZARRS = "zarrs.ZarrsCodecPipeline"


def reopened(parent: Any, path: str, name: str, store: Any) -> zarr.Array[Any]:
    """Open an array of a group or AnnData element again, with the codecs that read it best; raises StoreError."""
    where = {"store": store, "path": f"{parent.path}{path}".lstrip("/"), "mode": "r"}
    with naming(f"{name}{path}"):
        with codec_pipeline(ZARR):
            array: zarr.Array[Any] = zarr.open_array(**where)
        # Object stores are no business of zarrs, which would make clients of its own.
        if not _has_checksums(array) and not isinstance(store, zarr.storage.ObjectStore):
            with codec_pipeline(ZARRS):
                array = zarr.open_array(**where)
    return array


def part_of(parent: Any, path: str, name: str) -> zarr.Array[Any]:
    """Give an array of a group as it was opened; raises StoreError."""
    with naming(f"{name}{path}"):
        found = parent[path[1:]] if path else parent
    if not isinstance(found, zarr.Array):
        raise StoreError(f"{name}{path}: must be an array, got a group")
    return found


def own_array(array: Any, recorded: Mapping[str, int]) -> ShardedArray | RemoteArray | str:
    """Open a zarr array on a disk or in an object store, or a dataset, for the kernels, or say why that cannot be.

    What is ``recorded`` (keys of the array's store, and checksums) must be there, and as it was, when it is read.
    """
    if not isinstance(array, zarr.Array):
        return direct_array(array)
    within = f"{array.path}/"
    own = {key.removeprefix(within): crc for key, crc in recorded.items() if key.startswith(within)}
    if DIRECT and isinstance(array.store, zarr.storage.ObjectStore):
        return RemoteArray.open(array, own)
    return direct_array(array, own)


def direct_array(array: Any, recorded: Mapping[str, int] | None = None) -> ShardedArray | str:
    """Open a local zarr array, or a dataset, for the direct path, or say why that cannot be."""
    if not DIRECT:
        return "the direct path is turned off"
    if isinstance(array, Hdf5Array):
        return array.own
    if not isinstance(array, zarr.Array):
        return "it is in memory"
    if type(array.store) is not zarr.storage.LocalStore:
        return f"its store is a {type(array.store).__name__}, not a local directory"
    return ShardedArray.open(Path(array.store.root) / array.path, recorded, zarr_format=array.metadata.zarr_format)


class _Setting:
    """Whoever sets zarr's codec pipeline, which all threads of the process share, has it for itself meanwhile."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        if hasattr(os, "register_at_fork"):
            # The thread that held it does not exist in the child.
            os.register_at_fork(after_in_child=lambda: setattr(self, "lock", threading.RLock()))


_setting = _Setting()


@contextmanager
def codec_pipeline(path: str) -> Iterator[None]:
    """Let arrays that are opened meanwhile use a codec pipeline; the setting of the process is put back afterwards.

    Other threads that want another one wait.
    """
    with _setting.lock, zarr.config.set({"codec_pipeline.path": path}):
        yield


def open_each(open_one: Callable[[Source], Opened], sources: Sequence[Source], *, is_remote: bool) -> list[Opened]:
    """Open one after the other, or many at a time where that takes requests."""
    if not is_remote:
        return [open_one(source) for source in sources]
    # Opening takes many small requests, one after the other; the setting is made once for all threads.
    with codec_pipeline(ZARR):
        pool = ThreadPoolExecutor(_OPENERS, thread_name_prefix="annbatch-open")
        try:
            opened = list(pool.map(open_one, sources))
        except BaseException:
            # An interrupt does not wait for requests of zarr's.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()
        return opened


class ThisProcess:
    """A zarr or NumPy array that may be indexed after a fork, too.

    What zarrs opened before a fork hangs in the child, so a child opens the array again, with zarr's own codecs.
    """

    def __init__(self, array: Any) -> None:
        self._array = array
        self._pid = os.getpid()

    def get(self) -> Any:
        """Give the array that this process may read."""
        if self._pid != os.getpid():
            if isinstance(self._array, zarr.Array):
                with codec_pipeline(ZARR):
                    self._array = zarr.open_array(store=self._array.store, path=self._array.path, mode="r")
            self._pid = os.getpid()
        return self._array


def _has_checksums(array: zarr.Array[Any]) -> bool:
    """Say whether chunks end in checksums: zarrs checks none when it reads a part of a shard, zarr's own codecs do."""
    codecs = array.metadata.to_dict().get("codecs", ())
    chains: Any = [codecs, *(codec.get("configuration", {}).get("codecs", ()) for codec in codecs)]  # type: ignore[union-attr]
    return any(codec["name"] in ("crc32c", NAME) for chain in chains for codec in chain)
