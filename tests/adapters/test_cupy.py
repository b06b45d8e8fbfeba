"""Are CuPy batches the core's rows, on the device and stream that are current?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")

from cupyx.scipy.sparse import csr_matrix  # noqa: E402

from adapter_truth import N_VARS, STORE_ROWS, Truth  # noqa: E402
from annbatch import Loader  # noqa: E402
from annbatch.errors import InputError  # noqa: E402
from annbatch_cupy import CupyLoader  # noqa: E402
from epochs import each_batch  # noqa: E402

MakeLoader = Callable[..., Loader]


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.float16, np.complex64])
def test_types_that_cupyx_refuses(dtype: Any, make_loader: MakeLoader) -> None:
    with pytest.raises(InputError, match=f"dtype must be one that cupyx takes, .*, got {np.dtype(dtype)}"):
        CupyLoader(make_loader(), dtype=dtype)


def test_no_device(make_loader: MakeLoader) -> None:
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        with pytest.raises(InputError, match="CupyLoader needs a usable CUDA device: cudaError"):
            CupyLoader(make_loader())
    else:
        pytest.skip("there is a CUDA device")


def check(batch: Any, truth: Truth, categories: Any) -> None:
    codes = {name: cupy.asnumpy(array) for name, array in batch.codes.items()}
    truth.check(cupy.asnumpy(batch.index), cupy.asnumpy(batch.data.toarray()), codes, categories)


def test_streams_of_torch_are_views() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    from annbatch_torch._device import cupy_stream

    assert cupy_stream(0, 0).ptr == 0
    assert cupy_stream(12345, 0).ptr == 12345


def test_layouts_that_there_are_not(make_loader: MakeLoader) -> None:
    with pytest.raises(InputError, match="layout must be 'csr' or 'dense', got 'padded_csr'"):
        CupyLoader(make_loader(), layout="padded_csr")


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_is_every_row_once(shuffle: bool, device: str, make_loader: MakeLoader, truth: Truth) -> None:
    ds = CupyLoader(make_loader(shuffle=shuffle, device=device))
    seen = []
    for batch in ds:
        check(batch, truth, ds.categories)
        seen.append(cupy.asnumpy(batch.index))
    assert len(seen) == len(ds)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(sum(STORE_ROWS)))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_types_and_keys(dtype: Any, make_loader: MakeLoader) -> None:
    batch = next(iter(CupyLoader(make_loader(), dtype=dtype)))
    assert list(batch) == ["data", "labels", "index"]
    assert isinstance(batch.data, csr_matrix)
    assert batch.data.shape == (32, N_VARS)
    assert batch.data.dtype == dtype
    assert batch.data.indices.dtype == batch.data.indptr.dtype == np.int32
    assert batch.index.dtype == np.int64
    assert batch.codes["cell_type"].dtype == np.int32


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dense", [False, True])
def test_layers_obsm_and_dense_x(dense: bool, device: str) -> None:
    x = sp.csr_matrix((np.arange(60).reshape(10, 6) % 7).astype(np.float32))
    pca = np.arange(30).reshape(10, 3) / 8
    adata = ad.AnnData(X=x.toarray() if dense else x, layers={"doubled": sp.csr_matrix(2 * x)}, obsm={"pca": pca})
    with Loader(batch_size=4, layers=["doubled"], obsm=["pca"], device=device).add_anndatas([adata]) as ds:
        for batch in each_batch(CupyLoader(ds)):
            rows = cupy.asnumpy(batch["index"])
            assert isinstance(batch["data"], cupy.ndarray if dense else csr_matrix)
            data = batch["data"] if dense else batch["data"].toarray()
            np.testing.assert_array_equal(cupy.asnumpy(data), x[rows].toarray())
            np.testing.assert_array_equal(cupy.asnumpy(batch["layers"]["doubled"].toarray()), 2 * x[rows].toarray())
            np.testing.assert_array_equal(cupy.asnumpy(batch["obsm"]["pca"]), pca[rows])


SPIN = """
extern "C" __global__ void spin(long long cycles) {
    long long start = clock64();
    while (clock64() - start < cycles) {}
}
"""


def keep_busy(cycles: int = 4_000_000_000) -> None:
    """Queue two seconds of work or so on the current stream."""
    cupy.RawKernel(SPIN, "spin")((1,), (1,), (np.int64(cycles),))


def parts_of(batch: Any) -> list[Any]:
    return [batch.index, batch.data.data, batch.data.indices, batch.data.indptr]


def check_parts(parts: list[Any], truth: Truth) -> None:
    index, data, indices, indptr = (cupy.asnumpy(part) for part in parts)
    x = sp.csr_matrix((data, indices, indptr), shape=(len(index), N_VARS))
    np.testing.assert_array_equal(x.toarray(), truth.x[index].toarray())


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_what_was_made_on_the_device_is_wrapped(layout: Any, make_loader: MakeLoader, truth: Truth) -> None:
    made = []

    class Seen(CupyLoader):
        def _hand_over(self, batch: Any) -> Any:
            parts = (batch.data.data, batch.data.indices, batch.data.indptr) if layout == "csr" else (batch.data,)
            made.append([part.data.ptr for part in parts])
            return super()._hand_over(batch)

    for batch in each_batch(Seen(make_loader(device="cuda"), layout=layout)):
        parts = parts_of(batch)[1:] if layout == "csr" else [batch.data]
        assert [part.data.ptr for part in parts] == made.pop()
        dense = batch.data.toarray() if layout == "csr" else batch.data
        np.testing.assert_array_equal(cupy.asnumpy(dense), truth.x[cupy.asnumpy(batch.index)].toarray())


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_under_another_stream(device: str, make_loader: MakeLoader, truth: Truth) -> None:
    """All is queued behind what the stream has to do already, and what is dropped is not overwritten too early."""
    stream = cupy.cuda.Stream(non_blocking=True)
    ds = CupyLoader(make_loader(device=device))
    # Kernels are compiled, and loaded, which may wait for the device.
    list(ds)
    with stream:
        keep_busy()
        seen = [[part.copy() for part in parts_of(batch)] for batch in ds]
        assert not stream.done, "handing over waited for the stream"
    stream.synchronize()
    assert len(seen) == len(ds)
    for parts in seen:
        check_parts(parts, truth)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_on_a_stream_that_waits_for_the_other(device: str, make_loader: MakeLoader, truth: Truth) -> None:
    here, there = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)
    with here:
        keep_busy()
        kept = list(each_batch(CupyLoader(make_loader(device=device))))
        there.wait_event(here.record())
    with there:
        seen = [[part.copy() for part in parts_of(batch)] for batch in kept]
    there.synchronize()
    for parts in seen:
        check_parts(parts, truth)


@pytest.mark.gpu
def test_the_memory_pool_is_not_flushed(make_loader: MakeLoader) -> None:
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    spare = cupy.empty(1 << 24, cupy.uint8)
    del spare
    held = pool.total_bytes()
    assert held >= 1 << 24
    for _ in each_batch(CupyLoader(make_loader())):
        assert pool.total_bytes() >= held


@pytest.mark.gpu
@pytest.mark.parametrize("resource", ["CudaMemoryResource", "CudaAsyncMemoryResource"])
def test_under_the_allocator_of_rmm(resource: str, make_loader: MakeLoader, truth: Truth) -> None:
    rmm = pytest.importorskip("rmm", reason="RMM is not installed")
    allocators = pytest.importorskip("rmm.allocators.cupy")
    before = rmm.mr.get_current_device_resource()
    rmm.mr.set_current_device_resource(getattr(rmm.mr, resource)())
    try:
        with cupy.cuda.using_allocator(allocators.rmm_cupy_allocator), cupy.cuda.Stream(non_blocking=True) as stream:
            ds = CupyLoader(make_loader())
            batches = [parts_of(batch) for batch in each_batch(ds)]
            stream.synchronize()
            # Memory of another library has an owner; that of CuPy's own pool has none.
            assert all(isinstance(part.data.mem, cupy.cuda.UnownedMemory) for parts in batches for part in parts)
            for parts in batches:
                check_parts(parts, truth)
            del parts, batches
            stream.synchronize()
    finally:
        rmm.mr.set_current_device_resource(before)
