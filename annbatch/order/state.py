"""Where does a training run stand, and may it go on here?

1. A `Position` says how far the consumers are in which epoch. It is the same for all of them, whichever has it.
2. A state is a position with a *fingerprint* of everything that the order follows from, as values that JSON holds.
3. `load` takes a position out of a state whose fingerprint is that of the loader, and names what differs otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from annbatch.errors import InputError
from annbatch.order.consumers import VERSION
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

    def begin(self, count: int) -> None:
        """Let ``count`` consumers go on from here."""
        kept = tuple(part for part in self.parts if part[1])
        if not kept or kept[-1][0] != count:
            kept += ((count, 0),)
        self.parts, self.begun = kept, True

    def advance(self) -> None:
        """Count a batch that was handed over."""
        count, n_batches = self.parts[-1]
        self.parts = (*self.parts[:-1], (count, n_batches + 1))

    def end(self) -> None:
        """Stand at the beginning of the next epoch."""
        self.epoch, self.parts, self.begun = self.epoch + 1, (), False


def save(position: Position, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Give the state: a dict of values that JSON holds."""
    return {
        "format": FORMAT,
        "order_version": VERSION,
        "fingerprint": dict(fingerprint),
        "epoch": position.epoch,
        "parts": [list(part) for part in position.parts if part[1]],
    }


def load(state: Any, fingerprint: Mapping[str, Any]) -> Position:
    """Give the position that a state holds.

    Raises
    ------
    InputError
        If it is no state, or one of other data or settings; names what differs.
    """
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"state must be what state_dict() of a loader gave, got {state!r:.100}")
    if state.get("order_version") != VERSION:
        raise InputError(f"state must be of version {VERSION} of the order, got {state.get('order_version')!r}")
    saved = state.get("fingerprint")
    if not isinstance(saved, Mapping):
        raise InputError(f"state must hold a fingerprint, got {saved!r:.100}")
    differences = [
        f"{name} is {_shown(saved.get(name))} in the state and {_shown(fingerprint.get(name))} here"
        for name in dict.fromkeys((*fingerprint, *saved))
        if saved.get(name) != fingerprint.get(name)
    ]
    if differences:
        raise InputError(f"state must be of the same data and settings: {'; '.join(differences)}")
    epoch: Any = state.get("epoch")
    parts: Any = state.get("parts")
    if not _is_count(epoch) or not epoch < MAX_WORD:
        raise InputError(f"epoch of the state must be in [0, 2**64), got {epoch!r}")
    if not isinstance(parts, (list, tuple)) or not all(_is_part(part) for part in parts):
        raise InputError(f"parts of the state must be pairs of a number of consumers and of batches, got {parts!r}")
    return Position(epoch, tuple((part[0], part[1]) for part in parts))


def _shown(value: Any) -> str:
    return "missing" if value is None else repr(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_part(part: Any) -> bool:
    return isinstance(part, (list, tuple)) and len(part) == 2 and all(map(_is_count, part)) and part[0] >= 1
