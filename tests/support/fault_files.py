"""What comes out when something goes wrong while an ``.h5ad`` file is read in place?

As `fault_matrix`: each trial makes a fresh copy of a small file whose X is compressed with gzip, reads it, with an
index of what was read before and without one, and lets one thing happen at one moment. It must end in the right
batches, or in an error of this package that names the file.

Usage: ``python tests/support/fault_files.py [--table docs/h5ad-faults.inc] [--seed 0]``.
``tests/stores/test_fault_files.py`` runs a sample.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from annbatch import InputError, StoreError
from datagen import named_adata
from fault_matrix import (
    MOMENTS,
    N_OBS,
    N_VARS,
    Trial,
    damages,
    few_descriptors,
    flip,
    forked,
    in_a_kernel_thread,
    outcome,
    permission_lost,
    table,
    two_epochs,
)

WAYS = ("opened by HDF5", "opened from the index")


def write_file(folder: Path, seed: int = 0) -> Path:
    """Write the file of all trials; it is an hour old."""
    path = folder / "cells.h5ad"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        named_adata(np.random.default_rng(seed), range(N_OBS), range(N_VARS)).write_h5ad(path, compression="gzip")
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 3600 * 10**9))
    return path


def file_damages(file: Path, rng: np.random.Generator) -> dict[str, Callable[[], object]]:
    """Say what may befall a file."""
    with h5py.File(file) as opened:
        chunk = opened["X/data"].id.get_chunk_info(0)
    place = chunk.byte_offset + int(rng.integers(chunk.size))

    def replace() -> None:
        other = Path(shutil.copyfile(file, file.with_suffix(".other")))
        flip(other, place)
        other.replace(file)

    found = {name: damage for name, damage in damages(file, rng).items() if "flipped" not in name}
    return found | {"byte of a chunk flipped": lambda: flip(file, place), "another of its size in its place": replace}


def on_file(file: Path, rng: np.random.Generator, times: int, few: bool = False) -> Iterator[tuple[str, str, str, str]]:
    """Damage a file in each way at each moment; gives how it was opened, kind, moment and outcome.

    With ``few`` each way and each moment is there, but not with each of the others.
    """
    wanted = two_epochs(file, lambda now: None)
    kinds = list(file_damages(file, rng))
    faults = [(way, kind, moment) for way in WAYS for kind in kinds for moment in MOMENTS] * times
    if few:
        faults = [(WAYS[i % 2], kind, MOMENTS[i // 2 % len(MOMENTS)]) for i, kind in enumerate(kinds)]
    for way, kind, moment in faults:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copy2(file, folder))
            options = {}
            if way == WAYS[1]:
                options = {"cache_dir": Path(folder, "cache")}
                two_epochs(copy, lambda now: None, **options)
            damage = file_damages(copy, rng)[kind]

            def inject(now: str, moment: str = moment, damage: Callable[[], object] = damage) -> None:
                if now == moment:
                    damage()

            run = partial(two_epochs, copy, inject, **options)
            yield way, kind, moment, outcome(run, wanted, copy.name, kinds=(StoreError, InputError))


def trials(file: Path, seed: int, times: int) -> Iterator[Trial]:
    """Run all trials."""
    rng = np.random.default_rng(seed)
    for way, kind, moment, result in on_file(file, rng, times):
        yield Trial(f"file {way}", kind, moment, result)
    wanted = two_epochs(file, lambda now: None)
    for found in (
        permission_lost(str(file), "", file, times),
        forked(file, wanted, times),
        in_a_kernel_thread(file, wanted, times),
        few_descriptors(file, wanted),
    ):
        for kind, moment, result in found:
            yield Trial("file opened by HDF5", kind, moment, result)


def main() -> None:
    """Run all trials from the command line."""
    parser = argparse.ArgumentParser(description="Inject faults while an .h5ad file is read in place.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--times", type=int, default=1, help="how often each fault is injected at each moment")
    parser.add_argument("--table", type=Path, help="where to write the table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        done = list(trials(write_file(Path(folder)), arguments.seed, arguments.times))
    for trial in done:
        if trial.result not in ("right", "error"):
            print(trial)
    text = table(done)
    print(text)
    if arguments.table:
        arguments.table.write_text(text)
    sys.exit(any(trial.result not in ("right", "error") for trial in done))


if __name__ == "__main__":
    main()
