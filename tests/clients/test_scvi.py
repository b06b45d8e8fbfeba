"""Do models of scvi-tools train on the cells, codes and pairs that they would get of an AnnData in memory?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

scvi = pytest.importorskip("scvi", reason="scvi-tools is not installed: make test-clients")

import torch  # noqa: E402
from scvi import external  # noqa: E402
from scvi.model import AUTOZI, PEAKVI, SCANVI, SCVI, CondSCVI, LinearSCVI  # noqa: E402

from annbatch import Loader, create_anndata_collection  # noqa: E402
from annbatch.errors import InputError  # noqa: E402
from annbatch_torch.scvi import ScviDataModule  # noqa: E402

N_OBS, N_VARS = 300, 40

pytestmark = [
    # What scvi-tools, Lightning, pyro and JAX have to say about themselves.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(600),
]

QUIET: dict[str, Any] = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "logger": False}


def cells() -> ad.AnnData:
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(1.0, (N_OBS, N_VARS)).astype(np.float32))
    obs = pd.DataFrame(
        {
            "donor": pd.Categorical(rng.choice(["d2", "d1"], N_OBS)),
            "cell_type": pd.Categorical(rng.choice(["T", "B", "NK", None], N_OBS)),
            "chemistry": pd.Categorical(rng.choice(["v3", "v2"], N_OBS)),
            "site": pd.Categorical(rng.choice(["x", "y", "z"], N_OBS)),
            "age": rng.uniform(0, 1, N_OBS),
            "factor": rng.uniform(1, 2, N_OBS),
        },
        index=[f"cell {i}" for i in range(N_OBS)],
    )
    var = pd.DataFrame(index=[f"gene {i}" for i in range(N_VARS)])
    return ad.AnnData(counts, obs, var, layers={"at least two": (counts > 1).astype(np.float32)})


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("scvi")
    cells().write_h5ad(folder / "cells.h5ad")
    create_anndata_collection(adata_paths=[folder / "cells.h5ad"], output_path=folder / "collection")
    return folder / "collection"


def in_order(path: Path) -> ad.AnnData:
    """Give the cells in memory, in the order of the collection."""
    names = Loader(batch_size=1).use_collection(path, labels=[]).obs([]).index
    return cells()[names].copy()


SETUPS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "everything": (
        SCVI,
        {
            "batch_key": "donor",
            "labels_key": "site",
            "size_factor_key": "factor",
            "categorical_covariate_keys": ["chemistry", "site"],
            "continuous_covariate_keys": ["age", "factor"],
        },
    ),
    "a layer": (SCVI, {"layer": "at least two", "batch_key": "site"}),
    "nothing": (SCVI, {}),
    "unlabelled": (SCANVI, {"labels_key": "cell_type", "unlabeled_category": "?", "batch_key": "donor"}),
    "samples": (external.TorchMRVI, {"sample_key": "site", "batch_key": "donor"}),
}


@pytest.mark.parametrize("name", SETUPS)
def test_tensors_and_registry_are_those_of_an_anndata_in_memory(name, path):
    model, setup = SETUPS[name]
    truth = in_order(path)
    if setup.get("unlabeled_category"):
        truth.obs["cell_type"] = truth.obs["cell_type"].cat.add_categories("?").fillna("?")
    model.setup_anndata(truth, **setup)
    manager = model._get_most_recent_anndata_manager(truth, required=True)
    module = ScviDataModule(model, path, batch_size=64, **setup)
    batches = list(module.inference_dataloader())
    assert [len(batch["X"]) for batch in batches] == [64, 64, 64, 64, 44]
    assert set(batches[0]) == set(manager.data_registry)
    for key in manager.data_registry:
        wanted = manager.get_from_registry(key)
        wanted = wanted.toarray() if sp.issparse(wanted) else np.asarray(wanted).reshape(N_OBS, -1)
        got = torch.cat([batch[key] for batch in batches]).numpy()
        np.testing.assert_array_equal(got, wanted.astype(got.dtype))
    fields = model._get_most_recent_anndata_manager(module.adata, required=True).registry["field_registries"]
    assert str(fields) == str(manager.registry["field_registries"])


def test_training_and_validation_share_out_all_cells(path):
    module = ScviDataModule(SCVI, path, batch_size=30, validation_size=0.25, batch_key="donor")
    ds = Loader(batch_size=30).use_collection(path, labels=[])
    parts = ds.split({"train": None, "val": np.arange(0, N_OBS, 3)})
    given = ScviDataModule(SCVI, ds, parts=parts, batch_key="donor")
    for one, n_val in ((module, 75), (given, 100)):
        train, val = (torch.cat([batch["X"] for batch in one._batches(stage)]) for stage in ("train", "val"))
        assert (len(train), len(val)) == (N_OBS - n_val, n_val)
        whole = np.vstack([train.numpy(), val.numpy()])
        np.testing.assert_array_equal(np.sort(whole.sum(1)), np.sort(cells().X.sum(1).A1))
    assert "val" not in ScviDataModule(SCVI, path, validation_size=0).loaders
    ordered = torch.cat([batch["X"] for batch in given.inference_dataloader("val")]).numpy()
    np.testing.assert_array_equal(ordered, in_order(path).X[::3].toarray())


def test_semi_supervised_models_get_pairs(path):
    setup = {"labels_key": "cell_type", "unlabeled_category": "unknown"}
    module = ScviDataModule(SCANVI, path, batch_size=16, validation_size=0.2, **setup)
    pairs = module.train_dataloader()
    epochs = [list(pairs) for _ in range(2)]
    is_labelled = (in_order(path).obs["cell_type"].notna()).to_numpy()
    train = module.loaders["train"].rows
    n_labelled = int(is_labelled[train].sum())
    for epoch in epochs:
        assert len(epoch) == len(pairs) == -(-len(train) // 16)
        codes = torch.cat([both["labels"] for _, both in epoch]).ravel()
        assert codes.max() == 2, "an unlabelled cell came as a labelled one"
        assert torch.cat([whole["labels"] for whole, _ in epoch]).max() == 3
        first_round = torch.cat([both["X"] for _, both in epoch])[:n_labelled]
        np.testing.assert_array_equal(
            np.sort(first_round.sum(1).numpy()), np.sort(in_order(path).X[train[is_labelled[train]]].sum(1).A1)
        )
    assert not torch.equal(epochs[0][0][1]["X"], epochs[1][0][1]["X"])

    # What is left of an epoch comes when another process goes on.
    again = ScviDataModule(SCANVI, path, batch_size=16, validation_size=0.2, **setup).train_dataloader()
    running = iter(again)
    for _ in range(5):
        next(running)
    later = ScviDataModule(SCANVI, path, batch_size=16, validation_size=0.2, **setup).train_dataloader()
    later.load_state_dict(again.state_dict())
    for wanted in (epochs[0][5:], epochs[1]):
        got = list(later)
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            assert all(torch.equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in b)


MODELS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "SCVI": (
        SCVI,
        {"batch_key": "donor", "categorical_covariate_keys": ["site"], "continuous_covariate_keys": ["age"]},
    ),
    "LinearSCVI": (LinearSCVI, {"batch_key": "donor"}),
    "SCANVI": (SCANVI, {"batch_key": "donor", "labels_key": "cell_type", "unlabeled_category": "unknown"}),
    "AUTOZI": (AUTOZI, {"batch_key": "donor"}),
    "PEAKVI": (PEAKVI, {"batch_key": "donor"}),
    "CondSCVI": (CondSCVI, {"labels_key": "site"}),
    "SysVI": (external.SysVI, {"batch_key": "donor"}),
    "TorchMRVI": (external.TorchMRVI, {"sample_key": "site", "batch_key": "donor"}),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_train_are_saved_and_loaded(name, path, tmp_path):
    kind, setup = MODELS[name]
    module = ScviDataModule(kind, path, batch_size=64, **setup)
    # The default would need the library sizes of all cells before training.
    model = kind(module.adata, **({"use_observed_lib_size": True} if kind is LinearSCVI else {}))
    model.train(datamodule=module, **QUIET)
    embedding = model.get_latent_representation(dataloader=module.inference_dataloader())
    assert embedding.shape[0] == N_OBS
    assert np.isfinite(embedding).all()
    model.save(tmp_path / "model")
    loaded = kind.load(tmp_path / "model", adata=module.adata)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(dataloader=module.inference_dataloader(batch_size=64)), embedding
    )
    if name in ("SCVI", "SCANVI"):
        assert np.isfinite(model.get_elbo(dataloader=module.inference_dataloader()))
    # Without the counts there is no embedding: SysVI warns and gives zeros, the others fail.
    with pytest.warns(UserWarning, match="nan") if kind is external.SysVI else pytest.raises(ValueError, match="nan"):
        model.get_latent_representation()


def test_scanvi_goes_on_from_scvi(path):
    first = ScviDataModule(SCVI, path, batch_size=64, batch_key="donor")
    trained = SCVI(first.adata)
    trained.train(datamodule=first, **QUIET)
    module = ScviDataModule(
        SCANVI, path, batch_size=64, batch_key="donor", labels_key="cell_type", unlabeled_category="unknown"
    )
    model = SCANVI.from_scvi_model(trained, "unknown", labels_key="cell_type", adata=module.adata)
    model.train(datamodule=module, **QUIET)
    assert set(model.predict(dataloader=module.inference_dataloader())) <= {"T", "B", "NK"}


def test_bad_input_is_named(path):
    with pytest.raises(InputError, match=r"batch_key: obs column 'cell_type' must have a value for each cell, and \d+"):
        ScviDataModule(SCVI, path, batch_key="cell_type")
    with pytest.raises(InputError, match="nowhere"):
        ScviDataModule(SCVI, path, batch_key="nowhere")
    with pytest.raises(TypeError, match="batch_keys"):
        ScviDataModule(SCVI, path, batch_keys="donor")


def test_the_page_runs_as_it_stands(path, tmp_path, monkeypatch):
    (tmp_path / "collection").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "scvi.md").read_text()
    names: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE):
        exec(code, names)
    assert names["embedding"].shape == (N_OBS, 10)
    assert len(names["predicted"]) == N_OBS
