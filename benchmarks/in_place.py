"""How fast are ``.h5ad`` files read as they are, beside scDataset, which reads them, too?

1. The generated files are uncompressed. `gzipped` copies them with X in chunks of h5py's choice, compressed by gzip
   level 4, as ``AnnData.write_h5ad(path, compression="gzip")`` writes them.
2. Both read blocks of 32 rows, 256 of them together, and perfectly random rows, in interleaved rounds. Every value and
   column number is summed up.
3. Print, for each, medians and spreads of cells per second and per CPU second, and the ratios in each round; write
   JSON.

Usage: ``python benchmarks/in_place.py [--cells 200000] [--rounds 5] …``
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py

from harness.command_line import options, prepared
from harness.contenders.registry import CONTENDERS
from harness.results import print_table, ratios, save
from harness.rounds import measure
from harness.settings import SMALL_BLOCKS, Setting
from harness.stores import Bench, jobs_of

OURS, OTHER = "h5ad", "scdataset"
SETTINGS = (SMALL_BLOCKS, Setting("random rows", chunk_size=1, preload_nchunks=4096))
_LEVEL = 4
_ELEMENTS = 1 << 22


def gzipped(bench: Bench) -> Bench:
    """Copy the input, with X compressed, unless that was done before."""
    folder = bench.input.with_name(f"{bench.input.name}-gzip{_LEVEL}")
    if not (folder / "input.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for file in bench.files:
            _compress(Path(file), folder / Path(file).name)
        (folder / "input.json").write_text(json.dumps(bench.facts))
    return replace(bench, input=folder)


def _compress(source: Path, target: Path) -> None:
    with h5py.File(source) as plain, h5py.File(target, "w") as compressed:
        compressed.attrs.update(plain.attrs)
        for key in plain:
            if key != "X":
                plain.copy(key, compressed)
        group = compressed.create_group("X")
        group.attrs.update(plain["X"].attrs)
        for key, values in plain["X"].items():
            settings = {"chunks": True, "compression": "gzip", "compression_opts": _LEVEL}
            copy = group.create_dataset(key, values.shape, values.dtype, **settings)
            for start in range(0, len(values), _ELEMENTS):
                copy[start : start + _ELEMENTS] = values[start : start + _ELEMENTS]


def main() -> None:
    """Run the benchmark from the command line."""
    parser = options("Time .h5ad files that are read as they are, beside scDataset.")
    arguments = parser.parse_args()
    bench = prepared(arguments)
    rows: list[dict[str, Any]] = []
    for form, own in (("uncompressed", bench), (f"gzip level {_LEVEL}", gzipped(bench))):
        for setting in SETTINGS:
            print(f"{form}, {setting.name}", flush=True)
            found = measure(own, jobs_of(own, [OURS, OTHER], replace(setting, name=f"{form}, {setting.name}")))
            rows += [row | {"form": form} for row in found]
    print_table(rows, reference=CONTENDERS[OTHER].title)
    for ours in (row for row in rows if row["contender"] == CONTENDERS[OURS].title):
        others = [row for row in rows if row["setting"] == ours["setting"] and row is not ours]
        for other in others:
            middle, least, most = ratios(ours, other, "cells_per_cpu_s")
            print(f"{ours['setting']}: {middle:.2f} ({least:.2f}–{most:.2f}) times scDataset by CPU time")
    save("in-place", arguments, bench.facts, rows)


if __name__ == "__main__":
    main()
