"""Which cells can bixverse and all others read, since bixverse writes no store of given ones?

The package from PyPI has one writer, which it keeps for its own tests: it draws cells and writes them (each gene is
stored with the same probability, and its count is one of 1 to 20 with equal probability). So:

1. `generate` starts this module in bixverse's environment, unless the files are there.
2. `draw` lets bixverse write its store, reads that with its loader in order, and writes an ``.h5ad`` file of the same
   cells beside it, and ``input.json`` as `harness.generate` does: everybody else takes it as input.

The writer holds all cells as a dense matrix (20,000 × 30,000: 2.4 GB), which limits their number.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.contenders.registry import CONTENDERS
from harness.environments import Unavailable
from harness.stores import Bench, worker_environment

BLOCK_ROWS = 4096
"""Cells read back at a time."""


def generate(bench: Bench, n_cells: int) -> Bench:
    """Let bixverse draw as many cells; give a bench on them, whose other properties are those of ``bench``.

    Raises
    ------
    Unavailable
        If bixverse's environment cannot be made, or it cannot write.
    """
    facts = bench.facts
    python = bench.python(CONTENDERS["bixverse"].environment)
    density = facts["nnz"] / facts["n_obs"] / facts["n_vars"]
    spec = {"cells": n_cells, "genes": facts["n_vars"], "density": round(density, 6), "seed": facts["spec"]["seed"]}
    folder = bench.input.parent / f"input-bixverse-{'-'.join(map(str, spec.values()))}"
    if not (folder / "input.json").exists():
        print(f"bixverse draws {n_cells:,} cells", flush=True)
        command = [str(python), "-P", "-m", "harness.bixverse_cells", str(folder), json.dumps(spec)]
        if subprocess.run(command, env=worker_environment(), check=False).returncode:
            raise Unavailable(f"{' '.join(command)} failed")
    return replace(bench, input=folder)


def draw(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """Write the store, the ``.h5ad`` file and what is known of them."""
    import anndata as ad
    import bixverse
    import pandas as pd
    from scipy.sparse import csr_matrix, vstack

    store = folder / "stores" / "bixverse"
    store.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    bixverse._bixverse._write_synthetic_store(str(store), spec["cells"], spec["genes"], spec["density"], spec["seed"])
    seconds = time.perf_counter() - started
    reader = bixverse.CellReader(str(store))
    batches = bixverse.CellLoader(reader, batch_size=BLOCK_ROWS, shuffle=False, layer="raw")
    x = vstack([batch.scipy_csr() for batch in batches], format="csr")
    x = csr_matrix((x.data, x.indices.astype(np.int32), x.indptr.astype(np.int32)), shape=x.shape)
    obs = pd.DataFrame(index=[f"cell-{i}" for i in range(x.shape[0])])
    var = pd.DataFrame(index=[f"gene-{i}" for i in range(x.shape[1])])
    ad.AnnData(X=x, obs=obs, var=var).write_h5ad(folder / "input_0.h5ad")
    written = {"seconds": seconds, "bytes": store.stat().st_size}
    store.with_name(f"{store.name}.json").write_text(json.dumps(written) + "\n")
    return {
        "spec": spec,
        "files": ["input_0.h5ad"],
        "n_obs": x.shape[0],
        "n_vars": x.shape[1],
        "nnz": x.nnz,
        "sum_values": int(x.data.sum(dtype=np.float64)),
        "sum_columns": int(x.indices.sum(dtype=np.int64)),
    }


def main() -> None:
    """Draw into a folder what JSON asks for."""
    folder = Path(sys.argv[1])
    facts = draw(folder, json.loads(sys.argv[2]))
    (folder / "input.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
