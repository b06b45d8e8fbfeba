"""What do the calls cost that read no counts: obs, splits, folds, a loader from a loader, weighted groups?

Every round opens its loaders anew, so that nothing is remembered from the round before. Cases take turns within one
process. What is timed is the CPU time of the process, divided by the number of cells of the collection.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from annbatch import Loader, samplers
from harness.command_line import prepared
from harness.cpu_cases import time_cases
from harness.stores import prepare


def weighted_groups(ds: Loader) -> None:
    """Plan the epochs of weighted groups."""
    weights = {name: 1 + i for i, name in enumerate(ds.categories["cell_type"])}
    ds.replace(sampler=samplers.Grouped("cell_type", weights=weights, n_rows=ds.n_obs, replace=True)).state_dict()


CASES: dict[str, Callable[[Loader], object]] = {
    'obs(["cell_type"])': lambda ds: ds.obs(["cell_type"]),
    "obs(): 20 columns": lambda ds: ds.obs(),
    "replace(shuffle=False)": lambda ds: ds.replace(shuffle=False),
    'split({"train": 0.8, "test": 0.2})': lambda ds: ds.split({"train": 0.8, "test": 0.2}),
    'split(…, stratify="cell_type")': lambda ds: ds.split({"train": 0.8, "test": 0.2}, stratify="cell_type"),
    'folds(5, by="donor")': lambda ds: ds.folds(5, by="donor"),
    "Grouped(…, weights=…)": weighted_groups,
}


def calls(arguments: argparse.Namespace) -> None:
    """Time calls that read no counts."""
    bench = prepared(arguments)
    path = prepare(bench, "direct")
    assert isinstance(path, Path), "the default contender writes a store"

    def seconds(call: Callable[[Loader], object]) -> float:
        with Loader(batch_size=4096).use_collection(path, labels=["cell_type"]) as ds:
            started = time.process_time()
            call(ds)
            return time.process_time() - started

    time_cases("calls", arguments, bench.facts, {name: partial(seconds, call) for name, call in CASES.items()})
