"""Which shards of a global batch are this process's, and how do its rows get there?

1. `Placement.of` reads a sharding: into how many shards it cuts the rows, and which process holds which of them.
2. `Placement.put` makes global arrays of what this process has read. Each process contributes its own rows, and none is
   sent to another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from annbatch.adapter import Partition
from annbatch.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Where the rows of a batch go."""

    sharding: NamedSharding
    """Cuts the first axis of any array, and no other."""
    n_local: int
    """Shards that this process holds."""
    processes: tuple[int, ...]
    """The processes that hold shards, each equally many of them."""

    @classmethod
    def of(cls, sharding: Any, batch_size: int) -> Placement:
        """Read a sharding of the rows.

        Raises
        ------
        InputError
            If it cuts columns, or does not give each of its processes equally many rows of its own, or if this process
            cannot cut ``batch_size`` rows into its shards.
        """
        if not isinstance(sharding, NamedSharding):
            raise InputError(f"sharding must be a jax.sharding.NamedSharding, got {type(sharding).__name__}")
        rows, *others = (*sharding.spec, None)
        if any(axis is not None for axis in others):
            raise InputError(f"sharding must cut only rows, as PartitionSpec('data') does, got {sharding.spec}")
        by_rows = NamedSharding(sharding.mesh, PartitionSpec(rows))  # type: ignore[no-untyped-call]
        axes = () if rows is None else rows if isinstance(rows, tuple) else (rows,)
        n_shards = int(np.prod([sharding.mesh.shape[axis] for axis in axes], dtype=np.int64))
        held: dict[int, set[int]] = {}
        where_is: Any = by_rows.devices_indices_map((n_shards,))
        for device, (where,) in where_is.items():
            held.setdefault(device.process_index, set()).update(range(*where.indices(n_shards)))
        if sum(map(len, held.values())) > n_shards or len(set(map(len, held.values()))) > 1:
            shown = {process: sorted(shards) for process, shards in sorted(held.items())}
            raise InputError(
                f"sharding must give each process the same number of rows of its own, got the shards {shown}"
            )
        if jax.process_index() not in held:
            raise InputError(f"sharding must have devices of this process, {jax.process_index()}, got {sorted(held)}")
        n_local = n_shards // len(held)
        if batch_size % n_local:
            raise InputError(f"batch_size must be a multiple of the {n_local} shards of a process, got {batch_size}")
        return cls(by_rows, n_local, tuple(sorted(held)))

    @property
    def partition(self) -> Partition:
        """Which of the consumers this process is."""
        return Partition(self.processes.index(jax.process_index()), len(self.processes))

    @property
    def is_shared(self) -> bool:
        """Whether several processes contribute to a batch."""
        return len(self.processes) > 1

    def put(self, tree: Any) -> Any:
        """Make global arrays of this process's: (n, …) of each process become (n * number of processes, …)."""
        n = len(self.processes)

        def put(local: Any) -> Any:
            shape = (n * local.shape[0], *local.shape[1:])
            return jax.make_array_from_process_local_data(self.sharding, local, shape)  # type: ignore[no-untyped-call]

        return jax.tree.map(put, tree)
