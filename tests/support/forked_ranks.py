"""How do all ranks of a run share the import of their framework? They are forked once it is there."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable


def say_line(text: str) -> None:
    """Print a line in one write: ranks share a pipe, and an unbuffered `print` writes the end of the line by itself."""
    sys.stdout.flush()
    os.write(sys.stdout.fileno(), f"{text}\n".encode())


def fork_ranks(world: int, run: Callable[[int], None]) -> list[int]:
    """Let each rank, by its number, run in a forked process; give the processes' numbers."""
    ranks = []
    for rank in range(world):
        if pid := os.fork():
            ranks.append(pid)
            continue
        code = 1
        try:
            run(rank)
            code = 0
        except Exception:
            traceback.print_exc()
            raise
        finally:
            # Not through what the parent has registered for its end.
            sys.stdout.flush()
            os._exit(code)
    return ranks
