"""Do adapters hand over what a transform made of a batch, in the types that it gave?"""

from __future__ import annotations

import pickle
from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from annbatch import CSR, Batch, Binarize, InputError, Loader, LogNormalize
from epochs import each_batch

N_OBS, N_VARS = 21, 11


@pytest.fixture(scope="module")
def counts() -> sp.csr_matrix:
    rng = np.random.default_rng(2)
    return sp.random(N_OBS, N_VARS, 0.5, "csr", np.float32, rng, lambda n: rng.integers(1, 90, n).astype("f4"))


def loader(counts: sp.csr_matrix, transform, **options) -> Loader:
    obs = pd.DataFrame({"kind": ["a"] * N_OBS}, [f"c{i}" for i in range(N_OBS)])
    adata = ad.AnnData(counts, obs=obs, layers={"open": counts})
    return Loader(batch_size=8, transform=transform, **options).add_anndatas([adata], labels=["kind"])


def dense(matrix: CSR | np.ndarray) -> np.ndarray:
    if not isinstance(matrix, CSR):
        return matrix
    return sp.csr_matrix((matrix.data, matrix.indices, matrix.indptr), matrix.shape).toarray()


def tokens(batch: Batch) -> Batch:
    """Column numbers in descending order of their values, and the values as float64."""
    x = dense(batch.data)
    ranked = np.argsort(-x, axis=1, kind="stable").astype(np.int64)
    return batch.replace(data=ranked, obsm={"values": np.take_along_axis(x, ranked, axis=1).astype(np.float64)})


def halved(batch: Batch) -> Batch:
    return batch.replace(data=batch.data.replace(data=batch.data.data / np.float64(2)))


def dense_halved(batch: Batch) -> Batch:
    return batch.replace(data=batch.data / np.float32(2))


def log_normalized(x: np.ndarray) -> np.ndarray:
    return np.log1p(x / np.maximum(x.sum(axis=1, keepdims=True), 1) * 1e4)


KERNELS = [LogNormalize(), Binarize(["layers/open"])]


def torch_batches(counts, transform, **options):
    torch = pytest.importorskip("torch")
    annbatch_torch = pytest.importorskip("annbatch_torch")
    wanted = {name: options.pop(name) for name in ("layout", "dtype") if name in options}
    if wanted.get("dtype") == "half":
        wanted["dtype"] = torch.float16
    for batch in each_batch(annbatch_torch.TorchLoader(loader(counts, transform, **options), **wanted)):

        def plain(tensor):
            return (tensor.to_dense() if tensor.layout == torch.sparse_csr else tensor).numpy()

        obsm = {name: plain(found) for name, found in (batch.obsm or {}).items()}
        yield batch.index.numpy(), plain(batch.data), {n: plain(m) for n, m in (batch.layers or {}).items()}, obsm


def jax_batches(counts, transform, **options):
    pytest.importorskip("jax")
    annbatch_jax = pytest.importorskip("annbatch_jax")
    wanted = {name: options.pop(name) for name in ("layout", "dtype") if name in options}
    if wanted.get("layout") == "csr":
        wanted["layout"] = "padded_csr"
    if wanted.get("dtype") == "half":
        wanted["dtype"] = "float16"
    for batch in each_batch(annbatch_jax.JaxLoader(loader(counts, transform, **options), **wanted)):
        mask = np.asarray(batch.mask)

        def plain(matrix, mask=mask):
            return np.asarray(annbatch_jax.densify(matrix) if hasattr(matrix, "indptr") else matrix)[mask]

        obsm = {name: plain(found) for name, found in (batch.obsm or {}).items()}
        yield batch.index[mask], plain(batch.data), {n: plain(m) for n, m in (batch.layers or {}).items()}, obsm


@pytest.mark.parametrize("batches", [torch_batches, jax_batches])
class TestBoth:
    @pytest.mark.parametrize("layout", ["csr", "dense"])
    def test_kernels(self, counts, batches, layout):
        x, n_seen = counts.toarray(), 0
        for index, data, layers, _ in batches(counts, KERNELS, layout=layout, layers=["open"], var_names=["3", "1"]):
            np.testing.assert_allclose(data, log_normalized(x)[index][:, [3, 1]], rtol=3e-7)
            np.testing.assert_array_equal(layers["open"], (x > 0)[index][:, [3, 1]])
            assert data.dtype == layers["open"].dtype == np.float32
            n_seen += len(index)
        assert n_seen == N_OBS

    def test_integers_stay_integers_and_floats_get_the_type_asked_for(self, counts, batches):
        x = counts.toarray()
        for index, data, _, obsm in batches(counts, tokens, dtype="half", casting="same_kind"):
            ranked = np.argsort(-x[index], axis=1, kind="stable")
            assert data.dtype.kind == "i"
            np.testing.assert_array_equal(data, ranked)
            np.testing.assert_array_equal(obsm["values"], np.take_along_axis(x[index], ranked, axis=1))

    def test_a_function_behind_a_kernel(self, counts, batches):
        for index, data, _, _ in batches(counts, [LogNormalize(), halved], layout="csr"):
            assert data.dtype == np.float32
            np.testing.assert_allclose(data, log_normalized(counts.toarray())[index] / 2, rtol=3e-7)

    def test_half_precision(self, counts, batches):
        for index, data, _, _ in batches(counts, LogNormalize(), dtype="half", casting="same_kind"):
            np.testing.assert_allclose(data, log_normalized(counts.toarray())[index], rtol=1e-3)


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_workers_transform_their_own_batches(counts):
    data = pytest.importorskip("torch.utils.data")
    annbatch_torch = pytest.importorskip("annbatch_torch")
    ds = annbatch_torch.TorchLoader(loader(counts, [LogNormalize(), dense_halved], seed=1), layout="dense")
    # As workers that are spawned get it; `test_dataloader` spawns some.
    sent = pickle.loads(pickle.dumps(ds))
    rows = []
    for batch in data.DataLoader(sent, batch_size=None, num_workers=1, multiprocessing_context="fork"):
        expected = log_normalized(counts.toarray())[batch.index.numpy()] / 2
        np.testing.assert_allclose(batch.data.numpy(), expected, rtol=3e-7)
        rows += batch.index.tolist()
    assert sorted(rows) == list(range(N_OBS))


def test_a_number_that_jax_does_not_hold_is_refused(counts):
    pytest.importorskip("jax")
    annbatch_jax = pytest.importorskip("annbatch_jax")

    def huge(batch: Batch) -> Batch:
        return batch.replace(data=np.full(batch.data.shape, 2**40))

    with pytest.raises(InputError, match=f"data: values must fit int32 .*{2**40}"):
        next(iter(annbatch_jax.JaxLoader(loader(counts, huge))))


def test_integer_types_hold_no_logarithms(counts):
    torch = pytest.importorskip("torch")
    annbatch_torch = pytest.importorskip("annbatch_torch")
    make = partial(annbatch_torch.TorchLoader, loader(counts, LogNormalize(), casting="unsafe"))
    with pytest.raises(InputError, match="dtype must be floating with LogNormalize, got int32"):
        make(dtype=torch.int32)
