"""``annbatch bench``: how fast is a collection here, and which settings are to be recommended?

1. `annbatch.commands.bench_measurements` measures each setting, cold and warm.
2. `annbatch.commands.bench_advice` chooses one.
3. The result is printed as a table, or as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import click
import pandas as pd

from annbatch import summary
from annbatch.check import available_cores
from annbatch.commands.bench_advice import Advice, Measured, advise
from annbatch.commands.bench_measurements import (
    Setting,
    can_forget,
    disk_rates,
    files_of,
    forget,
    run,
)
from annbatch.commands.library_errors import Command
from annbatch.commands.results import print_text
from annbatch.loader import Loader
from annbatch.progress import progress_bar
from annbatch.shards.page_cache import room
from annbatch.stores.collection import Collection

CHUNK_SIZES = (32, 128, 512, 2048)
"""Sizes of blocks that are measured unless others are asked for."""
WINDOW_ROWS = 16384
"""Rows in a window unless ``--preload-nchunks`` says it."""
_DISK_SHARE = 0.1
"""Share of the time in which the disk alone is measured."""


@click.command(cls=Command)
@click.argument("collection_path", metavar="COLLECTION")
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    multiple=True,
    default=(4096,),
    help="Rows in a batch. Repeat it to compare several.",
)
@click.option(
    "--chunk-size",
    type=click.IntRange(1),
    multiple=True,
    default=CHUNK_SIZES,
    help="Rows read contiguously. Repeat it to compare several.",
)
@click.option(
    "--preload-nchunks",
    type=click.IntRange(1),
    multiple=True,
    show_default="as many as make a window of 16384 rows",
    help="Blocks in a window. Repeat it to compare several.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    multiple=True,
    show_default="one per core",
    help="Threads that read and decode. Repeat it to compare several.",
)
@click.option("--seconds", type=click.FloatRange(0.1), default=50.0, help="Total time to measure.")
@click.option("--progress/--no-progress", default=True, help="Show a progress bar.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def bench(
    collection_path: str,
    batch_size: Sequence[int],
    chunk_size: Sequence[int],
    preload_nchunks: Sequence[int],
    threads: Sequence[int],
    seconds: float,
    progress: bool,
    as_json: bool,
) -> None:
    """Measure how fast this machine reads COLLECTION, and recommend settings.

    Measures each setting cold, with the collection's files dropped from memory, and warm, with the same rows again.
    Also shows the rates of disk and memory, the speed of decoding alone, and the memory that batches take. Nothing is
    written, and no obs column is read. COLLECTION may be a URL; there is then neither a disk rate nor a warm run.
    """
    collection = Collection.open(collection_path)
    settings = [
        Setting(batch, chunk, blocks, n_threads)
        for batch, chunk, n_threads in product(batch_size, chunk_size, threads or (available_cores(),))
        for blocks in preload_nchunks or (max(1, WINDOW_ROWS // chunk),)
    ]
    files = files_of(collection.path) if isinstance(collection.path, Path) else []
    notes: list[str] = []
    disk: tuple[float | None, float] | None = None
    with progress_bar(len(settings) + 1, "measuring", "run", shown=progress) as report:
        if files:
            disk = disk_rates(files, max(one.threads for one in settings), _DISK_SHARE * seconds)
        else:
            notes.append(f"{collection.path} is in an object store: there is no disk to measure, and no warm run.")
        # Kernels are compiled, or loaded, by the first batch.
        with _loader(collection, settings[0]) as loader:
            next(iter(loader))
        report(1)
        forgets = bool(files) and can_forget() and disk is not None and disk[0] is not None
        if files and not forgets:
            notes.append(_why_not_cold())
        n_runs = len(settings) * (2 if forgets else 1)
        of_run = (1 - (_DISK_SHARE if files else 0)) * seconds / n_runs
        measured = []
        for setting in settings:
            measured.append(_measure(collection, setting, files, of_run, forgets=forgets))
            report(1)
    n_bytes = sum(file.nbytes for store in collection.stores for file in store.files.values())
    n_bytes = sum(path.stat().st_size for path in files) or n_bytes
    memory = None if (found := room()) == sys.maxsize else found
    advice = advise(measured, n_bytes, memory, None if disk is None else disk[0], is_remote=not files)
    facts = {
        "collection": str(collection.path),
        "n_obs": collection.n_obs,
        "bytes": n_bytes,
        "available_memory": memory,
        "disk_bytes_per_second": None if disk is None else disk[0],
        "memory_bytes_per_second": None if disk is None else disk[1],
        "notes": notes,
    }
    if as_json:
        runs = [asdict(one) for one in measured]
        print_text(json.dumps(facts | {"measured": runs, "recommended": asdict(advice)}))
    else:
        print_text(_as_text(facts, measured, advice))


def _loader(collection: Collection, setting: Setting) -> Loader:
    return Loader(**asdict(setting)).use_collection(collection, labels=[])


def _measure(
    collection: Collection, setting: Setting, files: Sequence[Path], seconds: float, *, forgets: bool
) -> Measured:
    with _loader(collection, setting) as loader:
        if not files:
            return Measured(setting, run(loader, seconds), None)
        if forgets:
            cold = run(loader, seconds, prepare=lambda: forget(files))
            return Measured(setting, cold, run(loader, seconds, at_most_cells=cold.cells_of_pass))
        # What one run brings into memory, the next one reads from there.
        first = run(loader, seconds / 2)
        return Measured(setting, None, run(loader, seconds / 2, at_most_cells=first.cells_of_pass))


def _why_not_cold() -> str:
    if not can_forget():
        return "This system cannot be asked to drop files from memory: nothing was measured cold."
    return "The collection's files stay in memory, for instance on tmpfs: nothing was measured cold."


def _as_text(facts: dict[str, Any], measured: Sequence[Measured], advice: Advice) -> str:
    """Give the result for people."""
    lines = [f"{facts['collection']}: {facts['n_obs']:,} cells, {summary.size(facts['bytes'])}"]
    if facts["memory_bytes_per_second"] is not None:
        cold = facts["disk_bytes_per_second"]
        rate = "not measured" if cold is None else f"{summary.size(round(cold))}/s"
        lines.append(f"disk: {rate}; from memory: {summary.size(round(facts['memory_bytes_per_second']))}/s")
    lines += facts["notes"]
    lines.append("")
    lines.append(pd.DataFrame(map(_row, measured)).to_string(index=False))
    options = ", ".join(f"{name}={value}" for name, value in asdict(advice.setting).items())
    lines += ["", f"recommended: Loader({options})", *(f"  {reason}" for reason in advice.reasons)]
    return "\n".join(lines)


def _row(one: Measured) -> dict[str, str]:
    """Give a row of the table."""
    found = one.warm or one.cold
    assert found is not None
    speeds = {
        "cold, cells/s": "–" if one.cold is None else f"{one.cold.cells_per_second:,.0f}",
        "cold, reads": "–" if one.cold is None else f"{summary.size(round(one.cold.bytes_per_second))}/s",
        "warm, cells/s": "–" if one.warm is None else f"{one.warm.cells_per_second:,.0f}",
        "decoding alone, cells/s": f"{found.decode_cells_per_second:,.0f}",
        "memory": summary.size(found.memory_bytes),
    }
    return {name: str(value) for name, value in asdict(one.setting).items()} | speeds
