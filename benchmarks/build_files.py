"""What do many inputs cost?

1. Write ``.h5ad`` files of few cells, and link them under many names.
2. For each number of files, a process of its own builds a collection from them, in interleaved rounds.
3. Print seconds, CPU seconds and peak memory of each number; write JSON.

- ``genes``: files of five cells with the same genes, so that what each file costs is measured.
- ``obs``: files with few genes and many obs columns, beside AnnData, which only reads obs of all files.
- ``types``: as ``genes``, with counts of int32, float32 and float64 in turns; gives the type of the batches, too.

Usage: ``python benchmarks/build_files.py COMMAND [--files 2 80 300 1000] [--genes 36601] [--rounds 3] …``
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from harness import BENCHMARKS
from harness.machine import describe_machine
from harness.report.builds import many_files_table
from harness.results import save

BUILD = """
import json, resource, sys, time
import annbatch

files, output, limit = json.load(sys.stdin), *sys.argv[1:]
began = time.perf_counter()
collection = annbatch.create_anndata_collection(files, output, memory_limit=limit, progress=False)
seconds = time.perf_counter() - began
used = resource.getrusage(resource.RUSAGE_SELF)
cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
dtype = str(collection.types["X"].original)
print(json.dumps({"seconds": seconds, "cpu_s": cpu, "peak_rss_bytes": peak, "dtype": dtype}))
"""

READ = """
import json, resource, sys, time
import anndata, h5py

began = time.perf_counter()
for path in json.load(sys.stdin):
    with h5py.File(path) as file:
        anndata.io.read_elem(file["obs"])
seconds = time.perf_counter() - began
used = resource.getrusage(resource.RUSAGE_SELF)
cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "cpu_s": cpu, "peak_rss_bytes": peak}))
"""

BUILDING, READING = "build", "AnnData only reads obs"
FEW_CELLS, CELLS, FEW_GENES = 5, 500, 50
"""Cells of a file of ``genes`` and ``types``; cells and genes of a file of ``obs``."""


def write_input(path: Path, n_obs: int, n_vars: int, n_columns: int, dtype: str) -> int:
    """Write a file that others are links to, of counts of a type; give the number of stored values."""
    import anndata as ad
    import pandas as pd
    import scipy.sparse as sp

    rng = np.random.default_rng(0)
    kinds = (lambda: pd.Categorical(rng.choice(["B", "T", "NK"], n_obs)), lambda: rng.random(n_obs))
    obs = pd.DataFrame({f"column{i}": kinds[i % 2]() for i in range(n_columns)}, index=[f"c{i}" for i in range(n_obs)])
    names = [f"ENSG{i:011}" for i in range(n_vars)]
    var = pd.DataFrame({"gene_symbols": [f"S{i}" for i in range(n_vars)], "n_cells": np.arange(n_vars)}, index=names)
    x = sp.random(n_obs, n_vars, 0.02, format="csr", dtype=np.float32, random_state=rng)
    x.data = np.ceil(x.data * 9)
    ad.AnnData(x.astype(dtype), obs=obs, var=var).write_h5ad(path)
    return int(x.nnz)


def measured(script: str, paths: list[str], *arguments: str) -> dict[str, Any]:
    """Run a script in a process of its own; give seconds and peak memory."""
    command = [sys.executable, "-W", "ignore", "-c", script, *arguments]
    done = subprocess.run(command, input=json.dumps(paths), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def rounds_of(
    arguments: argparse.Namespace, n_obs: int, n_vars: int, n_columns: int, *, dtypes: tuple[str, ...], reading: bool
) -> None:
    """Build from each number of files in turns; print and save a row for each."""
    numbers = arguments.files
    tasks = [(BUILDING, n) for n in numbers] + ([(READING, n) for n in numbers] if reading else [])
    found: dict[tuple[str, int], list[dict[str, Any]]] = {task: [] for task in tasks}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        paths = [f"{folder}/file{i}.h5ad" for i in range(max(numbers))]
        nnz = 0
        for i, path in enumerate(paths):
            if i < len(dtypes):
                nnz = write_input(Path(path), n_obs, n_vars, n_columns, dtypes[i])
            else:
                Path(path).hardlink_to(paths[i % len(dtypes)])
        for number in range(arguments.rounds):
            for what, n in tasks:
                if what == BUILDING:
                    one = measured(BUILD, paths[:n], f"{folder}/{number}-{n}", arguments.memory_limit)
                else:
                    one = measured(READ, paths[:n])
                found[what, n].append(one)
                print(f"  {what}, {n} files: {one['cpu_s']:.1f} CPU s", flush=True)
    rows = [
        {
            "contender": what,
            "setting": f"{n} files",
            "files": n,
            **{key: [one[key] for one in ones] for key in ("seconds", "cpu_s", "peak_rss_bytes")},
            "dtype": ones[0].get("dtype", ""),
        }
        for (what, n), ones in found.items()
    ]
    print(f"\n{many_files_table({'rows': rows})}")
    n_files = len(paths)
    facts = {"n_files": n_files, "n_obs": n_files * n_obs, "n_vars": n_vars, "nnz": n_files * nnz}
    save(f"build-files-{arguments.command}", arguments, facts | {"memory_limit": arguments.memory_limit}, rows)


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(description="Measure what many inputs cost.")
    parser.add_argument("command", choices=("genes", "obs", "types"))
    parser.add_argument("--files", type=int, nargs="+", default=[2, 80, 300, 1000], help="numbers of files")
    parser.add_argument("--genes", type=int, default=36_601, help="genes of each file of `genes` and `types`")
    parser.add_argument("--columns", type=int, default=60, help="obs columns of each file of `obs`")
    parser.add_argument("--memory-limit", default="64MB", help="limit of the build")
    parser.add_argument("--rounds", type=int, default=3, help="builds for each number")
    parser.add_argument("--folder", type=Path, default=None, help="where the files go; the system's temporary one")
    parser.add_argument("--machine", default=describe_machine(), help="the machine's name in the results")
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results", help="folder of the results")
    arguments = parser.parse_args()
    one, several = ("float32",), ("int32", "float32", "float64")
    if arguments.command == "obs":
        rounds_of(arguments, CELLS, FEW_GENES, arguments.columns, dtypes=one, reading=True)
    else:
        dtypes = several if arguments.command == "types" else one
        rounds_of(arguments, FEW_CELLS, arguments.genes, 0, dtypes=dtypes, reading=False)


if __name__ == "__main__":
    main()
