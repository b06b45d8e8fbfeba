"""Are hundreds of `.h5ad` files read with a bounded number of descriptors, however their chunks differ?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pytest

from annbatch import Loader
from annbatch.shards import chunk_files
from annbatch.stores import chunk_arrival, elements, selected_elements
from datagen import named_matrix
from epochs import each_batch

N_OBS, N_VARS = 5, 7


def write_files(folder: Path, n: int) -> list[Path]:
    """Write files with chunks of as many sizes, so that no two are read in one call of a kernel."""
    paths = []
    for i in range(n):
        x = named_matrix(np.random.default_rng(i), range(i * N_OBS, (i + 1) * N_OBS), range(N_VARS), density=0.9)
        path = folder / f"{i:03}.h5ad"
        if not i:
            ad.AnnData(x).write_h5ad(path)
        else:
            path.write_bytes(paths[0].read_bytes())
        with h5py.File(path, "r+") as file:
            for key in ("data", "indices", "indptr"):
                del file[f"X/{key}"]
                own = {} if key == "indptr" else {"chunks": (min(i + 3, x.nnz),), "compression": "gzip"}
                file["X"].create_dataset(key, data=getattr(x, key), **own)
        paths.append(path)
    return paths


def check(ds: Loader, n: int) -> None:
    rows = [range(i * N_OBS, (i + 1) * N_OBS) for i in range(n)]
    truth = np.concatenate(
        [named_matrix(np.random.default_rng(i), of, range(N_VARS), density=0.9).toarray() for i, of in enumerate(rows)]
    )
    seen = []
    for batch in each_batch(ds):
        np.testing.assert_array_equal(batch.data.to_scipy().toarray(), truth[batch.index])
        seen.append(batch.index)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(n * N_OBS))


OPTIONS: dict[str, Any] = {"batch_size": 50, "chunk_size": 1, "preload_nchunks": 200, "threads": 2}


def test_few_files_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever way they are read, and all datasets of a file share a descriptor."""
    n, most = 40, []
    for module in (chunk_files, elements, chunk_arrival, selected_elements):
        monkeypatch.setattr(module, "MAX_FILES", 3)
    monkeypatch.setattr(chunk_files, "_max_recent", 4)
    opening = chunk_files._File.__init__

    def counted(file: Any, path: Path) -> None:
        opening(file, path)
        most.append(len(chunk_files._of_stamp) + 1)

    monkeypatch.setattr(chunk_files._File, "__init__", counted)
    paths = write_files(tmp_path, n)
    for options in ({}, {"var_names": ["3", "5"]}):
        ds = Loader(**OPTIONS | options).use_h5ad(paths, labels=[])
        if not options:
            check(ds, n)
        else:
            assert sum(len(batch.index) for batch in each_batch(ds)) == n * N_OBS
    # Planned windows hold three of each array, two threads three each; four more are kept.
    assert 4 < max(most) <= n // 2
    assert len(most) >= 2 * n
    monkeypatch.setattr(chunk_files, "_max_recent", 64)
    most.clear()
    (tmp_path / "others").mkdir()
    check(Loader(**OPTIONS).use_h5ad(write_files(tmp_path / "others", 2), labels=[]), 2)
    assert len(most) == 2


_CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import pathlib, test_h5ad_many as here
paths = sorted(pathlib.Path(sys.argv[1]).glob("*.h5ad"))
for _ in range(2):
    here.check(here.Loader(**here.OPTIONS, cache_dir=sys.argv[2]).use_h5ad(paths, labels=[]), len(paths))
"""


@pytest.mark.slow
def test_low_limit_of_descriptors(tmp_path: Path) -> None:
    """300 files are read by a process that may have 64 descriptors."""
    write_files(tmp_path, 300)
    command = [sys.executable, "-c", _CHILD, str(tmp_path), str(tmp_path / "cache")]
    here = Path(__file__)
    environment = {"PYTHONPATH": f"{here.parent}:{here.parents[1] / 'support'}:{here.parents[2]}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
