"""Are torch batches the core's rows, types and memory?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")

from adapter_truth import N_VARS, STORE_ROWS, Recorded, Truth  # noqa: E402
from annbatch import Loader  # noqa: E402
from annbatch.batch import Batch  # noqa: E402
from annbatch.errors import InputError  # noqa: E402
from annbatch_torch import TorchLoader  # noqa: E402
from epochs import each_batch  # noqa: E402

Layout = Literal["csr", "dense"]
MakeLoader = Callable[..., Loader]


def check(batch: Batch, truth: Truth, categories: Any) -> None:
    data = batch.data.to_dense() if batch.data.layout == torch.sparse_csr else batch.data
    codes = {name: tensor.numpy() for name, tensor in batch.codes.items()}
    truth.check(batch.index.numpy(), data.numpy(), codes, categories)


@pytest.mark.parametrize("layout", ["csr", "dense"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_is_every_row_once(layout: Layout, shuffle: bool, make_loader: MakeLoader, truth: Truth) -> None:
    ds = TorchLoader(make_loader(shuffle=shuffle), layout=layout)
    seen = []
    for batch in ds:
        check(batch, truth, ds.categories)
        seen.append(batch["index"])
    assert len(seen) == len(ds)
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(sum(STORE_ROWS)))
    assert [len(index) for index in seen] == [32] * 6 + [25]


def test_types_and_keys(make_loader: MakeLoader, truth: Truth) -> None:
    batch = next(iter(TorchLoader(make_loader())))
    assert list(batch) == ["data", "labels", "index"]
    assert batch["data"] is batch.data
    assert batch.data.shape == (32, N_VARS)
    assert batch.data.dtype == torch.float32
    assert batch.data.crow_indices().dtype == batch.data.col_indices().dtype == torch.int32
    assert batch.index.dtype == batch.codes["cell_type"].dtype == torch.int64
    assert batch.codes["score"].dtype == torch.float32
    expected = truth.obs.iloc[batch.index.numpy()]
    assert list(batch.labels["cell_type"].astype(object).fillna("")) == list(expected["cell_type"].fillna(""))
    np.testing.assert_array_equal(batch.labels["score"], expected["score"])


def test_a_batch_reads_like_a_mapping_also_after_it_was_moved(make_loader: MakeLoader) -> None:
    for batch in each_batch(TorchLoader(make_loader())):
        moved = batch.to("cpu")
        assert list(moved) == list(moved.keys()) == ["data", "labels", "index"]
        assert "labels" in moved
        assert "codes" not in moved
        assert moved.get("layers") is None
        assert [name for name, _ in moved.items()] == list(moved)
        assert torch.equal(moved["data"].to_dense(), batch["data"].to_dense())
        assert torch.equal(moved.codes["cell_type"], batch.codes["cell_type"])
        assert torch.equal(moved["index"], batch["index"])


def test_the_core_loader_shines_through(make_loader: MakeLoader) -> None:
    core = make_loader()
    ds = TorchLoader(core)
    assert ds.loader is core
    assert (ds.n_obs, ds.n_vars, len(ds)) == (sum(STORE_ROWS), N_VARS, len(core))
    pd.testing.assert_frame_equal(ds.var, core.var)
    assert list(ds.categories["cell_type"]) == list(core.categories["cell_type"])


def test_epochs_differ_and_can_be_chosen(make_loader: MakeLoader) -> None:
    ds = TorchLoader(make_loader())
    first, second = (torch.cat([batch.index for batch in ds]) for _ in range(2))
    assert not torch.equal(first, second)
    ds.set_epoch(0)
    assert torch.equal(torch.cat([batch.index for batch in ds]), first)


def test_index_can_be_left_out(make_loader: MakeLoader) -> None:
    batch = next(iter(TorchLoader(make_loader(return_index=False))))
    assert list(batch) == ["data", "labels"]
    assert batch.index is None


def test_cpu_tensors_are_the_cores_memory(make_loader: MakeLoader) -> None:
    recorded = Recorded(make_loader())
    for batch in each_batch(TorchLoader(recorded)):
        assert recorded.last is not None
        core = recorded.last.data
        assert batch.data.values().data_ptr() == core.data.ctypes.data
        assert batch.data.col_indices().data_ptr() == core.indices.ctypes.data
        assert batch.data.crow_indices().data_ptr() == core.indptr.ctypes.data
        assert batch.index.data_ptr() == recorded.last.index.ctypes.data
    for batch in each_batch(TorchLoader(recorded, layout="dense")):
        assert recorded.last is not None
        assert batch.data.data_ptr() == recorded.last.data.ctypes.data


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int16, torch.int32, torch.int64], ids=str
)
@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_dtypes(dtype: Any, layout: Layout, make_loader: MakeLoader, truth: Truth) -> None:
    ds = TorchLoader(make_loader(casting="unsafe"), layout=layout, dtype=dtype)
    for batch in each_batch(ds):
        values = batch.data.values() if layout == "csr" else batch.data
        expected = torch.from_numpy(truth.x[batch.index.numpy()].toarray()).to(dtype)
        assert values.dtype == dtype
        if layout == "csr":
            expected = expected[expected != 0]
        assert torch.equal(values, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "coo"}, "layout must be 'csr' or 'dense', got 'coo'"),
        ({"dtype": torch.uint16}, "dtype must be one of .*, got torch.uint16"),
        ({"dtype": "float32"}, "dtype must be one of .*, got 'float32'"),
        ({"device": "meta"}, "device must be the CPU or a CUDA device, got 'meta'"),
        ({"device": "nowhere"}, "device must be the CPU or a CUDA device, got 'nowhere'"),
        ({"device": "cuda:99"}, "device must be the CPU or a CUDA device, got 'cuda:99'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_options_are_refused(options: dict[str, Any], message: str, make_loader: MakeLoader) -> None:
    with pytest.raises(InputError, match=message):
        TorchLoader(make_loader(), **options)


def test_something_else_than_a_loader_is_refused() -> None:
    with pytest.raises(TypeError, match=r"ds must be an annbatch\.Loader, got list"):
        TorchLoader([])  # type: ignore[arg-type]


def test_a_product_and_its_gradient(make_loader: MakeLoader, truth: Truth) -> None:
    weight = torch.randn(N_VARS, 3, dtype=torch.float64, requires_grad=True)
    batch = next(iter(TorchLoader(make_loader(), dtype=torch.float64)))
    (batch.data @ weight).square().sum().backward()
    x = torch.from_numpy(truth.x[batch.index.numpy()].toarray()).double()
    expected = 2 * x.T @ (x @ weight.detach())
    torch.testing.assert_close(weight.grad, expected)
