"""How do processes find out that they do not make the same batches, before they wait for each other for ever?

Each puts down what its batches follow from, at the service that coordinates JAX's processes, and reads what the others
have put down. That is no computation on devices, so nothing hangs if they differ.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from annbatch.errors import InputError

PATIENCE_S = 1800.0
"""How long a process may come later than the others."""

_numbers = itertools.count()


class Agreement:
    """Compares what the processes of a run have to have in common.

    Parameters
    ----------
    processes
        Their numbers; each makes its agreements in the same order.
    """

    def __init__(self, processes: Sequence[int]) -> None:
        self._processes = processes
        self._name = f"annbatch/{next(_numbers)}"
        self._n_checks = 0

    def check(self, what: str, mine: Mapping[str, Any]) -> None:
        """Compare values that JSON holds.

        Raises
        ------
        InputError
            If another process has other ones, or none within half an hour; names the process and what differs.
        """
        service, me, number = _service(), jax.process_index(), self._n_checks
        self._n_checks += 1
        service.key_value_set(f"{self._name}/{number}/{me}", json.dumps(mine))
        for process in self._processes:
            key = f"{self._name}/{number}/{process}"
            try:
                theirs = json.loads(service.blocking_key_value_get(key, int(PATIENCE_S * 1000)))
            except jax.errors.JaxRuntimeError as e:
                if "DEADLINE_EXCEEDED" not in str(e):
                    raise
                raise InputError(
                    f"process {process} did not begin {what} within {PATIENCE_S:g} s of process {me}"
                ) from e
            differences = [
                f"{name} is {theirs.get(name)!r} in process {process} and {mine.get(name)!r} in process {me}"
                for name in dict.fromkeys((*mine, *theirs))
                if theirs.get(name) != mine.get(name)
            ]
            if differences:
                raise InputError(f"all processes must agree on {what}: {'; '.join(differences)}")
        # Whoever has come this far has read what was put down before.
        if number:
            service.key_value_delete(f"{self._name}/{number - 1}/{me}")


def _service() -> Any:
    # JAX has no public name for it; Orbax and Flax go the same way.
    from jax._src import distributed

    client = distributed.global_state.client
    if client is None:
        raise InputError("a sharding over several processes needs jax.distributed.initialize()")
    return client
