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

from annbatch.shards.packed_decoder import unpacked
from annbatch.shards.packed_encoder import packed
from annbatch.shards.packed_layout import NAME as NAME
from annbatch.shards.packed_layout import can_pack, parse_delta


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
        """Raise NotImplementedError: the size depends on the values."""
        raise NotImplementedError

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
