"""Do batches hold the same cells of every modality, in one order, as SciPy selects them?"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable
from typing import Any

import anndata as ad
import numpy as np
import obstore
import pytest
import scipy.sparse as sp
import zarr

import host_device
from annbatch import CSR, Batch, Binarize, Collection, InputError, Loader, LogNormalize, create_anndata_collection
from annbatch import dataset as dataset_module
from annbatch import loader_data as loader_module
from annbatch.samplers import ClassBalanced
from epochs import each_batch
from host_device import HostDevice
from modal_data import CUT, GENES, samples

SMALL: dict[str, Any] = {"batch_size": 8, "chunk_size": 4, "preload_nchunks": 5, "seed": 3}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Collection]:
    folder = tmp_path_factory.mktemp("modalities")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "cells are left out", UserWarning)
        return {
            how: create_anndata_collection(samples(), folder / how, join_obs=how, dense=["adt:X"], **CUT)
            for how in ("inner", "outer")
        }


class Truth:
    """What anndata reads of the modalities of a collection."""

    def __init__(self, collection: Collection) -> None:
        stores = {
            name: [ad.read_zarr(path / "mod" / name) for path in collection.store_paths]
            for name in collection.modalities
        }
        self.whole = {name: ad.concat(each) for name, each in stores.items()}
        self.obs = {name: one.obs for name, one in self.whole.items()}

    def check(self, batch: Batch, *, genes: dict[str, list[int]] | None = None) -> None:
        rows = np.asarray(batch.index)[: batch.n_rows - (batch.n_padding or 0)]
        for name, held in batch.modalities.items():
            whole = self.whole[name]
            columns = (genes or {}).get(name, slice(None))
            layers = [(found, whole.layers[key]) for key, found in (held.layers or {}).items()]
            for found, matrix in [(held.data, whole.X), *layers]:
                expected = sp.csr_matrix(matrix)[rows][:, columns].toarray()
                np.testing.assert_array_equal(dense_of(found)[: len(rows)], expected)
            for key, found in (held.obsm or {}).items():
                np.testing.assert_array_equal(np.asarray(found)[: len(rows)], whole.obsm[key][rows])
            if held.mask is not None:
                np.testing.assert_array_equal(np.asarray(held.mask)[: len(rows)], whole.obs["measured"].iloc[rows])


def dense_of(found: Any) -> np.ndarray:
    if isinstance(found, CSR):
        return found.to_scipy().toarray()
    return np.asarray(found.to_dense() if hasattr(found, "to_dense") else found)


def rows_of(batches: Iterable[Batch]) -> np.ndarray:
    return np.concatenate([np.asarray(batch.index) for batch in batches])


@pytest.mark.parametrize("how", ["inner", "outer"])
def test_batches_hold_the_same_cells_of_every_modality(built, how):
    truth = Truth(built[how])
    options: dict[str, Any] = {"layers": ["rna:counts", "adt:counts"], "obsm": ["rna:X_pca"]}
    with Loader(**SMALL, **options).use_collection(built[how]) as ds:
        assert list(ds.mod) == ["rna", "adt"]
        assert ds.mod["rna"].n_vars == GENES
        assert list(ds.mod["adt"].var.index[:2]) == ["p0", "p1"]
        for _ in range(2):
            batches = list(ds)
            assert sorted(rows_of(batches)) == list(range(built[how].n_obs))
            for batch in batches:
                truth.check(batch)
                assert list(batch) == ["rna", "adt", "labels", "index"]
                assert list(batch["rna"]) == ["data", "layers", "obsm", *(["mask"] if how == "outer" else [])]
                assert list(batch["adt"])[:2] == ["data", "layers"]
                labels = truth.obs["adt"]["cell_type"].iloc[np.asarray(batch.index)]
                assert batch["labels"]["adt:cell_type"].astype(str).tolist() == labels.astype(str).tolist()
        # As an object store, and as a store that zarr reads.
        local = obstore.store.LocalStore(built[how].path)
        store = local if how == "inner" else zarr.storage.LocalStore(built[how].path, read_only=True)
        other = Loader(**SMALL, **options).use_collection(store)
        ds.set_epoch(0)
        for one, two in zip(ds, other, strict=True):
            np.testing.assert_array_equal(one.index, two.index)
            truth.check(two)
        other.close()


def test_one_plan_serves_samplers_parts_and_resume(built):
    truth = Truth(built["inner"])
    with Loader(**SMALL, sampler=ClassBalanced("rna:cell_type")).use_collection(built["inner"], labels=[]) as ds:
        for batch in ds:
            truth.check(batch)
            assert not batch.codes
    ds = Loader(**SMALL).use_collection(built["inner"], labels=["rna:cell_type"])
    parts = ds.split({"train": None, "test": ["B"]}, by="rna:cell_type")
    assert set(truth.obs["rna"]["cell_type"].iloc[rows_of(parts["test"])]) == {"B"}
    iterator = iter(ds)
    next(iterator)
    state = ds.state_dict()
    rest = rows_of(iterator)
    again = pickle.loads(pickle.dumps(Loader(**SMALL).use_collection(built["inner"], labels=["rna:cell_type"])))
    again.load_state_dict(state)
    np.testing.assert_array_equal(rows_of(again), rest)
    fewer = Loader(**SMALL, modalities=["adt"]).use_collection(built["inner"], labels=["rna:cell_type"])
    with pytest.raises(InputError, match="n_vars"):
        fewer.load_state_dict(state)
    for loader in (ds, again, fewer, *parts.values()):
        loader.close()


def test_obs_names_and_classes_reach_into_modalities(built):
    truth = Truth(built["outer"])
    options: dict[str, Any] = {"names": True, "classes": ["rna:depth"]}
    with Loader(**SMALL, **options).use_collection(built["outer"], labels=[]) as ds:
        for batch in ds:
            assert batch["names"].tolist() == truth.obs["rna"].index[np.asarray(batch.index)].tolist()
            depth = [ds.categories["rna:depth"][code] if code >= 0 else None for code in batch.codes["rna:depth"]]
            expected = truth.obs["rna"]["depth"].iloc[np.asarray(batch.index)]
            assert depth == [
                None if missing else value for value, missing in zip(expected, expected.isna(), strict=True)
            ]
        other = ds.replace(modalities=["adt"], shuffle=False)
        assert list(next(iter(other)).modalities) == ["adt"]
        other.close()
        found = ds.obs(["adt:cell_type", "src_path"])
    assert found.index.tolist() == truth.obs["rna"].index.tolist()
    assert found["adt:cell_type"].astype(str).tolist() == truth.obs["adt"]["cell_type"].astype(str).tolist()
    every = built["outer"].obs()
    assert set(every.columns) >= {"src_path", "rna:depth", "adt:depth", "adt:measured"}


def test_modalities_genes_and_types_are_chosen(built):
    truth = Truth(built["outer"])
    options: dict[str, Any] = {"modalities": ["adt", "rna"], "var_names": {"rna": ["g7", "g2"]}, "dtype": "float64"}
    with Loader(**SMALL, **options).use_collection(built["outer"], labels=["rna:depth"]) as ds:
        assert ds.mod["rna"].var.index.tolist() == ["g7", "g2"]
        for batch in ds:
            truth.check(batch, genes={"rna": [7, 2]})
            assert list(batch.modalities) == ["adt", "rna"]
            assert batch["rna"]["data"].data.dtype == np.float64
            assert set(batch.codes) == {"rna:depth", "adt:measured", "rna:measured"}
        with pytest.raises(InputError, match=r"mod\['adt'\].var"):
            _ = ds.var
    twice = Loader(**SMALL).use_collection(built["inner"], labels=[]).use_collection(built["inner"], labels=[])
    assert sorted(rows_of(twice)) == list(range(2 * built["inner"].n_obs))
    twice.close()


def test_transforms_and_panels_know_modalities(built):
    truth = Truth(built["inner"])

    def doubled(batch: Batch) -> Batch:
        adt = batch["adt"].replace(data=batch["adt"]["data"] * 2)
        return batch.replace(modalities={**batch.modalities, "adt": adt})

    transform = [LogNormalize(100, elements=["rna:X"]), doubled]
    panels = {"rna": lambda var: var.index.isin(["g3", "g5"]), "adt": ["p1", "none"]}
    with Loader(**SMALL, transform=transform, var_names=panels, absent="zero").use_collection(built["inner"]) as ds:
        assert ds.mod["adt"].var["absent"].tolist() == [False, True]
        for batch in pickle.loads(pickle.dumps(ds.replace(transform=transform[0]))):
            rna = sp.csr_matrix(truth.whole["rna"].X)[batch["index"]].toarray().astype(np.float64)
            expected = np.log1p(rna / np.maximum(rna.sum(axis=1, keepdims=True), 1) * 100)[:, [3, 5]]
            np.testing.assert_allclose(dense_of(batch["rna"]["data"]), expected, rtol=1e-6)
        for batch in ds:
            adt = np.asarray(truth.whole["adt"].X)[batch["index"]][:, 1]
            np.testing.assert_array_equal(batch["adt"]["data"], np.stack([2 * adt, 0 * adt], axis=1))
        with pytest.raises(InputError, match="must change only the modalities"):
            next(iter(ds.replace(transform=lambda batch: batch.replace(modalities={}))))
        with pytest.raises(InputError, match="must begin with one of the modalities, such as 'rna:X', got 'X'"):
            ds.replace(transform=LogNormalize())


BAD: list[tuple[dict[str, Any], str]] = [
    ({"modalities": ["atac"]}, r"modalities must be among those of the collection, \['rna', 'adt'\], got \['atac'\]"),
    ({"layers": ["counts"]}, "layers must name modality and element, such as 'rna:counts', got 'counts'"),
    ({"obsm": ["atac:X_pca"]}, "obsm must name modality and element, such as 'rna:X_pca', got 'atac:X_pca'"),
    ({"layers": ["rna:raw"]}, "layers/raw is missing"),
    ({"var_names": ["g1"]}, "var_names must be a dict by modality"),
    ({"var_names": {"rna": ["p1"]}}, "var_names must be genes of the stores, got 'p1'"),
    ({"labels": ["cell_type"]}, "labels must be obs columns, got 'cell_type'; there are .*rna:cell_type"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_what_a_collection_lacks_is_refused_by_name(built, options, message):
    options = dict(options)
    labels = options.pop("labels", ["rna:depth"])
    with pytest.raises(InputError, match=message):
        Loader(**SMALL, **options).use_collection(built["inner"], labels=labels)


def test_data_with_and_without_modalities_do_not_mix(built, tmp_path):
    plain = create_anndata_collection(samples(1)[0]["rna"], tmp_path / "plain", progress=False)
    with pytest.raises(InputError, match="must have a mask in all collections or in none"):
        Loader(**SMALL).use_collection(built["inner"], labels=[]).use_collection(built["outer"], labels=[])
    with pytest.raises(InputError, match=r"the modalities \['rna', 'adt'\] like the data added before, got none"):
        Loader(**SMALL).use_collection(built["inner"], labels=[]).use_collection(plain, labels=[])
    with pytest.raises(InputError, match=r"must have no modalities like the data added before, got \['rna', 'adt'\]"):
        Loader(**SMALL).use_collection(plain, labels=[]).use_collection(built["inner"], labels=[])
    with pytest.raises(InputError, match="modalities must be None for data without modalities"):
        Loader(**SMALL, modalities=["rna"]).use_collection(plain)


@pytest.mark.skipif(host_device.COMPILER is None, reason="no C++ compiler")
def test_a_device_gives_the_same(built, monkeypatch):
    device = HostDevice()
    monkeypatch.setattr(loader_module, "open_device", lambda name: device)
    monkeypatch.setattr(dataset_module, "missing", lambda: None)
    truth = Truth(built["outer"])
    with Loader(**SMALL, device="cuda", obsm=["rna:X_pca"]).use_collection(built["outer"]) as ds:
        for batch in each_batch(ds):
            device.synchronize()
            truth.check(batch)


def test_torch_gets_tensors_of_every_modality(built):
    torch = pytest.importorskip("torch")
    from annbatch_torch import TorchLoader

    truth = Truth(built["outer"])
    with Loader(**SMALL, obsm=["rna:X_pca"]).use_collection(built["outer"]) as ds:
        for layout in ("csr", "dense"):
            for batch in TorchLoader(ds, layout=layout):
                assert batch["rna"]["mask"].dtype == torch.bool
                truth.check(batch)
        moved = batch.to("cpu")
        assert moved["rna"]["data"].dtype == torch.float32
        assert "rna" in repr(moved)


def twice(batch: Batch) -> Batch:
    adt = batch["adt"].replace(data=batch["adt"]["data"] * 2)
    return batch.replace(modalities={**batch.modalities, "adt": adt})


@pytest.mark.filterwarnings("ignore:.*fork.*", "ignore:Sparse")
def test_workers_read_a_stratified_part_of_every_modality(built):
    data = pytest.importorskip("torch.utils.data")
    from annbatch_torch import TorchLoader

    truth = Truth(built["outer"])
    options: dict[str, Any] = {"names": True, "classes": ["rna:depth"], "transform": [Binarize(["rna:X"]), twice]}
    with Loader(**SMALL, **options).use_collection(built["outer"], labels=[]) as ds:
        part = ds.split({"a": 0.6, "b": None}, stratify=["rna:cell_type", "rna:doublet"])["a"]
        rows: list[int] = []
        for batch in data.DataLoader(TorchLoader(part), batch_size=None, num_workers=1):
            index = batch["index"].numpy()
            rna, adt = (sp.csr_matrix(truth.whole[name].X)[index].toarray() for name in ("rna", "adt"))
            np.testing.assert_array_equal(dense_of(batch["rna"]["data"]), rna > 0)
            np.testing.assert_array_equal(dense_of(batch["adt"]["data"]), 2 * adt)
            assert batch["names"].tolist() == truth.obs["rna"].index[index].tolist()
            depth = ds.categories["rna:depth"][batch.codes["rna:depth"].numpy()].to_numpy(float)
            depth[batch.codes["rna:depth"].numpy() < 0] = np.nan
            np.testing.assert_array_equal(depth, truth.obs["rna"]["depth"].iloc[index].to_numpy(float, na_value=np.nan))
            rows += index.tolist()
        assert sorted(rows) == part.rows.tolist()


def test_jax_gets_a_pytree_of_every_modality(built):
    jax = pytest.importorskip("jax")
    from annbatch_jax import JaxLoader, densify

    truth = Truth(built["outer"])

    @jax.jit
    def step(batch: Any) -> Any:
        return densify(batch["rna"]["data"]), batch["adt"]["data"], batch["adt"]["mask"]

    with Loader(**SMALL).use_collection(built["outer"], labels=["rna:depth"]) as ds:
        n_compiled = set()
        for batch in JaxLoader(ds, nse=lambda n: 512):
            rna, adt, mask = step(batch)
            n = int(np.asarray(batch.mask).sum())
            rows = np.asarray(batch.index)[:n]
            np.testing.assert_array_equal(np.asarray(rna)[:n], sp.csr_matrix(truth.whole["rna"].X)[rows].toarray())
            np.testing.assert_array_equal(np.asarray(adt)[:n], sp.csr_matrix(truth.whole["adt"].X)[rows].toarray())
            np.testing.assert_array_equal(np.asarray(mask)[:n], truth.obs["adt"]["measured"].iloc[rows])
            n_compiled.add(step._cache_size())
        assert n_compiled == {1}
    with Loader(**SMALL, casting="unsafe").use_collection(built["outer"], labels=[]) as ds:
        batch = next(iter(JaxLoader(ds, layout="dense", dtype="bfloat16")))
        assert batch["rna"]["data"].dtype == jax.numpy.bfloat16
