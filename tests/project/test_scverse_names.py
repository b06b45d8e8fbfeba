"""Does a program that was written for scverse annbatch hear which package this is, and what to write instead?"""

from __future__ import annotations

import pickle
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import annbatch
from annbatch import Loader, samplers

THIS = "this is annbatch-dlpack, not scverse annbatch, and "


def loader() -> Loader:
    adata = ad.AnnData(sp.csr_matrix(np.eye(8, dtype=np.float32)))
    return Loader(batch_size=4, chunk_size=2, preload_nchunks=2).add_anndatas([adata])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("from annbatch import DatasetCollection", r"it has no DatasetCollection: write annbatch\.create_anndata_coll"),
        ("from annbatch import write_sharded", r"it has no write_sharded: write annbatch\.create_anndata_collection"),
        ("from annbatch.samplers import RandomSampler", r"it has no RandomSampler: write Loader\(shuffle=True\)"),
        ("from annbatch.samplers import ClassSampler", r"it has no ClassSampler: write samplers\.Grouped"),
    ],
)
def test_imports(code: str, message: str) -> None:
    with pytest.raises(ImportError, match=THIS + message):
        exec(code, {})


def test_attributes_of_modules() -> None:
    with pytest.raises(AttributeError, match=THIS + "it has no DatasetCollection: write"):
        annbatch.DatasetCollection  # noqa: B018
    assert not hasattr(annbatch, "DatasetCollection")
    assert not hasattr(samplers, "RandomSampler")
    with pytest.raises(AttributeError, match=r"^module 'annbatch\.samplers' has no attribute 'nothing'$"):
        samplers.nothing  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from annbatch import nothing", {})


@pytest.mark.parametrize(
    ("options", "instead"),
    [
        ({"to_torch": True}, r"wrap the loader, annbatch_torch\.TorchLoader\(ds\)"),
        ({"to": "jax"}, r"annbatch_jax\.JaxLoader\(ds\)"),
        ({"preload_to_gpu": False}, 'Loader\\(device="cuda"\\)'),
        ({"rng": np.random.default_rng()}, r"Loader\(seed=…\)"),
        ({"batch_sampler": None}, r"Loader\(sampler=…\)"),
    ],
)
def test_options(options: dict[str, Any], instead: str) -> None:
    with pytest.raises(TypeError, match=THIS + f"its Loader takes no {next(iter(options))}=: .*{instead}"):
        Loader(batch_size=4, **options)


def test_options_of_use_collection() -> None:
    with pytest.raises(TypeError, match=THIS + r"its Loader takes no load_adata=: name obs columns in use_collection"):
        Loader(batch_size=4).use_collection("collection", load_adata=None)  # type: ignore[call-arg]


def test_other_options_and_attributes_fail_as_ever() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'nothing'"):
        Loader(batch_size=4, nothing=1)  # type: ignore[call-arg]
    ds = loader()
    with pytest.raises(AttributeError, match="'Loader' object has no attribute 'nothing'"):
        ds.nothing  # noqa: B018
    assert len(pickle.loads(pickle.dumps(ds))) == 2


class Broken(Loader):
    @property
    def fault(self) -> Any:
        return self._dataset.there_is_none  # type: ignore[union-attr]


def test_a_fault_inside_a_property_shows() -> None:
    with pytest.raises(AttributeError, match="there_is_none"):
        Broken(batch_size=4).fault  # noqa: B018


@pytest.mark.parametrize("name", ["add_adatas", "add_adata", "add_datasets", "add_dataset"])
def test_methods(name: str) -> None:
    with pytest.raises(AttributeError, match=THIS + rf"its Loader has no {name}: write add_anndatas\("):
        getattr(loader(), name)
    with pytest.raises(AttributeError, match=THIS + "its Loader has no n_var: write n_vars"):
        loader().n_var  # noqa: B018


def core() -> Any:
    return loader()


def torch_loader() -> Any:
    pytest.importorskip("torch", reason="torch is not installed")
    from annbatch_torch import TorchLoader

    return TorchLoader(loader())


def jax_loader() -> Any:
    pytest.importorskip("jax", reason="JAX is not installed")
    from annbatch_jax import JaxLoader

    return JaxLoader(loader())


@pytest.mark.parametrize("open_loader", [core, torch_loader, jax_loader])
def test_keys_of_batches(open_loader: Any) -> None:
    batch = next(iter(open_loader()))
    for key, instead in (("X", r'batch\["data"\]'), ("obs", r'batch\["labels"\]'), ("var", r"ds\.var")):
        with pytest.raises(KeyError, match=THIS + f".*its batches have no {key}: write {instead}"):
            batch[key]
        assert key not in batch
        assert batch.get(key) is None
    with pytest.raises(KeyError, match="^'nothing'$"):
        batch["nothing"]
