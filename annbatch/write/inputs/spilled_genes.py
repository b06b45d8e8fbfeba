"""Which genes does each input of a build have? As `annbatch.stores.gene_lists`, with the lists on disk.

So memory grows with the number of different genes, and neither with that of inputs nor with that of lists.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from annbatch.stores.gene_lists import NUMBERS, GeneLists, Ints
from annbatch.write.inputs.spill import load, save


class SpilledGeneLists(GeneLists):
    """The genes of all inputs.

    Parameters
    ----------
    directory
        Where the lists go; it must exist.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory

    def _keep(self, numbers: npt.NDArray[Any]) -> None:
        save(self.directory / str(len(self.lengths)), numbers)

    def _list(self, number: int) -> Ints:
        return load(self.directory / str(number), NUMBERS, 0, self.lengths[number]).astype(np.int64)
