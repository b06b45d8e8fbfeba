"""Are JAX batches the core's rows and memory, in shapes that a jitted step can live with?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from epochs import each_batch

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

from adapter_truth import N_VARS, STORE_ROWS, Truth  # noqa: E402
from annbatch import Batch, Capacity, Loader  # noqa: E402
from annbatch.errors import InputError  # noqa: E402
from annbatch_jax import JaxBatch, JaxLoader, PaddedCSR, densify, matmul  # noqa: E402
from jax_versions import enable_x64  # noqa: E402

Layout = Literal["padded_csr", "dense"]
MakeLoader = Callable[..., Loader]
BUCKETS = Capacity(growth=1.25, smallest=256)


def check(batch: JaxBatch, truth: Truth, categories: Any) -> None:
    data = densify(batch.data) if isinstance(batch.data, PaddedCSR) else batch.data
    codes = {name: np.asarray(array) for name, array in batch.codes.items()}
    truth.check(batch.index, np.asarray(data), codes, categories)


def recorded(ds: JaxLoader) -> list[Batch]:
    """Give a list of the core's batches that grows as they are handed over."""
    handed: list[Batch] = []
    hand_over = ds._hand_over

    def record(batch: Batch) -> JaxBatch:
        handed.append(batch)
        return hand_over(batch)

    ds._hand_over = record  # type: ignore[method-assign]
    return handed


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
    ds = JaxLoader(make_loader(), layout=layout)
    handed = recorded(ds)
    for batch in each_batch(ds):
        core = handed.pop(0).data
        pairs = [(batch.data, core)]
        if layout == "padded_csr":
            pairs = [(getattr(batch.data, name), getattr(core, name)) for name in ("data", "indices", "indptr")]
        for array, buffer in pairs:
            assert buffer.ctypes.data % 64 == 0
            assert array.unsafe_buffer_pointer() == buffer.ctypes.data


def test_few_compilations_in_an_epoch() -> None:
    # Without shuffling the batches grow from 200 to 400 elements.
    x = sp.vstack([sp.random(4, 1000, density=n / 4000, format="csr", dtype=np.float32) for n in range(200, 400)])
    compiled = []

    @jax.jit
    def step(csr: PaddedCSR, mask: jax.Array) -> jax.Array:
        compiled.append(csr.data.shape)
        return jnp.where(mask[:, None], jnp.log1p(densify(csr)), 0).sum()

    core = Loader(batch_size=4, shuffle=False).add_anndatas([ad.AnnData(X=x.tocsr())])
    n_elements = []
    for batch in JaxLoader(core, nse=Capacity(smallest=64)):
        step(batch.data, batch.mask).block_until_ready()
        n_elements.append(int(batch.data.indptr[-1]))
    assert len(n_elements) == 200
    assert max(n_elements) > 1.9 * min(n_elements)
    assert 2 <= len(compiled) <= 8


def test_batches_are_handed_over_ahead(make_loader: MakeLoader) -> None:
    """All batches of a window have been read with its first one; a batch that is ahead does not count as had."""
    ds = JaxLoader(make_loader(preload_nchunks=20), prefetch_to_device=3)
    whole = [batch.index for batch in ds]
    ds.set_epoch(0)
    handed = recorded(ds)
    batches = iter(ds)
    for n_had in range(1, 4):
        next(batches)
        # The window has five batches; those of the next one are there as soon as it has been read.
        assert min(n_had + 3, 5) <= len(handed) <= n_had + 3
    resumed = JaxLoader(make_loader(preload_nchunks=20))
    resumed.load_state_dict(ds.state_dict())
    rest = [batch.index for batch in resumed]
    np.testing.assert_array_equal(np.concatenate(rest), np.concatenate(whole[3:]))
    with pytest.raises(ValueError, match="prefetch_to_device must be >= 0"):
        JaxLoader(make_loader(), prefetch_to_device=-1)
    batches_of_none = JaxLoader(make_loader(), prefetch_to_device=0)
    handed = recorded(batches_of_none)
    next(iter(batches_of_none))
    assert len(handed) == 1


def test_fixed_capacity_compiles_once(make_loader: MakeLoader) -> None:
    capacity = Capacity(fixed=32 * N_VARS)
    assert {batch.data.data.shape for batch in JaxLoader(make_loader(), nse=capacity)} == {(32 * N_VARS,)}


@pytest.mark.parametrize("canonical", [True, False])
def test_product_and_gradients_are_those_of_dense(canonical: bool, make_loader: MakeLoader) -> None:
    weight = jax.random.normal(jax.random.key(0), (N_VARS, 3))

    def loss(csr: Any, weight: jax.Array) -> jax.Array:
        product = matmul(csr, weight) if isinstance(csr, PaddedCSR) else csr @ weight
        return jnp.square(product / 1e4).sum()

    product = jax.jit(matmul)
    by_weight, by_value = jax.jit(jax.grad(loss, argnums=1)), jax.jit(jax.grad(loss, allow_int=True))
    # One capacity for all: the shapes do not matter here, and each costs several compilations.
    for batch in each_batch(JaxLoader(make_loader(), nse=Capacity(fixed=1024), canonical=canonical)):
        assert batch.data.canonical is canonical
        dense = densify(batch.data)
        np.testing.assert_allclose(product(batch.data, weight), dense @ weight, rtol=1e-5, atol=1e-2)
        assert not np.asarray(product(batch.data, weight))[~np.asarray(batch.mask)].any()
        gradient = by_weight(batch.data, weight)
        assert jnp.isfinite(gradient).all()
        np.testing.assert_allclose(gradient, by_weight(dense, weight), rtol=1e-5, atol=1e-5)
        of_values = by_value(batch.data, weight).data
        nnz = int(batch.data.indptr[-1])
        of_cells = by_value(dense, weight)
        np.testing.assert_allclose(of_values[:nnz], of_cells[np.asarray(dense) != 0], rtol=1e-5, atol=1e-7)
        assert not np.asarray(of_values[nnz:]).any()


def test_padding_in_used_memory_reaches_no_gradient() -> None:
    """A product that gathers rows of the weights multiplies the padding, too: what memory held before would show."""
    first = sp.csr_matrix(np.full((64, 20), np.nan, np.float32))
    second = sp.random(64, 20, density=0.3, format="csr", dtype=np.float32, random_state=0)
    core = Loader(batch_size=8, chunk_size=8, preload_nchunks=1, shuffle=False)
    ds = JaxLoader(core.add_anndatas([ad.AnnData(X=first), ad.AnnData(X=second)]), nse=Capacity(fixed=160))

    @jax.jit
    @jax.grad
    def gradient(w: jax.Array, csr: PaddedCSR) -> jax.Array:
        return (csr.data[:, None] * jnp.square(w)[csr.indices]).sum()

    weight = jax.random.normal(jax.random.key(0), (20, 3))
    seen: list[set[int]] = [set(), set()]
    for number, batch in enumerate(ds):
        # Later the same memory holds less.
        seen[number // 8].add(batch.data.data.unsafe_buffer_pointer())
        found = gradient(weight, batch.data)
        assert np.isnan(found).all() if number < 8 else np.isfinite(found).all()
        if number >= 8:
            columns = np.asarray(second[batch.index - 64].sum(axis=0)).ravel()
            np.testing.assert_allclose(found, 2 * columns[:, None] * weight, rtol=1e-5)
        del batch, found
    assert seen[0] & seen[1], "memory was used again"


@pytest.mark.parametrize("canonical", [True, False])
def test_bcsr(canonical: bool, make_loader: MakeLoader, truth: Truth) -> None:
    weight = jax.random.normal(jax.random.key(0), (N_VARS, 3))
    batch = next(iter(JaxLoader(make_loader(), nse=Capacity(fixed=1024), canonical=canonical)))
    assert int(batch.data.indptr[-1]) < 1024
    bcsr = batch.data.to_bcsr()
    assert bcsr.data.unsafe_buffer_pointer() == batch.data.data.unsafe_buffer_pointer()
    expected = truth.x[batch.index].toarray()
    np.testing.assert_array_equal(bcsr.todense(), expected)
    np.testing.assert_allclose(bcsr @ weight, expected @ weight, rtol=1e-5, atol=1e-2)
    gradient = jax.grad(lambda w, m: jnp.square(m @ w / 1e4).sum())
    np.testing.assert_allclose(gradient(weight, bcsr), gradient(weight, expected), rtol=1e-5, atol=1e-5)


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
@pytest.mark.parametrize("spare", [0, 1])
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
    for batch in each_batch(JaxLoader(make_loader(casting="unsafe"), layout=layout, dtype=dtype)):
        data = densify(batch.data) if layout == "padded_csr" else batch.data
        assert data.dtype == dtype
        real = batch.index >= 0
        expected = jnp.asarray(truth.x[batch.index[real]].toarray()).astype(dtype)
        np.testing.assert_array_equal(data[real], expected)


def test_64_bits_where_they_are_on(make_loader: MakeLoader) -> None:
    with enable_x64(True):
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
    for batch in each_batch(ds):
        check(batch, truth, ds.categories)
        assert not batch.mask.committed
        assert densify(batch.data).devices() == {jax.devices()[0]}


def test_loaders_and_batches_say_what_they_hold(make_loader: MakeLoader) -> None:
    ds = JaxLoader(make_loader())
    assert repr(ds).startswith("JaxLoader(layout=padded_csr, dtype=float32, batch_size=32, ")
    shown = repr(next(iter(ds)))
    assert shown.startswith("JaxBatch(data=PaddedCSR(data=float32 (1,024,), indices=int32 (1,024,), ")
    assert "mask=bool (32,)" in shown
