"""Does a pipeline of Grain give every row once, and go on exactly, with worker processes too?"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

grain = pytest.importorskip("grain", reason="Grain is not installed: make test-clients")
pytest.importorskip("jax", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402
from absl import flags  # noqa: E402

from annbatch import InputError, Loader, Partition, create_anndata_collection  # noqa: E402
from annbatch_jax import JaxLoader, PaddedCSR  # noqa: E402
from annbatch_jax.grain import LoaderDataset  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]

N_ROWS, BATCH = 171, 8
N_BATCHES = -(-N_ROWS // BATCH)
X = sp.csr_matrix((np.arange(N_ROWS)[:, None] % 7 == np.arange(7)) * (np.arange(N_ROWS)[:, None] + 1), dtype=np.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [f"cell {row}" for row in range(N_ROWS)]
    obs = pd.DataFrame({"kind": pd.Categorical([("a", "b", "c")[row % 3] for row in range(N_ROWS)])}, index=names)
    folder: Path = tmp_path_factory.mktemp("grain") / "collection"
    cells = ad.AnnData(X, obs, obsm={"two": np.arange(2 * N_ROWS).reshape(N_ROWS, 2)})
    create_anndata_collection(cells, folder, shuffle=False, progress=False)
    return folder


def loader(path: Path, **options: Any) -> Loader:
    asked = {"batch_size": BATCH, "chunk_size": 4, "preload_nchunks": 4, "obsm": ["two"]} | options
    return Loader(**asked).use_collection(path, labels=["kind"])


def rows(batches: Any) -> list[list[int]]:
    return [batch["index"][batch["mask"]].tolist() for batch in batches]


@pytest.mark.parametrize(("layout", "dtype"), [("dense", "float32"), ("padded_csr", "float32"), ("dense", "bfloat16")])
def test_batches_are_the_rows_of_the_core(layout: Any, dtype: str, path: Path) -> None:
    truth = loader(path)
    expected = [batch.index.tolist() for _ in range(2) for batch in truth]
    ds = JaxLoader(loader(path, casting="same_kind"), layout=layout, dtype=dtype)
    batches = list(LoaderDataset(ds, n_epochs=2))
    assert rows(batches) == expected
    for batch in batches:
        assert list(batch) == ["data", "kind", "index", "obsm", "mask"]
        data, index = batch["data"], batch["index"][batch["mask"]]
        if isinstance(data, PaddedCSR):
            n = data.indptr[-1]
            data = sp.csr_matrix((data.data[:n], data.indices[:n], data.indptr), shape=data.shape).toarray()
        assert isinstance(data, np.ndarray)
        assert len(data) == len(batch["mask"]) == BATCH
        np.testing.assert_array_equal(data[: len(index)], X[index].toarray().astype(jnp.dtype(dtype)))
        np.testing.assert_array_equal(batch["kind"][: len(index)], index % 3)
        np.testing.assert_array_equal(batch["obsm"]["two"][: len(index)], 2 * index[:, None] + [0, 1])


@pytest.mark.parametrize("n_workers", [0, 2])
def test_every_row_once_and_exact_resume(n_workers: int, path: Path) -> None:
    flags.FLAGS.mark_as_parsed()
    dataset = LoaderDataset(JaxLoader(loader(path), layout="dense"), n_epochs=2)
    pipeline = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=n_workers))
    iterator = iter(pipeline)
    whole, states = [], [iterator.get_state()]
    for batch in iterator:
        whole.append(rows([batch])[0])
        states.append(json.loads(json.dumps(iterator.get_state())))
    iterator.close()
    assert len(whole) == 2 * N_BATCHES
    assert sorted(row for batch in whole for row in batch) == sorted([*range(N_ROWS)] * 2)
    for n_had in (0, 5, N_BATCHES, N_BATCHES + 3, len(whole)) if n_workers == 0 else (7, N_BATCHES + 3):
        again = iter(pipeline)
        next(again)
        again.set_state(states[n_had])
        assert rows(again) == whole[n_had:]
        again.close()


def test_orbax_saves_the_position_beside_a_model(path: Path, tmp_path: Path) -> None:
    ocp = pytest.importorskip("orbax.checkpoint", reason="Orbax is not installed: make test-clients")
    dataset = LoaderDataset(JaxLoader(loader(path), layout="dense"), n_epochs=2)
    batches = iter(dataset)
    whole = []
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for number, batch in enumerate(batches):
            whole += rows([batch])
            if number in (0, 6, N_BATCHES - 1, N_BATCHES + 3):
                model = ocp.args.StandardSave({"sum": jnp.asarray(float(number))})
                data = grain.checkpoint.CheckpointSave(batches)
                manager.save(number, args=ocp.args.Composite(model=model, data=data))
        manager.wait_until_finished()
        assert len(manager.all_steps()) == 4
        for number in manager.all_steps():
            again = iter(dataset)
            model = ocp.args.StandardRestore({"sum": jnp.asarray(0.0)})
            data = grain.checkpoint.CheckpointRestore(again)
            saved = manager.restore(number, args=ocp.args.Composite(model=model, data=data))
            assert saved["model"]["sum"] == number
            assert rows(again) == whole[number + 1 :]


def test_ranks_share_out_the_rows(path: Path) -> None:
    ranks = [LoaderDataset(JaxLoader(loader(path, partition=Partition(rank, 2)))) for rank in range(2)]
    found = [rows(rank) for rank in ranks]
    assert len(found[0]) == len(found[1])
    assert sorted(row for batches in found for batch in batches for row in batch) == list(range(N_ROWS))


def test_epochs_without_end_differ(path: Path) -> None:
    found = rows(islice(LoaderDataset(JaxLoader(loader(path)), n_epochs=None), 3 * N_BATCHES))
    epochs = [found[n * N_BATCHES : (n + 1) * N_BATCHES] for n in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]


def test_what_cannot_be_had_is_refused(path: Path) -> None:
    with pytest.raises(TypeError, match="batches must be a JaxLoader, got Loader"):
        LoaderDataset(loader(path))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_epochs must be >= 1, got 0"):
        LoaderDataset(JaxLoader(loader(path)), n_epochs=0)
    with pytest.raises(InputError, match="names must be False for dicts of arrays"):
        LoaderDataset(JaxLoader(loader(path, names=True)))
    state = iter(LoaderDataset(JaxLoader(loader(path)))).get_state()
    with pytest.raises(InputError, match="state must belong to the same data and settings: seed is 0"):
        iter(LoaderDataset(JaxLoader(loader(path, seed=1)))).set_state(state)
