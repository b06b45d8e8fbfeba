"""Do the batches of every framework keep what all adapters promise, read directly and through zarr?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from adapter_truth import Truth
from contracts import check_label_columns, check_lasting

from annbatch import Loader
from conftest import MakeLoader


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


def torch_framework(layout: str) -> Framework:
    pytest.importorskip("torch", reason="torch is not installed")
    from annbatch_torch import TorchLoader

    return Framework(
        lambda ds: TorchLoader(ds, layout=layout),
        lambda tensor: tensor.numpy(),
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


FRAMEWORKS: dict[str, Callable[[], Framework]] = {
    "torch csr": lambda: torch_framework("csr"),
    "torch dense": lambda: torch_framework("dense"),
    "jax padded csr": lambda: jax_framework("padded_csr"),
    "jax dense": lambda: jax_framework("dense"),
    "cupy": cupy_framework,
}


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.gpu] * (name == "cupy")) for name in FRAMEWORKS])
def framework(request: pytest.FixtureRequest) -> Framework:
    return FRAMEWORKS[request.param]()


def test_kept_batches_stay_as_they_are(framework: Framework, make_disk_loader: MakeLoader, disk_truth: Truth) -> None:
    ds = framework.open(make_disk_loader())

    def check(batch: Any) -> None:
        codes = {name: framework.to_numpy(array) for name, array in batch.codes.items()}
        dense = framework.to_numpy(framework.dense(batch.data))
        disk_truth.check(framework.to_numpy(batch.index), dense, codes, ds.categories)

    check_lasting(ds, check, lambda batch: framework.address(batch.data))


def test_label_columns(framework: Framework, make_disk_loader: MakeLoader, disk_truth: Truth) -> None:
    ds = framework.open(make_disk_loader())
    check_label_columns(ds, disk_truth.obs, framework.to_numpy, framework.code_dtype)
