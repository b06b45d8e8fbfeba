"""How does zarr read and write packed chunks?

`PackedCodec` is registered with zarr under `NAME`: by an entry point of this package wherever it is installed, and by
importing this module.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from zarr.abc.codec import ArrayBytesCodec
from zarr.registry import register_codec

from annbatch.errors import CorruptStoreError
from annbatch.native import IN_MEMORY
from annbatch.shards.codecs import HEAD_NBYTES, TAIL_NBYTES
from annbatch.shards.decode_kernels import Status
from annbatch.shards.packed_encoder import packed
from annbatch.shards.packed_kernels import PackedJob
from annbatch.shards.packed_layout import BLOCK, Layout, can_pack, parse_delta
from annbatch.shards.packed_layout import NAME as NAME
from annbatch.shards.scatter_kernels import scatter_packed


@dataclass(frozen=True)
class PackedCodec(ArrayBytesCodec):
    """Integers in blocks of few bits a value, described in ``docs/packed.md``.

    Parameters
    ----------
    delta
        Whether to store the steps from one value to the next, for values that mostly ascend; else their distances from
        the least value of each block.
    """

    is_fixed_size = False

    delta: bool

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read what `to_dict` gives."""
        return cls(parse_delta(data.get("configuration") or {}))

    def to_dict(self) -> dict[str, Any]:
        """Give what ``zarr.json`` says of the codec."""
        return {"name": NAME, "configuration": {"delta": self.delta}}

    def validate(self, *, shape: Any, dtype: Any, chunk_grid: Any) -> None:
        """Raise ValueError unless an array of a type can be packed."""
        native = dtype.to_native_dtype()
        if not can_pack(native):
            raise ValueError(f"{NAME} packs integers of at most 64 bits, got {native}")

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        """Raise NotImplementedError: the size depends on the values, so that a shard's index cannot be packed."""
        raise NotImplementedError(
            f"the size of what {NAME} encodes depends on the values, so that it cannot be one of a sharding_indexed "
            f"codec's index_codecs; use bytes and crc32c there"
        )

    def _decode_sync(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        stored: npt.NDArray[np.uint8] = np.ascontiguousarray(chunk_bytes.as_numpy_array()).view(np.uint8)
        dtype = chunk_spec.dtype.to_native_dtype()
        n = int(np.prod(chunk_spec.shape, dtype=np.int64))
        values = unpacked(stored, n, dtype, delta=self.delta).astype(dtype, copy=False)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(values.reshape(chunk_spec.shape))

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)

    def _encode_sync(self, chunk_array: Any, chunk_spec: Any) -> Any:
        values = chunk_array.as_numpy_array()
        return chunk_spec.prototype.buffer.from_bytes(packed(values, delta=self.delta).tobytes())

    async def _encode_single(self, chunk_array: Any, chunk_spec: Any) -> Any:
        return await asyncio.to_thread(self._encode_sync, chunk_array, chunk_spec)


register_codec(NAME, PackedCodec)


def unpacked(stored: npt.NDArray[np.uint8], n: int, dtype: np.dtype[Any], *, delta: bool) -> npt.NDArray[Any]:
    """Unpack a whole chunk.

    Parameters
    ----------
    stored
        (nbytes,) uint8, contiguous.
    n
        Values in the chunk.
    dtype
        Their type.
    delta
        As `annbatch.shards.packed_encoder.packed` has it.

    Returns
    -------
    ndarray
        (n,) of ``dtype``.

    Raises
    ------
    CorruptStoreError
        If the bytes are not those of such a chunk.
    """
    layout, seen = Layout(n, dtype.itemsize), np.dtype(f"u{dtype.itemsize}")
    if not layout.blocks <= stored.size <= layout.max_nbytes:
        rule = f"of {layout.blocks} to {layout.max_nbytes} bytes"
        raise CorruptStoreError(f"a packed chunk of {n} values must be {rule}, got {stored.size}")
    values, scratch = np.empty(n, seen), np.empty(layout.n_blocks * BLOCK, seen)
    zero = np.zeros(1, np.int64)
    at = np.array([IN_MEMORY], np.int32), zero + stored.ctypes.data, zero + stored.size
    bounds, raw = np.array([0, 1], np.int64), np.empty(HEAD_NBYTES + stored.size + TAIL_NBYTES, np.uint8)
    pieces = bounds, zero, zero + n
    job = PackedJob(delta, n, at, bounds, pieces, np.zeros(1, seen), raw, scratch)
    ends = zero + values.ctypes.data, -1, scratch[:n], np.empty(0, seen), np.zeros(1, np.int64)
    status, _ = scatter_packed(job.decode, job.fields, bounds, *pieces, *ends)
    if status != Status.OK:
        raise CorruptStoreError(f"a packed chunk cannot be read: {Status(status).text}")
    return values.view(dtype.newbyteorder("="))
