"""Does no adapter alter a value on its way: in X and layers, in obsm, in codes?

Each framework gives an adapter of a core loader, and takes arrays to the host. The rules are those of
`annbatch.batches.casts` and of `annbatch.Batch.codes`; JAX has no types of 64 bits unless they are on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from annbatch import Loader
from annbatch.errors import InputError
from epochs import each_batch
from pairs import in_pairs

NARROW = 1 << 24
"""From here on float32 does not hold every integer."""


class Framework(NamedTuple):
    open: Callable[..., Any]
    """Gives the adapter; takes ``layout`` "sparse" or "dense", and the name of a ``dtype``."""
    to_numpy: Callable[[Any], np.ndarray]
    """Takes an array or a matrix to the host, dense."""
    has_64_bits: bool


def torch_framework() -> Framework:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from annbatch_torch import TorchLoader

    def open_loader(ds: Loader, layout: str = "sparse", dtype: str = "float32") -> Any:
        return TorchLoader(ds, layout="dense" if layout == "dense" else "csr", dtype=getattr(torch, dtype))

    return Framework(open_loader, lambda tensor: tensor.to_dense().numpy(), True)


def jax_framework() -> Framework:
    pytest.importorskip("jax", reason="JAX is not installed")
    from annbatch_jax import JaxLoader, PaddedCSR, densify

    def open_loader(ds: Loader, layout: str = "sparse", dtype: str = "float32") -> Any:
        return JaxLoader(ds, layout="dense" if layout == "dense" else "padded_csr", dtype=dtype)

    def to_numpy(array: Any) -> np.ndarray:
        return np.asarray(densify(array) if isinstance(array, PaddedCSR) else array)

    return Framework(open_loader, to_numpy, False)


def cupy_framework() -> Framework:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    from annbatch_cupy import CupyLoader

    def open_loader(ds: Loader, layout: str = "sparse", dtype: str = "float32") -> Any:
        return CupyLoader(ds, layout="dense" if layout == "dense" else "csr", dtype=dtype)

    def to_numpy(array: Any) -> np.ndarray:
        return cupy.asnumpy(array if isinstance(array, cupy.ndarray) else array.toarray())

    return Framework(open_loader, to_numpy, True)


FRAMEWORKS = {"torch": torch_framework, "jax": jax_framework, "cupy": cupy_framework}


@pytest.fixture(params=["torch", "jax", pytest.param("cupy", marks=pytest.mark.gpu)])
def framework(request: pytest.FixtureRequest) -> Framework:
    return FRAMEWORKS[request.param]()


def form(matrix: Any) -> Any:
    """Say what tells a sparse matrix of a framework from its dense arrays."""
    return type(matrix), getattr(matrix, "is_sparse_csr", None)


def loader(adata: ad.AnnData, **options: Any) -> Loader:
    return Loader(batch_size=adata.n_obs, shuffle=False, **options).add_anndatas([adata])


def cells(values: list[Any], dtype: Any, **more: Any) -> ad.AnnData:
    return ad.AnnData(X=sp.csr_matrix(np.array([values], dtype)), **more)


CASTS = in_pairs(
    [
        ("torch", [300, 1.7, -3], "f4", "uint8", "unsafe"),
        ("torch", [300, 1.7, -3], "f4", "int32", "unsafe"),
        ("torch", [300, 1], "u2", "int16", "same_kind"),
        ("torch", [70000.0], "f4", "float16", "same_kind"),
        ("torch", [257], "u2", "bfloat16", "same_kind"),
        ("torch", [257], "u2", "int32", "safe"),
        ("torch", [255], "u1", "bfloat16", "safe"),
        ("torch", [1.5], "f4", "float64", "safe"),
        ("jax", [300, 1.7, -3], "f4", "uint8", "unsafe"),
        ("jax", [300, 1.7, -3], "f4", "uint16", "unsafe"),
        ("jax", [70000.0], "f4", "float16", "same_kind"),
        ("jax", [257.0], "f4", "bfloat16", "same_kind"),
        ("jax", [257], "u2", "int32", "safe"),
        pytest.param(("cupy", [300, 1.7, -3], "f4", "bool", "unsafe"), marks=pytest.mark.gpu),
    ],
    ["sparse", "dense"],
    ["X", "layers/other"],
)


@pytest.mark.parametrize(("cast", "form", "element"), CASTS, ids=str)
def test_adapters_ask_for_casts_as_the_core_does(
    cast: tuple[str, list[Any], str, str, str], form: str, element: str
) -> None:
    framework_name, values, stored, dtype, needs = cast
    framework = FRAMEWORKS[framework_name]()
    adata = cells(values if element == "X" else [0] * len(values), stored if element == "X" else "u1")
    adata.layers["other"] = sp.csr_matrix(np.array([values], stored))
    if form == "dense":
        adata.X, adata.layers["other"] = adata.X.toarray(), adata.layers["other"].toarray()
    for casting in ("safe", "same_kind", "unsafe"):
        ds = loader(adata, casting=casting, layers=["other"])
        if ["safe", "same_kind", "unsafe"].index(casting) < ["safe", "same_kind", "unsafe"].index(needs):
            message = f"{element}: dtype {dtype} cannot hold all values of .*casting='{needs}'"
            with pytest.raises(InputError, match=message):
                framework.open(ds, dtype=dtype)
        else:
            data = next(iter(framework.open(ds, dtype=dtype)))["data"]
            assert str(getattr(data, "data" if hasattr(data, "canonical") else "real", data).dtype).endswith(dtype)


@pytest.mark.parametrize(
    ("framework", "kind", "layout", "stored"),
    in_pairs(
        ["torch", "jax", pytest.param("cupy", marks=pytest.mark.gpu)],
        ["sparse", "dense", "genes", "layer"],
        ["sparse", "dense"],
        ["i4", "i8", "u4", "u8"],
    ),
    indirect=["framework"],
)
def test_float32_holds_integers_or_refuses_them(kind: str, layout: str, stored: str, framework: Framework) -> None:
    def opened(values: list[int], **options: Any) -> Any:
        x = np.array([[0, 1, 0], [0, *values], [3, 0, 0]], stored)
        adata = ad.AnnData(X=x if kind == "dense" else sp.csr_matrix(x), var=pd.DataFrame(index=list("abc")))
        if kind == "genes":
            options["var_names"] = ["c", "b"]
        if kind == "layer":
            adata.layers["counts"], adata.X = adata.X, sp.csr_matrix(np.zeros(x.shape, "f4"))
            options["layers"] = ["counts"]
        batch = next(iter(framework.open(loader(adata, **options), layout)))
        found = framework.to_numpy(batch["layers"]["counts"] if kind == "layer" else batch["data"])
        assert found.dtype == np.float32
        return found, x[:, [2, 1]] if kind == "genes" else x

    largest = [NARROW - 1, 7]
    found, x = opened(largest)
    np.testing.assert_array_equal(found, x)
    wrong = [[2, NARROW + 1]] + [[-NARROW - 1, 2]] * (stored[0] == "i")
    for values in wrong:
        with pytest.raises(InputError, match=r"must be below 2\*\*24 in size, got -?1677721"):
            opened(values)
    found, x = opened([2, NARROW + 1], casting="same_kind")
    np.testing.assert_array_equal(found, x.astype(np.float32))


def test_float32_rounds_wider_floats(framework: Framework) -> None:
    batch = next(iter(framework.open(loader(cells([1 / 3, 1e-3], "f8")))))
    np.testing.assert_array_equal(framework.to_numpy(batch["data"]), np.array([[1 / 3, 1e-3]], "f4"))


OBSM = {
    "f8": np.arange(12).reshape(4, 3) / 3,
    "f4": np.arange(12, dtype="f4").reshape(4, 3) / 3,
    "f2": np.arange(12, dtype="f2").reshape(4, 3),
    "i8": np.array([[NARROW + 1, 0], [-5, 0], [0, 0], [0, 2]], "i8"),
    "u2": np.array([[65535, 0], [0, 1], [0, 0], [0, 2]], "u2"),
    "u4": np.array([[2**31 - 1, 0], [0, 1], [0, 0], [0, 2]], "u4"),
    "u8": np.array([[2**31 - 1, 0], [0, 1], [0, 0], [0, 2]], "u8"),
    "bool": np.array([[True, False], [False, True], [False, False], [True, True]]),
}
ONES = sp.csr_matrix(np.ones((4, 2), "f4"))


@pytest.mark.parametrize("layout", ["sparse", "dense"])
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_obsm_sparse_or_dense(dtype: str, layout: str, framework: Framework, request: pytest.FixtureRequest) -> None:
    if "cupy" in request.node.name and dtype == "int32":
        pytest.skip("cupyx has no such matrices")
    is_cupy = "cupy" in request.node.name
    obsm: dict[str, Any] = dict(OBSM)
    for name, array in OBSM.items():
        # SciPy has no sparse half floats, and cupyx no sparse integers.
        if name != "f2" and (not is_cupy or layout == "dense" or array.dtype.kind in "fb"):
            obsm[f"sparse {name}"] = sp.csr_matrix(array)
    adata = ad.AnnData(X=ONES, obsm=obsm)
    ds = Loader(batch_size=3, shuffle=False, obsm=list(obsm), casting="unsafe").add_anndatas([adata])
    for batch in each_batch(framework.open(ds, layout, dtype=dtype)):
        rows = np.asarray(framework.to_numpy(batch.index))
        real = rows >= 0
        for name, matrix in batch["obsm"].items():
            array = OBSM[name.removeprefix("sparse ")]
            assert (form(matrix) == form(batch["data"])) == (layout == "dense" or name.startswith("sparse "))
            found = framework.to_numpy(matrix)
            if array.dtype.kind == "f":
                assert found.dtype == np.float32
                array = array.astype(np.float32)
            np.testing.assert_array_equal(found[real], array[rows[real]])
            assert found.dtype.kind.replace("u", "i") == array.dtype.kind.replace("u", "i")
            assert not found[~real].any()


def test_float64_keeps_obsm() -> None:
    framework = torch_framework()
    batch = next(iter(framework.open(loader(ad.AnnData(X=ONES, obsm={"a": OBSM["f8"]}), obsm=["a"]), dtype="float64")))
    np.testing.assert_array_equal(framework.to_numpy(batch["obsm"]["a"]), OBSM["f8"])


@pytest.mark.parametrize("is_sparse", [True, False])
def test_obsm_that_a_framework_does_not_hold(is_sparse: bool) -> None:
    large = np.array([[2**63, 0], [0, 1], [0, 0], [0, 2]], "u8")
    adata = ad.AnnData(X=ONES, obsm={"ids": sp.csr_matrix(large) if is_sparse else large})
    with pytest.raises(InputError, match=r"obsm/ids: values must be below 2\*\*63"):
        next(iter(torch_framework().open(loader(adata, obsm=["ids"]))))
    with pytest.raises(InputError, match="obsm/ids: values must fit uint32 unless jax_enable_x64 is set, "):
        next(iter(jax_framework().open(loader(adata, obsm=["ids"]))))


@pytest.mark.gpu
def test_cupyx_has_no_sparse_integers() -> None:
    framework = cupy_framework()
    adata = ad.AnnData(X=ONES, obsm={"peaks": sp.csr_matrix(OBSM["i8"])})
    with pytest.raises(InputError, match="obsm/peaks: sparse matrices of cupyx must be of .*, got int64"):
        framework.open(loader(adata, obsm=["peaks"]))


@pytest.mark.parametrize(
    ("column", "wide", "narrow"),
    [
        ([50_000_001, 7], "i8", "i4"),
        ([2**31, 7], "i8", None),
        ([True, False], "?", "?"),
        (pd.array([True, None], "boolean"), "i4", "i4"),
        (pd.array([NARROW, None], "Int64"), "f8", "f4"),
        (pd.array([NARROW + 1, None], "Int32"), "f8", None),
        ([1 / 3, np.nan], "f4", "f4"),
        ([np.uint64(2**63 - 1)] * 2, "i8", None),
    ],
    ids=str,
)
def test_codes_are_the_values_of_obs(column: Any, wide: str, narrow: str | None, framework: Framework) -> None:
    adata = ad.AnnData(X=ONES[:2], obs=pd.DataFrame({"n": column}, index=["a", "b"]))
    dtype = wide if framework.has_64_bits else narrow
    batches = iter(framework.open(loader(adata)))
    if dtype is None:
        with pytest.raises(InputError, match=r"obs\['n'\]: values must fit .*32 unless jax_enable_x64"):
            next(batches)
        return
    found = framework.to_numpy(next(batches).codes["n"])
    # Where -1 stands for what is missing, torch has int64.
    assert found.dtype in (dtype, "i8" if wide == "i4" else dtype)
    fill = -1 if wide == "i4" else np.nan
    wanted = [fill if pd.isna(value) else value for value in column]
    np.testing.assert_array_equal(found, np.array(wanted, dtype))


def test_what_torch_and_jax_refuse_is_named(framework: Framework) -> None:
    adata = ad.AnnData(X=ONES[:1], obs=pd.DataFrame({"id": [np.uint64(2**63)]}, index=["a"]))
    batch = next(iter(loader(adata)))
    assert batch.labels["id"].tolist() == [2**63]
    for batches in (loader(adata), loader(adata, obsm=[])):
        message = r"obs\['id'\]: must hold numbers that fit int64, got 9223372036854775808; leave it out of labels="
        with pytest.raises(InputError, match=message):
            next(iter(framework.open(batches)))


def test_jax_with_64_bits_has_the_types_of_the_core() -> None:
    framework = jax_framework()
    from jax_versions import enable_x64

    columns = {"id": [2**40, 7], "age": pd.array([2**40 + 1, None], "Int64")}
    adata = ad.AnnData(X=ONES[:2], obs=pd.DataFrame(columns, index=["a", "b"]), obsm={"ids": np.array([[2**40], [1]])})
    with enable_x64(True):
        batch = next(iter(framework.open(loader(adata, obsm=["ids"]))))
        assert (batch.codes["id"].dtype, batch.codes["age"].dtype, batch["obsm"]["ids"].dtype) == ("i8", "f8", "i8")
        np.testing.assert_array_equal(batch.codes["id"], [2**40, 7])
        np.testing.assert_array_equal(batch.codes["age"], [2**40 + 1, np.nan])
        np.testing.assert_array_equal(batch["obsm"]["ids"], [[2**40], [1]])
