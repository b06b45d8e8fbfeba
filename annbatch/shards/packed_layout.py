"""Where in a packed chunk does what stand?

Pure. A chunk is a table and, behind it, blocks; `docs/packed.md` describes every field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

NAME = "annbatch.packed"
"""What ``zarr.json`` calls the codec."""
BLOCK = 256
"""Values in a block."""
LANES = 16
"""Value i of a block lies in lane ``i % LANES``, row ``i // LANES``."""
GROUP = 4
"""Blocks that share a checksum."""
DESCRIPTOR_NBYTES = 4
"""Width, sizes, number of extras, number of patches: a byte each."""
CHECKSUM_NBYTES = 4
FLAGS_NBYTES = BLOCK // 8
"""A bit for each value of a block."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a chunk begin, in bytes."""

    n: int
    """Values in the chunk."""
    itemsize: int
    """Bytes of a value."""

    @property
    def n_blocks(self) -> int:
        """Blocks; the last one may be filled up."""
        return -(-self.n // BLOCK)

    @property
    def n_groups(self) -> int:
        """Groups of blocks; the last one may have fewer."""
        return -(-self.n_blocks // GROUP)

    @property
    def descriptors(self) -> int:
        """First byte of the blocks' descriptors; before them stands the table's checksum."""
        return CHECKSUM_NBYTES

    @property
    def bases(self) -> int:
        """First byte of the blocks' bases."""
        return self.descriptors + DESCRIPTOR_NBYTES * self.n_blocks

    @property
    def checksums(self) -> int:
        """First byte of the groups' checksums."""
        return self.bases + self.itemsize * self.n_blocks

    @property
    def blocks(self) -> int:
        """First byte of the first block: the size of the table."""
        return self.checksums + CHECKSUM_NBYTES * self.n_groups

    @property
    def max_nbytes(self) -> int:
        """Most bytes of a chunk: no block takes more than its values do unpacked."""
        return self.blocks + self.n_blocks * BLOCK * self.itemsize


def can_pack(dtype: np.dtype[Any]) -> bool:
    """Say whether arrays of a type can be packed."""
    return dtype.kind in "iu" and dtype.itemsize <= 8


def parse_delta(configuration: Mapping[str, Any]) -> bool:
    """Give the one field of the codec's configuration; raises ValueError if there are others, or it is no boolean."""
    if set(configuration) != {"delta"} or not isinstance(configuration["delta"], bool):
        raise ValueError(f"the configuration of {NAME} must be {{'delta': true or false}}, got {dict(configuration)}")
    return configuration["delta"]
