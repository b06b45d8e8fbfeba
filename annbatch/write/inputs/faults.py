"""What is wrong with the inputs, all of it?

A build may have hundreds of inputs. Who mends them wants all faults in one message, not the first of them.
`Faults.collecting` keeps what goes wrong in one part of one input, `Faults.keeping` what is wrong with several of them
together; `Faults.raise_any` raises it all as one error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from annbatch.errors import InputError, InputErrors, MissingInputError, OutputError, StoreError
from annbatch.write.inputs.spill import SpillError


class Faults:
    """What was found wrong so far."""

    def __init__(self) -> None:
        self._found: list[InputError] = []

    def __len__(self) -> int:
        return len(self._found)

    def add(self, error: InputError) -> None:
        """Keep one."""
        self._found += error.errors if isinstance(error, InputErrors) else [error]

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep the `InputError` that is raised inside; others go on."""
        try:
            yield
        except InputError as e:
            self.add(e)

    @contextmanager
    def collecting(self, path: str, element: str = "", remedy: str = "") -> Iterator[None]:
        """Keep what goes wrong inside while an input is read, whatever it is.

        Parameters
        ----------
        path
            What messages call the input.
        element
            The part of it, for errors of libraries, which do not name it.
        remedy
            What may be done about it, for errors that are none of the inputs' own.
        """
        where = f"{path}: {element}" if element else path
        with self.keeping():
            try:
                yield
            except (InputError, OutputError, SpillError, MemoryError, InterruptedError):
                raise
            except StoreError as e:
                raise InputError(f"{'' if str(e).startswith(path) else f'{path}: '}{e}{remedy}") from e
            except Exception as e:
                kind = type(e).__name__
                raise InputError(f"{where}: cannot be read as AnnData: {kind}: {e}{remedy}") from e

    def raise_any(self) -> None:
        """Raise what was found, if anything.

        Raises
        ------
        InputError
            A single fault, as it was.
        MissingInputError
            If nothing but missing inputs was found.
        InputErrors
            Several faults.
        """
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            together = InputErrors(self._found)
            missing = all(isinstance(e, MissingInputError) for e in self._found)
            raise MissingInputError(str(together)) if missing else together
