"""Does a running loader keep to the memory that its settings say?

The formula stands in docs/loading.md:
9/8 * (prefetch + 2) * window rows * (mean elements of a row * (bytes of a value + 4) + 200), beside what was resident
before the first batch. Windows that are read at a time count as one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)

N_OBS, N_VARS, MEAN_NNZ = 24_000, 5_000, 1_500

MEASURE = """
import json, sys
from pathlib import Path
import annbatch

def memory(field):
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0]) * 1024

path, options = sys.argv[1], json.loads(sys.argv[2])
import anndata as ad, zarr
def loader(**options):
    group = zarr.open_group(path, mode="r")
    return annbatch.Loader(**options).add_anndatas([ad.AnnData(X=ad.io.sparse_dataset(group["X"]))])
for _ in zip(range(3), loader(batch_size=4, chunk_size=2, preload_nchunks=2)):
    pass  # compiles
ds = loader(**options)
Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
before = memory("VmRSS")
n = 0
for _ in range(3):
    for batch in ds:
        n += len(batch.index)
assert n == 3 * ds.n_obs, n
print(memory("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A store whose rows are long enough that they, not the bookkeeping, are the memory."""
    path = tmp_path_factory.mktemp("memory") / "0.zarr"
    rng = np.random.default_rng(0)
    lengths = rng.integers(MEAN_NNZ // 2, MEAN_NNZ * 3 // 2, N_OBS)
    indptr = np.concatenate(([0], np.cumsum(lengths)))
    root = zarr.create_group(str(path))
    x = root.create_group("X")
    x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [N_OBS, N_VARS]})
    options = {"chunks": (65536,), "shards": (65536 * 64,)}
    row = np.arange(int(indptr[-1])) - np.repeat(indptr[:-1], lengths)
    x.create_array("data", data=(row % 5 + 1).astype(np.uint16), **options)
    x.create_array("indices", data=row.astype(np.uint16), **options)
    x.create_array("indptr", data=indptr)
    return path


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {"batch_size": 1024, "chunk_size": 256, "preload_nchunks": 16, "prefetch": 0}, marks=pytest.mark.slow
        ),
        {"batch_size": 1024, "chunk_size": 256, "preload_nchunks": 16, "prefetch": 1},
        pytest.param(
            {"batch_size": 128, "chunk_size": 64, "preload_nchunks": 32, "prefetch": 3}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"batch_size": 2048, "chunk_size": 1, "preload_nchunks": 4096, "prefetch": 1}, marks=pytest.mark.slow
        ),
        {"batch_size": 4096, "chunk_size": 512, "preload_nchunks": 8, "prefetch": 2, "dtype": "float64"},
    ],
)
def test_peak_memory_is_what_the_formula_says(store, options):
    window_rows = options["chunk_size"] * options["preload_nchunks"]
    value_bytes = 8 if options.get("dtype") == "float64" else 2
    if options["prefetch"]:
        # Small windows are read several at a time.
        fitting = max(1, 2**25 // (window_rows * MEAN_NNZ * 4))
        window_rows *= 2 ** (fitting.bit_length() - 1)
    formula = 9 / 8 * (options["prefetch"] + 2) * window_rows * (MEAN_NNZ * (value_bytes + 4) + 200)
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(store), json.dumps(options)], capture_output=True, text=True, check=True
    )
    peak = int(result.stdout)
    assert peak <= formula, f"{peak / 2**20:.0f} MiB, the formula allows {formula / 2**20:.0f} MiB"
    assert peak >= formula / 8, f"{peak / 2**20:.0f} MiB of {formula / 2**20:.0f} MiB: the formula says nothing"
