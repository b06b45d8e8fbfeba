"""Writes ``anndata_versions.tar.xz``: the same kinds of cells, as each layout of AnnData's formats stores them.

Run it once per version, each in an environment of its own, with the same folder; the last run packs what lies there::

    python3.7  -m pip install "anndata==0.5.10" "pandas<1" "numpy<1.17" "h5py<2.10" "scipy<1.3"
    python3.7  -m pip install "anndata==0.6.22.post1" "pandas<1" "numpy<1.18" "h5py<3" "scipy<1.5" "zarr<2.7"
    python3.8  -m pip install "anndata==0.7.8" "pandas<1.4" "numpy<1.22" "h5py<3.7" "scipy<1.8" "zarr<2.12"
    python3.8  -m pip install "anndata==0.8.0" "pandas<1.6" "numpy<1.24" "zarr<2.17"
    python3.8  -m pip install "anndata==0.9.2" "zarr<2.17"
    python3.11 -m pip install "anndata==0.12.6" "pandas<3"
    python3.13 -m pip install "anndata==0.13.4"

    python make_anndata_versions.py FOLDER

Every version has categories of its own, so that a code that is taken for a name, or for another file's code, shows.
"""

import sys
import tarfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

try:
    from importlib.metadata import version
except ImportError:
    from pkg_resources import get_distribution

    def version(name):
        return get_distribution(name).version


def cells(number: str) -> ad.AnnData:
    """Nine cells of six genes, with a column of each kind that this version can write."""
    n_obs, n_vars, minor = 9, 6, int(number.split(".")[1])
    rng = np.random.RandomState(minor)
    rows = np.arange(n_obs)
    # anndata 0.5 writes ASCII, and knows no layers.
    types = ["NK" + number, "B", "T", "Monch" if minor < 6 else "Mönch"]
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(rng.permutation(rows % 5 - 1), types),
            "stage": pd.Categorical.from_codes(rows % 3, ["late", "early", "mid"], ordered=True),
            "cluster": pd.Categorical.from_codes(rows % 2, [7, 3]),
            "sample": pd.Categorical(["only" + number] * n_obs),
            "donor": [f"donor{row % 4} of {number}" for row in rows],
            "n_counts": rows * 10,
            "score": np.where(rows % 4 == 3, np.nan, rows / 2).astype(np.float32),
            "doublet": rows % 2 == 0,
        },
        index=[f"cell{row} of {number}" for row in rows],
    )
    if minor >= 8:
        obs["age"] = pd.array(np.where(rows % 3 == 1, None, rows), dtype="Int64")
        obs["treated"] = pd.array(np.where(rows % 4 == 2, None, rows % 2 == 1), dtype="boolean")
    genes = [f"gene{column}" for column in range(n_vars)]
    var = pd.DataFrame(
        {
            "symbol": [f"Sym{column}" for column in range(n_vars)],
            "biotype": pd.Categorical.from_codes(np.arange(n_vars) % 2, ["coding", "linc"]),
            "length": np.arange(n_vars) * 100,
        },
        index=genes,
    )
    x = sp.csr_matrix(rng.poisson(1.0, (n_obs, n_vars)).astype(np.float32))
    found = ad.AnnData(x, obs=obs, var=var)
    found.raw = ad.AnnData(x * 2, obs=obs, var=var)
    found = found[:, :4].copy()
    if minor >= 6:
        found.layers["counts"] = found.X.toarray()
        found.layers["by_gene"] = sp.csc_matrix(found.X)
    found.obsm["X_pca"] = rng.normal(size=(n_obs, 3))
    found.obsm["X_umap"] = rng.normal(size=(n_obs, 2)).astype(np.float32)
    return found


def write(folder: Path) -> None:
    """Write this version's cells as ``.h5ad`` and ``.zarr``."""
    number = ".".join(version("anndata").split(".")[:2])
    found = cells(number)
    found.write(folder / (number + ".h5ad"))
    if not hasattr(found, "write_zarr"):
        return
    formats = [2, 3] if hasattr(getattr(ad, "settings", None), "zarr_write_format") else [2]
    names = list(found.obs_names)
    for zarr_format in formats:
        found.obs_names = [f"{name} in zarr {zarr_format}" for name in names]
        if len(formats) > 1:
            ad.settings.zarr_write_format = zarr_format
        path = str(folder / f"{number}.v{zarr_format}.zarr")
        # anndata 0.6 has no default for the chunks of X.
        found.write_zarr(path, chunks=None)


def pack(folder: Path, target: Path) -> None:
    """Pack the folder, without dates and owners, so that the same files make the same archive."""
    with tarfile.open(str(target), "w:xz") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                entry = tarfile.TarInfo(str(path.relative_to(folder)))
                entry.size = path.stat().st_size
                with path.open("rb") as file:
                    archive.addfile(entry, file)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
    pack(Path(sys.argv[1]), Path(__file__).with_name("anndata_versions.tar.xz"))
