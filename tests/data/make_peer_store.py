"""How was ``peer_collection.zip`` made?

With the scverse package ``annbatch`` 0.3.1 (https://pypi.org/project/annbatch/0.3.1/), which shares our import name and
therefore needs an environment of its own, with Python 3.12 or newer::

    python3.12 -m venv peer && peer/bin/pip install annbatch==0.3.1 torch zarrs
    peer/bin/python tests/data/make_peer_store.py

1. Two ``.h5ad`` files with different genes and different categories are written; every value says who it is.
2. The package turns them into a shuffled collection of three datasets, small enough for rows to straddle chunks and
   for each array to have several shards.
3. The collection is packed into one file, since it consists of a hundred.

`expected_row` and `expected_labels` are what a reader has to find; the tests import them from here.
"""

from __future__ import annotations

import contextlib
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

N_OBS, N_VARS, FIRST_FILE_ROWS = 120, 40, 70
ARCHIVE = Path(__file__).with_name("peer_collection.zip")


def genes_of(row: int) -> range:
    """Give the columns of the genes that the row's file has; the files share columns 5 to 34."""
    return range(35) if row < FIRST_FILE_ROWS else range(5, N_VARS)


def expected_row(row: int) -> np.ndarray:
    """Give the (N_VARS,) float32 values of the cell ``cell_{row}``: a third of its genes, or none at all."""
    values = np.zeros(N_VARS, np.float32)
    if row % 17 != 3:
        for column in genes_of(row):
            if (7 * row + 5 * column) % 3 == 0:
                values[column] = N_VARS * row + column + 1
    return values


def expected_labels(row: int) -> tuple[str, float]:
    """Give ``cell_type`` and ``depth`` of the cell ``cell_{row}``; both files have T cells only in common."""
    cell_types = ("B", "T") if row < FIRST_FILE_ROWS else ("NK", "T", "mono")
    return cell_types[row % len(cell_types)], row / 2


def write_source(path: Path, rows: range) -> None:
    """Write the rows as one ``.h5ad`` file with CSR values."""
    import anndata as ad
    import pandas as pd
    import scipy.sparse as sp

    columns = genes_of(rows[0])
    labels = [expected_labels(row) for row in rows]
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical([name for name, _ in labels]), "depth": [depth for _, depth in labels]},
        index=[f"cell_{row}" for row in rows],
    )
    values = sp.csr_matrix(np.stack([expected_row(row)[list(columns)] for row in rows]))
    var = pd.DataFrame(index=[f"gene_{column:02}" for column in columns])
    ad.AnnData(X=values, obs=obs, var=var).write_h5ad(path)


def main() -> None:
    """Write the sources, let the package make a collection, pack it."""
    from importlib.metadata import version

    found = version("annbatch")
    if found != "0.3.1":
        sys.exit(f"annbatch must be 0.3.1, got {found}")
    from annbatch import DatasetCollection

    # The collection keeps the paths of its sources: only relative ones say nothing about the machine.
    with TemporaryDirectory() as folder, contextlib.chdir(folder):
        sources = [Path("first.h5ad"), Path("second.h5ad")]
        write_source(sources[0], range(FIRST_FILE_ROWS))
        write_source(sources[1], range(FIRST_FILE_ROWS, N_OBS))
        store = Path("peer_collection.zarr")
        DatasetCollection(store).add_adatas(
            sources,
            n_obs_per_chunk=7,
            shard_size=21,
            dataset_size=50,
            shuffle_chunk_size=10,
            rng=np.random.default_rng(0),
        )
        with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(path for path in store.rglob("*") if path.is_file()):
                # A fixed date: the same collection gives the same archive.
                entry = zipfile.ZipInfo(path.relative_to(store).as_posix(), date_time=(1980, 1, 1, 0, 0, 0))
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
