"""How is a process stopped at each step of what it does to files?

`stop_before` counts, in this process, everything that changes a folder or waits for the disk, and kills the process
before a chosen step. An audit hook sees what Python opens, renames and removes; what it does not see is wrapped.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}


def stop_before(folder: Path, number: int | None, names: list[str]) -> None:
    """Kill this process before step ``number``, counted from 0; None only notes the ``names`` of all steps."""
    inside = f"{folder}{os.sep}"

    def step(name: str) -> None:
        if len(names) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        names.append(name)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITES and str(path).startswith(inside):
                step(f"open {Path(path).name}")
        elif event in _CHANGES:
            path = os.fspath(arguments[0])
            # What is removed as a tree is named within its directory.
            is_inside = str(path).startswith(inside) or not str(path).startswith(os.sep)
            # A directory that is there already is not made.
            if is_inside and not (event == "os.mkdir" and Path(path).is_dir()):
                step(f"{event.removeprefix('os.')} {Path(path).name}")

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            step(name)
            return function(*arguments)

        return call

    from annbatch.write.output import directory_swap

    # A process that is killed loses nothing that it wrote: nobody needs to wait.
    os.fsync = noted("fsync", lambda descriptor: None)
    os.pwrite = noted("pwrite", os.pwrite)
    directory_swap._exchange_at_once = noted("exchange", directory_swap._exchange_at_once)
    sys.addaudithook(hook)
