"""Do the workers of a Dask cluster write the same bytes, also when one of them dies?"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annbatch import append_to_collection, create_anndata_collection
from annbatch.errors import InputError
from datagen import awkward_obs, named_adata, write_adata
from small_budget import small_budget

distributed = pytest.importorskip("distributed")

# Killing workers is part of the test, and their sockets and processes say so while they go.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:distributed"),
]

CUT: dict[str, Any] = {"rows_per_store": 30, "chunk_elements": 256, "shard_elements": 2048, "progress": False}


def all_bytes(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    small_budget(monkeypatch, run_bytes=6000, piece_bytes=6000)
    rng = np.random.default_rng(0)
    parts = [(range(60), "csr"), (range(60, 100), "csc"), (range(100, 150), "dense")]
    return [
        write_adata(
            named_adata(rng, rows, range(40), form=form, obs=awkward_obs(rows)[["donor", "age"]]),
            tmp_path / f"{rows.start}",
            "h5ad",
        )
        for rows, form in parts
    ]


def test_a_cluster_writes_the_same_bytes(tmp_path: Path, client: Any, paths: list[Path]):
    here = create_anndata_collection(paths[:2], tmp_path / "here", groupby="donor", **CUT)
    there = create_anndata_collection(paths[:2], tmp_path / "there", groupby="donor", client=client, **CUT)
    assert all_bytes(there.path) == all_bytes(here.path)
    append_to_collection(paths[2], here.path, **CUT)
    append_to_collection(paths[2], there.path, client=client, **CUT)
    assert all_bytes(there.path) == all_bytes(here.path)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_an_error_on_a_worker_is_the_error_of_the_call(tmp_path: Path, client: Any):
    adata = named_adata(np.random.default_rng(0), range(9), range(4), density=1.0)
    adata.X.data[5] = np.nan
    path = write_adata(adata, tmp_path / "bad", "h5ad")
    with pytest.raises(InputError, match="bad.h5ad: X must hold finite values, got nan in row 1"):
        create_anndata_collection(path, tmp_path / "store", client=client, **CUT)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_killed_worker_costs_a_retry(tmp_path: Path, client: Any, paths: list[Path]):
    expected = create_anndata_collection(paths, tmp_path / "here", **CUT)
    pids = client.run(os.getpid)
    killed = []

    def kill_one() -> None:
        runs = tmp_path / ".there.building" / "temporary" / "runs"
        deadline = time.monotonic() + 60
        while not list(runs.glob("0*")) and time.monotonic() < deadline:
            time.sleep(0.001)
        killed.append(next(iter(pids.values())))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    found = create_anndata_collection(paths, tmp_path / "there", client=client, **CUT)
    killer.join()
    assert killed
    assert killed[0] not in client.run(os.getpid).values()
    assert all_bytes(found.path) == all_bytes(expected.path)
