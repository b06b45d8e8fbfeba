"""What does a manifest record about one modality of a collection, such as the RNA or the proteins of its cells?

1. The stores of a collection with modalities are MuData stores: below ``mod/`` each has one AnnData store for each
   modality, whose rows are the rows of the store.
2. `ModalityEntry` is the record; `modality_entry` reads it from a JSON value and checks each field.

What the files hold is recorded once, with the store that they are in. Options name what belongs to a modality with it
in front, ``"rna:counts"``, as MuData names obs columns of its modalities: `own_names` takes that apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from annbatch.errors import InputError, StoreError
from annbatch.stores.manifest import ElementTypes, count, element_types, field, hex_digest

FOLDER = "mod"
"""Group of a MuData store that holds the modalities."""

MEASURED = "measured"
"""obs column of a modality that says which cells it has, if some may lack it (`ModalityEntry.masked`)."""

_KEYS_OF_BATCHES = ("data", "layers", "obsm", "labels", "index", "names", "mask")


@dataclass(frozen=True, slots=True)
class ModalityEntry:
    """One modality of a collection."""

    n_vars: int
    """Columns of every store."""
    var_digest: str
    """As `annbatch.Collection.var_digest`."""
    obs_columns: tuple[str, ...]
    """Names of its own obs columns."""
    types: Mapping[str, ElementTypes]
    """As `annbatch.Collection.types`."""
    nnz: tuple[int | None, ...]
    """Per store: number of stored elements of X; None where X is dense."""
    masked: bool
    """Whether some cells may lack it, and have rows of zeros: its obs column `MEASURED` says which have it."""

    def to_json(self) -> dict[str, Any]:
        """Give its JSON value."""
        return {
            "n_vars": self.n_vars,
            "var_digest": self.var_digest,
            "obs_columns": list(self.obs_columns),
            "types": {key: types.to_json() for key, types in self.types.items()},
            "nnz": list(self.nnz),
            "masked": self.masked,
        }


def fault_of_name(name: str) -> str | None:
    """Say why a modality cannot have this name; None if it can. Pure.

    Examples
    --------
    >>> fault_of_name("rna"), fault_of_name("rna:raw")
    (None, "must not contain '/', ':' or NUL, nor begin with '.' or '__'")
    """
    if name in _KEYS_OF_BATCHES:
        return f"must not be one of {', '.join(map(repr, _KEYS_OF_BATCHES))}, which are keys of batches"
    if not name or set(name) & set("/:\0") or name.startswith((".", "__")):
        return "must not contain '/', ':' or NUL, nor begin with '.' or '__'"
    return None


def modality_entry(entry: object, n_stores: int, where: str) -> ModalityEntry:
    """Read one modality's record; raises StoreError."""
    if not isinstance(entry, dict):
        raise StoreError(f"{where} must be an object, got {entry!r}")
    nnz, columns = field(entry, "nnz", list, where), field(entry, "obs_columns", list, where)
    if len(nnz) != n_stores:
        raise StoreError(f"{where}: nnz must have one entry for each of the {n_stores} stores, got {len(nnz)}")
    if not all(isinstance(name, str) for name in columns):
        raise StoreError(f"{where}: obs_columns must be strings, got {columns!r}")
    types = {
        key: element_types(value, f"{where}: types[{key!r}]")
        for key, value in field(entry, "types", dict, where).items()
    }
    counts = (None if n is None else count({"nnz": n}, "nnz", where) for n in nnz)
    return ModalityEntry(
        n_vars=count(entry, "n_vars", where),
        var_digest=hex_digest(entry, "var_digest", where),
        obs_columns=tuple(columns),
        types=types,
        nnz=tuple(counts),
        masked=field(entry, "masked", bool, where),
    )


def check_prefixed(what: str, names: Iterable[str], modalities: Sequence[str]) -> None:
    """Refuse names of elements that do not begin with a modality; pure.

    Raises
    ------
    InputError
        Names the option ``what``, the name and the modalities.
    """
    for name in names:
        modality, colon, own = name.partition(":")
        if not colon or modality not in modalities:
            remedy = f"{modalities[0]}:{own or name}"
            raise InputError(
                f"{what} must name modality and element, such as {remedy!r}, got {name!r}; the modalities are "
                f"{list(modalities)}"
            )


def own_names(names: Iterable[str], modality: str) -> list[str]:
    """Give the names, of many, that begin with a modality, without it; pure.

    Examples
    --------
    >>> own_names(["rna:counts", "adt:counts", "adt:raw"], "adt")
    ['counts', 'raw']
    """
    prefix = f"{modality}:"
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
