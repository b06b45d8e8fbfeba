"""How do columns that come input by input go out column by column?

`ColumnSpill.append` takes the columns of one input after the other to a file, `ColumnSpill.parts` gives one column of
all inputs. In memory are eight bytes for each column of each input.

The file has no name, so nobody else can put anything into what is unpickled.
"""

from __future__ import annotations

import pickle
from array import array
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, Self

import pandas as pd

from annbatch.write.inputs.spill import spilling


class ColumnSpill:
    """Columns of many inputs, on disk.

    Parameters
    ----------
    directory
        On which filesystem.
    n_columns
        How many columns each input has.
    """

    def __init__(self, directory: Path, n_columns: int) -> None:
        self._file = TemporaryFile(dir=directory)  # noqa: SIM115 - it is closed by `__exit__`
        self._n_columns = n_columns
        self._ends = array("q", [0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, column: pd.Series[Any] | None) -> None:
        """Take the next column of an input, or the first one of the next input; None if it lacks it."""
        written = b""
        if column is not None:
            values: Any = column.array
            if isinstance(values, pd.Categorical):
                # By themselves, so that inputs with the same categories share them when they are read.
                values = (values.codes, pickle.dumps(values.dtype))
            written = pickle.dumps(values)
        with spilling():
            self._file.write(written)
        self._ends.append(self._ends[-1] + len(written))

    def parts(self, number: int) -> list[pd.Series[Any] | None]:
        """Read the ``number``-th column of all inputs."""
        with spilling():
            self._file.flush()
        types: dict[bytes, Any] = {}
        found: list[pd.Series[Any] | None] = []
        for i in range(number, len(self._ends) - 1, self._n_columns):
            nbytes = self._ends[i + 1] - self._ends[i]
            self._file.seek(self._ends[i])
            values = pickle.loads(self._file.read(nbytes)) if nbytes else None
            if isinstance(values, tuple):
                codes, dtype = values
                if dtype not in types:
                    types[dtype] = pickle.loads(dtype)
                values = pd.Categorical.from_codes(codes, dtype=types[dtype], validate=False)
            found.append(None if values is None else pd.Series(values))
        return found
