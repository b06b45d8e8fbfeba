"""How does a model's training go, epoch by epoch?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

EPOCHS = 30


@dataclass
class Course:
    """How training went: one figure per epoch."""

    name: str
    """What was trained."""
    train_loss: list[float] = field(default_factory=list)
    """Mean cross-entropy over the epoch's batches."""
    test_loss: list[float] = field(default_factory=list)
    """Mean cross-entropy over the held-out cells after the epoch."""
    test_accuracy: list[float] = field(default_factory=list)
    """Share of held-out cells whose type was predicted."""


def run_course(
    name: str, train: Any, test: Any, fit: Callable[[Any], float], score: Callable[[Any], tuple[float, int, int]]
) -> Course:
    """Train for `EPOCHS` epochs; each pass over ``train`` comes in another order."""
    result = Course(name)
    for _ in range(EPOCHS):
        result.train_loss.append(float(np.mean([fit(batch) for batch in train])))
        losses, rights, counts = zip(*(score(batch) for batch in test), strict=True)
        result.test_loss.append(sum(losses) / sum(counts))
        result.test_accuracy.append(sum(rights) / sum(counts))
    return result
