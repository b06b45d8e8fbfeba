"""Are `.h5ad` files read whatever they are compressed with, and if one cannot be, who is told what?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest

from annbatch import create_anndata_collection
from annbatch.stores.hdf5_filters import missing_filter
from datagen import named_adata

BUILD = """
import os, sys
from annbatch import InputError, create_anndata_collection
assert "hdf5plugin" not in sys.modules
sys.modules["hdf5plugin"] = None
try:
    create_anndata_collection([sys.argv[1]], sys.argv[2], shuffle=False, progress=False)
except InputError as error:
    print(error)
print(*os.listdir(os.path.dirname(sys.argv[1])))
del sys.modules["hdf5plugin"]
create_anndata_collection([sys.argv[1]], sys.argv[2], shuffle=False, progress=False)
"""


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return named_adata(np.random.default_rng(0), range(60), range(30))


@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
def test_what_h5py_reads(tmp_path: Path, cells: ad.AnnData, compression: str | None) -> None:
    cells.write_h5ad(tmp_path / "cells.h5ad", compression=compression)
    with h5py.File(tmp_path / "cells.h5ad") as file:
        assert file["X/data"].compression == compression
        assert missing_filter(file) is None
    collection = create_anndata_collection([tmp_path / "cells.h5ad"], tmp_path / "store", shuffle=False, progress=False)
    np.testing.assert_array_equal(ad.read_zarr(collection.store_paths[0]).X.toarray(), cells.X.toarray())


@pytest.mark.parametrize("name", ["Blosc", pytest.param("Zstd", marks=pytest.mark.slow)])
def test_filters_of_hdf5plugin(tmp_path: Path, cells: ad.AnnData, name: str) -> None:
    """A process that has not imported hdf5plugin reads the file, and says what to install where it cannot."""
    hdf5plugin = pytest.importorskip("hdf5plugin", reason="hdf5plugin is not installed")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    compression = getattr(hdf5plugin, name)()
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        # X alone: the blosc filter of some versions cannot take strings.
        for key in ("data", "indices", "indptr"):
            values = file[f"X/{key}"][:]
            del file[f"X/{key}"]
            file["X"].create_dataset(key, data=values, chunks=(50,), **compression)

    command = [sys.executable, "-c", BUILD, str(tmp_path / "cells.h5ad"), str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    refused, left = done.stdout.splitlines()
    number = hdf5plugin.FILTERS[name.lower()]
    assert f"cells.h5ad: X/data is compressed with HDF5 filter {number} (" in refused
    assert "which this HDF5 installation lacks; pip install hdf5plugin provides it" in refused
    assert left == "cells.h5ad"
    np.testing.assert_array_equal(ad.read_zarr(tmp_path / "store" / "chunk_0.zarr").X.toarray(), cells.X.toarray())
