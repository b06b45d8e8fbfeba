"""How far is the work, for whoever looks at standard error?

The disk behind it may be full, or its reader gone. Progress that cannot be written is lost, and the work goes on. tqdm
alone raises such an error in the middle of the work and keeps its lock for ever, so that the program hangs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


class _StandardError:
    """`sys.stderr`, which loses what it cannot write."""

    def __init__(self) -> None:
        self._stream = sys.stderr

    def __eq__(self, other: object) -> bool:
        # tqdm draws those bars anew that go where a message goes.
        return isinstance(other, _StandardError) and other._stream is self._stream

    def __hash__(self) -> int:
        return id(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        """Write a text if that is possible."""
        try:
            self._stream.write(text)
        except (AttributeError, OSError, ValueError):
            # Without a file behind it, sys.stderr is None; one that is closed raises ValueError.
            return

    def flush(self) -> None:
        """Flush what was written if that is possible."""
        try:
            self._stream.flush()
        except (AttributeError, OSError, ValueError):
            return


@contextmanager
def progress_bar(total: int, what: str, unit: str, *, shown: bool) -> Iterator[Callable[[int], object]]:
    """Show a bar, and give the function that moves it by some units."""
    bar = tqdm(total=total, desc=what, unit=unit, unit_scale=True, disable=not shown, file=_StandardError())
    with bar:
        yield bar.update


def tracked(items: Sequence[T], what: str, unit: str, *, shown: bool) -> Iterator[T]:
    """Give the items one by one, and show how many have been given."""
    with progress_bar(len(items), what, unit, shown=shown) as report:
        for item in items:
            yield item
            report(1)


def say(message: str) -> None:
    """Write a line above the bars."""
    tqdm.write(message, file=_StandardError())
