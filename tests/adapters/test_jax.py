"""Are JAX batches the core's rows and memory, in shapes that a jitted step can live with?"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from adapter_truth import N_VARS, STORE_ROWS, Recorded, Truth  # noqa: E402

from annbatch import Loader  # noqa: E402
from annbatch.batch import Capacity  # noqa: E402
from annbatch.errors import InputError  # noqa: E402
from annbatch_jax import JaxBatch, JaxLoader, PaddedCSR, densify, matmul  # noqa: E402

Layout = Literal["padded_csr", "dense"]
MakeLoader = Callable[..., Loader]
BUCKETS = Capacity(growth=1.25, smallest=256)


def check(batch: JaxBatch, truth: Truth, categories: Any) -> None:
    data = densify(batch.data) if isinstance(batch.data, PaddedCSR) else batch.data
    codes = {name: np.asarray(array) for name, array in batch.codes.items()}
    truth.check(batch.index, np.asarray(data), codes, categories)


def padded(dense: np.ndarray, nse: int, *, canonical: bool = True) -> PaddedCSR:
    """Give a matrix with room for ``nse`` elements."""
    rows, columns = np.nonzero(dense)
    spare = nse - len(rows)
    return PaddedCSR(
        data=jnp.asarray(np.append(dense[rows, columns], np.zeros(spare, dense.dtype))),
        indices=jnp.asarray(np.append(columns, np.zeros(spare)), jnp.int32),
        indptr=jnp.asarray(np.append(0, np.cumsum((dense != 0).sum(axis=1))), jnp.int32),
        shape=dense.shape,
        canonical=canonical,
    )


@pytest.mark.parametrize("layout", ["padded_csr", "dense"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_is_every_row_once(layout: Layout, shuffle: bool, make_loader: MakeLoader, truth: Truth) -> None:
    ds = JaxLoader(make_loader(shuffle=shuffle), layout=layout, nse=BUCKETS)
    seen = []
    for batch in ds:
        check(batch, truth, ds.categories)
        assert len(batch.index) == batch.data.shape[0] == 32
        np.testing.assert_array_equal(batch["mask"], batch.index >= 0)
        seen.append(batch.index[np.asarray(batch.mask)])
    assert len(seen) == len(ds)
    assert [len(index) for index in seen] == [32] * 6 + [25]
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(sum(STORE_ROWS)))


def test_types_and_keys(make_loader: MakeLoader, truth: Truth) -> None:
    batch = next(iter(JaxLoader(make_loader())))
    assert list(batch) == ["data", "labels", "index", "mask"]
    assert batch["data"] is batch.data
    assert batch.data.shape == (32, N_VARS)
    assert batch.data.data.dtype == jnp.float32
    assert batch.data.indices.dtype == batch.data.indptr.dtype == jnp.int32
    assert isinstance(batch.index, np.ndarray)
    assert batch.index.dtype == np.int64
    assert batch.codes["cell_type"].dtype == jnp.int32
    assert batch.codes["score"].dtype == jnp.float32
    assert batch.mask.dtype == jnp.bool_
    expected = truth.obs.iloc[batch.index]
    assert list(batch.labels["cell_type"].astype(object).fillna("")) == list(expected["cell_type"].fillna(""))


def test_the_mask_needs_no_index(make_loader: MakeLoader) -> None:
    batches = list(JaxLoader(make_loader(return_index=False)))
    assert list(batches[0]) == ["data", "labels", "mask"]
    assert [int(batch.mask.sum()) for batch in batches] == [32] * 6 + [25]
    assert np.asarray(batches[-1].mask[:25]).all()


@pytest.mark.parametrize("layout", ["padded_csr", "dense"])
def test_cpu_arrays_are_the_cores_memory(layout: Layout, make_loader: MakeLoader) -> None:
    recorded = Recorded(make_loader())
    for batch in JaxLoader(recorded, layout=layout):
        assert recorded.last is not None
        core = recorded.last.data
        pairs = [(batch.data, core)]
        if layout == "padded_csr":
            pairs = [(getattr(batch.data, name), getattr(core, name)) for name in ("data", "indices", "indptr")]
        for array, buffer in pairs:
            assert buffer.ctypes.data % 64 == 0
            assert array.unsafe_buffer_pointer() == buffer.ctypes.data


@pytest.mark.parametrize("layout", ["padded_csr", "dense"])
def test_kept_batches_stay_as_they_are(layout: Layout, make_loader: MakeLoader, truth: Truth) -> None:
    ds = JaxLoader(make_loader(), layout=layout)
    kept = [batch for _ in range(3) for batch in ds]
    random.Random(0).shuffle(kept)
    for _ in range(2):
        # Half of the memory becomes free and is taken again, while the other half has to stay.
        del kept[len(kept) // 2 :]
        gc.collect()
        kept += list(ds)
    for batch in kept:
        check(batch, truth, ds.categories)


def test_few_compilations_in_an_epoch(make_loader: MakeLoader) -> None:
    shapes = []

    @jax.jit
    def step(csr: PaddedCSR, mask: jax.Array) -> jax.Array:
        shapes.append(csr.data.shape)
        return jnp.where(mask[:, None], jnp.log1p(densify(csr)), 0).sum()

    # Without shuffling the batches grow from 4 to 7 elements in 10, and the last one is short.
    ds = JaxLoader(make_loader(batch_size=4, shuffle=False), nse=Capacity(growth=1.25, smallest=32))
    stored = set()
    for batch in ds:
        step(batch.data, batch.mask).block_until_ready()
        stored.add(int(batch.data.indptr[-1]))
    assert len(stored) > 20
    assert len(shapes) == len(set(shapes)) <= 8


def test_fixed_capacity_compiles_once(make_loader: MakeLoader) -> None:
    capacity = Capacity(fixed=32 * N_VARS)
    assert {batch.data.data.shape for batch in JaxLoader(make_loader(), nse=capacity)} == {(32 * N_VARS,)}


@pytest.mark.parametrize("canonical", [True, False])
def test_product_and_gradients_are_those_of_dense(canonical: bool, make_loader: MakeLoader) -> None:
    weight = jax.random.normal(jax.random.key(0), (N_VARS, 3))

    def loss(csr: Any, weight: jax.Array) -> jax.Array:
        product = matmul(csr, weight) if isinstance(csr, PaddedCSR) else csr @ weight
        return jnp.square(product / 1e4).sum()

    # One capacity for all: the shapes do not matter here, and each costs several compilations.
    for batch in JaxLoader(make_loader(), nse=Capacity(fixed=1024), canonical=canonical):
        assert batch.data.canonical is canonical
        dense = densify(batch.data)
        np.testing.assert_allclose(jax.jit(matmul)(batch.data, weight), dense @ weight, rtol=1e-5, atol=1e-2)
        assert not np.asarray(matmul(batch.data, weight))[~np.asarray(batch.mask)].any()
        gradient = jax.jit(jax.grad(loss, argnums=1))(batch.data, weight)
        assert jnp.isfinite(gradient).all()
        np.testing.assert_allclose(gradient, jax.grad(loss, argnums=1)(dense, weight), rtol=1e-5, atol=1e-5)
        by_value = jax.jit(jax.grad(loss, allow_int=True))(batch.data, weight).data
        nnz = int(batch.data.indptr[-1])
        by_cell = jax.grad(loss)(dense, weight)
        np.testing.assert_allclose(by_value[:nnz], by_cell[np.asarray(dense) != 0], rtol=1e-5, atol=1e-7)
        assert not np.asarray(by_value[nnz:]).any()


@pytest.mark.parametrize("canonical", [True, False])
@pytest.mark.parametrize(
    "dense",
    [
        np.zeros((3, 4), np.float32),
        np.eye(4, dtype=np.float32),
        np.array([[0, 0], [0, 0], [1, 2]], np.float32),
        np.array([[1, 2], [0, 0], [0, 0]], np.float32),
        np.array([[0, 0, 5]], np.uint16),
        np.arange(1, 13, dtype=np.float32).reshape(3, 4),
    ],
    ids=["nothing", "diagonal", "last row", "first row", "narrow type", "full"],
)
@pytest.mark.parametrize("spare", [0, 1, 9])
def test_densify(dense: np.ndarray, spare: int, canonical: bool) -> None:
    csr = padded(dense, int((dense != 0).sum()) + spare, canonical=canonical)
    result = jax.jit(densify)(csr)
    assert result.dtype == dense.dtype
    np.testing.assert_array_equal(result, dense)


def test_densify_sums_what_stands_twice() -> None:
    csr = PaddedCSR(
        data=jnp.array([1.0, 2, 4, 8, 0]),
        indices=jnp.array([2, 0, 2, 1, 0]),
        indptr=jnp.array([0, 3, 4]),
        shape=(2, 3),
    )
    np.testing.assert_array_equal(jax.jit(densify)(csr), [[2, 0, 5], [0, 8, 0]])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.int32, jnp.uint16], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("layout", ["padded_csr", "dense"])
def test_dtypes(dtype: Any, layout: Layout, make_loader: MakeLoader, truth: Truth) -> None:
    for batch in JaxLoader(make_loader(), layout=layout, dtype=dtype):
        data = densify(batch.data) if layout == "padded_csr" else batch.data
        assert data.dtype == dtype
        real = batch.index >= 0
        expected = jnp.asarray(truth.x[batch.index[real]].toarray()).astype(dtype)
        np.testing.assert_array_equal(data[real], expected)


def test_64_bits_where_they_are_on(make_loader: MakeLoader) -> None:
    with jax.enable_x64(True):
        batch = next(iter(JaxLoader(make_loader(), dtype=jnp.float64)))
        assert batch.data.data.dtype == jnp.float64
        assert batch.data.indices.dtype == jnp.int32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "csr"}, "layout must be 'padded_csr' or 'dense', got 'csr'"),
        ({"dtype": np.float64}, "dtype must have at most 32 bits unless jax_enable_x64 is set, got float64"),
        ({"dtype": np.complex64}, "dtype must be a real number type of at most 64 bits, got complex64"),
        ({"dtype": np.dtype("U3")}, "dtype must be a real number type of at most 64 bits, got <U3"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_options_are_refused(options: dict[str, Any], message: str, make_loader: MakeLoader) -> None:
    with pytest.raises(InputError, match=message):
        JaxLoader(make_loader(), **options)


@pytest.mark.gpu
def test_on_a_gpu_nothing_is_committed_to_the_cpu(make_loader: MakeLoader, truth: Truth) -> None:
    if jax.default_backend() != "gpu":
        pytest.skip("this JAX sees no GPU")
    ds = JaxLoader(make_loader())
    for batch in ds:
        check(batch, truth, ds.categories)
        assert not batch.mask.committed
        assert densify(batch.data).devices() == {jax.devices()[0]}
