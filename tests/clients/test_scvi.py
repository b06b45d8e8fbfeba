"""Do models of scvi-tools train on the cells, codes and pairs that they would get of an AnnData in memory?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

scvi = pytest.importorskip("scvi", reason="scvi-tools is not installed: make test-clients")

import torch  # noqa: E402
from lightning.pytorch import Callback, LightningDataModule  # noqa: E402
from scvi import external  # noqa: E402
from scvi.model import AUTOZI, PEAKVI, SCANVI, SCVI, TOTALVI, AmortizedLDA, CondSCVI, DestVI, LinearSCVI  # noqa: E402
from scvi.model.base import BaseModelClass  # noqa: E402

from annbatch import Loader, create_anndata_collection  # noqa: E402
from annbatch.errors import InputError  # noqa: E402
from annbatch_torch.scvi import ScviDataModule  # noqa: E402

# scvi-tools 1.4 has one for each framework.
MRVI = external.TorchMRVI if hasattr(external, "TorchMRVI") else external.MRVI

N_OBS, N_VARS, N_BITS = 300, 40, 9
DOCS = Path(__file__).parents[2] / "docs"

pytestmark = [
    # What scvi-tools, Lightning, pyro and JAX have to say about themselves.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(600),
]

QUIET: dict[str, Any] = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "logger": False}


def cells() -> ad.AnnData:
    rng = np.random.default_rng(0)
    dense = rng.poisson(1.0, (N_OBS, N_VARS)).astype(np.float32)
    # A cell says which one it is.
    dense[:, :N_BITS] = np.arange(N_OBS)[:, None] >> np.arange(N_BITS) & 1
    counts = sp.csr_matrix(dense)
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
    "samples": (MRVI, {"sample_key": "site", "batch_key": "donor"}),
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


@pytest.mark.parametrize("shuffle", [True, False])
def test_inference_is_in_the_order_of_adata(shuffle, path):
    """Whatever the order in which a loader was given its rows."""
    rows = np.random.default_rng(0).permutation(N_OBS)[:90]
    ds = Loader(batch_size=32, rows=rows, shuffle=shuffle).use_collection(path, labels=[])
    module = ScviDataModule(SCVI, ds, parts=ds.split({"train": None, "val": rows[:20]}), batch_key="donor")
    truth = cells()[module.adata.obs_names]
    for stage, places in ((None, slice(None)), ("train", module.train_idx), ("val", module.val_idx)):
        found = list(module.inference_dataloader(stage))
        for key, wanted in (("X", truth.X.toarray()), ("batch", module.adata.obs["_scvi_batch"].to_numpy()[:, None])):
            np.testing.assert_array_equal(torch.cat([batch[key] for batch in found]).numpy(), wanted[places])
    with pytest.raises(InputError, match="must have a loader for 'test'"):
        module.inference_dataloader("test")


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
    "POISSONVI": (external.POISSONVI, {"batch_key": "donor"}),
    "SCAR": (external.SCAR, {}),
    "SysVI": (external.SysVI, {"batch_key": "donor"}),
    "MRVI": (MRVI, {"sample_key": "site", "batch_key": "donor"}),
}
# From scvi-tools 1.5 on.
MODELS |= {
    name: (getattr(external, name), {"batch_key": "donor"})
    for name in ("DRVI", "JointEmbeddingSCVI")
    if hasattr(external, name)
}

WITHOUT_COUNTS: dict[type[Any], dict[str, Any]] = {
    LinearSCVI: {"use_observed_lib_size": True},
    external.SCAR: {"ambient_profile": np.full(N_VARS, 1 / N_VARS)},
    external.SysVI: {"prior": "standard_normal"},
}
"""What models get whose defaults need counts when they are created."""


@pytest.mark.parametrize("name", MODELS)
def test_models_train_are_saved_and_loaded(name, path, tmp_path):
    kind, setup = MODELS[name]
    module = ScviDataModule(kind, path, batch_size=64, **setup)
    model = kind(module.adata, **WITHOUT_COUNTS.get(kind, {}))
    model.train(datamodule=module, **QUIET)
    embedding = model.get_latent_representation(dataloader=module.inference_dataloader())
    assert embedding.shape[0] == N_OBS
    assert np.isfinite(embedding).all()
    assert embedding.std() > 0
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


def test_spots_are_deconvolved(path):
    """The counts of both steps come from a collection: those of cells with types, and then those of spots."""
    for first_kind, second_kind, options in (
        (external.RNAStereoscope, external.SpatialStereoscope, {}),
        (CondSCVI, DestVI, {"prior": "mog"}),
    ):
        reference = ScviDataModule(first_kind, path, batch_size=64, labels_key="site")
        first = first_kind(reference.adata, **options)
        first.train(datamodule=reference, **QUIET)
        spots = ScviDataModule(second_kind, path, batch_size=64)
        second = second_kind.from_rna_model(spots.adata, first)
        before = {name: values.clone() for name, values in second.module.state_dict().items()}
        second.train(datamodule=spots, **QUIET)
        after = second.module.state_dict()
        assert any(not torch.equal(values, after[name]) for name, values in before.items())
        assert all(values.isfinite().all() for values in after.values())


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


class Recorded(LightningDataModule):
    """Batches of an AnnData in memory, as scvi-tools reads them: the cells of each are given."""

    def __init__(self, manager: Any, epochs: list[list[Any]], n_train: int) -> None:
        super().__init__()
        self.manager, self.epochs, self.n_train = manager, epochs, n_train
        self.n_batches = len(epochs[0])

    def train_dataloader(self) -> Recorded:
        return self

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[Any]:
        data = self.manager.create_torch_dataset()

        def tensors(places: Any) -> dict[str, torch.Tensor]:
            return {key: torch.as_tensor(values) for key, values in data[places].items()}

        for places in self.epochs.pop(0):
            yield tuple(map(tensors, places)) if len(places) > 1 else tensors(*places)


class Cells(Callback):
    """Note which cells come in each batch: the first genes count in binary which cell it is."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, number: int) -> None:
        parts = batch if isinstance(batch, tuple | list) else [batch]
        self.seen.append(tuple(numbers(part["X"]) for part in parts))


def numbers(counts: torch.Tensor) -> Any:
    return (counts[:, :N_BITS].long() * 2 ** torch.arange(N_BITS)).sum(1).numpy()


@pytest.mark.parametrize("kind", [SCVI, SCANVI, AUTOZI])
def test_a_collection_trains_bit_for_bit_like_memory(kind, path):
    setup = {"batch_key": "donor"}
    if kind is SCANVI:
        setup |= {"labels_key": "cell_type", "unlabeled_category": "unknown"}
    module = ScviDataModule(kind, path, batch_size=64, **setup)
    seen = Cells()

    def trained(adata: ad.AnnData, datamodule: Any, **options: Any) -> Any:
        scvi.settings.seed = 0
        model = kind(adata)
        model.train(datamodule=datamodule, **(QUIET | {"max_epochs": 2} | options))
        return model

    ours = trained(module.adata, module, callbacks=[seen])
    truth = in_order(path)
    if kind is SCANVI:
        truth.obs["cell_type"] = truth.obs["cell_type"].cat.add_categories("unknown").fillna("unknown")
    kind.setup_anndata(truth, **setup)
    manager = kind._get_most_recent_anndata_manager(truth, required=True)
    place = {number: at for at, number in enumerate(numbers(torch.as_tensor(truth.X.toarray())))}
    at = [tuple([place[number] for number in part] for part in batch) for batch in seen.seen]
    half = len(at) // 2
    epochs = [at[:half], at[half:]]
    theirs = trained(truth, Recorded(manager, epochs, module.n_train))
    for name, values in theirs.module.state_dict().items():
        assert torch.equal(values, ours.module.state_dict()[name]), name


def test_losses_count_the_cells_that_are_trained_on(path):
    """AUTOZI weighs the loss of a cell by how many there are."""
    module = ScviDataModule(AUTOZI, path, batch_size=64, validation_size=0.2)
    model = AUTOZI(module.adata)
    model.train(datamodule=module, **QUIET)
    assert model.trainer.lightning_module.loss_kwargs["n_obs"] == module.n_train == 240
    assert module.n_val == 60
    np.testing.assert_array_equal(model.train_indices, module.train_idx)
    np.testing.assert_array_equal(np.union1d(model.train_indices, model.validation_indices), np.arange(N_OBS))
    assert not len(model.test_indices)


@pytest.mark.parametrize("kind", [SCVI, SCANVI, PEAKVI])
def test_train_refuses_what_would_have_no_effect(kind, path):
    setup = {"labels_key": "cell_type", "unlabeled_category": "unknown"} if kind is SCANVI else {}
    module = ScviDataModule(kind, path, batch_size=64, **setup)
    model = kind(module.adata)
    refused = {"train_size": 0.5, "batch_size": 32, "validation_size": 0.3, "shuffle_set_split": False}
    if kind is SCANVI:
        refused["n_samples_per_label"] = 10
    for name, value in refused.items():
        with pytest.raises(InputError, match=re.escape(f"train({name}={value}) has no effect with a data module: ")):
            model.train(datamodule=module, **QUIET, **{name: value})
    model.train(datamodule=module, batch_size=64, **QUIET)


def test_sysvi_needs_counts_for_its_default_prior(path):
    """Its pseudoinputs are cells. NaN in their place would become the weights, and an embedding of zeros."""
    module = ScviDataModule(external.SysVI, path, batch_size=64, batch_key="donor")
    with pytest.raises(InputError, match=r"SysVI: prior\.u must not be NaN before training"):
        external.SysVI(module.adata).train(datamodule=module, **QUIET)

    chosen = np.array([7, 3, 299, 100, 150])
    model = external.SysVI(module.adata, pseudoinputs_data_indices=chosen)
    model.module.prior.u.data = torch.tensor(module.in_memory(chosen).X.toarray())
    truth = in_order(path)
    external.SysVI.setup_anndata(truth, batch_key="donor")
    expected = external.SysVI(truth, pseudoinputs_data_indices=chosen).module.prior.state_dict()
    found = model.module.prior.state_dict()
    # The encoder has random weights.
    assert all(torch.equal(found[name], expected[name]) for name in expected if not name.startswith("encoder."))
    assert torch.equal(found["u"], expected["u"])
    model.train(datamodule=module, **QUIET)
    assert model.get_latent_representation(dataloader=module.inference_dataloader()).std() > 0


def test_early_stopping_watches_the_cells_held_out(path):
    module = ScviDataModule(SCVI, path, batch_size=64, validation_size=0.2)
    model = SCVI(module.adata)
    options = QUIET | {"max_epochs": 50, "logger": None}
    model.train(
        datamodule=module, early_stopping=True, early_stopping_patience=2, early_stopping_min_delta=1e6, **options
    )
    assert len(model.history["elbo_validation"]) == model.trainer.current_epoch == 3
    assert np.isfinite(model.history["elbo_train"].astype(float)).to_numpy().all()


def test_expression_and_markers_from_cells_in_memory(path):
    """Methods that take a dataloader and those that take none give what they give for an AnnData in memory."""
    setup: dict[str, Any] = {"batch_key": "donor", "layer": "at least two", "labels_key": "site"}
    module = ScviDataModule(SCVI, path, batch_size=64, **setup)
    model = SCVI(module.adata)
    model.train(datamodule=module, **QUIET)
    truth = in_order(path)
    chosen = np.array([7, 3, 299, 3, 150])
    some = module.in_memory(chosen)
    np.testing.assert_array_equal(some.layers["at least two"].toarray(), truth[chosen].layers["at least two"].toarray())
    assert list(some.obs_names) == list(truth.obs_names[chosen])
    assert module.in_memory(np.arange(N_OBS) < 9).n_obs == 9

    everything = module.in_memory(np.arange(N_OBS))
    batches = module.inference_dataloader(batch_size=128)
    assert float(model.get_elbo(dataloader=batches)) == pytest.approx(float(model.get_elbo(everything)), rel=0.02)
    np.testing.assert_array_equal(
        model.get_latent_representation(dataloader=batches), model.get_latent_representation(everything, batch_size=128)
    )
    ours, theirs = (
        model.get_normalized_expression(return_numpy=True, n_samples=20, **source)
        for source in ({"dataloader": batches}, {"adata": everything})
    )
    np.testing.assert_allclose(ours, theirs, rtol=1)
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), rtol=0.1)
    assert model.get_normalized_expression(some, gene_list=["gene 3"]).shape == (5, 1)
    markers = model.differential_expression(everything, groupby="site", group1="x", silent=True)
    assert len(markers) == N_VARS
    assert np.isfinite(markers["bayes_factor"]).all()


@pytest.mark.parametrize("kind", [SCVI, SCANVI])
def test_training_goes_on_from_a_checkpoint_in_the_middle_of_an_epoch(kind, path, tmp_path):
    setup = {"labels_key": "cell_type", "unlabeled_category": "unknown"} if kind is SCANVI else {}
    options = QUIET | {"max_epochs": 3}

    def run(**more: Any) -> list[Any]:
        module = ScviDataModule(kind, path, batch_size=30, **setup)
        model = kind(module.adata)
        seen = Cells()
        more.setdefault("callbacks", []).append(seen)
        model.train(datamodule=module, **(options | more))
        return seen.seen

    class Checkpoint(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 13:
                trainer.save_checkpoint(tmp_path / "13.ckpt")

    whole = run(callbacks=[Checkpoint()])
    rest = run(ckpt_path=tmp_path / "13.ckpt")
    assert len(whole) == 27
    assert len(rest) == 14
    for wanted, got in zip(whole[13:], rest, strict=True):
        assert all(map(np.array_equal, wanted, got))


@pytest.mark.parametrize("kind", [SCVI, SCANVI])
def test_ranks_share_out_the_cells(kind, path, tmp_path):
    """Two processes of gloo: each cell comes once, to one of them, and both have the same weights in the end."""
    script = tmp_path / "train.py"
    script.write_text(RANKS)
    command = [sys.executable, str(script), kind.__name__, str(path), str(tmp_path)]
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [np.load(tmp_path / f"rank {rank}.npz") for rank in range(2)]
    train = np.sort(numbers(torch.as_tensor(in_order(path).X.toarray()))[ranks[0]["train_idx"]])
    for epoch in ("0", "1"):
        np.testing.assert_array_equal(np.sort(np.concatenate([rank[epoch] for rank in ranks])), train)
        assert abs(len(ranks[0][epoch]) - len(ranks[1][epoch])) <= 1
    np.testing.assert_array_equal(ranks[0]["weights"], ranks[1]["weights"])


RANKS = """
import sys, warnings
warnings.filterwarnings("ignore")
import numpy as np
import scvi
import torch
from annbatch_torch.scvi import ScviDataModule
from test_scvi import QUIET, Cells

kind = getattr(scvi.model, sys.argv[1])
setup = {"labels_key": "cell_type", "unlabeled_category": "unknown"} if kind is scvi.model.SCANVI else {}
scvi.settings.seed = 0
module = ScviDataModule(kind, sys.argv[2], batch_size=30, validation_size=0.2, **setup)
model = kind(module.adata)
seen = Cells()
options = QUIET | {"max_epochs": 2, "devices": 2, "strategy": "ddp_find_unused_parameters_true", "callbacks": [seen]}
model.train(datamodule=module, check_val_every_n_epoch=1, **options)
assert torch.distributed.get_backend() == "gloo"
cells = [batch[0] for batch in seen.seen]
half = len(cells) // 2
weights = torch.cat([values.ravel().double() for values in model.module.state_dict().values()])
found = {"0": np.concatenate(cells[:half]), "1": np.concatenate(cells[half:])}
rank = torch.distributed.get_rank()
np.savez(f"{sys.argv[3]}/rank {rank}.npz", **found, weights=weights.numpy(), train_idx=module.train_idx)
embedding = model.get_latent_representation(dataloader=module.inference_dataloader())
assert len(embedding) == module.n_obs
"""


@pytest.mark.parametrize("kind", [SCVI, SCANVI])
def test_query_cells_extend_a_reference(kind, path, tmp_path):
    """A reference goes on with the cells of another collection: another donor, fewer genes, no labels."""
    setup = {"batch_key": "donor"}
    if kind is SCANVI:
        setup |= {"labels_key": "cell_type", "unlabeled_category": "unknown"}
    module = ScviDataModule(kind, path, batch_size=64, **setup)
    reference = kind(module.adata)
    reference.train(datamodule=module, **QUIET)
    reference.save(tmp_path / "reference")

    query = cells()[:100, ::-2].copy()
    query.obs["donor"] = "d3"
    del query.obs["cell_type"]
    query.write_h5ad(tmp_path / "query.h5ad")
    create_anndata_collection(adata_paths=[tmp_path / "query.h5ad"], output_path=tmp_path / "query")
    with pytest.raises(InputError, match="got 40 genes, of which the data have 20: pass"):
        ScviDataModule(kind, tmp_path / "query", reference=reference)
    with pytest.raises(InputError, match="batch_key: must not be passed with a reference"):
        ScviDataModule(kind, tmp_path / "query", reference=reference, batch_key="donor")
    ds = Loader(batch_size=32, var_names=module.adata.var_names, absent="zero").use_collection(tmp_path / "query")
    for one in (reference, tmp_path / "reference"):
        found = ScviDataModule(kind, ds, reference=one)
        model = kind.load_query_data(found.adata, one if isinstance(one, kind) else str(one))
        batch = next(iter(found.inference_dataloader()))
        assert set(batch["batch"].ravel().tolist()) == {2}
        assert batch["X"].shape == (32, N_VARS)
        model.train(datamodule=found, plan_kwargs={"weight_decay": 0.0}, **QUIET)
        embedding = model.get_latent_representation(dataloader=found.inference_dataloader())
        assert embedding.shape == (100, 10)
        assert np.isfinite(embedding).all()
        if kind is SCANVI:
            assert (batch["labels"] == 3).all()
            assert set(model.predict(dataloader=found.inference_dataloader())) <= {"T", "B", "NK"}
        frozen = model.module.z_encoder.encoder.fc_layers[0][0].weight
        assert torch.equal(frozen[:, :N_VARS], reference.module.z_encoder.encoder.fc_layers[0][0].weight[:, :N_VARS])


@pytest.mark.parametrize("kind", [PEAKVI, external.POISSONVI, external.SysVI])
def test_query_cells_extend_other_models(kind, path, tmp_path):
    module = ScviDataModule(kind, path, batch_size=64, batch_key="donor")
    reference = kind(module.adata, **WITHOUT_COUNTS.get(kind, {}))
    reference.train(datamodule=module, **QUIET)
    query = cells()[:100].copy()
    if kind is not external.SysVI:  # which refuses other batches
        query.obs["donor"] = "d3"
    create_anndata_collection(query, tmp_path / "query", progress=False)
    found = ScviDataModule(kind, tmp_path / "query", batch_size=32, reference=reference)
    model = kind.load_query_data(found.adata, reference)
    model.train(datamodule=found, plan_kwargs={"weight_decay": 0.0}, **QUIET)
    embedding = model.get_latent_representation(dataloader=found.inference_dataloader())
    assert embedding.shape[0] == 100
    assert np.isfinite(embedding).all()


def test_query_cells_extend_mrvi(path, tmp_path):
    """With ``unfrozen=True``: scvi-tools otherwise freezes all parameters of this model."""
    module = ScviDataModule(MRVI, path, batch_size=64, sample_key="site", batch_key="donor")
    reference = MRVI(module.adata)
    reference.train(datamodule=module, **QUIET)
    query = cells()[:100].copy()
    query.obs["donor"] = "d3"
    query.obs["site"] = "another"
    create_anndata_collection(query, tmp_path / "query", progress=False)
    found = ScviDataModule(MRVI, tmp_path / "query", batch_size=32, reference=reference)
    frozen = MRVI.load_query_data(found.adata, reference)
    with pytest.raises(ValueError, match="empty parameter list"):
        frozen.train(datamodule=found, **QUIET)
    model = MRVI.load_query_data(found.adata, reference, unfrozen=True)
    weight = model.module.px.fc.weight.detach().clone()
    assert torch.equal(weight, reference.module.px.fc.weight)
    model.train(datamodule=found, **QUIET)
    assert not torch.equal(model.module.px.fc.weight, weight)
    embedding = model.get_latent_representation(dataloader=found.inference_dataloader())
    assert embedding.shape == (100, 10)
    assert np.isfinite(embedding).all()


def test_models_that_take_no_data_module_say_so(path):
    """As the page says, the error names the argument."""
    module, other = (ScviDataModule(external.GIMVI, path, batch_key="donor") for _ in range(2))
    model = external.GIMVI(module.adata, other.adata)
    with pytest.raises(TypeError, match="datamodule"):
        model.train(datamodule=module, **QUIET)
    module = ScviDataModule(AmortizedLDA, path)
    model = AmortizedLDA(module.adata, n_topics=3)
    with pytest.raises(TypeError, match="datamodule"):
        model.train(datamodule=module, **QUIET)


def test_the_page_names_every_model():
    page = (DOCS / "scvi.md").read_text("utf-8")
    named = set(re.findall(r"\w+", page[page.index("## Supported models") :]))
    classes = [getattr(room, name) for room in (scvi.model, external) for name in room.__all__]
    models = {found.__name__ for found in classes if isinstance(found, type) and issubclass(found, BaseModelClass)}
    assert len(models) > 20
    assert models <= named


def test_bad_input_is_named(path):
    with pytest.raises(InputError, match=r"batch_key: obs column 'cell_type' must have a value for each cell, but \d+"):
        ScviDataModule(SCVI, path, batch_key="cell_type")
    with pytest.raises(InputError, match="nowhere"):
        ScviDataModule(SCVI, path, batch_key="nowhere")
    with pytest.raises(InputError, match="protein_expression_obsm_key must be None"):
        ScviDataModule(TOTALVI, path, protein_expression_obsm_key="proteins")
    with pytest.raises(InputError, match="spliced_layer must be None"):
        ScviDataModule(external.VELOVI, path, spliced_layer="spliced", unspliced_layer="unspliced")
    with pytest.raises(InputError, match="reference must be None for AUTOZI, which has no load_query_data"):
        ScviDataModule(AUTOZI, path, reference=path)
    with pytest.raises(TypeError, match="batch_keys"):
        ScviDataModule(SCVI, path, batch_keys="donor")
    whole = Loader(batch_size=32).use_collection(path, labels=[])
    some = whole.replace(rows=np.arange(50))
    fewer = Loader(batch_size=32, var_names=["gene 3"], rows=np.arange(50)).use_collection(path, labels=[])
    with pytest.raises(InputError, match="parts must have a loader for 'train', got val"):
        ScviDataModule(SCVI, whole, parts={"val": whole})
    for stage, parts in (("train", {"train": whole}), ("val", {"train": some, "val": fewer})):
        with pytest.raises(InputError, match=rf"parts\['{stage}'\] must be a part that split of data returned"):
            ScviDataModule(SCVI, some, parts=parts)


def test_the_page_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    included = "```{include} collection.inc\n```\n"
    page = (DOCS / "scvi.md").read_text("utf-8").replace(included, (DOCS / "collection.inc").read_text("utf-8"))
    names: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE):
        exec(code, names)
    assert names["embedding"].shape == (120, 10)
    assert len(names["predicted"]) == 40
    assert len(names["markers"]) == 5 * 6
