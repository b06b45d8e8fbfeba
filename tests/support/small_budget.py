"""How is a build of a few cells made to use many runs and many pieces?

`small_budget` replaces how memory is shared out, in this process; the plans then are those of inputs thousands of times
larger.
"""

from __future__ import annotations

from typing import Any

from annbatch.write import build
from annbatch.write.shuffle.budget import Budget

PRELOADED = ["pytest", "annbatch.testing.cells", "annbatch.write", "small_budget"]
"""What a server imports that forks processes which build; each of them would import it anew."""


class SmallBudget:
    """Stands in for `Budget` where builds look it up."""

    def __init__(self, run_bytes: int, piece_bytes: int, tasks: int, block_elements: int) -> None:
        self._found = Budget(tasks, run_bytes, block_elements, piece_bytes)

    def of(self, *args: Any, **kwargs: Any) -> Budget:
        return self._found


def small_budget(
    patch: Any, run_bytes: int = 3000, piece_bytes: int = 3000, tasks: int = 2, block_elements: int = 40
) -> None:
    patch.setattr(build, "Budget", SmallBudget(run_bytes, piece_bytes, tasks, block_elements))
