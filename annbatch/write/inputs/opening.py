"""What can be an input, and how is it opened?

1. `as_origins` takes what the caller passed: paths, AnnData objects, zarr stores, with names or without. An `Origin`
   can be opened any number of times, in any process, and has a `stamp` that changes when its contents do.
2. An opened origin is an `annbatch.write.inputs.opened_input.Root`, which makes all kinds of inputs alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import anndata as ad
import zarr
from zarr.abc.store import Store as ZarrStore

from annbatch.check import expanded
from annbatch.errors import InputError, MissingInputError, OutputError, StoreError, redacted
from annbatch.remote.urls import is_url
from annbatch.stores.location import locate
from annbatch.write.inputs.file_formats import files_of, open_path
from annbatch.write.inputs.local_copy import local_copy
from annbatch.write.inputs.memory_input import MemoryRoot, stamp_of
from annbatch.write.inputs.opened_input import Root
from annbatch.write.inputs.spill import SpillError
from annbatch.write.inputs.stored_input import StoredInput

Input: TypeAlias = str | os.PathLike[str] | ad.AnnData | ZarrStore
Inputs: TypeAlias = Input | Sequence[Input] | Mapping[str, Input]
Load = Callable[[str], ad.AnnData]


@dataclass(frozen=True, slots=True)
class Origin:
    """One input, as the caller gave it."""

    name: str
    """What warnings and the obs column ``src_path`` call it."""
    given: str | ad.AnnData | ZarrStore
    """A path, or the object."""
    load: Load | None
    """Makes AnnData of a path that is no file that can be read here."""
    address: str = ""
    """The path or store as the caller gave it, if that is not the name."""
    group: str = ""
    """Where in a zarr store the AnnData is: in one of MuData, ``"mod/rna"`` or the like."""

    def local(self, directory: Path, checkpoint: Callable[[], None]) -> Origin:
        """Give the same input, of which a copy is made in ``directory`` if it cannot be read where it is.

        Raises
        ------
        InputError
            If that cannot be done.
        """
        if self.load is not None or not isinstance(self.given, str):
            return self
        return replace(self, given=local_copy(self.given, self.label, directory, checkpoint))

    @property
    def label(self) -> str:
        """What errors call it: the name, and the path."""
        return f"{self.name} ({self.address})" if self.address else self.name

    @contextmanager
    def open(self) -> Iterator[Root]:
        """Open it; whatever goes wrong inside becomes an InputError that names it.

        Raises
        ------
        MissingInputError
            If nothing is there.
        InputError
            If it is no AnnData.
        """
        try:
            if isinstance(self.given, ad.AnnData):
                yield MemoryRoot(self.given)
            elif isinstance(self.given, ZarrStore):
                yield StoredInput(zarr.open_group(self.given, path=self.group, mode="r"), self.label)
            elif self.load is not None:
                yield MemoryRoot(self.load(self.given))
            elif is_url(self.given):
                yield StoredInput(_remote_group(self.given, self.label), self.label)
            else:
                with open_path(self.given, self.label) as root:
                    yield root
        except (InputError, OutputError, SpillError, MemoryError):
            raise
        except StoreError as e:
            raise InputError(f"{self.label}: cannot be read as AnnData: {e}") from e
        except Exception as e:
            raise InputError(f"{self.label}: cannot be read as AnnData: {type(e).__name__}: {e}") from e

    def stamp(self) -> object:
        """Give a JSON value that differs if the contents do: sizes and times of files, checksums of memory."""
        if isinstance(self.given, ad.AnnData):
            try:
                return stamp_of(self.given)
            except Exception as e:
                raise InputError(f"{self.label}: cannot be read as AnnData: {type(e).__name__}: {e}") from e
        if isinstance(self.given, ZarrStore) or is_url(self.given):
            return self.address or self.name
        stats = [path.stat() for path in files_of(self.given)]
        return [str(Path(self.given).resolve()), [s.st_size for s in stats], [s.st_mtime_ns for s in stats]]


def as_origins(given: Inputs, load: Load | None) -> list[Origin]:
    """Give the inputs in a list; a single one counts as a list of one.

    Raises
    ------
    InputError
        If there is none, it is of no such kind, or a name is no string.
    """
    if isinstance(given, Mapping):
        origins = [_named(_origin(item, repr(name), load), name) for name, item in given.items()]
    else:
        items = [given] if isinstance(given, str | os.PathLike | ad.AnnData | ZarrStore) else list(given)
        origins = [_origin(item, i, load) for i, item in enumerate(items)]
    if not origins:
        raise InputError("adata_paths must name at least one input, got none")
    return origins


def _remote_group(url: str, where: str) -> zarr.Group:
    try:
        return locate(url).group("")
    except StoreError as e:
        if isinstance(e.__cause__, FileNotFoundError):
            raise MissingInputError(f"{where}: must be a zarr group, or have the name of a file such as .h5ad") from e
        raise
    except ImportError as e:
        raise InputError(f"{where}: {e}") from e


def _origin(item: Input, place: object, load: Load | None) -> Origin:
    if isinstance(item, ad.AnnData):
        return Origin(f"adata_{place}", item, None)
    if isinstance(item, ZarrStore):
        return Origin(str(item), item, None)
    if isinstance(item, str | os.PathLike):
        text = _text(os.fspath(item))
        return Origin(redacted(text) if is_url(text) else text, expanded(item), load)
    raise InputError(f"adata_paths must be paths, AnnData or zarr stores, got {type(item).__name__} at {place}")


def _named(origin: Origin, name: object) -> Origin:
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"adata_paths must have non-empty strings as names, got {name!r}")
    address = "" if isinstance(origin.given, ad.AnnData) or origin.name == name else origin.name
    return replace(origin, name=_text(name), address=address)


def _text(path: str) -> str:
    """Refuse a path or a name that cannot be written as text: it becomes a value of the obs column ``src_path``."""
    try:
        path.encode()
    except UnicodeEncodeError as e:
        raise InputError(f"{path!a}: must be UTF-8 text, got other bytes; rename it, or make a link") from e
    return path
