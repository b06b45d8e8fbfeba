"""How does a test that looks at each batch make sure that there was one?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def each_batch(batches: Any, n: int | None = None) -> Iterator[Any]:
    """Give the batches of an epoch, and fail at its end if they are not ``n``; None means as many as it has."""
    wanted = len(batches) if n is None else n
    assert wanted > 0, "an epoch without a batch tests nothing"
    found = 0
    for batch in batches:
        found += 1
        yield batch
        # Who asks for the next one may have dropped it.
        del batch
    assert found == wanted, f"{found} batches came, not {wanted}"
