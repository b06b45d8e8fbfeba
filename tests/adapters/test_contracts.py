"""Do the batches of every framework keep what all adapters promise, read directly and through zarr?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from conftest import MakeLoader

from adapter_truth import Truth
from annbatch import Loader
from contracts import check_label_columns, check_lasting, check_shared_by_threads


@dataclass(frozen=True)
class Framework:
    """What the contracts need to know of a framework."""

    open: Callable[[Loader], Any]
    """Gives the adapter."""
    to_numpy: Callable[[Any], np.ndarray]
    """Takes an array to the host."""
    dense: Callable[[Any], Any]
    """Makes the ``data`` of a batch a dense array."""
    address: Callable[[Any], int]
    """Says where the ``data`` of a batch lies."""
    code_dtype: Any
    """Type of label codes."""
    wide: dict[str, Any] = field(default_factory=dict)
    """Type of label numbers of 64 bits, by their kind, where it is another."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the core loader."""


def torch_framework(layout: str) -> Framework:
    pytest.importorskip("torch", reason="torch is not installed")
    from annbatch_torch import TorchLoader

    return Framework(
        lambda ds: TorchLoader(ds, layout=layout),
        lambda tensor: tensor.cpu().numpy(),
        lambda data: data.to_dense(),
        lambda data: (data.values() if data.is_sparse_csr else data).data_ptr(),
        np.int64,
    )


def jax_framework(layout: str) -> Framework:
    pytest.importorskip("jax", reason="JAX is not installed")
    from annbatch_jax import JaxLoader, PaddedCSR, densify

    return Framework(
        lambda ds: JaxLoader(ds, layout=layout),
        np.asarray,
        lambda data: densify(data) if isinstance(data, PaddedCSR) else data,
        lambda data: (data.data if isinstance(data, PaddedCSR) else data).unsafe_buffer_pointer(),
        np.int32,
        {"i": np.int32, "f": np.float32},
    )


def cupy_framework() -> Framework:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    from annbatch_cupy import CupyLoader

    return Framework(
        CupyLoader,
        cupy.asnumpy,
        lambda data: data.toarray(),
        lambda data: data.data.data.ptr,
        np.int32,
    )


def on_gpu(framework: Framework) -> Framework:
    """The same, of a core loader that makes its batches on a GPU."""
    return replace(framework, options={"device": "cuda"})


def jax_on_gpu(layout: str) -> Framework:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    if not any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("this JAX sees no CUDA device")
    return on_gpu(jax_framework(layout))


def torch_on_gpu(layout: str) -> Framework:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("this torch sees no CUDA device")
    return on_gpu(torch_framework(layout))


FRAMEWORKS: dict[str, Callable[[], Framework]] = {
    "torch csr": lambda: torch_framework("csr"),
    "torch dense": lambda: torch_framework("dense"),
    "jax padded csr": lambda: jax_framework("padded_csr"),
    "jax dense": lambda: jax_framework("dense"),
    "cupy": cupy_framework,
    "cupy, made on a gpu": lambda: on_gpu(cupy_framework()),
    "torch csr, made on a gpu": lambda: torch_on_gpu("csr"),
    "torch dense, made on a gpu": lambda: torch_on_gpu("dense"),
    "jax padded csr, made on a gpu": lambda: jax_on_gpu("padded_csr"),
    "jax dense, made on a gpu": lambda: jax_on_gpu("dense"),
}
ON_GPU = [name for name in FRAMEWORKS if "gpu" in name or name == "cupy"]


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.gpu] * (name in ON_GPU)) for name in FRAMEWORKS])
def framework(request: pytest.FixtureRequest) -> Framework:
    return FRAMEWORKS[request.param]()


def test_kept_batches_stay_as_they_are(framework: Framework, make_disk_loader: MakeLoader, disk_truth: Truth) -> None:
    ds = framework.open(make_disk_loader(**framework.options))

    def check(batch: Any) -> None:
        codes = {name: framework.to_numpy(array) for name, array in batch.codes.items()}
        dense = framework.to_numpy(framework.dense(batch.data))
        disk_truth.check(framework.to_numpy(batch.index), dense, codes, ds.categories)

    check_lasting(ds, check, lambda batch: framework.address(batch.data))


def test_label_columns(framework: Framework, make_disk_loader: MakeLoader, disk_truth: Truth) -> None:
    ds = framework.open(make_disk_loader(**framework.options))
    check_label_columns(ds, disk_truth.obs, framework.to_numpy, framework.code_dtype, framework.wide)


def test_threads_share_an_iterator(framework: Framework, make_loader: MakeLoader) -> None:
    ds = framework.open(make_loader(batch_size=4, **framework.options))
    for _ in range(2):
        check_shared_by_threads(ds, ds.n_obs, framework.to_numpy)
        found = ds.stats()
        assert (found.cells, found.batches) == (ds.n_obs, len(ds))
        assert 0 < found.wait_seconds <= found.seconds
