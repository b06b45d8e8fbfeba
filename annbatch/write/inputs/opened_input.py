"""What does an opened input give, whatever it was opened from?

1. `Root` is what all of them promise: names of cells, single obs columns, var, and matrices, none of which is read
   before it is asked for.
2. `PartsRoot` gives what readers of single formats hand it, for files that are not laid out as AnnData.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt
import pandas as pd

Array: TypeAlias = npt.NDArray[Any]


class Root(Protocol):
    """An opened input."""

    @property
    def column_names(self) -> list[Any]:
        """Names of the obs columns."""

    @property
    def index_name(self) -> Any:
        """Name of the obs index, None if it has none."""

    def obs_names(self) -> Array:
        """Read the names of the cells, (n_obs,) str objects."""

    def check_column(self, name: Any) -> int:
        """Give the length of an obs column without reading its values; raises StoreError if it cannot be one."""

    def column(self, name: Any) -> pd.Series[Any]:
        """Read one obs column, (n_obs,)."""

    def var(self, raw: bool) -> pd.DataFrame:
        """Read var, or that of raw."""

    def names(self, group: str) -> list[Any]:
        """Names of what is in ``layers``, ``obsm``, ``varm``, ``obsp``, ``varp``, ``uns`` or ``raw``."""

    def element(self, key: str) -> Any:
        """Give ``"X"``, ``"raw/X"``, ``"layers/…"`` or ``"obsm/…"``, unread; None if it is not there."""


@dataclass(frozen=True, slots=True)
class PartsRoot:
    """An input that is put together from its parts; it has no raw."""

    read_obs_names: Callable[[], Array]
    """Reads the names of the cells, (n_obs,) str objects."""
    read_var: Callable[[], pd.DataFrame]
    """Reads var, (n_vars, …), with str names."""
    elements: Mapping[str, Any]
    """Matrices and whatever else it holds, unread, by their keys."""
    columns: Mapping[str, tuple[int, Callable[[], Array]]] = field(default_factory=dict)
    """obs columns: their length, and what reads them."""
    index_name: str | None = None
    """Name of the obs index, if it has one."""

    @property
    def column_names(self) -> list[str]:
        """Names of the obs columns."""
        return list(self.columns)

    def obs_names(self) -> Array:
        """Read the names of the cells, (n_obs,) str objects."""
        return self.read_obs_names()

    def check_column(self, name: str) -> int:
        """Give the length of an obs column."""
        return self.columns[name][0]

    def column(self, name: str) -> pd.Series[Any]:
        """Read one obs column, (n_obs,)."""
        return pd.Series(self.columns[name][1]())

    def var(self, raw: bool) -> pd.DataFrame:
        """Read var."""
        return self.read_var()

    def names(self, group: str) -> list[str]:
        """Names of what is in ``layers``, ``obsm`` or the like."""
        return [key.removeprefix(f"{group}/") for key in self.elements if key.startswith(f"{group}/")]

    def element(self, key: str) -> Any:
        """Give an element unread; None if it is not there."""
        return self.elements.get(key)
