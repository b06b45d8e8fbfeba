"""Is a state refused by every loader whose order, or data, differ in one thing alone?

1. Each setting, each argument of each sampler, each property of the data and of a split: changed alone, it is named.
2. Each key of a state's fingerprint: if it is gone, it is named.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from annbatch import InputError, Loader, create_anndata_collection, samplers
from annbatch.order.schedule import Settings
from annbatch.stores.collection import FORMAT, Collection
from annbatch.stores.manifest import FileEntry, StoreEntry

N = 24


def cells(first: int = 0, n: int = 12, n_vars: int = 3) -> ad.AnnData:
    rows = np.arange(first, first + n)
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical.from_codes(rows % 3, ["a", "b", "c"]),
            "plate": pd.Categorical.from_codes(rows // 3 % 2, ["p", "q"]),
            "well": pd.Categorical.from_codes(rows // 6 % 2, ["w", "v"]),
        },
        index=[f"cell{row}" for row in rows],
    )
    x = sp.csr_matrix(rows[:, None] % 2 + np.zeros(n_vars), dtype=np.float32)
    return ad.AnnData(X=x, obs=obs, var=pd.DataFrame(index=[f"g{c}" for c in range(n_vars)]))


def loader(sampler: Any = None, adatas: list[ad.AnnData] | None = None, **options: Any) -> Loader:
    asked: dict[str, Any] = {"batch_size": 4, "chunk_size": 2, "preload_nchunks": 6, "seed": 1, "threads": 1} | options
    ds = Loader(sampler=samplers.Shuffled() if sampler is None else sampler, **asked)
    return ds.add_anndatas([cells(0), cells(12)] if adatas is None else adatas, labels=["kind", "plate", "well"])


def refused(ds: Loader, state: dict[str, Any], *names: str) -> str:
    """Check that a state is refused for these keys of the fingerprint and for no other; give the message."""
    with pytest.raises(InputError, match="^state must belong to the same data and settings: ") as error:
        ds.load_state_dict(json.loads(json.dumps(state)))
    message = str(error.value)
    known = [*ds.state_dict()["fingerprint"], *state["fingerprint"]]
    assert {name for name in known if f": {name} is " in message or f"; {name} is " in message} == set(names), message
    return message


SETTINGS = {
    "sampler": samplers.Sequential(),
    "batch_size": 6,
    "chunk_size": 3,
    "preload_nchunks": 8,
    "seed": 2,
    "drop_last": True,
}


def test_each_setting():
    assert set(SETTINGS) == {field.name for field in fields(Settings)}
    state = loader().state_dict()
    loader().load_state_dict(state)
    for name, value in SETTINGS.items():
        refused(loader(**{name: value}), state, name)


WEIGHTS = np.arange(N) % 5
ARGUMENTS: dict[type, dict[str, tuple[Any, Any]]] = {
    samplers.Shuffled: {},
    samplers.Sequential: {},
    samplers.Weighted: {
        "weights": (WEIGHTS, np.where(np.arange(N) == 7, WEIGHTS + 1e-9, WEIGHTS)),
        "n_rows": (18, 17),
        "replace": (True, False),
    },
    samplers.ClassBalanced: {"by": ("kind", "other"), "weights": ({"a": 1}, {"a": 2}), "n_rows": (18, 17)},
    samplers.Stratified: {
        "by": ("kind", "other"),
        "quotas": ({"a": 1, "b": 3}, {"a": 3, "b": 1}),
        "n_batches": (4, 5),
    },
    samplers.Grouped: {
        "by": ("kind", "other"),
        "weights": ({"a": 1, "b": 2}, {"a": 1, "b": 3}),
        "n_rows": (8, 4),
        "replace": (False, True),
    },
    samplers.MatchedPairs: {"by": ("kind", "other"), "control": ("a", "b"), "within": (["plate"], ["well"])},
}
"""Each argument of each sampler, and another value of it."""
CHANGES = [(sampler, name) for sampler, arguments in ARGUMENTS.items() for name in arguments]


def test_no_sampler_and_no_argument_is_left_out():
    ours = [one for one in map(samplers.__dict__.get, samplers.__all__) if isinstance(one, type) and is_dataclass(one)]
    ours = [one for one in ours if hasattr(one, "bind") and hasattr(one, "describe")]
    assert set(ours) == set(ARGUMENTS)
    for sampler, arguments in ARGUMENTS.items():
        assert set(arguments) == {field.name for field in fields(sampler)}


@pytest.mark.parametrize(("sampler", "name"), CHANGES, ids=lambda value: getattr(value, "__name__", value))
def test_each_argument_of_a_sampler(sampler: Any, name: str):
    own = {argument: values[0] for argument, values in ARGUMENTS[sampler].items()}
    changed = sampler(**own | {name: ARGUMENTS[sampler][name][1]})
    before, after = sampler(**own).describe(), changed.describe()
    assert [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)] == [name]
    adatas = [cells(0), cells(12)]
    for adata in adatas:
        adata.obs["other"] = adata.obs["kind"]

    def opened(one: Any) -> Loader:
        return Loader(batch_size=4, sampler=one).add_anndatas(adatas)

    state = opened(sampler(**own)).state_dict()
    opened(sampler(**own)).load_state_dict(state)
    columns = ["classes"] if name in ("by", "within") else []
    assert f"'{name}': " in refused(opened(changed), state, "sampler", *columns)


def test_a_sampler_of_another_kind_with_the_same_arguments():
    state = loader(samplers.Grouped("kind")).state_dict()
    refused(loader(samplers.ClassBalanced("kind")), state, "sampler")


def other_elements() -> list[ad.AnnData]:
    adatas = [cells(0), cells(12)]
    adatas[1].X = sp.csr_matrix(np.ones((12, 3), np.float32))
    return adatas


def renamed(names: list[str]) -> list[ad.AnnData]:
    adatas = [cells(0), cells(12)]
    for adata in adatas:
        adata.var_names = names
    return adatas


def relabelled() -> list[ad.AnnData]:
    adatas = [cells(0), cells(12)]
    adatas[1].obs["kind"] = adatas[1].obs["kind"].cat.rename_categories({"a": "b", "b": "a"})
    return adatas


DATA: dict[str, tuple[Callable[[], list[ad.AnnData]], tuple[str, ...]]] = {
    "fewer rows": (lambda: [cells(0), cells(12, 11)], ("n_obs", "stores", "classes")),
    "one more gene": (lambda: [cells(0, 12, 4), cells(12, 12, 4)], ("n_vars", "stores", "var_names")),
    "rows in other stores": (lambda: [cells(0, 11), cells(11, 13)], ("stores",)),
    "a row without elements in another store": (lambda: [cells(0, 13), cells(13, 11)], ("stores",)),
    "one store": (lambda: [cells(0, 24)], ("stores",)),
    "other elements": (other_elements, ("stores",)),
    "one gene renamed": (lambda: renamed(["g0", "g1", "x"]), ("var_names",)),
    "two genes swapped": (lambda: renamed(["g0", "g2", "g1"]), ("var_names",)),
    "names cut elsewhere": (lambda: renamed(["g0g", "1", "g2"]), ("var_names",)),
    "other labels": (relabelled, ("classes",)),
}


@pytest.mark.parametrize("change", DATA)
def test_each_property_of_the_data(change: str):
    make, names = DATA[change]
    state = loader(samplers.Grouped("kind")).state_dict()
    loader(samplers.Grouped("kind")).load_state_dict(state)
    refused(loader(samplers.Grouped("kind"), make()), state, *names)


def test_rows_and_splits():
    ds = loader(rows=np.arange(4, 20))
    refused(loader(), ds.state_dict(), "rows")
    refused(loader(rows=np.arange(4, 21)), ds.state_dict(), "rows")
    # Which rows they are counts, and where their order does, that.
    loader(rows=np.arange(4, 20)[::-1]).load_state_dict(ds.state_dict())
    state = loader(samplers.Sequential(), rows=np.arange(4, 20)).state_dict()
    refused(loader(samplers.Sequential(), rows=np.arange(4, 20)[::-1]), state, "rows")

    parts: Any = {"train": ["a"], "test": ["b"], "rest": None}
    state = loader().split(parts, by="kind", seed=3)["train"].state_dict()
    loader().split(parts, by="kind", seed=3)["train"].load_state_dict(state)
    for other, names in [
        (loader().split(parts, by="kind", seed=3)["test"], ["rows", "split"]),
        (loader().split(parts | {"test": ["c"]}, by="kind", seed=3)["train"], ["split"]),
        (loader().split({"train": ["a"], "test": None}, by="kind", seed=3)["train"], ["split"]),
        (loader().split(parts, by="kind", seed=4)["train"], ["split"]),
        (loader(), ["rows", "split"]),
        (loader(rows=np.arange(0, N, 3)), ["split"]),
    ]:
        refused(other, state, *names)


def test_stratified_parts_and_folds():
    def stratified(by: str | None = "kind", seed: int = 3, name: str = "train") -> Loader:
        return loader().split({"train": 0.5, "test": 0.5}, stratify=by, seed=seed)[name]

    def fold(number: int = 0, n_folds: int = 3, name: str = "train", **how: Any) -> Loader:
        return loader().folds(n_folds, **how)[number][name]

    for make, changes in [
        (stratified, [{"by": None}, {"by": "plate"}, {"seed": 4}, {"name": "test"}]),
        (fold, [{"number": 1}, {"n_folds": 4}, {"name": "test"}, {"seed": 1}, {"by": "kind"}, {"stratify": "kind"}]),
    ]:
        state = make().state_dict()
        make().load_state_dict(state)
        for change in changes:
            other = make(**change)
            # Two ways to split may happen to give the same rows; they are told apart all the same.
            same = np.array_equal(other.rows, make().rows)
            refused(other, state, *(["split"] if same else ["rows", "split"]))


@pytest.fixture(scope="module")
def collections(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two collections of the same cells and genes; a value of the second one is another."""
    folder, paths = tmp_path_factory.mktemp("collections"), []
    for number in range(2):
        adata = cells()
        adata.X.data[-1] += number
        paths.append(create_anndata_collection(adata, folder / f"{number}", progress=False).path)
    return paths


def test_the_identity_of_a_collection(collections: list[Path], tmp_path: Path):
    def opened(*paths: Path) -> Loader:
        ds = Loader(batch_size=4)
        for path in paths:
            ds.use_collection(path, labels=[])
        return ds

    state = opened(collections[0]).state_dict()
    collections[0].rename(tmp_path / "moved")
    try:
        opened(tmp_path / "moved").load_state_dict(state)
    finally:
        (tmp_path / "moved").rename(collections[0])
    refused(opened(collections[1]), state, "collections")
    state = opened(*collections).state_dict()
    refused(opened(*collections[::-1]), state, "collections")


ENTRY = StoreEntry("chunk_0.zarr", 3, 4, {"zarr.json": FileEntry(10, 7)})


@pytest.mark.parametrize(
    "change",
    [
        {"n_vars": 3},
        {"var_digest": "1" * 64},
        {"stores": (ENTRY, ENTRY)},
        {"stores": (replace(ENTRY, name="chunk_1.zarr"),)},
        {"stores": (replace(ENTRY, n_obs=4),)},
        {"stores": (replace(ENTRY, nnz=5),)},
        {"stores": (replace(ENTRY, files={}),)},
        {"stores": (replace(ENTRY, files={"zarr2.json": FileEntry(10, 7)}),)},
        {"stores": (replace(ENTRY, files={"zarr.json": FileEntry(11, 7)}),)},
        {"stores": (replace(ENTRY, files={"zarr.json": FileEntry(10, 8)}),)},
    ],
    ids=str,
)
def test_what_tells_collections_apart(change: dict[str, Any]):
    one = Collection(Path("here"), FORMAT, 3, 2, "0" * 64, (ENTRY,), {}, (), True, 0, "test")
    assert replace(one, **change).digest() != one.digest()
    assert replace(one, path=Path("there"), software="another").digest() == one.digest()


def paths_of(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys of a tree of dicts, as paths; what is None says nothing."""
    for key, value in tree.items():
        if value is not None:
            yield (*path, key)
        if isinstance(value, dict):
            yield from paths_of(value, (*path, key))


def test_a_key_that_is_gone():
    sampler = samplers.ClassBalanced("plate", {"p": 1.0, "q": 2.0}, n_rows=9)
    ds = loader(sampler, drop_last=2).split({"train": ["a"], "test": ["b"]}, by="kind", seed=3)["train"]
    state = ds.state_dict()
    found = list(paths_of(state["fingerprint"]))
    assert len(found) > 20
    for path in found:
        less = copy.deepcopy(state)
        inner = less["fingerprint"]
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        refused(ds, less, path[0])
        # A key that this loader does not know is one of another version.
        inner[f"{path[-1]} of another version"] = 1
        with pytest.raises(InputError, match="same data and settings"):
            ds.load_state_dict(less)
    ds.load_state_dict(state)
