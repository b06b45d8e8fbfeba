"""Do stores that hold the same things in another order, or in another type, give the same batches, or a refusal?

The odd one stands first, in the middle and last: what is looked at in the first store only is noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from annbatch import Emit, InputError, Loader, create_anndata_collection
from epochs import each_batch

N_ROWS, N_STORES = 4, 3
KINDS = ["b", "a", "c"]


def store(number: int) -> ad.AnnData:
    """Every value says which row of all it is of, or which gene."""
    rows = np.arange(N_ROWS * number, N_ROWS * (number + 1))
    x = np.array([[10 * row + c if (row + c) % 3 else 0 for c in range(3)] for row in rows], np.uint8)
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical([KINDS[row % 3] if row % 5 else None for row in rows], KINDS),
            "n": rows.astype(np.int8),
            "passed": rows % 2 == 0,
        },
        index=[f"cell{row}" for row in rows],
    )
    return ad.AnnData(
        X=sp.csr_matrix(x),
        obs=obs,
        var=pd.DataFrame(index=["g0", "g1", "g2"]),
        layers={"raw": sp.csr_matrix(x), "dense": x},
        obsm={"pca": (rows[:, None] + np.array([0, 100])).astype(np.int16), "peaks": sp.csr_matrix(x[:, :2])},
    )


def stores(odd: int, change: Callable[[ad.AnnData], Any]) -> list[ad.AnnData]:
    found = [store(number) for number in range(N_STORES)]
    changed = change(found[odd])
    if isinstance(changed, ad.AnnData):
        found[odd] = changed
    return found


def loader(adatas: list[ad.AnnData], labels: list[str] | None = None, **options: Any) -> Loader:
    elements = {"layers": ["raw", "dense"], "obsm": ["pca", "peaks"]}
    ds = Loader(batch_size=5, chunk_size=2, preload_nchunks=5, threads=1, **elements, **options)
    return ds.add_anndatas(adatas, labels)


def dense(matrix: Any) -> np.ndarray:
    return matrix.to_scipy().toarray() if hasattr(matrix, "to_scipy") else np.asarray(matrix)


def in_x(values: Any) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        adata.X = values(adata.X)

    return change


def in_part(part: str, name: str, values: Any) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        getattr(adata, part)[name] = values(getattr(adata, part)[name])

    return change


def wide(matrix: Any) -> Any:
    """Values that the other stores' type does not hold."""
    return matrix.astype(np.int32) * 1000


def fractions(matrix: Any) -> Any:
    return matrix.astype(np.float64) / 8


JOINED: dict[str, tuple[Callable[[ad.AnnData], Any], dict[str, str]]] = {
    "wider X": (in_x(wide), {"X": "int32"}),
    "floating X": (in_x(fractions), {"X": "float64"}),
    "wider layer": (in_part("layers", "raw", wide), {"raw": "int32"}),
    "wider dense layer": (in_part("layers", "dense", wide), {"dense": "int32"}),
    "wider obsm": (in_part("obsm", "pca", wide), {"pca": "int32"}),
    "floating obsm": (in_part("obsm", "pca", fractions), {"pca": "float64"}),
    "wider sparse obsm": (in_part("obsm", "peaks", wide), {"peaks": "int32"}),
    "elements in another order": (
        lambda adata: ad.AnnData(
            adata.X,
            adata.obs[["passed", "n", "kind"]],
            adata.var,
            obsm={name: adata.obsm[name] for name in ("peaks", "pca")},
            layers={name: adata.layers[name] for name in ("dense", "raw")},
        ),
        {},
    ),
    "categories in another order": (
        in_part("obs", "kind", lambda kind: kind.cat.reorder_categories(["c", "b", "a"])),
        {},
    ),
    "fewer categories": (in_part("obs", "kind", lambda kind: kind.cat.remove_unused_categories()), {}),
    "text": (in_part("obs", "kind", lambda kind: kind.astype(object)), {}),
    "wider numbers": (in_part("obs", "n", lambda n: n.astype(np.int64) * 2**40), {}),
    "numbers that can be missing": (in_part("obs", "n", lambda n: n.astype("Int16").where(n % 2 == 0)), {}),
    "booleans that can be missing": (in_part("obs", "passed", lambda b: b.astype("boolean").where(b)), {}),
}
TYPES = {"X": "uint8", "raw": "uint8", "dense": "uint8", "pca": "int16", "peaks": "uint8"}


@pytest.mark.parametrize("name", JOINED)
@pytest.mark.parametrize("odd", range(N_STORES))
def test_stores_that_differ_are_joined(name: str, odd: int):
    change, types = JOINED[name]
    adatas = stores(odd, change)
    wanted = {
        "X": np.concatenate([dense(sp.csr_array(adata.X).toarray()) for adata in adatas]),
        "raw": np.concatenate([adata.layers["raw"].toarray() for adata in adatas]),
        "dense": np.concatenate([np.asarray(adata.layers["dense"]) for adata in adatas]),
        "pca": np.concatenate([np.asarray(adata.obsm["pca"]) for adata in adatas]),
        "peaks": np.concatenate([adata.obsm["peaks"].toarray() for adata in adatas]),
    }
    obs = {
        column: [None if pd.isna(value) else value for adata in adatas for value in adata.obs[column].astype(object)]
        for column in ("kind", "n", "passed")
    }
    ds = loader(adatas)
    seen = 0
    for batch in each_batch(ds):
        rows = batch.index
        seen += len(rows)
        found = {"X": batch.data, **(batch.layers or {}), **(batch.obsm or {})}
        for element, matrix in found.items():
            np.testing.assert_array_equal(dense(matrix), wanted[element][rows], err_msg=element)
            assert dense(matrix).dtype == (TYPES | types)[element], element
        for column, values in obs.items():
            shown = [None if pd.isna(value) else value for value in batch.labels[column].astype(object)]
            assert shown == [values[row] for row in rows], column
        categories = list(ds.categories["kind"])
        meant = [None if code < 0 else categories[code] for code in batch.codes["kind"]]
        assert meant == [obs["kind"][row] for row in rows]
    assert seen == N_ROWS * N_STORES


@pytest.mark.parametrize(
    ("dtypes", "ordered"),
    [
        ([(KINDS, True)] * 3, True),
        ([(KINDS, False), (KINDS, True), (KINDS, True)], False),
        ([(KINDS, True), (KINDS, False), (KINDS, True)], False),
        ([(KINDS, True), (KINDS, True), (KINDS, False)], False),
        ([(KINDS, True), (KINDS[::-1], True), (KINDS, True)], False),
        ([(KINDS[::-1], True), (KINDS, True), (KINDS, True)], False),
        ([(KINDS, True), (KINDS, True), ([*KINDS, "d"], True)], False),
    ],
    ids=str,
)
def test_categories_are_ordered_only_if_all_stores_say_the_same(dtypes: list[tuple[list[str], bool]], ordered: bool):
    adatas = [store(number) for number in range(N_STORES)]
    for adata, (categories, is_ordered) in zip(adatas, dtypes, strict=True):
        adata.obs["kind"] = adata.obs["kind"].cat.set_categories(categories, ordered=is_ordered)
    labels = next(iter(loader(adatas))).labels["kind"]
    assert labels.cat.ordered is ordered
    assert list(labels.cat.categories)[:3] == dtypes[0][0]


REFUSED: dict[str, tuple[Callable[[ad.AnnData], Any], str]] = {
    "the last gene": (
        lambda adata: setattr(adata, "var_names", ["g0", "g1", "x"]),
        r"must have the same genes as adatas\[0\] .* lacks 1 \['(g2|x)'\] and has 1 others \['(g2|x)'\]; join='outer'",
    ),
    "fewer genes": (lambda adata: adata[:, :2].copy(), "must have the same genes as .* and has (0|1) others"),
    "dense X": (in_x(lambda x: x.toarray()), "X must be of one kind and width"),
    "dense layer": (in_part("layers", "raw", lambda x: x.toarray()), "layers/raw must be of one kind and width"),
    "sparse layer": (in_part("layers", "dense", sp.csr_matrix), "layers/dense must be of one kind and width"),
    "wider array": (in_part("obsm", "pca", lambda x: np.tile(x, 2)), "obsm/pca must be of one kind and width"),
    "narrower array": (in_part("obsm", "pca", lambda x: x[:, :1]), "obsm/pca must be of one kind and width"),
    "narrower matrix": (in_part("obsm", "peaks", lambda x: x[:, :1]), "obsm/peaks must be of one kind and width"),
    "sparse array": (in_part("obsm", "pca", sp.csr_matrix), "obsm/pca must be of one kind and width"),
    "no layer": (lambda adata: adata.layers.pop("raw"), "raw"),
    "no array": (lambda adata: adata.obsm.pop("pca"), "pca"),
    "numbers for categories": (
        in_part("obs", "kind", lambda kind: np.arange(len(kind))),
        "'kind'.* must be of one kind",
    ),
    "text for numbers": (in_part("obs", "n", lambda n: n.astype(str)), "'n'.* must be of one kind"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("odd", range(N_STORES))
def test_stores_that_do_not_fit_are_refused(name: str, odd: int):
    change, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as error:
        loader(stores(odd, change), ["kind", "n"])
    # The stores that are named are one of either.
    assert f"adatas[{odd}]" in str(error.value)


def test_a_column_of_two_kinds_is_left_out_unless_it_is_asked_for():
    adatas = stores(1, in_part("obs", "n", lambda n: n.astype(str)))
    with pytest.warns(UserWarning, match=r"left out: obs\['n'\] must be of one kind .*adatas\[0\], .* in adatas\[1\]"):
        ds = loader(adatas)
    assert list(next(iter(ds)).labels) == ["kind", "passed"]


@pytest.mark.parametrize("element", ["X", "layers/raw", "layers/dense"])
@pytest.mark.parametrize("odd", range(N_STORES))
def test_a_type_must_hold_what_every_store_has(element: str, odd: int):
    change = in_x(wide) if element == "X" else in_part("layers", element.removeprefix("layers/"), wide)
    adatas = stores(odd, change)
    with pytest.raises(InputError, match=rf"adatas\[{odd}\] {element}: dtype uint8 cannot hold all values of int32"):
        loader(adatas, dtype="uint8")
    ds = loader(adatas)
    with pytest.raises(InputError, match=rf"adatas\[{odd}\] {element}: dtype int16 cannot hold all values of int32"):
        next(ds.batches(Emit(dtype=np.dtype(np.int16))))
    # float32 is always to be had, unless a value is too large: those of every store are looked at.
    assert sum(len(batch.index) for batch in ds.batches(Emit(dtype=np.dtype(np.float32)))) == N_ROWS * N_STORES


@pytest.mark.parametrize("odd", range(N_STORES))
def test_integers_of_every_store_are_looked_at(odd: int):
    large = sp.csr_matrix(([2**24 + 1], ([0], [0])), shape=(N_ROWS, 3), dtype=np.int32)
    ds = loader(stores(odd, in_x(lambda x: x.astype(np.int32) + large)))
    with pytest.raises(InputError, match=r"must be below 2\*\*24 in size, got 16777[0-9]{3}"):
        list(ds.batches(Emit(dtype=np.dtype(np.float32))))


def test_integers_that_float64_does_not_hold():
    """No value is rounded where stores of 64-bit integers and of floats, or of integers of other signs, meet."""
    large = sp.csr_matrix(([2**53 + 1], ([0], [0])), shape=(N_ROWS, 3), dtype=np.int64)
    for other in (np.uint64, np.float32):
        adatas = [store(0), store(1)]
        adatas[0].X, adatas[1].X = adatas[0].X.astype(np.int64) + large, adatas[1].X.astype(other)
        with pytest.raises(InputError, match=r"become float64, integers must be below 2\*\*53 in size, got 9007199"):
            list(loader(adatas))
        assert sum(len(batch.index) for batch in loader(adatas, casting="same_kind")) == 2 * N_ROWS
    assert all(batch.data.data.dtype == np.int64 for batch in loader(adatas[:1]))
    with pytest.raises(InputError, match=r"below 2\*\*53"):
        list(loader(adatas[:1], dtype="float64"))


def test_integers_that_were_floats(tmp_path: Path):
    """Counts that were float32 are stored as integers, and float32 holds each of them."""
    adata = store(0)
    adata.X = sp.csr_matrix(([2**25], ([0], [0])), shape=(N_ROWS, 3), dtype=np.float32)
    collection = create_anndata_collection(adata, tmp_path / "store", obsm=[], shuffle=False, progress=False)
    assert collection.types["X"].stored == np.uint32
    (batch,) = Loader(batch_size=N_ROWS, shuffle=False).use_collection(collection).batches(Emit(dtype=np.dtype("f4")))
    assert batch.data.to_scipy()[0, 0] == 2**25
