"""How long does it take to open many ``.h5ad`` files, the first time and again?

1. Write files that are compressed with gzip, once with the same genes in all of them, once with genes of its own in
   each.
2. In interleaved rounds, processes of their own open all files, with two labels: with an empty index, and with the
   index that the process before has left. The seconds are those of `annbatch.Loader.use_h5ad`, without imports; CPU
   time includes that of worker processes, with their imports.
3. Print medians and ranges; write JSON.

Usage: ``python benchmarks/open_files.py [--files 300] [--genes 30000] [--rounds 5] …``
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from harness import BENCHMARKS
from harness.machine import describe_machine
from harness.results import save

OPEN = """
import json, resource, sys, time
import annbatch

def cpu_s():
    return sum(sum(resource.getrusage(of)[:2]) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

files, cache = json.load(sys.stdin), sys.argv[1]
loader = annbatch.Loader(batch_size=256, chunk_size=32, preload_nchunks=64, join="outer", cache_dir=cache)
wall, cpu = time.perf_counter(), cpu_s()
ds = loader.use_h5ad(files, labels=["cell_type", "donor"])
print(json.dumps({"seconds": time.perf_counter() - wall, "cpu_s": cpu_s() - cpu}))
"""
KINDS = ("the same genes", "genes of its own in each file")
MORE_GENES = 1.1
"""Genes that those of a file are drawn from, for each that it has."""


def write_files(folder: Path, n: int, n_obs: int, n_vars: int, kind: str) -> tuple[list[str], int]:
    """Write files; give their paths, and the number of stored values."""
    import anndata as ad
    import pandas as pd
    import scipy.sparse as sp

    rng, paths, nnz = np.random.default_rng(0), [], 0
    names = np.array([f"ENSG{i:011}" for i in range(int(n_vars * MORE_GENES))], dtype=object)
    for i in range(n):
        genes = np.arange(n_vars) if kind == KINDS[0] else np.sort(rng.permutation(len(names))[:n_vars])
        x = sp.random(n_obs, n_vars, 0.01, format="csr", dtype=np.float32, random_state=rng)
        x.data = np.ceil(x.data * 9)
        obs = pd.DataFrame(
            {
                "cell_type": pd.Categorical(rng.choice([f"type {j}" for j in range(20)], n_obs)),
                "donor": pd.Categorical([f"donor {i}"] * n_obs),
            },
            index=[f"cell {i}-{j}" for j in range(n_obs)],
        )
        path = folder / f"{i:04}.h5ad"
        ad.AnnData(x, obs=obs, var=pd.DataFrame(index=names[genes])).write_h5ad(path, compression="gzip")
        # What has just been written is not kept in an index.
        os.utime(path, (0, 0))
        paths.append(str(path))
        nnz += x.nnz
    return paths, nnz


def opened(paths: list[str], cache: Path) -> dict[str, float]:
    """Open files in a process of its own; give the seconds."""
    command = [sys.executable, "-W", "ignore", "-c", OPEN, str(cache)]
    done = subprocess.run(command, input=json.dumps(paths), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description="Time the opening of many .h5ad files.")
    parser.add_argument("--files", type=int, default=300, help="number of files")
    parser.add_argument("--cells", type=int, default=500, help="cells of each file")
    parser.add_argument("--genes", type=int, default=30_000, help="genes of each file")
    parser.add_argument("--rounds", type=int, default=5, help="how often all files are opened in each way")
    parser.add_argument("--folder", type=Path, default=None, help="where the files go; the system's temporary one")
    parser.add_argument("--machine", default=describe_machine(), help="the machine's name in the results")
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results", help="folder of the results")
    arguments = parser.parse_args()
    times: dict[tuple[str, str], list[dict[str, float]]] = {}
    total = 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        files = {}
        for kind in KINDS:
            place = Path(folder, kind.replace(" ", "-"))
            place.mkdir()
            files[kind], total = write_files(place, arguments.files, arguments.cells, arguments.genes, kind)
        for _ in range(arguments.rounds):
            for kind, paths in files.items():
                cache = Path(folder, "cache")
                for when in ("the first time", "again"):
                    one = opened(paths, cache)
                    times.setdefault((kind, when), []).append(one)
                    print(f"{kind}, {when}: {one['cpu_s']:.2f} CPU s, {one['seconds']:.2f} s", flush=True)
                shutil.rmtree(cache)
    rows: list[dict[str, Any]] = [
        {"contender": kind, "setting": when, **{key: [one[key] for one in found] for key in ("seconds", "cpu_s")}}
        for (kind, when), found in times.items()
    ]
    facts = {
        "n_files": arguments.files,
        "n_obs": arguments.files * arguments.cells,
        "n_vars": arguments.genes,
        "nnz": total,
    }
    save("open-files", arguments, facts, rows)


if __name__ == "__main__":
    main()
