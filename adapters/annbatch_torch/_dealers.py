"""Does another library share out among the ranks what a rank's loader gives?

Hugging Face accelerate prepares a ``DataLoader`` of an iterable dataset in one of two ways: rank 0 alone reads, and
deals its batches to all ranks; or each rank takes every n-th batch. A `TorchLoader` gives each rank rows of its own, so
that rows would be left out. accelerate asks a dataset nothing that would tell, so the calling frames do.
"""

from __future__ import annotations

import sys
from types import FrameType

from annbatch.errors import InputError

_MODULE = "accelerate.data_loader"
_DEALERS = ("DataLoaderDispatcher", "IterableDatasetShard")


def check_dealers() -> None:
    """Refuse to be iterated, or sent to worker processes, by somebody who deals batches to ranks.

    One process is refused as well: what was tried there is then run on many.

    Raises
    ------
    InputError
        Says what to write instead.
    """
    frame: FrameType | None = sys._getframe(1) if _MODULE in sys.modules else None
    while frame is not None:
        if frame.f_globals.get("__name__") == _MODULE:
            dealer = type(frame.f_locals.get("self")).__name__
            if dealer in _DEALERS:
                raise InputError(
                    "a TorchLoader must not be in a DataLoader that accelerate prepares: it gives each rank its own "
                    f"rows, and accelerate's {dealer} would share those out once more. Write "
                    "accelerator.prepare(TorchLoader(ds)); or leave the ranks to accelerate, with "
                    'TorchLoader(Loader(…, partition=Partition(0, 1)), form="dict")'
                )
        frame = frame.f_back
