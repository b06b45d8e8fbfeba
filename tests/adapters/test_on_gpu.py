"""On a GPU: do torch and JAX get the memory that the core has made there, and is it left alone while they read it late?

`test_born_on_device` asks the same where there is no GPU, `test_cupy` and `test_contracts` more of it.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from conftest import MakeLoader

from adapter_truth import Truth
from epochs import each_batch

pytestmark = pytest.mark.gpu

N_EPOCHS = 4


def addresses_of(data: Any) -> list[int]:
    parts = (data.data, data.indices, data.indptr) if hasattr(data, "indptr") else (data,)
    return [part.data.ptr for part in parts]


# --- torch ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch() -> Any:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("this torch sees no CUDA device")
    return torch


def parts_of(batch: Any) -> list[Any]:
    data = batch.data
    return [data.values(), data.col_indices(), data.crow_indices()] if data.is_sparse_csr else [data]


def check_parts(index: Any, parts: list[Any], truth: Truth) -> None:
    rows, arrays = index.cpu().numpy(), [part.cpu().numpy() for part in parts]
    expected = truth.x[rows]
    dense = arrays[0] if len(arrays) == 1 else sp.csr_matrix(tuple(arrays), shape=expected.shape).toarray()
    np.testing.assert_array_equal(dense, expected.toarray())


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_torch_gets_the_memory(layout: Any, torch: Any, make_disk_loader: MakeLoader, disk_truth: Truth) -> None:
    from annbatch_torch import TorchLoader

    made = []

    class Seen(TorchLoader):
        def _hand_over(self, batch: Any) -> Any:
            made.append(addresses_of(batch.data))
            return super()._hand_over(batch)

    for batch in each_batch(Seen(make_disk_loader(device="cuda"), layout=layout)):
        assert [part.data_ptr() for part in parts_of(batch)] == made.pop()
        assert batch.data.device == batch.index.device == torch.device("cuda", 0)
        assert batch.codes["cell_type"].dtype == torch.int64
        check_parts(batch.index, parts_of(batch), disk_truth)


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_torch_reads_late(layout: Any, torch: Any, make_disk_loader: MakeLoader, disk_truth: Truth) -> None:
    """On a stream of its own, each batch is read long after it was dropped; some are kept and read at the end."""
    from annbatch_torch import TorchLoader

    rng = random.Random(0)
    ds = TorchLoader(make_disk_loader(device="cuda"), layout=layout)
    list(ds)
    stream = torch.cuda.Stream()
    seen, kept, n_late = [], [], 0
    with torch.cuda.stream(stream):
        torch.cuda._sleep(500_000_000)
        for _ in range(N_EPOCHS):
            for batch in ds:
                torch.cuda._sleep(5_000_000)
                seen.append((batch.index.clone(), [part.clone() for part in parts_of(batch)]))
                n_late += not stream.query()
                if rng.random() < 0.3:
                    kept.append(batch)
            del batch
    assert n_late > len(seen) / 2, "the device must lag, or this tests nothing"
    stream.synchronize()
    for index, parts in seen:
        check_parts(index, parts, disk_truth)
    for batch in kept:
        check_parts(batch.index, parts_of(batch), disk_truth)


def test_torch_on_a_stream_that_waits(torch: Any, make_disk_loader: MakeLoader, disk_truth: Truth) -> None:
    """Batches that are kept may be read on another stream that waits for the one on which they were asked for."""
    from annbatch_torch import TorchLoader

    here, there = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(here):
        torch.cuda._sleep(500_000_000)
        kept = list(each_batch(TorchLoader(make_disk_loader(device="cuda"))))
    there.wait_stream(here)
    with torch.cuda.stream(there):
        seen = [[part.clone() for part in parts_of(batch)] for batch in kept]
    there.synchronize()
    for batch, parts in zip(kept, seen, strict=True):
        check_parts(batch.index, parts, disk_truth)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int32"])
@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_torch_types(dtype: str, layout: Any, torch: Any, make_disk_loader: MakeLoader, disk_truth: Truth) -> None:
    from annbatch_torch import TorchLoader

    wanted = getattr(torch, dtype)
    for batch in each_batch(
        TorchLoader(make_disk_loader(device="cuda", casting="unsafe"), layout=layout, dtype=wanted)
    ):
        expected = torch.from_numpy(disk_truth.x[batch.index.cpu().numpy()].toarray()).to(wanted)
        values = parts_of(batch)[0]
        assert values.dtype == wanted
        assert torch.equal(values.cpu(), expected[expected != 0] if layout == "csr" else expected)


def test_torch_takes_no_other_device(torch: Any, make_loader: MakeLoader) -> None:
    from annbatch.errors import InputError
    from annbatch_torch import TorchLoader

    assert TorchLoader(make_loader(device="cuda")).device == torch.device("cuda", 0)
    assert TorchLoader(make_loader(device="cuda"), device="cuda").device == torch.device("cuda", 0)
    with pytest.raises(InputError, match="device must be 'cuda:0', that of the Loader, got 'cpu'"):
        TorchLoader(make_loader(device="cuda"), device="cpu")


# --- JAX --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def jax() -> Any:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    if not any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("this JAX sees no CUDA device")
    return jax


def jax_parts(batch: Any) -> list[Any]:
    data = batch.data
    return [data.data, data.indices, data.indptr] if hasattr(data, "indptr") else [data]


@pytest.mark.parametrize("n_ahead", [0, 2])
@pytest.mark.parametrize("layout", ["padded_csr", "dense"])
def test_jax_gets_the_memory(
    layout: Any, n_ahead: int, jax: Any, make_disk_loader: MakeLoader, disk_truth: Truth
) -> None:
    from annbatch_jax import JaxLoader, densify

    made = []

    class Seen(JaxLoader):
        def _hand_over(self, batch: Any) -> Any:
            made.append(addresses_of(batch.data))
            return super()._hand_over(batch)

    for batch in each_batch(Seen(make_disk_loader(device="cuda"), layout=layout, prefetch_to_device=n_ahead)):
        assert [part.unsafe_buffer_pointer() for part in jax_parts(batch)] == made.pop()
        assert {device.platform for part in jax_parts(batch) for device in part.devices()} == {"gpu"}
        real = batch.index >= 0
        dense = np.asarray(densify(batch.data) if layout == "padded_csr" else batch.data)
        np.testing.assert_array_equal(dense[real], disk_truth.x[batch.index[real]].toarray())
        np.testing.assert_array_equal(np.asarray(batch.mask), real)


@pytest.mark.parametrize("layout", ["padded_csr", "dense"])
def test_jax_reads_late(layout: Any, jax: Any, make_disk_loader: MakeLoader, disk_truth: Truth) -> None:
    """Computations read each batch long after it was dropped, on JAX's own stream; some are kept to the end."""
    import jax.numpy as jnp

    from annbatch_jax import JaxLoader, PaddedCSR, densify

    def dense(data: Any) -> Any:
        return densify(data) if isinstance(data, PaddedCSR) else data

    @jax.jit
    def read_late(data: Any, square: Any) -> Any:
        late = jax.lax.fori_loop(0, 50, lambda _, x: x @ square, square)
        # What is added is zero, as only the device finds out.
        return dense(jax.lax.optimization_barrier((data, late))[0]) + late[0, 0] * 0, late

    rng = random.Random(0)
    ds = JaxLoader(make_disk_loader(device="cuda"), layout=layout)
    square = jnp.zeros((2048, 2048))
    seen, kept, n_late = [], [], 0
    for _ in range(N_EPOCHS):
        for batch in ds:
            result, square = read_late(batch.data, square)
            seen.append((batch.index, result))
            n_late += not result.is_ready()
            if rng.random() < 0.3:
                kept.append(batch)
        del batch
    assert n_late > len(seen) / 2, "the device must lag, or this tests nothing"
    for index, result in [*seen, *((batch.index, dense(batch.data)) for batch in kept)]:
        real = index >= 0
        np.testing.assert_array_equal(np.asarray(result)[real], disk_truth.x[index[real]].toarray())
        assert not np.asarray(result)[~real].any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32"])
@pytest.mark.parametrize("layout", ["padded_csr", "dense"])
def test_jax_types(dtype: str, layout: Any, jax: Any, make_disk_loader: MakeLoader, disk_truth: Truth) -> None:
    from annbatch_jax import JaxLoader, densify

    for batch in each_batch(JaxLoader(make_disk_loader(device="cuda", casting="unsafe"), layout=layout, dtype=dtype)):
        dense = np.asarray(densify(batch.data) if layout == "padded_csr" else batch.data)
        assert dense.dtype == dtype
        real = batch.index >= 0
        expected = disk_truth.x[batch.index[real]].toarray().astype(dense.dtype)
        np.testing.assert_array_equal(dense[real], expected)
