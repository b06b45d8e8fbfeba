"""Does a step that makes batches dense compile as one graph, and give what SciPy gives?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

torch = pytest.importorskip("torch")

from conftest import MakeLoader  # noqa: E402
from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

from adapter_truth import N_VARS, Truth  # noqa: E402
from annbatch_torch import TorchLoader, csr_parts, densify  # noqa: E402
from epochs import each_batch  # noqa: E402


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method")
@pytest.mark.parametrize(
    "backend",
    # The default one writes C++ and has it compiled.
    ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)],
)
def test_a_compiled_step(backend: str, make_loader: MakeLoader, truth: Truth) -> None:
    torch.compiler.reset()
    counter = CompileCounterWithBackend(backend)

    @torch.compile(fullgraph=True, backend=counter)
    def step(crow_indices: Any, col_indices: Any, values: Any, weight: Any) -> Any:
        return torch.log1p(densify(crow_indices, col_indices, values, N_VARS)) @ weight

    weight = torch.randn(N_VARS, 3, requires_grad=True)
    for _ in range(2):
        for batch in each_batch(TorchLoader(make_loader())):
            weight.grad = None
            scores = step(*csr_parts(batch["data"]), weight)
            scores.sum().backward()
            logged = torch.from_numpy(truth.x[batch["index"].numpy()].log1p().toarray())
            torch.testing.assert_close(scores, logged @ weight)
            torch.testing.assert_close(weight.grad, logged.sum(dim=0)[:, None].expand(-1, 3))
    # One for the first batch, one for any number of elements, one for the short batch at the end.
    assert counter.frame_count <= 3


def test_parts_are_the_memory_of_the_batch(make_loader: MakeLoader) -> None:
    data = next(iter(TorchLoader(make_loader())))["data"]
    parts = csr_parts(data)
    for part, own in zip(parts, (data.crow_indices(), data.col_indices(), data.values()), strict=True):
        assert part.data_ptr() == own.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int32], ids=str)
@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
def test_densify(dtype: Any, index_dtype: Any) -> None:
    """Empty rows at the beginning, in the middle and at the end; an element that stands twice."""
    data, indices = np.array([1.0, 2, 4, 8, 16]), np.array([2, 0, 2, 1, 3])
    matrix = sp.csr_matrix((data, indices, [0, 0, 3, 3, 5, 5]), shape=(5, 4))
    parts = [torch.from_numpy(part.astype(index_dtype)) for part in (matrix.indptr, matrix.indices)]
    dense = densify(*parts, torch.from_numpy(matrix.data).to(dtype), 4)
    assert dense.dtype == dtype
    np.testing.assert_array_equal(dense.double().numpy(), matrix.toarray())


def test_densify_nothing() -> None:
    zeros = torch.zeros(4, dtype=torch.int32)
    assert not densify(zeros, zeros[:0], torch.zeros(0), 5).any()
    assert densify(zeros[:1], zeros[:0], torch.zeros(0), 5).shape == (0, 5)


def test_gradients_with_respect_to_values() -> None:
    values = torch.tensor([1.0, 2, 3], dtype=torch.float64, requires_grad=True)
    crow, col = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 2])
    assert torch.autograd.gradcheck(lambda values: densify(crow, col, values, 3).square(), values)
