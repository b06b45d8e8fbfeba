"""How is a loader asked to read, and which ways of reading do several commands time?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

COLUMNS = (
    *("cell_type", "plate", "donor", "sample", "condition", "tissue", "sex", "phase"),
    *("drug_0", "drug_1", "drug_2", "drug_3", "is_doublet", "age"),
    *("mito_share", "ribo_share", "doublet_score", "s_score", "n_counts", "n_genes"),
)
"""The obs columns of the generated input, in the order in which settings take them."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a loader is asked to read."""

    name: str
    """How tables call it."""
    batch_size: int = 4096
    """Rows a batch."""
    chunk_size: int = 512
    """Rows read contiguously."""
    preload_nchunks: int = 32
    """Blocks of ``chunk_size`` rows that are shuffled together."""
    columns: int = 1
    """How many obs columns come with a batch."""
    frame: bool = False
    """Whether the obs columns are asked for as a DataFrame where they come as codes otherwise."""
    options: tuple[tuple[str, Any], ...] = ()
    """Further options of this project's Loader, by name."""
    threads: int | None = None
    """Threads of the loader; None leaves its default."""
    rank: int = 0
    """Which of several processes that share the rows it is."""
    ranks: int = 1
    """How many of them there are."""
    device: str = "cpu"
    """Where batches go, for contenders that know devices."""

    @property
    def window(self) -> int:
        """Rows that a loader holds at once."""
        return max(self.chunk_size * self.preload_nchunks, self.batch_size)

    @property
    def reading(self) -> dict[str, int]:
        """What the Loader of either package is told of this."""
        return {"batch_size": self.batch_size, "chunk_size": self.chunk_size, "preload_nchunks": self.preload_nchunks}

    @property
    def labels(self) -> list[str]:
        """Names of the obs columns."""
        return list(COLUMNS[: self.columns])


BLOCKS = Setting("512x32")
SMALL_BLOCKS = Setting("32x256", chunk_size=32, preload_nchunks=256)
SINGLE_ROWS = Setting("1x16384", chunk_size=1, preload_nchunks=16384)
SETTINGS = {
    setting.name: setting
    for setting in (
        BLOCKS,
        SMALL_BLOCKS,
        SINGLE_ROWS,
        Setting("128-1", batch_size=128),
        Setting("128-20", batch_size=128, columns=20),
        Setting("128-20-frame", batch_size=128, columns=20, frame=True),
    )
}
"""Name -> setting of the field; batches of 4096 unless the name begins with their size."""

ON_CPU = ", batches on the CPU"
"""What follows the name of a GPU benchmark's setting at which batches stay there."""

TITLES = {
    "512x32": "blocks of 512 rows, 32 of them shuffled together",
    "32x256": "blocks of 32 rows, 256 of them shuffled together",
    "512x64": "blocks of 512 rows, 64 of them shuffled together",
    "512x128": "blocks of 512 rows, 128 of them shuffled together",
    "1x16384": "perfectly random rows, windows of 16,384",
    "128-1": "batches of 128, 1 obs column",
    "128-20": "batches of 128, 20 obs columns",
    "128-20-frame": "batches of 128, 20 obs columns as a DataFrame",
}
"""Name of a setting -> how tables and figures call it."""
