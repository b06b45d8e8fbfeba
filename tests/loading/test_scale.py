"""Does a collection of a hundred million rows open at once, and take no memory for its rows?"""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr

from annbatch import Collection
from annbatch.stores.collection import FORMAT, digest_names
from annbatch.stores.manifest import StoreEntry

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc"),
]

N_STORES, ROWS, N_VARS = 5, 20_000_000, 100

MEASURE = """
import sys, time
from pathlib import Path
import annbatch

def resident():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024

before, start = resident(), time.perf_counter()
ds = annbatch.Loader(batch_size=4096, chunk_size=int(sys.argv[2]), preload_nchunks=int(sys.argv[3]))
ds.use_collection(sys.argv[1], labels=["kind"])
opened, seconds = resident(), time.perf_counter() - start
batches = iter(ds)
for _ in range(6):
    batch = next(batches)
    rows = batch.data.to_scipy()
    # Every thousandth row has one value, its own number in its store modulo 60,000.
    in_store = batch.index % 20_000_000
    has_value = in_store % 1000 == 0
    assert (rows.getnnz(axis=1) == has_value).all()
    assert (rows.data == in_store[has_value] // 1000 % 60_000).all()
    assert (batch.codes["kind"] == in_store % 3).all()
print(ds.n_obs, seconds, opened - before, resident() - before)
"""


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scale") / "store"
    names = [f"g{i}" for i in range(N_VARS)]
    entries = []
    for i in range(N_STORES):
        root = zarr.create_group(str(folder / f"chunk_{i}.zarr"))
        x = root.create_group("X")
        x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [ROWS, N_VARS]})
        nnz = ROWS // 1000
        sharded = {"chunks": (2**15,), "shards": (2**20,)}
        x.create_array("data", data=(np.arange(nnz) % 60_000).astype(np.uint16), **sharded)
        x.create_array("indices", data=(np.arange(nnz) % N_VARS).astype(np.uint16), **sharded)
        indptr = x.create_array("indptr", shape=(ROWS + 1,), dtype=np.int64, chunks=(2**20,), compressors=None)
        codes_options = {"shape": (ROWS,), "dtype": np.int8, "chunks": (2**20,), "compressors": None}
        obs = root.create_group("obs")
        obs.attrs.update(
            {"encoding-type": "dataframe", "encoding-version": "0.2.0", "column-order": ["kind"], "_index": "names"}
        )
        kind = obs.create_group("kind")
        kind.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
        codes = kind.create_array("codes", **codes_options)
        for start in range(0, ROWS + 1, 2**20):
            rows = np.arange(start, min(start + 2**20, ROWS + 1))
            indptr[start : start + len(rows)] = (rows + 999) // 1000
            codes[start : start + len(rows)] = (rows[rows < ROWS] % 3).astype(np.int8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ad.io.write_elem(kind, "categories", np.array(["a", "b", "c"], dtype=object))
            ad.io.write_elem(root, "var", pd.DataFrame(index=names))
        entries.append(StoreEntry(f"chunk_{i}.zarr", ROWS, nnz, {}))
    Collection(
        path=folder,
        format=FORMAT,
        n_obs=N_STORES * ROWS,
        n_vars=N_VARS,
        var_digest=digest_names(names),
        stores=tuple(entries),
        types={},
        obs_columns=("kind",),
        shuffled=False,
        seed=None,
        software="a test",
    ).save(folder)
    return folder


@pytest.mark.parametrize(("chunk_size", "preload_nchunks"), [(512, 32), (32, 256), (1, 16384)])
def test_a_hundred_million_rows(collection, chunk_size, preload_nchunks):
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(collection), str(chunk_size), str(preload_nchunks)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    n_obs, seconds, opened, running = result.stdout.split()
    print(f"opened in {float(seconds):.2f} s, {int(opened) / 2**20:.0f} MiB; running {int(running) / 2**20:.0f} MiB")
    assert int(n_obs) == 100_000_000
    assert int(opened) < 200e6
