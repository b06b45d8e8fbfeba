"""Does what is done to a batch, or to the type of its values, reach each of its arrays?"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from annbatch import Loader
from annbatch.adapter import Fields
from annbatch.batch import Modality
from epochs import each_batch

X = sp.csr_matrix((np.arange(60).reshape(10, 6) % 7 / 4).astype(np.float32))
PCA = (np.arange(30).reshape(10, 3) / 8).astype(np.float32)


def core(**options: Any) -> Loader:
    adata = ad.AnnData(
        X,
        obs=pd.DataFrame({"kind": pd.Categorical(list("ab") * 5), "n": np.arange(10)}, index=list("abcdefghij")),
        layers={"doubled": sp.csr_matrix(X * 2), "full": X.toarray() * 3},
        obsm={"pca": PCA, "peaks": sp.csr_matrix(PCA), "n": np.arange(10)[:, None]},
    )
    return Loader(batch_size=4, layers=["doubled", "full"], obsm=["pca", "peaks", "n"], **options).add_anndatas([adata])


def arrays_of(batch: Any) -> dict[str, Any]:
    """All arrays of a batch, by name."""
    found = {"data": batch.data, "index": batch.index}
    for part in ("layers", "obsm", "codes"):
        found |= {f"{part}/{name}": array for name, array in (getattr(batch, part) or {}).items()}
    for modality, one in (batch.modalities or {}).items():
        found |= {f"{modality}/data": one.data, f"{modality}/mask": one.mask}
        for part in ("layers", "obsm"):
            found |= {f"{modality}/{part}/{name}": array for name, array in getattr(one, part).items()}
    return found


NAMES = {"data", "index", "layers/doubled", "layers/full", "obsm/pca", "obsm/peaks", "obsm/n", "codes/kind", "codes/n"}


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_torch_moves_every_tensor(layout: Any) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from annbatch_torch import TorchLoader

    # A field that is added is to be moved, too, or to be named here.
    assert {field.name for field in fields(Fields)} - {*("data", "index", "layers", "obsm", "codes", "modalities")} == {
        "make_labels",
        "names",
        "n_padding",
    }
    for batch in each_batch(TorchLoader(core(), layout=layout)):
        mask = torch.ones(len(batch.index), dtype=torch.bool)
        one = Modality(batch.data, layers=batch.layers, obsm=batch.obsm, mask=mask)
        batch = replace(batch, modalities={"rna": one})
        before = arrays_of(batch)
        of_modality = {"rna/data", "rna/mask", *(f"rna/{name}" for name in NAMES if "s/" in name or "obsm" in name)}
        assert before.keys() == NAMES | {name for name in of_modality if "codes" not in name}
        # The device "meta" takes no memory and needs no GPU.
        for name, tensor in arrays_of(batch.to("meta")).items():
            assert tensor.device.type == "meta", name
            assert (tensor.shape, tensor.dtype) == (before[name].shape, before[name].dtype)
        for name, tensor in arrays_of(batch.to("cpu")).items():
            assert tensor.device.type == "cpu"
            assert torch.equal(tensor.to_dense(), before[name].to_dense()), name


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
@pytest.mark.parametrize("layout", ["sparse", "dense"])
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_the_type_is_that_of_layers_too(framework: str, layout: str, dtype: str) -> None:
    """obsm and codes keep theirs."""
    pytest.importorskip(framework)
    opened: Any
    if framework == "torch":
        import torch

        from annbatch_torch import TorchLoader

        opened = TorchLoader(
            core(casting="unsafe"), layout="csr" if layout == "sparse" else "dense", dtype=getattr(torch, dtype)
        )
    else:
        from annbatch_jax import JaxLoader, PaddedCSR, densify

        opened = JaxLoader(core(casting="unsafe"), layout="padded_csr" if layout == "sparse" else "dense", dtype=dtype)

    def dense(matrix: Any) -> np.ndarray:
        if framework == "torch":
            return np.asarray(matrix.to_dense().float() if matrix.is_floating_point() else matrix.to_dense())
        found = densify(matrix) if isinstance(matrix, PaddedCSR) else matrix
        return np.asarray(found)

    def dtype_of(matrix: Any) -> str:
        return str(getattr(matrix, "data", matrix).dtype if framework == "jax" else matrix.dtype).removeprefix("torch.")

    for batch in each_batch(opened):
        index = dense(batch.index) if framework == "torch" else batch.index
        real = index >= 0
        rows = index[real]
        expected = {"data": X, "layers/doubled": X * 2, "layers/full": X * 3}
        found = arrays_of(batch)
        for name, x in expected.items():
            assert dtype_of(found[name]) == dtype, name
            # All values are quarters below 8, which 16-bit floats hold.
            wanted = x[rows].toarray().astype(np.int8 if dtype == "int8" else np.float32)
            np.testing.assert_array_equal(dense(found[name])[real].astype(np.float32), wanted, err_msg=name)
        for name in ("obsm/pca", "obsm/peaks"):
            assert dtype_of(found[name]) == "float32", name
            np.testing.assert_array_equal(dense(found[name])[real], PCA[rows])
        np.testing.assert_array_equal(dense(found["codes/n"])[real], rows)
