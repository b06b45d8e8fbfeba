"""How are the arrays of a store cut and compressed?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from annbatch.shards.array_metadata import describe
from annbatch.shards.codecs import Codec as Compressor
from annbatch.stores.collection import FORMAT, Collection

Codec = Literal["blosc", "delta", "packed", "zstd"]
"""What compresses inner chunks, see `ArrayLayout.codec`."""


def chunk_elements_of(codec: str) -> int:
    """Give the elements of an inner chunk unless somebody chose them; packed ones are small, for random rows."""
    return 2**13 if codec == "packed" else 2**15


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """How the arrays of a store are cut."""

    chunk_elements: int = 2**15
    """Elements in an inner chunk."""
    shard_elements: int = 2**25
    """Elements in a shard, at most; cut down to a multiple of the chunk, and to the array."""
    plain_rows: int = 2**20
    """Elements in a plain chunk of ``indptr`` or of an obs column."""
    codec: Codec = "blosc"
    """What compresses inner chunks: blosc (lz4, shuffled), which all zarr readers know; delta, the same with column
    numbers as differences; packed, which is smallest but for zstd, and decodes fastest, a row alone above all; or zstd
    behind a shuffle."""

    def __post_init__(self) -> None:
        # Blosc cannot hold a chunk of 2 GiB or more.
        if not 1 <= self.chunk_elements <= 2**27:
            raise ValueError(f"chunk_elements must be in [1, 2**27], got {self.chunk_elements}")
        if self.shard_elements < self.chunk_elements:
            raise ValueError(
                f"shard_elements must be >= chunk_elements {self.chunk_elements}, got {self.shard_elements}"
            )
        if self.plain_rows < 1:
            raise ValueError(f"plain_rows must be >= 1, got {self.plain_rows}")

    @classmethod
    def of(cls, collection: Collection) -> ArrayLayout:
        """Say how matrices were cut and compressed in a collection's last store; by default if it is none of ours."""
        if collection.format != FORMAT or not collection.stores:
            return cls()
        if collection.modalities:
            return cls.of(collection.modality(next(iter(collection.modalities))))
        sparse = [f"{key}/indices" for key, types in collection.types.items() if types.indices is not None]
        found = describe(collection.store_paths[-1] / (*sparse, "X")[0])
        if isinstance(found, str):
            return cls()
        codecs: dict[Compressor, Codec] = {Compressor.PACKED: "packed", Compressor.ZSTD: "zstd"}
        codec = codecs.get(found.decoder.codec, "delta" if found.decoder.delta else "blosc")
        return cls(found.chunk_elements, codec=codec)

    def shard(self, length: int, chunk: int, limit: int) -> int:
        """Give the shard length for an axis of ``length``: whole chunks, at most ``limit``, no more than needed."""
        return chunk * max(1, min(limit // chunk, -(-length // chunk)))
