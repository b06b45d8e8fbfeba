"""How do the elements of a zarr array in an object store get here, without zarr decoding them?

1. `RemoteArray.open` gives the array, or the reason why zarr has to read it.
2. `RemoteArray.request` begins to fetch ranges of elements, and gives what waits for them. Of uncompressed arrays
   nothing else is fetched.
3. The chunks of windows are requested by `annbatch.stores.elements`, and decoded by the kernels that serve
   local arrays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype

from annbatch.counters import REQUEST_NS, of_thread, waiting
from annbatch.errors import CorruptStoreError, StoreError
from annbatch.plan.chunk_pieces import cut_ranges, range_offsets
from annbatch.plan.window import Ints, address
from annbatch.remote.cached_reads import objects_of
from annbatch.remote.chunk_objects import ChunkObjects, fetch_chunks, fetch_pieces
from annbatch.remote.request_pool import Requests
from annbatch.shards.array_metadata import METADATA_KEYS, parse
from annbatch.shards.codecs import Codec, Decoder, Workspace
from annbatch.shards.decode_kernels import Status
from annbatch.shards.scatter import Form, Scatter
from annbatch.shards.scatter_kernels import read_pieces


@dataclass(frozen=True, slots=True, eq=False)
class RemoteArray:
    """A one-dimensional, or row-chunked two-dimensional, zarr array in an object store that the kernels can read."""

    name: str
    """Its URL."""
    shape: tuple[int, ...]
    """(n,) or (n_rows, n_columns)."""
    form: Form
    """What its inner chunks have in common."""
    tables: ChunkObjects = field(repr=False)
    """Where the chunks are stored."""

    @classmethod
    def open(cls, array: zarr.Array[Any], recorded: Mapping[str, int]) -> RemoteArray | str:
        """Describe an array on a `zarr.storage.ObjectStore`, or give the reason why zarr has to read it.

        Nothing is read. What is ``recorded`` (keys relative to the array, and checksums) must be there, and as it was,
        when it is read.
        """
        objects = objects_of(array.store)
        key = METADATA_KEYS[array.metadata.zarr_format]
        metadata = array.metadata.to_buffer_dict(default_buffer_prototype())[key].to_bytes()
        found = parse(json.loads(metadata), PurePosixPath(array.path), f"{objects.name}/", recorded)
        if isinstance(found, str):
            return found
        form = Form(found.dtype, found.chunk_elements, found.decoder, found.fill.tobytes())
        return cls(f"{objects.name}/{array.path}", found.shape, form, ChunkObjects(objects, found.layout))

    def request(self, requests: Requests, starts: Ints, stops: Ints) -> Callable[[Workspace], NDArray[Any]]:
        """Begin to fetch the elements of ascending ranges of the flattened array.

        Parameters
        ----------
        requests
            What they are requested with.
        starts, stops
            (n,) the ranges, half open.

        Returns
        -------
        callable
            Waits, and gives the elements, one range after the other; raises CorruptStoreError or StoreError.

        Raises
        ------
        StoreError
            If a range reaches beyond the array, or they do not ascend.
        """
        starts, stops = np.require(starts, np.int64, ["C", "W"]), np.require(stops, np.int64, ["C", "W"])
        offsets = range_offsets(starts, stops, math.prod(self.shape))
        if isinstance(offsets, str):
            raise StoreError(f"{self.name}: {offsets}")
        form = self.form
        itemsize = form.dtype.itemsize
        out = np.empty(int(offsets[-1]), form.dtype)
        pieces = cut_ranges(starts, stops, offsets, form.chunk_elements, address(out), itemsize)
        if form.decoder == Decoder(Codec.RAW):
            some = requests.submit(fetch_pieces(self.tables, pieces, itemsize))

            def copied(workspace: Workspace) -> NDArray[Any]:
                with waiting(REQUEST_NS):
                    located = some.result()
                each = np.arange(len(pieces.sources) + 1)
                fill = np.frombuffer(bytearray(form.fill), np.uint8)
                status, _ = read_pieces(
                    located.fds,
                    located.offsets,
                    each,
                    np.zeros_like(pieces.sources),
                    pieces.lengths,
                    pieces.targets,
                    fill,
                    of_thread(),
                )
                if status != Status.OK:
                    raise CorruptStoreError(f"{self.name}: {Status(status).text}")
                return out

            return copied
        whole = requests.submit(fetch_chunks([self.tables], (0, len(pieces.chunks)), pieces.chunks))

        def decoded(workspace: Workspace) -> NDArray[Any]:
            with waiting(REQUEST_NS):
                located = whole.result()
            Scatter(form, [self.tables.layout], pieces, form.dtype, None, located).run(workspace)
            return out

        return decoded
