"""Adds to ``golden_collections.tar.xz``: the same cells, as every version of the format and every codec stores them.

Each collection was written by the commit that `COLLECTIONS` names, with anndata 0.12.19 and zarr 3.1.6. One that is in
the archive stays as it is; a new one is added by::

    python tests/data/make_golden_collections.py NAME

Every value says where it belongs: it follows from the number of the cell and the column, as `matrix`, `labels` and
`obsm` state.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

ARCHIVE = Path(__file__).with_name("golden_collections.tar.xz")
FIRST, DELTA, MODALITIES = (
    "829e865f37897bcac5972505134eb784e05150b4",
    "b5c03f0f984b1c649aff21eceef294df623a9623",
    "960b2331133e504cfd8ccb443210d9f01e0e696c",
)
COLLECTIONS = {
    # The first code that wrote collections: no inputs, no grouped_by; layers always as CSR.
    "1-first": (FIRST, {}),
    # A codec that is no longer written.
    "1-delta": (DELTA, {"codec": "delta", "groupby": "cell_type"}),
    # The code beside this script, when they were added; from here on with a root group.
    "1-blosc": ("", {"dense": ["layers/counts"]}),
    "1-packed": ("", {"codec": "packed", "groupby": ["cell_type", "donor"]}),
    "1-zstd": ("", {"codec": "zstd", "narrow": False}),
    # The first code that wrote modalities.
    "2-first": (MODALITIES, {"join_obs": "outer"}),
    "2-packed": ("", {"codec": "packed"}),
}
"""Name, which begins with the version of the format -> the commit that wrote it, and options of the build."""

N_OBS, N_VARS, N_PROTEINS = 12, 5, 3
CUT = {"rows_per_store": 8, "chunk_elements": 8, "shard_elements": 16, "seed": 1, "progress": False}


def matrix(rows, n_columns):
    """(n_rows, n_columns) X of the cells ``rows``; the layer ``counts`` is twice that."""
    rows, columns = np.asarray(rows)[:, None], np.arange(n_columns)[None, :]
    return np.where((rows + columns) % 3 == 0, 10 * rows + columns, 0).astype(np.float32)


def obsm(rows):
    """(n_rows, 2) the array X_pca."""
    return np.stack([np.asarray(rows) / 2, -np.asarray(rows)], axis=1).astype(np.float32)


def labels(row):
    """obs of one cell; None is missing."""
    return {
        "cell_type": None if row % 5 == 4 else ("B", "T", "NK")[row % 3],
        "donor": f"donor{row % 2}",
        "depth": 100 * row,
        "score": row / 4,
        "doublet": row % 2 == 0,
        "age": None if row % 4 == 1 else row,
    }


def cells(rows, n_columns, prefix):
    """AnnData of these cells."""
    obs = pd.DataFrame([labels(row) for row in rows], index=[f"cell{row}" for row in rows])
    obs["age"] = obs["age"].astype("Int64")
    found = ad.AnnData(
        sp.csr_matrix(matrix(rows, n_columns)), obs, pd.DataFrame(index=[f"{prefix}{i}" for i in range(n_columns)])
    )
    found.layers["counts"] = sp.csr_matrix(2 * found.X)
    found.obsm["X_pca"] = obsm(rows)
    return found


def proteins_of(name):
    """The cells that have proteins: of ``2-first`` those with an even number."""
    return range(0, N_OBS, 2) if name == "2-first" else range(N_OBS)


def write(name, output):
    """Write one collection with the annbatch that can be imported."""
    from annbatch import create_anndata_collection

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        cells(range(N_OBS), N_VARS, "g").write_h5ad("rna.h5ad")
        inputs = ["rna.h5ad"]
        if name.startswith("2"):
            cells(proteins_of(name), N_PROTEINS, "p").write_h5ad("adt.h5ad")
            inputs = [{"rna": "rna.h5ad", "adt": "adt.h5ad"}]
        create_anndata_collection(inputs, output, **CUT, **COLLECTIONS[name][1])


def add(name):
    """Write one collection with the code of its commit, and pack it with those that are in the archive."""
    root = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if ARCHIVE.exists():
            with tarfile.open(ARCHIVE) as archive:
                archive.extractall(folder / "golden", filter="data")
        if (folder / "golden" / name).exists():
            sys.exit(f"{name}: is in the archive, and stays as it is")
        if commit := COLLECTIONS[name][0]:
            packed = subprocess.run(["git", "archive", commit, "annbatch"], cwd=root, capture_output=True, check=True)
            root = folder / "code"
            root.mkdir()
            subprocess.run(["tar", "-x"], cwd=root, input=packed.stdout, check=True)
        command = [sys.executable, __file__, name, str(folder / "golden" / name)]
        subprocess.run(command, env=os.environ | {"PYTHONPATH": str(root)}, check=True)
        with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
            for path in sorted(path for path in (folder / "golden").rglob("*") if path.is_file()):
                # Without dates and owners: the same files make the same archive.
                entry = tarfile.TarInfo(path.relative_to(folder / "golden").as_posix())
                entry.size = path.stat().st_size
                with path.open("rb") as file:
                    archive.addfile(entry, file)


if __name__ == "__main__":
    # The second argument is this script's own.
    write(*sys.argv[1:]) if len(sys.argv) > 2 else add(sys.argv[1])
