"""Where does a training run stand, and may it go on here?

1. A `Position` says how far the consumers are in which epoch. It is the same for all of them, whichever has it. A
   worker process of a consumer counts its own batches beside that.
2. A state is a position with a *fingerprint* of everything that the order follows from, as values that JSON holds.
3. `load` takes a position out of a state whose fingerprint is that of the loader, and names what differs otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from annbatch.errors import InputError
from annbatch.order.consumers import VERSION, Partition
from annbatch.order.permutation import MAX_WORD

FORMAT = "annbatch-dlpack-state"


@dataclass(slots=True)
class Position:
    """How far an epoch has gone. It moves on when a batch is handed over."""

    epoch: int = 0
    """Number of the epoch."""
    parts: tuple[tuple[int, int], ...] = ()
    """(number of consumers, batches that each of them has had), one pair each time that the number changed."""
    begun: bool = False
    """Whether an iterator has begun here, so that the next one begins the next epoch."""
    worker: tuple[int, int] | None = None
    """(number of the worker process whose position this is, number of workers); None if the consumer reads itself."""
    n_had: int = 0
    """Batches that this worker has had, beyond those in ``parts``."""

    def begin(self, partition: Partition) -> None:
        """Let one of several consumers, or a worker of it, go on from here."""
        worker = (partition.worker, partition.n_workers) if partition.n_workers else None
        kept = tuple(part for part in self.parts if part[1])
        if not kept or kept[-1][0] != partition.count:
            kept += ((partition.count, 0),)
        self.parts, self.worker, self.begun = kept, worker, True

    def advance(self) -> None:
        """Count a batch that was handed over."""
        if self.worker is not None:
            self.n_had += 1
            return
        count, n_batches = self.parts[-1]
        self.parts = (*self.parts[:-1], (count, n_batches + 1))

    def end(self) -> None:
        """Stand at the beginning of the next epoch.

        A worker stays behind its last batch: for the other workers the epoch goes on, and whoever goes on from the
        states of all of them would have this one begin another epoch.
        """
        if self.worker is None:
            self.epoch, self.parts, self.begun = self.epoch + 1, (), False


def save(position: Position, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Give the state: a dict of values that JSON holds."""
    worker = position.worker
    return {
        "format": FORMAT,
        "order_version": VERSION,
        "fingerprint": dict(fingerprint),
        "epoch": position.epoch,
        "parts": [list(part) for part in position.parts if part[1] or worker is not None],
        **({} if worker is None else {"worker": [*worker, position.n_had]}),
    }


def load(state: Any, fingerprint: Mapping[str, Any], partition: Partition) -> Position:
    """Give the position that a state holds, for one of several consumers or a worker of it.

    Raises
    ------
    InputError
        If it is no state, or one of other data or settings, or of another worker; names what differs.
    """
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"state must be what state_dict() of a loader returned, got {state!r:.100}")
    if state.get("order_version") != VERSION:
        raise InputError(
            f"order_version of the state must be {VERSION}, got {state.get('order_version')!r}: this version of "
            "annbatch orders rows differently"
        )
    saved = state.get("fingerprint")
    if not isinstance(saved, Mapping):
        raise InputError(f"state must hold a fingerprint, got {saved!r:.100}")
    differences = [
        f"{name} is {_shown(saved.get(name))} in the state and {_shown(fingerprint.get(name))} here"
        for name in dict.fromkeys((*fingerprint, *saved))
        if saved.get(name) != fingerprint.get(name)
    ]
    if differences:
        raise InputError(f"state must belong to the same data and settings: {'; '.join(differences)}")
    epoch: Any = state.get("epoch")
    parts: Any = state.get("parts")
    if not _is_count(epoch) or not epoch < MAX_WORD:
        raise InputError(f"epoch of the state must be in [0, 2**64), got {epoch!r}")
    if not isinstance(parts, (list, tuple)) or not all(_is_part(part) for part in parts):
        raise InputError(f"parts of the state must be pairs (number of consumers, number of batches), got {parts!r}")
    position = Position(epoch, tuple((part[0], part[1]) for part in parts))
    worker: Any = state.get("worker")
    if worker is not None:
        if not parts or not _is_worker(worker):
            raise InputError(
                "worker of the state must be three numbers (the worker, all workers, the worker's batches), got "
                f"{worker!r}"
            )
        position.worker, position.n_had = (worker[0], worker[1]), worker[2]
    _check_worker(position, partition)
    return position


def _check_worker(position: Position, partition: Partition) -> None:
    """Refuse what the workers of a rank would not share out as those did that the state is of."""
    count = position.parts[-1][0] if position.parts else partition.count
    if position.worker is not None:
        worker, n_workers = position.worker
        if (worker, n_workers, count) != (partition.worker, partition.n_workers, partition.count):
            raise InputError(
                f"state must belong to {partition}, got the state of worker {worker} of {n_workers} of one of {count} "
                "ranks: load the state of a DataLoader into a DataLoader with the same number of workers"
            )
    elif partition.n_workers and count != partition.count:
        # Versions before made each worker a consumer of its own.
        raise InputError(
            f"state must belong to a worker of one of {partition.count} ranks, got the state of one of {count} "
            "consumers: workers cannot continue from a state of an earlier version, or of another number of ranks; "
            "load the state of a whole rank before the workers start"
        )


def _shown(value: Any) -> str:
    return "missing" if value is None else f"{value!r:.200}"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_part(part: Any) -> bool:
    return isinstance(part, (list, tuple)) and len(part) == 2 and all(map(_is_count, part)) and part[0] >= 1


def _is_worker(worker: Any) -> bool:
    return (
        isinstance(worker, (list, tuple)) and len(worker) == 3 and all(map(_is_count, worker)) and worker[0] < worker[1]
    )
