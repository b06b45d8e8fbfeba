"""How do the readers take part whose stores hold each cell by itself?

1. cellstream 0.11: ``gather_rows`` of one batch after the other, of rows in an order that is drawn for each epoch, as
   it has no loader of its own. It decodes with a thread for each core, and gives float32 values as it does by default.
2. bixverse 0.2.1: its ``CellLoader``. The package from PyPI reads stores, and writes none but of cells that it draws
   itself (`harness.bixverse_cells`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from harness.environments import Unavailable
from harness.jobs import Epoch, Job, Matrix
from harness.machine import cores


def open_cellstream(job: Job) -> Epoch:
    """Open cellstream's archive; every epoch draws an order of its own."""
    import cellstream

    if not cellstream.rust_available():
        raise Unavailable(f"cellstream needs its extension: {cellstream.rust_status()}")
    store = cellstream.open(job.store)
    size, threads = job.setting.batch_size, job.setting.threads or cores()
    rng = np.random.default_rng(0)

    def epoch() -> Iterator[Matrix]:
        order = rng.permutation(store.shape[0])
        for first in range(0, len(order), size):
            yield Matrix.of_csr(store.gather_rows(order[first : first + size], n_threads=threads))

    return epoch


def open_bixverse(job: Job) -> Epoch:
    """Open bixverse's store with its loader, for raw counts as CSR."""
    import bixverse

    loader = bixverse.CellLoader(
        bixverse.CellReader(job.store), batch_size=job.setting.batch_size, shuffle=True, seed=0, layer="raw"
    )

    def epoch() -> Iterator[Matrix]:
        for batch in loader:
            # The same bits, in the type for which the benchmark has a fast sum.
            yield Matrix(batch.raw, batch.indices.view(np.int32), batch.shape[0])

    return epoch


def write_cellstream(inputs: list[str], store: str) -> None:
    """Write one archive of all files, by its streaming writer, as unsigned integers: their codec is its fastest."""
    import anndata as ad
    import pandas as pd
    from cellstream.cell import CellArchiveWriter

    block = 16384
    obs: list[Any] = []
    adatas = [ad.read_h5ad(path, backed="r") for path in inputs]
    writer = CellArchiveWriter(store, n_vars=adatas[0].n_vars, value_dtype=np.uint32)
    for adata in adatas:
        for first in range(0, adata.n_obs, block):
            writer.add_block(adata.X[first : first + block].astype(np.uint32))
        obs.append(adata.obs)
    writer.finalize(obs=pd.concat(obs), var=adatas[0].var)


def write_bixverse(inputs: list[str], store: str) -> None:
    """Refuse: there is no way to write given cells."""
    raise Unavailable(
        f"bixverse 0.2.1 from PyPI writes no store of given cells, and {Path(store).name} shall hold those of "
        f"{len(inputs)} file(s): random_rows.py compares it on cells that it draws itself"
    )
