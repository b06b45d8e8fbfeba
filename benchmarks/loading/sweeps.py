"""How does speed depend on what a user sets?

1. ``chunk-size``: from single random rows to blocks of 1,024.
2. ``threads``: from one to twice as many as there are cores.
3. ``labels``: what twenty obs columns cost where batches are small.
4. ``options``: what batches cost that carry the names of cells, or integers as classes.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from harness.command_line import prepared
from harness.machine import cores
from harness.plots import plot_lines
from harness.results import print_table, save
from harness.rounds import measure
from harness.settings import BLOCKS, Setting
from harness.stores import jobs_of


def sweep(arguments: argparse.Namespace, kind: str, key: str, settings: list[Setting], names: list[str]) -> None:
    """Time contenders over settings that differ in one field, and draw a line for each."""
    bench = prepared(arguments)
    rows: list[dict[str, Any]] = []
    for setting in settings:
        print(f"{key} {getattr(setting, key)}", flush=True)
        found = measure(bench, jobs_of(bench, names, setting))
        rows += [row | {key: getattr(setting, key)} for row in found]
    print_table(rows)
    plot_lines(save(kind, arguments, bench.facts, rows), key, key)


def chunk_size(arguments: argparse.Namespace) -> None:
    """Go through block sizes, with windows of 16,384 rows throughout."""
    settings = [
        Setting(f"{size}x{16384 // size}", chunk_size=size, preload_nchunks=16384 // size)
        for size in (1, 4, 16, 32, 64, 128, 256, 512, 1024)
    ]
    sweep(arguments, "chunk-size", "chunk_size", settings, ["direct", "peer"])


def threads(arguments: argparse.Namespace) -> None:
    """Go through numbers of threads, up to the cores that there are and once beyond."""
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= 2 * cores()]
    settings = [replace(BLOCKS, name=f"{n} threads", threads=n) for n in counts]
    sweep(arguments, "threads", "threads", settings, ["direct", "peer", "limit"])


def labels(arguments: argparse.Namespace) -> None:
    """Time small batches with one obs column and with twenty, in turn."""
    bench = prepared(arguments)
    settings = [Setting("1 obs column", batch_size=128), Setting("20 obs columns", batch_size=128, columns=20)]
    rows = measure(
        bench, [one for name in ("direct", "peer") for setting in settings for one in jobs_of(bench, [name], setting)]
    )
    print_table(rows)
    save("labels", arguments, bench.facts, rows)


def options(arguments: argparse.Namespace) -> None:
    """Time batches without, and with each of the options that carry more of obs, in turn."""
    bench = prepared(arguments)
    settings = [
        BLOCKS,
        replace(BLOCKS, name="names", options=(("names", True),)),
        replace(BLOCKS, name="classes", options=(("classes", ("n_genes",)),)),
    ]
    rows = measure(bench, [one for setting in settings for one in jobs_of(bench, ["direct"], setting)])
    print_table(rows)
    save("options", arguments, bench.facts, rows)
