"""What do the benchmark and a contender say to each other?

1. A `Contender` names its environment, its store, and the function that opens the store.
2. That function takes a `Job` and gives an `Epoch`: each call of it hands over one epoch of batches.
3. Each batch comes as a `Matrix`, in which the benchmark touches every element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from harness.environments import Environment
from harness.settings import Setting


@dataclass(frozen=True, slots=True)
class Job:
    """One contender with one setting on one input: what a worker process is started with."""

    contender: str
    """Key of `registry.CONTENDERS`."""
    setting: Setting
    """How it reads."""
    inputs: tuple[str, ...]
    """The generated ``.h5ad`` files."""
    store: str
    """Path of the store that it reads, where it has one."""
    label: str = ""
    """How tables call the row; empty for the contender's title."""
    train: str = ""
    """Model of `training` that is trained on the batches; empty if they are summed up."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """What a batch holds, as a worker touches it."""

    values: Any
    """Stored values, or the whole dense matrix; of NumPy or CuPy."""
    columns: Any | None
    """Column number of each value; None where ``values`` is dense."""
    n_rows: int
    """Number of cells."""
    for_training: Callable[[], tuple[Any, Any]] | None = None
    """Gives a dense (n_rows, n_vars) tensor and (n_rows,) int64 classes, where the contender can be trained from."""

    @classmethod
    def of_csr(cls, x: Any) -> Matrix:
        """Take the elements of a CSR matrix of annbatch, SciPy or cupyx."""
        return cls(x.data, x.indices, x.shape[0])


Epoch = Callable[[], Iterator[Matrix]]


@dataclass(frozen=True, slots=True)
class Contender:
    """A way of reading mini-batches."""

    title: str
    """How tables call it."""
    open: Callable[[Job], Epoch]
    """Opens the store and gives the function that runs an epoch."""
    store: str | None = None
    """Whose store it reads: a key of `registry.WRITERS`, or None for the ``.h5ad`` files themselves."""
    environment: Environment | None = None
    """Where it runs; None for the environment of this project."""
    needs_touch: bool = field(default=True)
    """False for what hands nothing over: its bytes are counted, not its sums."""
    writes: bool = False
    """Whether it writes its store; it then does so for all who read the same one."""
