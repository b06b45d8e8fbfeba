"""Are CuPy batches the core's rows, on the device and stream that are current?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")

from adapter_truth import N_VARS, STORE_ROWS, Truth  # noqa: E402
from cupyx.scipy.sparse import csr_matrix  # noqa: E402

from annbatch import Loader  # noqa: E402
from annbatch.errors import InputError  # noqa: E402
from annbatch_cupy import CupyLoader  # noqa: E402

MakeLoader = Callable[..., Loader]


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.float16, np.complex64])
def test_types_that_cupyx_refuses(dtype: Any, make_loader: MakeLoader) -> None:
    with pytest.raises(InputError, match=f"dtype must be one that cupyx takes, .*, got {np.dtype(dtype)}"):
        CupyLoader(make_loader(), dtype=dtype)


def test_no_device(make_loader: MakeLoader) -> None:
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        with pytest.raises(InputError, match="CupyLoader needs a CUDA device that is usable here, got: cudaError"):
            CupyLoader(make_loader())
    else:
        pytest.skip("there is a CUDA device")


def check(batch: Any, truth: Truth, categories: Any) -> None:
    codes = {name: cupy.asnumpy(array) for name, array in batch.codes.items()}
    truth.check(cupy.asnumpy(batch.index), cupy.asnumpy(batch.data.toarray()), codes, categories)


@pytest.mark.gpu
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_is_every_row_once(shuffle: bool, make_loader: MakeLoader, truth: Truth) -> None:
    ds = CupyLoader(make_loader(shuffle=shuffle))
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
def test_under_another_stream(make_loader: MakeLoader, truth: Truth) -> None:
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        ds = CupyLoader(make_loader())
        kept = list(ds)
        sums = [batch.data.sum() for batch in kept]
    stream.synchronize()
    for batch, total in zip(kept, sums, strict=True):
        check(batch, truth, ds.categories)
        assert float(total) == pytest.approx(truth.x[cupy.asnumpy(batch.index)].sum(), rel=1e-5)


@pytest.mark.gpu
def test_the_memory_pool_is_not_flushed(make_loader: MakeLoader) -> None:
    pool = cupy.get_default_memory_pool()
    spare = cupy.empty(1 << 20, cupy.uint8)
    del spare
    held = pool.total_bytes()
    for _ in CupyLoader(make_loader()):
        assert pool.total_bytes() >= held
