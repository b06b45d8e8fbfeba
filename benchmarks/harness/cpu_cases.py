"""What does each of several cases cost in CPU time, where all take turns within one process?"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from harness.results import save


def time_cases(
    kind: str, arguments: argparse.Namespace, facts: dict[str, Any], cases: Mapping[str, Callable[[], float]]
) -> None:
    """Run the cases in turn, once more than there are rounds; print and save microseconds for each cell.

    Parameters
    ----------
    kind, arguments, facts
        As `harness.results.save` takes them.
    cases
        Name -> what runs the case once, and gives its seconds of CPU.
    """
    found: dict[str, list[float]] = {name: [] for name in cases}
    for timed in range(-1, arguments.rounds):
        for name, case in cases.items():
            taken = case()
            if timed >= 0:
                found[name].append(1e6 * taken / facts["n_obs"])
    for name, values in found.items():
        half_range = (max(values) - min(values)) / 2
        print(f"{name:<50} {np.median(values):7.3f} ± {half_range:.3f} µs of CPU a cell")
    save(kind, arguments, facts, [{"case": name, "cpu_us_a_cell": values} for name, values in found.items()])
