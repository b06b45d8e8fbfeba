"""What can go wrong, as types?

::

    AnnbatchError
    ├── InputError (ValueError)              an argument or an input file breaks a rule
    │   └── MissingInputError (FileNotFoundError)
    ├── StoreError (ValueError)              a store is not what it should be
    │   └── CorruptStoreError                its bytes contradict a checksum or each other
    ├── DeviceMemoryError (MemoryError)      a device has no memory left for batches
    └── OutputError (OSError)                an output cannot be written
        └── OutputExistsError (FileExistsError)

Each subclasses the built-in that it refines. Messages name the file, the element, the rule and the value.
"""

from __future__ import annotations


class AnnbatchError(Exception):
    """Base of every error that annbatch raises on purpose."""


class InputError(AnnbatchError, ValueError):
    """An argument or an input file breaks a rule; nothing has been read or written yet."""


class MissingInputError(InputError, FileNotFoundError):
    """An input file does not exist."""


class StoreError(AnnbatchError, ValueError):
    """A store cannot be read as the AnnData store that it should be."""


class CorruptStoreError(StoreError):
    """A store's bytes contradict a checksum, its metadata or each other."""


class DeviceMemoryError(AnnbatchError, MemoryError):
    """A CUDA device, or page-locked host memory, has no room left; names the settings to lower."""


class OutputError(AnnbatchError, OSError):
    """An output cannot be written."""


class OutputExistsError(OutputError, FileExistsError):
    """The output path is taken, and overwriting was not asked for."""
