"""What is the var of a store: which genes does it have, and what is known of them?

Loaders need to tell the genes of stores apart when they open them, and the names of all genes. The other columns are
read when somebody asks for them.

1. `VarInMemory` is a table that is there already.
2. `VarInFile` is the var of an ``.h5ad`` file; its table is read when it is needed.
3. `GeneNames` are the names. Those in memory are there once for all stores that have the same (`GeneNames.shared`);
   others are read when they are needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakValueDictionary

import pandas as pd

from annbatch.errors import InputError
from annbatch.shards.file_stamp import FileStamp


@dataclass(frozen=True, eq=False)
class GeneNames:
    """The names of the genes of a store, in order."""

    digest: bytes
    """(32,) SHA-256 of the names: what tells them from others."""
    n: int
    """Number of names."""
    in_memory: bytes | None
    """The names in UTF-8, with a NUL between them; None if they are read when they are needed."""
    read: Callable[[], bytes] | None = None
    """Reads them."""

    @classmethod
    def shared(cls, joined: bytes, n: int) -> GeneNames:
        """Give the object that this process has for these names, if there is one."""
        found = cls(hashlib.sha256(joined).digest(), n, joined)
        return _known.setdefault((found.digest, n), found)

    @classmethod
    def known(cls, digest: bytes, n: int) -> GeneNames | None:
        """Give the names that have a digest, if this process has them in memory."""
        return _known.get((digest, n))

    @classmethod
    def of(cls, index: pd.Index[Any]) -> GeneNames:
        """Take the names of a table; raises InputError if one holds a NUL."""
        text = index if index.inferred_type == "string" else index.map(str)
        joined = "\0".join(text).encode(errors="surrogatepass")
        if joined.count(b"\0") > max(0, len(index) - 1):
            name = next(name for name in text if "\0" in name)
            raise InputError(f"gene names must not hold NUL, got {name!r}; rename it in var_names")
        return cls(hashlib.sha256(joined).digest(), len(index), joined)

    def joined(self) -> bytes:
        """Give the names in UTF-8, with a NUL between them."""
        if self.in_memory is not None:
            return self.in_memory
        assert self.read is not None
        return self.read()

    def names(self) -> list[str]:
        """Give the names: n of them."""
        return self.joined().decode(errors="surrogatepass").split("\0") if self.n else []

    def __reduce__(self) -> tuple[Callable[..., GeneNames], tuple[Any, ...]]:
        if self.in_memory is not None:
            return _shared, (self.in_memory, self.n)
        return GeneNames, (self.digest, self.n, None, self.read)


def _shared(joined: bytes, n: int) -> GeneNames:
    """Do what `GeneNames.shared` does; cloudpickle would take a bound method apart, and `_known` with it."""
    return GeneNames.shared(joined, n)


_known: WeakValueDictionary[tuple[bytes, int], GeneNames] = WeakValueDictionary()


@dataclass(frozen=True, eq=False)
class VarInMemory:
    """The var of a store as a table in memory."""

    table: pd.DataFrame
    """(n_vars, …)."""

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def genes(self) -> GeneNames:
        """The names of the genes."""
        return GeneNames.of(self.table.index)


@dataclass(frozen=True, eq=False)
class VarInFile:
    """The var of an ``.h5ad`` file."""

    stamp: FileStamp
    """The file."""
    genes: GeneNames
    """The names of the genes."""
    read: Callable[[FileStamp], pd.DataFrame]
    """Reads the table of a file; raises StoreError if the file has changed."""

    def __len__(self) -> int:
        return self.genes.n

    @cached_property
    def table(self) -> pd.DataFrame:
        """(n_vars, …) the table, read once."""
        return self.read(self.stamp)


StoreVar = VarInMemory | VarInFile
