"""Do the adapters keep the rules of `annbatch.testing.check_adapter`, read directly and through zarr?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from annbatch.stores import array_opening
from annbatch.testing.adapter_cases import Samples
from annbatch.testing.adapter_rules import check_with
from annbatch.testing.truth import Framework

INT64 = ("cell_type", "stage", "donor", "n_counts", "treated")
"""Columns of categories, and of integers."""


def torch_framework(layout: str) -> tuple[Callable, Framework]:
    pytest.importorskip("torch", reason="torch is not installed")
    from annbatch_torch import TorchLoader

    return lambda ds: TorchLoader(ds, layout=layout), Framework(
        lambda tensor: tensor.cpu().numpy(),
        lambda data: data.to_dense(),
        lambda data: (data.values() if data.is_sparse_csr else data).data_ptr(),
        {**dict.fromkeys(INT64, np.int64), "age": np.float64, "score": np.float32, "doublet": np.bool_},
    )


def jax_framework(layout: str) -> tuple[Callable, Framework]:
    pytest.importorskip("jax", reason="JAX is not installed")
    from annbatch_jax import JaxLoader, PaddedCSR, densify

    return lambda ds: JaxLoader(ds, layout=layout), Framework(
        np.asarray,
        lambda data: densify(data) if isinstance(data, PaddedCSR) else data,
        lambda data: (data.data if isinstance(data, PaddedCSR) else data).unsafe_buffer_pointer(),
        {**dict.fromkeys(INT64, np.int32), "age": np.float32, "score": np.float32, "doublet": np.bool_},
    )


def cupy_framework() -> tuple[Callable, Framework]:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    from annbatch_cupy import CupyLoader

    return CupyLoader, Framework(
        cupy.asnumpy,
        lambda data: data.toarray() if hasattr(data, "toarray") else data,
        lambda data: data.data.data.ptr,
        {"cell_type": np.int32, "n_counts": np.int64, "age": np.float64, "score": np.float32, "doublet": np.bool_},
    )


def on_gpu(found: tuple[Callable, Framework]) -> tuple[Callable, Framework]:
    """The same, of a core loader that makes its batches on a GPU."""
    return found[0], replace(found[1], options={"device": "cuda"})


def jax_on_gpu(layout: str) -> tuple[Callable, Framework]:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    if not any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("this JAX sees no CUDA device")
    return on_gpu(jax_framework(layout))


def torch_on_gpu(layout: str, *, born_there: bool = True) -> tuple[Callable, Framework]:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("this torch sees no CUDA device")
    make_adapter, framework = torch_framework(layout)
    if born_there:
        return on_gpu((make_adapter, framework))
    return lambda ds: type(make_adapter(ds))(ds, device="cuda", layout=layout), framework


FRAMEWORKS: dict[str, Callable[[], tuple[Callable, Framework]]] = {
    "torch csr": lambda: torch_framework("csr"),
    "torch dense": lambda: torch_framework("dense"),
    "jax padded csr": lambda: jax_framework("padded_csr"),
    "jax dense": lambda: jax_framework("dense"),
    "cupy": cupy_framework,
    "torch csr, copied to a gpu": lambda: torch_on_gpu("csr", born_there=False),
    "torch dense, copied to a gpu": lambda: torch_on_gpu("dense", born_there=False),
    "cupy, made on a gpu": lambda: on_gpu(cupy_framework()),
    "torch csr, made on a gpu": lambda: torch_on_gpu("csr"),
    "torch dense, made on a gpu": lambda: torch_on_gpu("dense"),
    "jax padded csr, made on a gpu": lambda: jax_on_gpu("padded_csr"),
    "jax dense, made on a gpu": lambda: jax_on_gpu("dense"),
}
ON_GPU = [name for name in FRAMEWORKS if "gpu" in name or name == "cupy"]


CASES = [(name, True) for name in FRAMEWORKS] + [(name, False) for name in ("torch csr", "cupy")]
"""Name, and whether the core reads directly: what it does through zarr does not depend on the framework."""


@pytest.mark.parametrize(
    ("name", "direct"),
    [
        pytest.param(
            name, direct, marks=[pytest.mark.gpu] * (name in ON_GPU), id=name if direct else f"{name}, through zarr"
        )
        for name, direct in CASES
    ],
)
def test_every_adapter_keeps_the_rules(
    name: str, direct: bool, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_adapter, framework = FRAMEWORKS[name]()
    monkeypatch.setattr(array_opening, "DIRECT", direct)
    check_with(samples, make_adapter, framework)
