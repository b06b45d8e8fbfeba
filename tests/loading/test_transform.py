"""Do batches hold what scanpy, or a function of the user's, makes of the rows?"""

from __future__ import annotations

import pickle
import threading
import traceback
import warnings
from dataclasses import replace
from functools import partial

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from annbatch import CSR, Batch, Binarize, Emit, InputError, Loader, LogNormalize, create_anndata_collection
from datagen import named_matrix
from live_threads import background_threads

N_OBS, N_VARS = 70, 23
WINDOWS = {"batch_size": 16, "chunk_size": 4, "preload_nchunks": 8}
GENES = ["g20", "g0", "no", "g7"]
COLUMNS = [20, 0, -1, 7]


@pytest.fixture(scope="module")
def table() -> ad.AnnData:
    """Counts up to beyond what the kernel knows by heart, a row without counts, fractions in a layer."""
    rng = np.random.default_rng(7)
    x = named_matrix(rng, range(N_OBS), range(N_VARS)).astype(np.float32)
    x.data[::2] = rng.integers(1, 5, len(x.data[::2]))
    x = x.tolil()
    x[3] = 0
    x = x.tocsr()
    return ad.AnnData(
        x,
        obs={"kind": [f"k{i % 3}" for i in range(N_OBS)]},
        var={"number": np.arange(N_VARS)},
        layers={"scaled": x * np.float32(0.3), "dense": x.toarray() + np.float32(1)},
        obsm={"pca": rng.random((N_OBS, 2))},
    )


@pytest.fixture(scope="module")
def path(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("transform")
    table.var_names = [f"g{c}" for c in range(N_VARS)]
    table.obs_names = [f"c{c}" for c in range(N_OBS)]
    table.write_h5ad(folder / "a.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        create_anndata_collection(
            [folder / "a.h5ad"], folder / "store", rows_per_store=40, chunk_elements=17, shard_elements=100,
            shuffle=False, progress=False,
        )  # fmt: skip
    return folder / "store"


def of_scanpy(matrix, target: float = 1e4) -> np.ndarray:
    scanpy = pytest.importorskip("scanpy")
    # Of dense rows: for sparse ones scanpy compiles loops. In float64, whose sums are exact enough in any order.
    adata = ad.AnnData(sp.csr_matrix(matrix).toarray().astype(np.float64))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some cells have zero counts", UserWarning)
        scanpy.pp.normalize_total(adata, target_sum=target)
    scanpy.pp.log1p(adata)
    return adata.X


def binary(matrix) -> np.ndarray:
    return (sp.csr_matrix(matrix).toarray() > 0).astype(float)


def dense(matrix) -> np.ndarray:
    return matrix.to_scipy().toarray() if isinstance(matrix, CSR) else matrix


def chosen(matrix: np.ndarray, columns) -> np.ndarray:
    return np.concatenate([matrix, np.zeros((len(matrix), 1))], axis=1)[:, columns]


@pytest.mark.parametrize(
    ("emit", "genes"),
    [
        (Emit(), False),
        (Emit(layout="dense"), True),
        (Emit(pad_rows=True, parts=2), True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((Emit(), True), (Emit(layout="dense"), False))),
        *(pytest.param(Emit(dtype=np.dtype("f8")), genes, marks=pytest.mark.slow) for genes in (False, True)),
        pytest.param(Emit(pad_rows=True, parts=2), False, marks=pytest.mark.slow),
    ],
)
def test_log_normalize_is_scanpys(table, path, emit, genes):
    """Totals are those of all genes; float32 rounds a few times."""
    options = {"var_names": GENES, "absent": "zero"} if genes else {}
    both = LogNormalize(elements=["X", "layers/scaled"]), Binarize(elements=["layers/dense"])
    options |= WINDOWS | {"layers": ["scaled", "dense"], "obsm": ["pca"], "transform": both}
    columns = COLUMNS if genes else list(range(N_VARS))
    expected = {
        "data": of_scanpy(table.X), "scaled": of_scanpy(table.layers["scaled"]), "dense": binary(table.layers["dense"])
    }  # fmt: skip
    expected = {name: chosen(matrix, columns) for name, matrix in expected.items()}
    stores = (
        lambda ds: ds.use_collection(path, labels=[]),
        lambda ds: ds.add_anndatas([table[:30].copy(), table[30:].copy()], labels=[]),
    )
    for open_stores in stores:
        seen = []
        for batch in open_stores(Loader(**options)).batches(emit):
            rows = batch.index[batch.index >= 0]
            seen += rows.tolist()
            for name, found in {"data": batch.data, **batch.layers}.items():
                values = found.data if isinstance(found, CSR) else found
                assert values.dtype == (emit.dtype or np.float32)
                if emit.parts and isinstance(found, CSR):
                    parts = zip(found.data, found.indices, found.indptr, strict=True)
                    found = np.concatenate([dense(CSR(*part, (8, len(columns)))) for part in parts])
                np.testing.assert_allclose(dense(found)[: len(rows)], expected[name][rows], rtol=3e-7)
                assert not dense(found)[len(rows) :].any()
            np.testing.assert_array_equal(batch.obsm["pca"][: len(rows)], table.obsm["pca"][rows])
        assert sorted(seen) == list(range(N_OBS))


def test_other_values_are_taken_as_numpy_takes_them():
    """Negative ones, sums of zero, infinities, integers of any type; float64 stays float64."""
    x = np.array([[-0.5, 2, 0], [1, -1, 0], [-3, 1, 0], [np.inf, 1, 0], [300, 1e-30, 7]])
    total = x.sum(axis=1, keepdims=True)
    with np.errstate(all="ignore"):
        expected = np.log1p(x * (10 / np.where(total == 0, 10, total)))
    for matrix in (sp.csr_matrix(x), x):
        batch = next(
            iter(Loader(batch_size=5, shuffle=False, transform=LogNormalize(10)).add_anndatas([ad.AnnData(matrix)]))
        )
        np.testing.assert_allclose(dense(batch.data), expected, rtol=1e-14)
    for dtype in ("u1", "i8"):
        x = sp.csr_matrix(np.array([[100, 0, 3], [0, 0, 0], [1, 1, 1]]).astype(dtype))
        for genes in (None, ["2", "0"]):
            ds = Loader(batch_size=3, shuffle=False, transform=LogNormalize(), var_names=genes).add_anndatas(
                [ad.AnnData(x)]
            )
            found = next(iter(ds)).data
            assert found.data.dtype == np.float32
            expected = of_scanpy(x)[:, [0, 1, 2] if genes is None else [2, 0]]
            np.testing.assert_allclose(found.to_scipy().toarray(), expected, rtol=3e-7)


def test_columns_that_occur_twice_are_summed_up_before_the_logarithm():
    x = sp.csr_matrix((np.array([1.0, 5, 2, 4], "f4"), np.array([2, 0, 2, 1]), np.array([0, 4])), (1, 4))
    ds = Loader(batch_size=1, transform=LogNormalize(100)).add_anndatas([ad.AnnData(x)])
    found = next(iter(ds.batches(Emit(layout="dense")))).data
    np.testing.assert_allclose(found, np.log1p(np.array([[5, 4, 3, 0]]) / 12 * 100), rtol=1e-6)


def test_integers_that_float32_does_not_hold_are_refused_before_they_are_normalised():
    x = sp.csr_matrix(np.array([[2**24 + 1, 3]]))
    for options in ({}, {"var_names": ["1"]}):
        ds = Loader(batch_size=1, transform=LogNormalize(), **options).add_anndatas([ad.AnnData(x)])
        with pytest.raises(InputError, match="below 2\\*\\*24 in size, got 1677721[67]"):
            next(iter(ds))


def doubled(batch: Batch) -> Batch:
    return batch.replace(data=batch.data.replace(data=batch.data.data * 2))


def test_functions_see_and_change_what_batches_hold(table, path):
    callers = []

    def one_sum(batch: Batch) -> Batch:
        return batch.replace(obsm={"sum": batch.data.sum(axis=1, keepdims=True)})

    def shown(batch: Batch) -> Batch:
        callers.append(threading.current_thread())
        return one_sum(batch.replace(data=np.square(dense(doubled(batch).data))))

    ds = Loader(**WINDOWS, transform=[LogNormalize(), shown]).use_collection(path, labels=["kind"])
    assert ds.has_function
    seen = []
    for batch in ds:
        expected = np.square(2 * of_scanpy(table.X)[batch.index])
        np.testing.assert_allclose(batch["data"], expected, rtol=1e-6)
        np.testing.assert_allclose(batch["obsm"]["sum"], expected.sum(axis=1, keepdims=True), rtol=1e-5)
        assert batch["labels"]["kind"].tolist() == table.obs["kind"].iloc[batch.index].tolist()
        seen += batch.index.tolist()
    assert sorted(seen) == list(range(N_OBS))
    assert threading.main_thread() not in callers
    assert len(callers) == len(ds)


def test_an_error_comes_out_of_the_loop_as_it_was_raised_and_the_batch_still_comes(path):
    faults: list[int] = []

    def faulty(batch: Batch) -> Batch:
        if 60 in batch.index and faults:
            raise ZeroDivisionError("in my transform")
        return batch

    for prefetch in (0, 2):
        faults.clear()
        ds = Loader(**WINDOWS, transform=faulty, prefetch=prefetch).use_collection(path, labels=[])
        expected = [batch.index.tolist() for batch in ds]
        faults.append(1)
        ds.set_epoch(0)
        found = []
        with pytest.raises(ZeroDivisionError, match="in my transform") as error:
            found.extend(batch.index.tolist() for batch in ds)
        assert "faulty" in [frame.name for frame in traceback.extract_tb(error.value.__traceback__)]
        assert not background_threads()
        faults.clear()
        resumed = Loader(**WINDOWS, transform=faulty).use_collection(path, labels=[])
        resumed.load_state_dict(ds.state_dict())
        assert found + [batch.index.tolist() for batch in resumed] == expected


def test_stop_iteration_does_not_end_the_epoch(path):
    def empty(batch: Batch) -> Batch:
        return next(iter(()))

    with pytest.raises(RuntimeError, match=r"empty raised StopIteration"):
        list(Loader(**WINDOWS, transform=empty).use_collection(path, labels=[]))


def test_a_loader_with_a_transform_pickles(path):
    ds = Loader(**WINDOWS, transform=[LogNormalize(5), partial(Batch.replace, obsm=None)]).use_collection(
        path, labels=[]
    )
    for one, other in zip(ds, pickle.loads(pickle.dumps(ds)), strict=True):
        np.testing.assert_array_equal(one.data.data, other.data.data)


CASES = {
    "a dict": (lambda batch: dict(batch), "must return an annbatch.Batch, got dict"),
    "nothing": (lambda batch: None, "must return an annbatch.Batch, got NoneType"),
    "a SciPy matrix": (lambda batch: batch.replace(data=batch.data.to_scipy()), "write annbatch.CSR(m.data"),
    "a list": (lambda batch: batch.replace(data=[1]), "data must be a NumPy array of numbers, a CuPy array, or a"),
    "text": (lambda batch: batch.replace(data=np.array(["a"] * 16)), "got ndarray of <U1"),
    "fewer rows": (lambda batch: batch.replace(data=dense(batch.data)[1:]), "must have the 16 rows of the batch, got"),
    "a broken CSR": (lambda batch: batch.replace(data=batch.data.replace(data=batch.data.data[1:])), "as many indices"),
    "a short indptr": (lambda batch: batch.replace(data=batch.data.replace(indptr=batch.index)), "an indptr for its"),
    "a layer": (lambda batch: batch.replace(layers={"a": np.zeros((2, 2))}), "layers['a'] must have the 16 rows"),
    "obsm": (lambda batch: batch.replace(obsm=[1]), "obsm must be a mapping"),
    "other rows": (lambda batch: replace(batch, index=batch.index[::-1]), "but changed index"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_no_batch_of_the_same_rows_is_refused(path, name):
    transform, message = CASES[name]
    with pytest.raises(InputError) as error:
        next(iter(Loader(**WINDOWS, transform=transform).use_collection(path, labels=[])))
    assert message in str(error.value)
    assert str(error.value).startswith("transform <lambda>")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogNormalize(None), "target_sum must be a number, got None: scanpy's default, the median"),
        (lambda: LogNormalize(0), "target_sum must be > 0 and finite, got 0"),
        (lambda: LogNormalize("1e4"), "target_sum must be a number, got '1e4'"),
        (lambda: LogNormalize(elements="X"), "elements must be a sequence of names"),
        (lambda: Binarize(["obsm/pca"]), "elements must be 'X' or 'layers/…', got 'obsm/pca'"),
        (lambda: Loader(batch_size=1, transform=3), "transform must be a function of a Batch, LogNormalize()"),
        (lambda: Loader(batch_size=1, transform=LogNormalize), "transform must be a function of a Batch"),
        (lambda: Loader(batch_size=1, transform=[len, Binarize()]), "Binarize before functions"),
        (lambda: Loader(batch_size=1, transform=[LogNormalize(), Binarize()]), "must change X only once"),
        (lambda: Loader(batch_size=1, transform=Binarize(["layers/no"])), "carried by batches, got 'layers/no'"),
        (lambda: Loader(batch_size=1, transform=LogNormalize(), dtype="int32"), "dtype must be float32 or float64"),
    ],
)
def test_arguments(make, message):
    with pytest.raises((TypeError, ValueError)) as error:
        make()
    assert message in str(error.value)


def test_an_integer_type_does_not_hold_logarithms(path):
    ds = Loader(**WINDOWS, transform=LogNormalize()).use_collection(path, labels=[])
    with pytest.raises(InputError, match="X: dtype must be floating with LogNormalize, got int32"):
        next(iter(ds.batches(Emit(dtype=np.dtype("i4")))))
