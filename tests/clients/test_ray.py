"""Do Ray Data and Ray Train get every row once, and does training go on with the very next batch?"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

ray = pytest.importorskip("ray", reason="Ray is not installed: make test-clients")

from annbatch import Emit, InputError, Loader, Partition, create_anndata_collection  # noqa: E402
from annbatch_ray import LoaderDatasource  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(900)]

N_ROWS = 171
X = sp.csr_matrix((np.arange(N_ROWS)[:, None] % 7 == np.arange(7)) * (np.arange(N_ROWS)[:, None] + 1), dtype=np.float32)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Ray's workers have a niceness of 15 by default: on a busy machine they hardly run.
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [f"cell {row}" for row in range(N_ROWS)]
    obs = pd.DataFrame({"kind": pd.Categorical([("a", "b", "c")[row % 3] for row in range(N_ROWS)])}, index=names)
    folder: Path = tmp_path_factory.mktemp("ray") / "collection"
    cells = ad.AnnData(X, obs, layers={"doubled": 2 * X}, obsm={"two": np.arange(2 * N_ROWS).reshape(N_ROWS, 2)})
    create_anndata_collection(cells, folder, shuffle=False, progress=False)
    return folder


def loader(path: Path, **options: Any) -> Loader:
    asked = {"batch_size": 8, "chunk_size": 4, "preload_nchunks": 4} | options
    return Loader(**asked).use_collection(path, labels=["kind"])


def test_tasks_are_ranges_of_windows(cluster: None, path: Path) -> None:
    """Without a cluster's help: the blocks of the tasks, one after the other, are the epoch."""
    expected = [batch.index.tolist() for batch in loader(path)]
    for parallelism, n_tasks in ((1, 1), (4, 4), (100, 11)):
        tasks = LoaderDatasource(loader(path)).get_read_tasks(parallelism)
        assert len(tasks) == n_tasks
        assert [block["index"].to_pylist() for task in tasks for block in task()] == expected


def test_columns_are_those_of_scipy(cluster: None, path: Path) -> None:
    ds = loader(path, layers=["doubled"], obsm=["two"])
    ds.set_epoch(3)
    source = LoaderDatasource(ds)
    assert source.estimate_inmemory_data_size() == 22 * 8 * 7 * 4 * 2
    cells = ray.data.read_datasource(source, override_num_blocks=3)
    assert cells.count() == N_ROWS
    seen = []
    for batch in cells.iter_batches(batch_size=50, batch_format="numpy"):
        index = batch["index"]
        np.testing.assert_array_equal(batch["data"], X[index].toarray())
        np.testing.assert_array_equal(batch["layers/doubled"], 2 * X[index].toarray())
        np.testing.assert_array_equal(batch["obsm/two"], 2 * index[:, None] + [0, 1])
        np.testing.assert_array_equal(batch["kind"], index % 3)
        seen += index.tolist()
    assert sorted(seen) == list(range(N_ROWS))


def test_what_cannot_be_had_is_refused(path: Path) -> None:
    with pytest.raises(TypeError, match=r"ds must be an annbatch\.Loader, got list"):
        LoaderDatasource([])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="names must be False for dicts of arrays"):
        LoaderDatasource(loader(path, names=True))


def train(config: dict[str, Any]) -> None:
    """What a worker does: a number of batches, then a checkpoint, then perhaps it fails; all of the rest after that."""
    from ray.train import Checkpoint, get_all_reported_checkpoints, get_checkpoint, get_context, report

    from annbatch_torch import TorchLoader

    core = Loader(batch_size=8, chunk_size=4, preload_nchunks=4).use_collection(config["path"], labels=["kind"])
    batches = TorchLoader(core)
    n_batches, run = config["n_batches"], "first"
    if (checkpoint := get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            batches.load_state_dict(json.loads(Path(folder, "loader.json").read_text()))
        n_batches, run = len(batches), "second"
    rows = [batch["index"].tolist() for batch in islice(batches, n_batches)]
    rank = get_context().get_world_rank()
    Path(config["out"], f"{run} {rank}.json").write_text(json.dumps(rows))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "loader.json").write_text(json.dumps(batches.state_dict()))
        report({"n": len(rows)}, checkpoint=Checkpoint.from_directory(folder) if rank == 0 else None)
    if config["fails"] and run == "first" and rank == 1:
        # Ray drops a checkpoint that is not yet registered when a worker fails. This waits until it is.
        get_all_reported_checkpoints()
        raise RuntimeError("a worker fails")


@pytest.mark.parametrize("fails", [False, True], ids=["another run", "after a failure"])
def test_two_workers_train_and_go_on(fails: bool, cluster: None, path: Path, tmp_path: Path) -> None:
    """In another run of the same name, or where Ray starts all workers again, since one of them failed."""
    pytest.importorskip("torch", reason="torch is not installed")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    # Workers cannot import the module of a test.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    failures = FailureConfig(max_failures=int(fails))
    for _ in range(1 if fails else 2):
        TorchTrainer(
            train,
            train_loop_config={"path": str(path), "out": str(tmp_path), "n_batches": 5, "fails": fails},
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(name="run", storage_path=str(tmp_path / "runs"), failure_config=failures),
        ).fit()
    seen = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    assert set(seen) == {"first 0", "first 1", "second 0", "second 1"}
    assert len(seen["first 0"]) == len(seen["first 1"]) == 5
    assert sorted(row for batches in seen.values() for batch in batches for row in batch) == list(range(N_ROWS))

    for rank in range(2):
        expected = [batch.index.tolist() for batch in loader(path).batches(Emit(), Partition(rank, 2))]
        assert seen[f"first {rank}"] + seen[f"second {rank}"] == expected
