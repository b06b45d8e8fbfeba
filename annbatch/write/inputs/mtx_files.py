"""What is in the three files that Cell Ranger and others write for a matrix: entries, features and barcodes?

1. `find_mtx` finds the three of them, in a folder or from the path of the first, with a prefix or without, of Cell
   Ranger 2 (``genes.tsv``) or later (``features.tsv``), compressed with gzip or not.
2. `mtx_root` reads the header. The entries are read a block at a time when `annbatch.write.inputs.transpose` sorts
   them. Everything has the name and the type that `scanpy.read_10x_mtx` gives it where ``gene_ids`` name the genes.

Formats: https://www.10xgenomics.com/support/software/cell-ranger/latest/analysis/outputs/cr-outputs-mex-matrices and
https://math.nist.gov/MatrixMarket/formats.html
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from annbatch.errors import InputError
from annbatch.write.inputs.matrix_rows import Matrix
from annbatch.write.inputs.opened_input import PartsRoot
from annbatch.write.inputs.tenx_file import GENE_IDS, GENE_SYMBOLS

Ints = npt.NDArray[np.int64]

_MATRIX = re.compile(r"(.*)matrix\.mtx(?:\.gz)?", re.DOTALL)
_FEATURES = ("genes.tsv", "features.tsv.gz", "features.tsv", "genes.tsv.gz")
_BARCODES = ("barcodes.tsv", "barcodes.tsv.gz")
_PANDAS = tuple(int(number) for number in pd.__version__.split(".")[:2])
_EXACT: dict[str, Any] = {"float_precision": "round_trip"} if _PANDAS < (3, 1) else {}
"""What lets pandas read numbers exactly, where it does not do so anyway."""


@dataclass(frozen=True, slots=True)
class MtxFiles:
    """The three files of a matrix."""

    matrix: Path
    features: Path
    barcodes: Path


def is_matrix(name: str) -> bool:
    """Say whether a file is the first of the three, by its name."""
    return _MATRIX.fullmatch(name) is not None


def find_mtx(path: Path, where: str) -> MtxFiles | None:
    """Find the three files; None if ``path`` is none of them, nor a folder of them.

    Raises
    ------
    InputError
        If one of the three is missing, or a folder holds several matrices.
    """
    matrix = path if path.is_file() else _only_matrix(path, where)
    found = None if matrix is None else _MATRIX.fullmatch(matrix.name)
    if matrix is None or found is None:
        return None
    beside = []
    for names in (_FEATURES, _BARCODES):
        there = (matrix.with_name(f"{found[1]}{name}") for name in names)
        if (file := next((file for file in there if file.is_file()), None)) is None:
            wanted = " or ".join(f"{found[1]}{name}" for name in names)
            raise InputError(f"{where}: must be a 10x Genomics matrix, got {matrix.name} without {wanted} beside it")
        beside.append(file)
    return MtxFiles(matrix, *beside)


def _only_matrix(folder: Path, where: str) -> Path | None:
    found = {match[1]: file for file in sorted(folder.glob("*matrix.mtx*")) if (match := _MATRIX.fullmatch(file.name))}
    if len(found) > 1 and "" not in found:
        first = next(iter(found.values()))
        raise InputError(f"{where}: must be one matrix, got a folder of {len(found)}; name one, such as {first}")
    return found.get("") or next(iter(found.values()), None)


def mtx_root(files: MtxFiles, where: str) -> PartsRoot:
    """Read what the header says.

    Raises
    ------
    InputError
        If it is no matrix of numbers in coordinates.
    """
    entries = MtxEntries.of(files.matrix, where)
    n_vars, n_obs = entries.n_rows, entries.n_columns
    x = Matrix("coordinate", (n_obs, n_vars), np.dtype(np.float32), entries)
    return PartsRoot(lambda: _table(files.barcodes)[0].to_numpy(dtype=object), lambda: _var(files.features), {"X": x})


def _var(path: Path) -> pd.DataFrame:
    table = _table(path)
    index = pd.Index(table[0], dtype=object, name=GENE_IDS)
    names = {1: GENE_SYMBOLS} if "genes.tsv" in path.name else {1: GENE_SYMBOLS, 2: "feature_types"}
    return pd.DataFrame({names[i]: table[i].to_numpy(dtype=object) for i in names if i in table}, index=index)


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", header=None, dtype=str, keep_default_na=False)


@dataclass(frozen=True, slots=True)
class MtxEntries:
    """The entries of a MatrixMarket file, in the order of the file."""

    path: Path
    where: str
    """What messages call them."""
    n_rows: int
    n_columns: int
    n_entries: int
    integers: bool
    """Whether values are integers."""

    @classmethod
    def of(cls, path: Path, where: str) -> MtxEntries:
        """Read the header.

        Raises
        ------
        InputError
            If it is not that of a matrix of numbers in coordinates.
        """
        with _opened(path) as file:
            first = file.readline(1024).decode("latin-1").split()
            if [word.lower() for word in first[:1]] != ["%%matrixmarket"]:
                raise InputError(f"{where}: {path.name} must begin with %%MatrixMarket, got {' '.join(first)[:40]!r}")
            kind = [word.lower() for word in first[1:5]]
            known = [["matrix", "coordinate", field, "general"] for field in ("integer", "real")]
            if kind not in known:
                wanted = " or ".join(" ".join(words) for words in known)
                raise InputError(f"{where}: {path.name} must be a {wanted}, got {' '.join(kind)!r}")
            sizes = _behind_comments(file).split()
        try:
            n_rows, n_columns, n_entries = (int(size) for size in sizes)
        except ValueError:
            said = b" ".join(sizes).decode("latin-1")[:40]
            rule = "must give the numbers of rows, columns and entries"
            raise InputError(f"{where}: {path.name} {rule}, got {said!r}") from None
        return cls(path, where, n_rows, n_columns, n_entries, kind[2] == "integer")

    @property
    def shape(self) -> tuple[int]:
        """(n_entries,)."""
        return (self.n_entries,)

    def blocks(self, n: int) -> Iterator[tuple[Ints, Ints, npt.NDArray[Any]]]:
        """Read all entries: per block of up to ``n`` the rows and columns, counted from 0, and the values.

        Raises
        ------
        InputError
            If there are more or fewer of them, one is no entry, or lies outside of the matrix.
        """
        what, done = f"{self.where}: {self.path.name}", 0
        types = {0: np.int64, 1: np.int64, 2: np.int64 if self.integers else np.float64}
        with _opened(self.path) as file:
            _behind_comments(file)
            try:
                for block in self._tables(file, types, n):
                    rows, columns, values = (block[i].to_numpy() for i in range(3))
                    for numbers, limit in ((rows, self.n_rows), (columns, self.n_columns)):
                        if not (numbers.min() >= 1 and numbers.max() <= limit):
                            raise InputError(
                                f"{what}: rows and columns must be in 1 to {self.n_rows} and {self.n_columns}"
                            )
                    done += len(rows)
                    yield rows - 1, columns - 1, values
            except InputError:
                raise
            except (ValueError, EOFError, OSError) as e:
                raise InputError(f"{what}: cannot be read after entry {done:,}: {type(e).__name__}: {e}") from e
        if done != self.n_entries:
            raise InputError(f"{what}: must have the {self.n_entries:,} entries that its header gives, got {done:,}")

    def _tables(self, file: IO[bytes], types: dict[int, Any], n: int) -> Iterator[pd.DataFrame]:
        if not self.n_entries:
            return
        with pd.read_csv(
            file,
            sep=" ",
            skipinitialspace=True,
            header=None,
            names=range(3),
            index_col=False,
            dtype=types,
            chunksize=n,
            na_filter=False,
            **_EXACT,
        ) as tables:
            yield from tables


def _opened(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _behind_comments(file: IO[bytes]) -> bytes:
    """Give the first line that is no comment, and leave the file behind it."""
    line = file.readline()
    while line.startswith(b"%") or (line and not line.strip()):
        line = file.readline()
    return line
