"""Which object of a zarr array holds which inner chunks, and what does a shard's index say?

Pure: no I/O. An object is a file, or what an object store has under a key.

1. A `ChunkGrid` says which object holds which chunks. Without sharding each chunk is a shard of one chunk.
2. `parse_index` checks the stored bytes of a shard's index: their crc32c, and that they stay within the object.
3. A `Located` says where chunks are, on disk or in memory, and keeps them there.

Format: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

import numpy as np
import numpy.typing as npt

from annbatch.errors import CorruptStoreError
from annbatch.shards.checksum import crc32c

Ints = npt.NDArray[np.int64]

_MISSING = 2**64 - 1


@dataclass(frozen=True, slots=True)
class ChunkGrid:
    """Which object holds which chunks."""

    folder: PurePath
    """The array's directory, or where its keys begin."""
    prefix: str
    """What a chunk key starts with."""
    suffix: str
    """What it ends with, behind the number of the chunk along the rows."""
    n_chunks: int
    """Inner chunks that hold rows of the array."""
    chunks_per_shard: int
    """Inner chunks in an object."""
    index_at: str | None
    """``"start"`` or ``"end"`` of the object; None without sharding."""
    stored_nbytes: tuple[int, int]
    """Fewest and most bytes that a stored chunk can have."""
    root: str = ""
    """What people know the folder's own root by; empty where it is the file system's."""
    recorded: Mapping[str, int] = field(default_factory=dict)
    """Keys, relative to the folder, of objects that exist unless something was lost, and their crc32c; others may be
    all fill value."""
    is_compared: bool = False
    """Whether objects carry no checksums of their own, so that each is compared with what is recorded when it is first
    read."""

    @property
    def n_shards(self) -> int:
        """Objects, if all exist."""
        return -(-self.n_chunks // self.chunks_per_shard)

    @property
    def index_nbytes(self) -> int:
        """Size of a shard's index with its checksum; 0 without sharding."""
        return 0 if self.index_at is None else 16 * self.chunks_per_shard + 4

    def key(self, shard: int) -> PurePath:
        """Give a shard's path, or key."""
        return self.folder / self._name(shard)

    def check_absent(self, shard: int) -> None:
        """Raise CorruptStoreError if a shard that does not exist was there when the array was written."""
        if self._name(shard) in self.recorded:
            raise CorruptStoreError(f"{self.describe_shard(shard)}: is missing")

    def recorded_crc(self, shard: int) -> int | None:
        """Give the checksum that a shard must have as a whole; None if nobody knows, or its chunks have their own."""
        return self.recorded.get(self._name(shard)) if self.is_compared else None

    def check_whole(self, shard: int, stored: npt.NDArray[np.uint8]) -> None:
        """Raise CorruptStoreError if a whole shard is not what was written."""
        if crc32c(stored) != self.recorded_crc(shard):
            raise CorruptStoreError(f"{self.describe_shard(shard)}: does not match its recorded crc32c checksum")

    def _name(self, shard: int) -> str:
        return f"{self.prefix}{shard}{self.suffix}"

    def describe_shard(self, shard: int) -> str:
        """Name a shard for people."""
        return f"{self.root}{self.key(shard)}"

    def describe(self, chunk: int) -> str:
        """Name an inner chunk for people."""
        if self.index_at is None:
            return self.describe_shard(chunk)
        shard, within = divmod(chunk, self.chunks_per_shard)
        return f"{self.describe_shard(shard)}: inner chunk {within}"


@dataclass(frozen=True, slots=True, eq=False)
class Located:
    """Where chunks are stored; they stay there as long as this object lives."""

    fds: npt.NDArray[np.int32]
    """(n,) descriptors; -1 where the shard does not exist, `annbatch.native.IN_MEMORY` where it was fetched."""
    offsets: Ints
    """(n,) first byte in the file, or its address; -1 where the chunk is missing, so that it is all fill value."""
    nbytes: Ints
    """(n,) stored bytes; -1 where the chunk is missing, -n - 1 where its compressor left n bytes as they were."""
    holders: Sequence[object]
    """What keeps the descriptors open, or the memory in place."""
    forget: Callable[[int], None] | None = None
    """Is told which of the chunks is corrupt, so that no cache keeps it."""

    @property
    def sizes(self) -> Ints:
        """(n,) stored bytes, whether or not the compressor left them as they were; -1 where the chunk is missing."""
        return np.where(self.nbytes < -1, -self.nbytes - 1, self.nbytes)

    def part(self, j: int) -> Located:
        """Give the place of one chunk, kept likewise."""
        forget = None if self.forget is None else lambda _, of_all=self.forget: of_all(j)
        return Located(self.fds[j : j + 1], self.offsets[j : j + 1], self.nbytes[j : j + 1], self.holders, forget)


def parse_index(layout: ChunkGrid, shard: int, stored: npt.NDArray[np.uint8], object_nbytes: int) -> tuple[Ints, Ints]:
    """Check a shard's index.

    Parameters
    ----------
    layout
        The array's.
    shard
        Number of the shard.
    stored
        ``layout.index_nbytes`` bytes, or fewer if the object has no more.
    object_nbytes
        Size of the object.

    Returns
    -------
    offsets, nbytes
        (chunks_per_shard,) int64: where the chunks lie in the object; -1 where one is missing.

    Raises
    ------
    CorruptStoreError
        If the index does not match its checksum, or leads out of the object.
    """
    if layout.index_at is None:
        table = np.array([[0, object_nbytes]], np.uint64)
    else:
        name = layout.describe_shard(shard)
        if stored.size != layout.index_nbytes:
            raise CorruptStoreError(
                f"{name}: shard index must have {layout.index_nbytes} bytes, the file has {object_nbytes}"
            )
        if crc32c(stored[:-4]) != int(stored[-4:].view("<u4")[0]):
            raise CorruptStoreError(f"{name}: shard index does not match its crc32c checksum")
        table = stored[:-4].view("<u8").reshape(layout.chunks_per_shard, 2)
    at, length = table[:, 0], table[:, 1]
    missing = (at == _MISSING) & (length == _MISSING)
    smallest, largest = layout.stored_nbytes
    end = np.uint64(object_nbytes)
    wrong = (at > end) | (length > end - np.minimum(at, end)) | (length < smallest) | (length > largest)
    if (wrong & ~missing).any():
        k = int(np.flatnonzero(wrong & ~missing)[0])
        raise CorruptStoreError(
            f"{layout.describe(shard * layout.chunks_per_shard + k)}: a chunk of {smallest} to {largest} bytes must "
            f"lie within the file's {object_nbytes}, got {length[k]} bytes at {at[k]}"
        )
    return at.view(np.int64), length.view(np.int64)
