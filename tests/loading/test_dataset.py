"""What does a dataset say of its stores, and what does a loader make of it? Small stores in memory."""

from __future__ import annotations

import logging
import os
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import annbatch.write
from annbatch import Emit, InputError, Loader, StoreError
from annbatch import dataset as dataset_module
from annbatch.dataset import Dataset
from annbatch.order.row_selection import Runs
from annbatch.samplers import Grouped
from annbatch.stores.anndata_store import Store, Wanted, open_anndata
from annbatch.stores.gene_selection import Genes
from annbatch.stores.obs_access import SRC_PATH
from annbatch.stores.store_genes import StoreGenes
from annbatch.stores.united_columns import Merged


def cells(n: int = 6, first: int = 0, genes: tuple[str, ...] = ("a", "b", "c"), **columns: Any) -> ad.AnnData:
    rows = np.arange(first, first + n)
    obs = pd.DataFrame(
        {"kind": pd.Categorical.from_codes(rows % 2, ["x", "y"]), "n": rows} | columns,
        index=[f"cell{row}" for row in rows],
    )
    x = sp.csr_matrix(rows[:, None] + np.arange(len(genes)), dtype=np.float32)
    return ad.AnnData(x, obs, pd.DataFrame({"length": range(len(genes))}, index=list(genes)))


def loader(*adatas: ad.AnnData, labels: Any = None, **options: Any) -> Loader:
    return Loader(batch_size=2, threads=1, **options).add_anndatas(list(adatas), labels)


def dataset(*adatas: ad.AnnData, **options: Any) -> Dataset:
    return loader(*adatas, **options)._opened()


# --- the dataset ------------------------------------------------------------------------------------------------------


def test_stores_are_one_after_the_other():
    found = dataset(cells(6), cells(4, 6))
    assert (found.n_obs, found.n_vars, found.store_rows) == (10, 3, (6, 4))
    assert found.var["length"].tolist() == [0, 1, 2]
    assert found.mask is None
    assert found.chosen_names == ["a", "b", "c"]
    assert list(found.parts) == [""]
    some = dataset(cells(6), var_names=["c", "a"])
    assert (some.n_vars, some.chosen_names) == (2, ["c", "a"])
    assert some.mask is not None
    assert some.mask.tolist() == [True, False, True]
    assert dataset(cells(6), var_names=["c", "z"], absent="zero").chosen_names == ["c"]


def test_stores_without_rows_are_refused():
    with pytest.raises(InputError, match=r"must hold at least one row, got none in \['adatas\[0\]', 'adatas\[1\]'\]"):
        loader(cells(0), cells(0))
    assert dataset(cells(0), cells(1)).n_obs == 1


def test_elements_of_another_width_are_refused():
    adatas = [cells(2), cells(2)]
    for adata, width in zip(adatas, (2, 3), strict=True):
        adata.obsm["pca"] = np.zeros((2, width), np.float32)
    message = (
        r"obsm/pca must be of one kind and width in all stores, got a DenseMatrix of 2 columns in adatas\[0\] and a "
        r"DenseMatrix of 3 in adatas\[1\]$"
    )
    with pytest.raises(InputError, match=message):
        loader(*adatas, obsm=["pca"])


def test_classes_are_read_once():
    found = dataset(cells(6), cells(4, 6))
    classes = found.classes("kind")
    assert classes.codes.tolist() == [0, 1] * 5
    assert classes.codes.dtype == np.int8
    assert found.classes("kind") is classes
    assert found.classes("n").categories.tolist() == list(range(10))
    assert found.classes(["kind", "n"]).codes.tolist() == [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]


def test_rows_are_divided_by_one_column():
    found = dataset(cells(6))
    with pytest.raises(InputError, match="only one of by and stratify may be given, got by='kind' and stratify='n'"):
        found.divisible(None, "kind", "n", is_ordered=False)
    whole = found.divisible(None, "kind", None, is_ordered=False)
    assert whole.rows.tolist() == list(range(6))
    assert whole.by is not None
    assert whole.by.categories.tolist() == ["x", "y"]
    assert whole.strata is None
    assert found.divisible(None, None, "n", is_ordered=False).strata is found.classes("n")
    both = found.divisible(None, ["kind", "n"], None, is_ordered=False).by
    assert both is not None
    assert both.categories.tolist() == [("x", 0), ("x", 2), ("x", 4), ("y", 1), ("y", 3), ("y", 5)]
    with pytest.raises(InputError, match="by must be the name of an obs column, or a list of distinct names"):
        found.divisible(None, ["kind", "kind"], None, is_ordered=False)


def test_some_rows_are_divided():
    found = dataset(cells(6))
    some = found.divisible(Runs.of([4, 1, 2], 6, ordered=True), "n", None, is_ordered=True)
    assert some.rows.tolist() == [1, 2, 4]
    assert some.order is not None
    assert some.order.tolist() == [2, 0, 1]
    assert (some.n_stored, some.is_ordered) == (6, True)
    assert some.by is not None
    assert some.by.codes.tolist() == [1, 2, 4]


def mixed(*adatas: ad.AnnData) -> dict[str, list[int]]:
    found = dataset(*adatas)
    rows = np.arange(0, found.n_obs, 49)
    return {name: codes(rows).tolist() for name, codes in found.mixed_columns().items()}


def test_what_tells_how_well_rows_are_mixed():
    assert mixed(cells(199)) == {}
    assert mixed(cells(200)) == {"obs['kind']": [0, 1, 0, 1, 0]}
    zones = pd.Categorical(["u", "v"] * 100)
    assert list(mixed(cells(200, zone=zones))) == ["obs['kind']"]
    assert mixed(cells(100), cells(100, 100)) == {"source file": [0, 0, 0, 1, 1], "obs['kind']": [0, 1, 0, 1, 0]}
    paths = pd.Categorical(["p", "q"] * 100)
    both = {"source file": [0, 1, 0, 1, 0], "obs['kind']": [0, 1, 0, 1, 0]}
    assert mixed(cells(200, **{SRC_PATH: paths})) == both
    only_one = [cells(100, **{SRC_PATH: paths[:100]}), cells(100, 100)]
    with pytest.warns(UserWarning, match="obs columns are missing"):
        assert mixed(*only_one)["source file"] == [0, 0, 0, 1, 1]


def test_what_was_read_is_kept_only_for_the_same_stores():
    ds = loader(cells(6), names=True, sampler=Grouped("kind"))
    before = ds._opened()
    before.classes("kind")
    ds.add_anndatas([cells(4, 6)])
    after = ds._opened()
    assert after.classes("kind").codes.tolist() == [0, 1] * 5
    assert before.names is not None
    assert after.names is not None
    assert after.names[0] is before.names[0]
    assert len(after.names) == 2
    assert after.stores[0] is before.stores[0]


def test_where_chunks_are_decoded_is_logged(caplog: pytest.LogCaptureFixture):
    found = dataset(cells(6))
    with caplog.at_level(logging.INFO, "annbatch"):
        found.report_decoding("cpu")
        found.report_decoding("auto")
    assert caplog.messages[0] == "chunks are decoded on the CPU: decode is 'cpu'"
    assert caplog.messages[1] == f"chunks are decoded on the CPU: {found.undecodable()}"


def test_categories_of_any_number_keep_their_codes():
    kinds = [f"kind {i:03}" for i in range(129)]
    classes = dataset(cells(129, kind=pd.Categorical(kinds, kinds))).classes("kind")
    assert classes.codes.tolist() == list(range(129))


def test_columns_are_opened_if_batches_do_not_carry_them():
    found = dataset(cells(6), labels=["kind"])
    assert found.classes("n").codes.tolist() == list(range(6))
    found.classes("kind")
    assert found.opened["kind"] is found.columns[0]


def test_columns_are_carried_as_classes():
    found = dataset(cells(6), cells(4, 6), labels=["kind"], classes=["n", "kind"])
    carried = {column.name: column for column in found.carried}
    assert list(carried) == ["kind", "n"]
    assert carried["n"].categories is not None
    assert carried["n"].categories.tolist() == list(range(10))
    assert carried["kind"].categories is not None
    assert carried["kind"].categories.tolist() == ["x", "y"]
    assert found.obs(["n"], None, in_order=False)["n"].cat.codes.tolist() == list(range(10))
    with pytest.raises(InputError, match=r"obs\['score'\] must hold categories, text, integers or booleans"):
        loader(cells(6, score=np.zeros(6)), classes=["score"])


def test_a_column_has_a_value_for_each_row_of_a_store_that_lacks_it():
    with pytest.warns(UserWarning, match="'more' is not in adatas"):
        found = dataset(cells(2), cells(4, 2, more=range(4)))
    for column in found.columns:
        assert [len(part.values) for part in column.parts] == [2, 4]


def test_columns_of_two_kinds_are_left_out_or_refused():
    adatas = [cells(2, more=[1, 2]), cells(2, 2, more=["a", "b"])]
    with pytest.warns(UserWarning, match=r"left out: obs\['more'\] must be of one kind"):
        assert loader(*adatas).label_names == ("kind", "n")
    with pytest.raises(InputError, match=r"obs\['more'\] must be of one kind"):
        loader(*adatas, labels=["more"])


def test_types_of_elements():
    adatas = [cells(2), cells(2)]
    for adata, dtype in zip(adatas, ("i1", "i4"), strict=True):
        adata.X, adata.obsm["pca"] = adata.X.astype(dtype), np.zeros((2, 2), dtype)
    assert dataset(*adatas, obsm=["pca"]).dtypes == {"X": np.int32, "obsm/pca": np.int32}
    assert dataset(*adatas, obsm=["pca"], dtype="i8").dtypes == {"X": np.int64, "obsm/pca": np.int32}
    with pytest.raises(InputError, match=r"adatas\[1\] X: dtype int16 cannot hold all values of int32"):
        loader(*adatas, dtype="i2")


# --- stores of which something is known -------------------------------------------------------------------------------


def opened(adata: ad.AnnData, number: int = 0) -> Store:
    return open_anndata(adata, Wanted(None, ("X",)), f"adatas[{number}]")


def of(stores: list[Store], before: Dataset | None = None, genes: Genes | None = None, index: Any = None) -> Dataset:
    return Dataset.of(stores, None, "safe", genes or Genes(None), before=before, index=index)


def test_what_is_known_of_stores_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch):
    stores, looked_at, look = [opened(cells(6)), opened(cells(4, 6), 1)], [], StoreGenes.of

    def counted(own: Any, lists: Any = None) -> StoreGenes:
        looked_at.append([name for name, _ in own])
        return look(own, lists)

    before, both = of(stores[:1]), of(stores)
    before.classes("n")
    monkeypatch.setattr(StoreGenes, "of", counted)
    again = of(stores[:1], before)
    assert again.read is before.read
    assert again.opened is before.opened
    more = of(stores, before)
    assert more.chosen_names == ["a", "b", "c"]
    assert more.classes("n").codes.tolist() == list(range(10))
    assert looked_at == []
    for others, known in ((stores[::-1], before), (stores[:1], both), ([opened(cells(6))], before)):
        assert of(others, known).classes("n").categories.tolist() == list(range(sum(one.shape[0] for one in others)))
        assert looked_at.pop() == [one.name for one in others]


def test_stores_that_are_added_may_have_other_genes():
    stores = [opened(cells(6)), opened(cells(4, 6, genes=("c", "d")), 1)]
    outer = Genes(None, join="outer")
    assert of(stores, of(stores[:1], genes=outer), outer).chosen_names == ["a", "b", "c", "d"]
    with pytest.raises(InputError, match="must have the same genes as"):
        of(stores, of(stores[:1]))


def test_an_index_is_asked_for_the_genes_of_all_stores():
    stores, asked = [opened(cells(6)), opened(cells(4, 6), 1)], []
    of(stores, index=SimpleNamespace(lists=asked.append))
    assert asked == [[store.var for store in stores]]


# --- what stores do not share -----------------------------------------------------------------------------------------


def test_columns_of_stores_go_where_the_genes_do():
    """A state knows it, unless all stores have the same genes: states of earlier versions remain valid."""
    one, outer = opened(cells(6)), Genes(None, join="outer")
    found = [
        of([one, opened(cells(4, 6, genes=genes), 1)], genes=outer).fingerprint()
        for genes in (("a", "b", "c"), ("c", "b", "a"), ("b", "a", "c"))
    ]
    assert ["genes" in each for each in found] == [False, True, True]
    assert found[1].pop("genes") != found[2].pop("genes")
    assert found[0] == found[1] == found[2]


def joint(second: Dataset | None = None) -> Dataset:
    """RNA and proteins of ten cells in two stores."""
    adatas = [cells(6), cells(4, 6)]
    rows = [replace(opened(adata, i), matrices={}, shape=(adata.n_obs, 0)) for i, adata in enumerate(adatas)]
    proteins = of([opened(cells(len(adata), genes=("p", "q")), i) for i, adata in enumerate(adatas)])
    rna = of([opened(adata, i) for i, adata in enumerate(adatas)])
    return Dataset.joint(rows, {"rna": rna, "adt": second or proteins}, ["n"], ["collection"])


def test_modalities_of_the_same_rows():
    found = joint()
    assert (found.n_obs, found.store_rows) == (10, (6, 4))
    assert [column.name for column in found.columns] == ["kind", "n"]
    assert (found.n_vars, found.mask, len(found.var)) == (0, None, 0)
    assert {name: part.chosen_names for name, part in found.parts.items()} == {
        "rna": ["a", "b", "c"],
        "adt": ["p", "q"],
    }
    fingerprint = found.fingerprint()
    assert (fingerprint["n_vars"], fingerprint["collections"]) == (5, ["collection"])
    assert "genes" not in fingerprint
    with pytest.raises(InputError, match=r"must hold at least one row, got none in \['adatas\[0\]'\]"):
        Dataset.joint([opened(cells(0))], {})


def test_genes_that_a_store_lacks_are_told_once():
    def lacking(gene: str) -> Dataset:
        stores = [opened(cells(6)), opened(cells(4, 6, genes=("a", "b")), 1)]
        return of(stores, genes=Genes(("a", gene), absent="zero"))

    found = lacking("c")
    (text,) = found.differences(None)
    assert "'c' is not in adatas[1]" in text
    assert found.differences(found) == []
    both = joint(found)
    assert both.differences(None) == [text]
    assert both.differences(both) == []
    assert both.differences(joint()) == [text]
    assert joint().differences(None) == []


# --- how they are read ------------------------------------------------------------------------------------------------


def test_what_is_not_read_directly_is_named(caplog: pytest.LogCaptureFixture):
    def matrix(slow: str | None, *, in_file: bool = False) -> Any:
        return SimpleNamespace(slow=slow, file=Path("file") if in_file else None)

    matrices = {
        "X": matrix("odd codec"),
        "layers/direct": matrix(None),
        "layers/file": matrix(None, in_file=True),
        "layers/odd": matrix("odd codec"),
        "obsm/filter": matrix("odd filter", in_file=True),
        "obsm/codec": matrix("odd codec", in_file=True),
    }
    store: Any = SimpleNamespace(name="store", matrices=matrices)
    found = Dataset((store,), (), {}, Merged((), {}, {}), None, ())
    of_files = [
        "h5py, not the direct path, reads store obsm/filter: odd filter",
        "h5py, not the direct path, reads store obsm/codec: odd codec",
    ]
    of_all = ["zarr, not the direct path, reads store X and 1 more: odd codec", *of_files]
    assert found.slow_paths() == of_all
    assert found.slow_paths(of_files=True) == of_files
    with caplog.at_level(logging.INFO, "annbatch"):
        found.report_paths()
    assert caplog.messages == of_all


def test_what_a_device_cannot_decode(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    plain, other_genes = of([opened(cells(6))]), cells(4, 6, genes=("c", "b", "a"))
    joined = of([opened(cells(6)), opened(other_genes, 1)], genes=Genes(None, join="outer"))
    dense = cells(6)
    dense.X = dense.X.toarray()
    assert of([opened(dense)]).undecodable() == "there is no sparse matrix"

    def decided(bad: str | None = None, nvcomp: str | None = "unneeded") -> None:
        """Let a device refuse what is of proteins, and nvCOMP, if it is needed, be missing."""
        monkeypatch.setattr(
            dataset_module,
            "why_not",
            lambda matrices: bad if matrices and matrices[0][1].shape[1] == 2 else None if matrices else "nothing",
        )
        monkeypatch.setattr(dataset_module, "needs_nvcomp", lambda matrices: nvcomp != "unneeded")
        monkeypatch.setattr(dataset_module, "missing", lambda: nvcomp)

    decided()
    assert (plain.undecodable(), joint().undecodable()) == (None, None)
    assert joined.undecodable() == "the stores have different genes, which are joined on the CPU"
    with caplog.at_level(logging.INFO, "annbatch"):
        plain.report_decoding("auto")
    assert caplog.messages == ["chunks are decoded on the device"]
    decided("odd proteins")
    assert (plain.undecodable(), joint().undecodable()) == (None, "odd proteins")
    assert joint(joined).undecodable() == "the stores have different genes, which are joined on the CPU"
    decided("odd proteins", "nvCOMP is missing")
    assert (plain.undecodable(), joint().undecodable()) == ("nvCOMP is missing", "odd proteins")
    decided(nvcomp=None)
    assert plain.undecodable() is None


def test_files_that_changed_are_named(tmp_path: Path):
    path = tmp_path / "a.h5ad"
    cells(3).write_h5ad(path)
    found = Loader(batch_size=2, threads=1).use_h5ad(path)._opened()
    found.check_files()
    os.utime(path, (0, 0))
    with pytest.raises(StoreError, match=r"a\.h5ad: has changed since it was opened"):
        found.check_files()


# --- states -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def h5ads(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder, paths = tmp_path_factory.mktemp("h5ads"), []
    for i in range(2):
        paths.append(folder / f"{i}.h5ad")
        cells(3, 3 * i).write_h5ad(paths[-1])
    return paths


def test_a_state_is_of_the_same_files(h5ads: list[Any]):
    found = Loader(batch_size=2, threads=1).use_h5ad(h5ads)._opened()
    own = found.fingerprint()["files"]
    assert len(own) == 2
    for nothing in (None, {}, {"fingerprint": {}}, {"fingerprint": {"files": "no"}}, {"fingerprint": None}):
        found.check_state_files(nothing, own)
    found.check_state_files({"fingerprint": {"files": own}}, own)
    with pytest.raises(InputError, match="state must belong to the same files: it belongs to 1, the loader has 2"):
        found.check_state_files({"fingerprint": {"files": own[:1]}}, own)
    with pytest.raises(InputError, match=r"1\.h5ad: must be the file with which the state was saved, or a copy"):
        found.check_state_files({"fingerprint": {"files": [own[0], own[0]]}}, own)
    dataset(cells(2)).check_state_files({"fingerprint": {"files": own}}, [])


# --- the loader -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "U3"}, TypeError, "dtype must be boolean, integer or floating, got <U3"),
        ({"dtype": np.complex64}, TypeError, "dtype must be boolean, integer or floating, got complex64"),
        ({"casting": "odd"}, ValueError, "casting must be"),
        ({"decode": "odd"}, ValueError, "decode must be"),
        ({"decode": "gpu"}, InputError, "decode must be 'auto' if device is 'cpu', got 'gpu'"),
        ({"decode": "cpu"}, InputError, "decode must be 'auto' if device is 'cpu', got 'cpu'"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        Loader(batch_size=2, **options)


def test_before_there_are_stores():
    ds = Loader(batch_size=2)
    assert ds.emitted(Emit()) == {}
    assert "stores=none yet" in repr(ds)
    assert ds.decode == "cpu"
    with pytest.raises(InputError, match="a Loader needs stores before it is used"):
        _ = ds.n_vars
    assert pickle.loads(pickle.dumps(ds)).batch_size == 2


def test_what_a_loader_has():
    ds = loader(cells(6, flag=[True, False] * 3), cells(4, 6, flag=[True, False] * 2))
    assert (ds.n_vars, ds.var.index.tolist()) == (3, ["a", "b", "c"])
    assert ds.label_names == ("kind", "n", "flag")
    assert {name: list(found) for name, found in ds.categories.items()} == {"kind": ["x", "y"]}
    assert ds.mod == {}
    assert not ds.has_function
    assert list(ds.emitted(Emit())) == ["X"]
    text = repr(ds)
    for fact in ("n_vars=3", "stores=2", "labels=[kind (2 categories), n, flag (2 categories)]"):
        assert fact in text
    assert "layers" not in text


@pytest.mark.parametrize(
    ("rows", "shuffle", "expected"),
    [
        (None, True, [0, 1, 2, 3, 4, 5]),
        ([4, 1, 3], True, [1, 3, 4]),
        ([4, 1, 3], False, [4, 1, 3]),
        (np.array([True, False] * 3), False, [0, 2, 4]),
    ],
    ids=["all", "a set", "in order", "mask"],
)
def test_rows_of_a_loader(rows: Any, shuffle: bool, expected: list[int]):
    ds = loader(cells(6), rows=rows, shuffle=shuffle)
    assert ds.rows.tolist() == expected
    assert ds.obs(["n"])["n"].tolist() == expected
    assert ds.obs([]).shape == (len(expected), 0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `create_anndata_collection` is asked for, which then does nothing."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(
        annbatch.write, "create_anndata_collection", lambda inputs, path, **options: found.append(options)
    )
    return found


def test_a_collection_of_a_loader_has_what_batches_have(asked: list[dict[str, Any]]):
    adata = cells(6)
    adata.layers["dense"] = adata.X.toarray()
    adata.layers["sparse"] = adata.X
    adata.obsm["pca"] = np.zeros((6, 2), np.float32)
    loader(adata).write_collection("path")
    assert asked.pop() == {"join": "same", "layers": (), "obsm": (), "dense": []}
    loader(adata, labels=["n"], layers=["dense", "sparse"], obsm=["pca"]).write_collection("path", codec="packed")
    assert asked.pop() == {
        "join": "same",
        "layers": ("dense", "sparse"),
        "obsm": ("pca",),
        "obs_columns": ["n"],
        "dense": ["layers/dense"],
        "codec": "packed",
    }
    loader(adata, var_names=["c", "a"]).write_collection("path", dense=["X"])
    found = asked.pop()
    assert (found["join"], found["var_names"], found["dense"]) == ("outer", ["c", "a"], ["X"])
    with pytest.raises(InputError, match="write_collection writes all rows, and this loader has only some"):
        loader(adata, rows=[1, 2]).write_collection("path")


def test_functions_that_select_genes_are_not_pickled():
    ds = loader(cells(6), var_names=lambda var: var["length"] != 1)
    again = pickle.loads(pickle.dumps(ds))
    assert again.var_names.tolist() == [True, False, True]
    assert callable(ds.var_names)
    assert again.n_vars == 2
    named = loader(cells(6), var_names=["b"])
    assert list(pickle.loads(pickle.dumps(named)).var_names) == ["b"]


def test_what_stores_do_not_share_is_said_once():
    with pytest.warns(UserWarning, match="'more' is not in adatas") as caught:
        ds = loader(cells(2), cells(2, 2, more=[1, 2]))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    ds.add_anndatas([cells(2, 4, more=[1, 2])])


def test_a_sampler_needs_its_columns():
    with pytest.raises(InputError, match="columns of the sampler must be obs columns, got 'none'"):
        loader(cells(2), sampler=Grouped("none"))


def test_a_cache_has_a_folder_for_what_is_known_of_files(tmp_path: Any):
    ds = Loader(batch_size=2, cache_dir=tmp_path, cache_limit="1MB")
    assert ds.cache_limit == 10**6
    assert ds.cache_dir == tmp_path


def test_where_chunks_are_decoded():
    ds = Loader(batch_size=2)
    ds.device = "cuda:0"
    assert ds.decode == "auto"
    ds.add_anndatas([cells(6)])
    # Nothing of what is in memory can be decoded there.
    assert ds.decode == "cpu"
    ds._decode = "gpu"
    assert ds.decode == "gpu"


@pytest.mark.parametrize(("shuffle", "expected"), [(True, [1, 4]), (False, [4, 1])])
def test_rows_of_a_part_keep_their_order_where_it_counts(shuffle: bool, expected: list[int]):
    ds = loader(cells(6), shuffle=shuffle)
    ds._rows = Runs.of([4, 1], 6, ordered=True)
    assert ds.rows.tolist() == expected
