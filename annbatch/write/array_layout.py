"""How are the arrays of a store cut and compressed?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from annbatch.shards.array_metadata import describe
from annbatch.shards.codecs import Codec as Compressor
from annbatch.stores.collection import FORMAT, Collection
from annbatch.warn import warn

Codec = Literal["blosc", "packed", "zstd"]
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
    """What compresses inner chunks: blosc (lz4, shuffled), which every zarr reader decodes; packed, which this loader
    decodes fastest; or zstd behind a shuffle, column numbers as differences, which takes the fewest bytes."""

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

    def shard(self, length: int, chunk: int, limit: int) -> int:
        """Give the shard length for an axis of ``length``: whole chunks, at most ``limit``, no more than needed."""
        return chunk * max(1, min(limit // chunk, -(-length // chunk)))


def kept_layout(collection: Collection, codec: Codec | None, chunk_elements: int | None) -> tuple[Codec, int]:
    """Choose codec and chunk size for stores that follow those of a collection.

    What is None is taken from the collection's last store; if the codec changes, chunks get its default size. Blosc on
    differences (``numcodecs.delta``) is no longer written: such a collection goes on with packed chunks, with a warning
    unless the codec was chosen.
    """
    last = collection
    if collection.modalities:
        last = collection.modality(next(iter(collection.modalities)))
    sparse = [f"{key}/indices" for key, types in last.types.items() if types.indices is not None]
    found = describe(last.store_paths[-1] / (*sparse, "X")[0]) if last.format == FORMAT and last.stores else ""
    if isinstance(found, str):
        # None of ours: what others chose says nothing about what suits this loader.
        kept = ArrayLayout()
    elif found.decoder.codec is Compressor.BLOSC and found.decoder.delta:
        kept = ArrayLayout(min(found.chunk_elements, chunk_elements_of("packed")), codec="packed")
        if codec is None:
            warn(
                f"{collection.path}: its codec, blosc on differences (numcodecs.delta), is no longer written. New "
                "stores get the codec 'packed'; pass codec='blosc' if programs without this package must read them"
            )
    else:
        codecs: dict[Compressor, Codec] = {Compressor.PACKED: "packed", Compressor.ZSTD: "zstd"}
        kept = ArrayLayout(found.chunk_elements, codec=codecs.get(found.decoder.codec, "blosc"))
    if codec is None or codec == kept.codec:
        return kept.codec, kept.chunk_elements if chunk_elements is None else chunk_elements
    return codec, chunk_elements_of(codec) if chunk_elements is None else chunk_elements
