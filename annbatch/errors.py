"""What can go wrong, as types?

::

    AnnbatchError
    ├── InputError (ValueError)              an argument or an input file breaks a rule
    │   ├── MissingInputError (FileNotFoundError)
    │   └── InputErrors                      several faults of the inputs, in one message
    ├── StoreError (ValueError)              a store is not what it should be
    │   └── CorruptStoreError                its bytes contradict a checksum or each other
    ├── DeviceMemoryError (MemoryError)      a device has no memory left for batches
    └── OutputError (OSError)                an output cannot be written
        └── OutputExistsError (FileExistsError)

Each subclasses the built-in that it refines. Messages name the file, the element, the rule and the value, also where a
library raised the error. Nothing that might be a secret is in them: no user, password or query of a URL.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = [
    "AnnbatchError",
    "InputError",
    "MissingInputError",
    "InputErrors",
    "StoreError",
    "CorruptStoreError",
    "DeviceMemoryError",
    "OutputError",
    "OutputExistsError",
]


class AnnbatchError(Exception):
    """Base of every error that annbatch raises on purpose."""


class InputError(AnnbatchError, ValueError):
    """An argument or an input breaks a rule, or a value does not fit the type that was requested for it."""


class MissingInputError(InputError, FileNotFoundError):
    """An input file does not exist."""


class InputErrors(InputError):
    """Several faults of the inputs. ``errors`` holds them all, as `InputError`."""

    LINES = 20
    """Number of faults that the message lists; it counts the others."""

    def __init__(self, errors: Sequence[InputError]) -> None:
        self.errors = tuple(errors)
        listed = [f"  {error}" for error in self.errors[: self.LINES]]
        if len(self.errors) > self.LINES:
            listed.append(f"  … and {len(self.errors) - self.LINES:,} more")
        super().__init__("\n".join([f"{len(self.errors):,} faults in the inputs:", *listed]))

    def __reduce__(self) -> tuple[type[InputErrors], tuple[tuple[InputError, ...]]]:
        # Exceptions are copied by calling their type with their message, which is no list of errors.
        return type(self), (self.errors,)


class StoreError(AnnbatchError, ValueError):
    """A store cannot be read, or is not the kind of store that it should be."""


class CorruptStoreError(StoreError):
    """A store's bytes contradict a checksum, its metadata or each other."""


class DeviceMemoryError(AnnbatchError, MemoryError):
    """A CUDA device, or page-locked host memory, is full. The message names the settings to lower."""


class OutputError(AnnbatchError, OSError):
    """An output cannot be written."""


class OutputExistsError(OutputError, FileExistsError):
    """The output path exists, and may not be overwritten."""


def redacted(text: str) -> str:
    """Return a text without the parts of URLs that may be secret: user, password and query."""
    text = re.sub(r"(\w://)[^/@\s\"']*@", r"\1…@", text)
    return re.sub(r"\?[^\s\"',)]+", "?…", text)


def reason(error: BaseException) -> str:
    """Return the first line of an error of obstore, without secrets."""
    return redacted(str(error).split("\n\n")[0].strip()) or type(error).__name__


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Turn any error that libraries raise while they read a store into a StoreError that names it, without secrets.

    zarr and anndata raise whatever their code trips over where metadata make no sense: no list of types is complete.
    """
    try:
        yield
    except AnnbatchError:
        raise
    except Exception as e:
        found = StoreError(f"{name}: cannot be read: {type(e).__name__}: {reason(e)}")
        # What obstore says of an error may hold secrets, so that it is not chained.
        if type(e).__module__.startswith("obstore"):
            raise found from None
        raise found from e
