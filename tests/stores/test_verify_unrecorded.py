"""Does `verify` find damage in stores of which no checksums are recorded, as those of other programs are?"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from annbatch import verify
from annbatch.errors import CorruptStoreError, StoreError
from annbatch.stores.collection import Collection
from annbatch.stores.preshuffled import PRESHUFFLED
from annbatch.write import create_anndata_collection
from annbatch.write.inputs.matrix_rows import Matrix
from datagen import awkward_obs
from modal_data import CUT, PROTEINS, samples

N, WIDTH = 8, 5
CUBE = np.zeros((N, 2, 2))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """X and a layer are sparse, another layer is dense, obs has columns of each kind; each row has several elements."""
    x = np.arange(1, N * WIDTH + 1, dtype=np.float32).reshape(N, WIDTH)
    x[:, 2] = 0
    layers = {"raw": sp.csr_matrix(x), "dense": x}
    obs = awkward_obs(range(N))
    adata = ad.AnnData(sp.csr_matrix(x), obs, layers=layers, obsm={"pca": x[:, :2]})
    path = tmp_path_factory.mktemp("whole") / "store"
    found = create_anndata_collection(adata, path, progress=False, dense=["layers/dense"])
    return replace(found, stores=tuple(replace(store, files={}) for store in found.stores))


@pytest.fixture
def collection(whole: Collection, tmp_path: Path) -> Collection:
    """A copy to damage."""
    return replace(whole, path=Path(shutil.copytree(whole.directory, tmp_path / "store")))


def check(collection: Collection) -> list[int]:
    reported: list[int] = []
    for store in collection.stores:
        verify.verify_store(collection, store, reported.append)
    return reported


@pytest.mark.parametrize("block", [1, 9, 2**22])
def test_what_is_whole(collection: Collection, block: int, monkeypatch: pytest.MonkeyPatch):
    """Rows of X are reported, once, whatever is read at a time."""
    monkeypatch.setattr(verify, "_BLOCK_ELEMENTS", block)
    reported = check(collection)
    assert sum(reported) == N
    assert len(reported) == {1: 8, 9: 4, 2**22: 1}[block]


def edit(array: Any, at: Any, values: Any) -> None:
    array[at] = values


def shorten(root: zarr.Group, path: str, n: int = 1) -> None:
    """Write an array again without its last ``n``."""
    old: Any = root[path]
    kept, attributes = old[:][:-n], dict(old.attrs)
    del root[path]
    root.create_array(path, data=kept, attributes=attributes)


def swap_columns(path: str, row: int) -> Callable[[Any], None]:
    def damage(root: Any) -> None:
        first = int(root[f"{path}/indptr"][row])
        found = root[f"{path}/indices"][first : first + 2]
        root[f"{path}/indices"][first : first + 2] = found[::-1]

    return damage


def resize(path: str, shape: list[int]) -> Callable[[Any], None]:
    return lambda root: root[path].attrs.update({"shape": shape})


MATRICES: dict[str, tuple[Callable[[Any], None], str]] = {}
for _path in ("X", "layers/raw"):
    for _row in (0, 3, N - 1):
        MATRICES[f"columns of row {_row} of {_path}"] = (
            swap_columns(_path, _row),
            rf"{_path}: column numbers must ascend within a row and be in \[0, {WIDTH}\), "
            rf"row {_row} has \[1, 0, 3, 4\]$",
        )
    MATRICES |= {
        f"a column twice in {_path}": (
            lambda root, path=_path: edit(root[f"{path}/indices"], 1, root[f"{path}/indices"][0]),
            f"{_path}: column numbers must ascend",
        ),
        f"a column beyond the last of {_path}": (
            lambda root, path=_path: edit(root[f"{path}/indices"], -1, WIDTH),
            f"{_path}: column numbers must ascend",
        ),
        f"a start that falls in {_path}": (
            lambda root, path=_path: edit(root[f"{path}/indptr"], 2, 0),
            f"{_path}: indptr must start at 0 and never fall",
        ),
        f"a start that is not zero in {_path}": (
            lambda root, path=_path: edit(root[f"{path}/indptr"], 0, 1),
            f"{_path}: indptr must start at 0",
        ),
        f"an end before the last element of {_path}": (
            lambda root, path=_path: edit(root[f"{path}/indptr"], N, 4 * N - 1),
            f"{_path}: data and indices must have",
        ),
        f"data that are short in {_path}": (
            lambda root, path=_path: shorten(root, f"{path}/data"),
            f"{_path}: (data and indices )?must have",
        ),
        f"indices that are short in {_path}": (
            lambda root, path=_path: shorten(root, f"{path}/indices"),
            f"{_path}: data and indices must have",
        ),
        f"fewer rows in {_path}": (resize(_path, [N - 1, WIDTH]), f"{_path}: must have the shape"),
        f"more columns in {_path}": (resize(_path, [N, WIDTH + 1]), f"{_path}: must have the shape"),
    }
MATRICES |= {
    "fewer rows in a dense layer": (lambda root: shorten(root, "layers/dense"), "layers/dense: must have the shape"),
    "no layer": (lambda root: remove(root, "layers/raw"), "must have the matrices of the manifest, .*'layers/raw'"),
    "fewer obs names": (
        lambda root: shorten(root, "obs/_index"),
        f"obs: must have the {N} rows of the manifest, got 7",
    ),
    "more obs names": (
        lambda root: root["obs/_index"].resize((N + 1,)),
        f"obs: must have the {N} rows of the manifest, got 9",
    ),
}


def remove(root: Any, path: str) -> None:
    del root[path]


def overwrite(path: str) -> Callable[[Any], None]:
    """Write something else in place of the only chunk of an array."""

    def damage(root: Any) -> None:
        (file,) = (one for one in (Path(root.store.root) / path).rglob("*") if one.is_file() and one.suffix != ".json")
        file.write_bytes(b"no")

    return damage


def relist(columns: Callable[[list[str]], list[str]]) -> Callable[[Any], None]:
    return lambda root: root["obs"].attrs.update({"column-order": columns(list(root["obs"].attrs["column-order"]))})


TABLES: dict[str, tuple[Callable[[Any], None], str]] = {
    "a code without a category": (
        lambda root: edit(root["obs/stage/codes"], 2, 3),
        r"obs\['stage'\]: codes must lie in \[-1, 3\), got 3",
    ),
    "a code below -1": (lambda root: edit(root["obs/cell_type/codes"], 0, -2), r"obs\['cell_type'\]: codes must lie"),
    "fewer categories": (lambda root: shorten(root, "obs/stage/categories"), r"obs\['stage'\]: codes must lie"),
    "a category twice": (
        lambda root: edit(root["obs/stage/categories"], 0, "mid"),
        r"obs\['stage'\]: cannot be read: .*unique",
    ),
    "fewer values of a mask": (lambda root: shorten(root, "obs/age/mask"), r"obs\['age'\]: must have n_obs = 8"),
    "a column that is not there": (lambda root: remove(root, "obs/score"), r"obs\['score'\]: cannot be read"),
    "a column that is not listed": (
        relist(lambda columns: [name for name in columns if name != "score"]),
        "obs: must have the columns of the manifest, lacks .*score",
    ),
    "a column of another frame": (
        relist(lambda columns: ["nowhere" if name == "score" else name for name in columns]),
        "obs: must have the columns of the manifest, lacks .*score",
    ),
    "names in no order": (relist(lambda columns: [*columns, "nowhere"]), r"obs\['nowhere'\]: cannot be read"),
    "fewer rows of obsm": (lambda root: shorten(root, "obsm/pca"), "obsm/pca: must have 8 rows, got 7"),
    "another encoding": (
        lambda root: root["obs/score"].attrs.update({"encoding-type": "of the future"}),
        r"obs\['score'\]: encoding 'of the future' cannot be read",
    ),
    "fewer genes": (
        lambda root: shorten(root, "var/_index"),
        f"var: must have the {WIDTH} genes of the manifest, got 4",
    ),
    "genes that are swapped": (
        lambda root: edit(root["var/_index"], slice(0, 2), np.array(["1", "0"], object)),
        "var: must have the names of the manifest in their order",
    ),
}
for _name in ("cell_type/codes", "n_counts", "score", "doublet", "age/values", "treated/mask"):
    TABLES[f"fewer values in {_name}"] = (
        lambda root, name=_name: shorten(root, f"obs/{name}"),
        rf"obs\['{_name.partition('/')[0]}'\]: must have n_obs = 8 values, got 7",
    )
    TABLES[f"a chunk of {_name} that cannot be decoded"] = (
        overwrite(f"obs/{_name}"),
        rf"obs.*{_name.partition('/')[0]}.*",
    )
for _name in ("obsm/pca", "var/_index", "obs/_index"):
    TABLES[f"a chunk of {_name} that cannot be decoded"] = (overwrite(_name), _name.partition("/")[0])


@pytest.mark.parametrize("name", MATRICES)
def test_what_is_damaged(collection: Collection, name: str, monkeypatch: pytest.MonkeyPatch):
    damage, message = MATRICES[name]
    damage(zarr.open_group(collection.store_paths[0], mode="r+"))
    for block in (9, 2**22):
        monkeypatch.setattr(verify, "_BLOCK_ELEMENTS", block)
        with pytest.raises(CorruptStoreError, match=message):
            check(collection)


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_are_damaged(collection: Collection, name: str):
    damage, message = TABLES[name]
    damage(zarr.open_group(collection.store_paths[0], mode="r+"))
    with pytest.raises(StoreError, match=message):
        check(collection)


def test_column_numbers_of_other_programs(collection: Collection):
    """They need not ascend, but must be in range."""
    root: Any = zarr.open_group(collection.store_paths[0], mode="r+")
    swap_columns("X", 3)(root)
    with pytest.raises(CorruptStoreError, match="X: column numbers must ascend"):
        check(collection)
    other = replace(collection, format=PRESHUFFLED, types={})
    assert sum(check(other)) == N
    for row in (0, 3, N - 1):
        place = int(root["X/indptr"][row])
        own = int(root["X/indices"][place])
        edit(root["X/indices"], place, WIDTH)
        with pytest.raises(CorruptStoreError, match=rf"X: column numbers must be in \[0, {WIDTH}\), row {row} has"):
            check(other)
        edit(root["X/indices"], place, own)


@pytest.mark.filterwarnings("ignore:zarr v3 autosharding")
def test_other_elements_of_obsm(collection: Collection):
    """Other programs have tables and sparse matrices there, and arrays of three dimensions."""
    root: Any = zarr.open_group(collection.store_paths[0], mode="r+")
    table = pd.DataFrame({"a": range(N), "b": pd.Categorical(["x"] * N)}, index=ad.io.read_elem(root["obs"]).index)
    two = np.tile([2, 0], N), np.arange(0, 2 * N + 1, 2)
    held = {
        "table": table,
        "sparse": sp.csr_matrix(np.eye(N, 3)),
        "in no order": sp.csr_matrix((np.ones(2 * N), *two), (N, 3)),
        "columns": sp.csc_matrix(np.eye(N, 3)),
        "line": np.arange(N),
        "cube": CUBE,
    }
    for name, element in held.items():
        ad.io.write_elem(root["obsm"], name, element)
    assert sum(check(collection)) == N
    edit(root["obsm/sparse/indices"], 0, 3)
    with pytest.raises(CorruptStoreError, match=r"obsm/sparse: column numbers must be in \[0, 3\), row 0 has \[3\]"):
        check(collection)
    edit(root["obsm/sparse/indices"], 0, 0)
    edit(root["obsm/sparse/indptr"], 0, 1)
    with pytest.raises(CorruptStoreError, match="obsm/sparse: indptr must start at 0 and never fall"):
        check(collection)
    edit(root["obsm/sparse/indptr"], 0, 0)
    for name, element in held.items():
        ad.io.write_elem(root["obsm"], name, element[:-1])
        with pytest.raises(CorruptStoreError, match=f"obsm/{name}: must have {N} rows, got {N - 1}"):
            check(collection)
        ad.io.write_elem(root["obsm"], name, element)


@pytest.mark.parametrize("change", [{"nnz": 4 * N - 1}, {"nnz": 4 * N + 1}, {"n_obs": N + 1}], ids=str)
def test_what_the_manifest_says(collection: Collection, change: dict[str, int]):
    (store,) = collection.stores
    with pytest.raises(CorruptStoreError, match="must have"):
        check(replace(collection, stores=(replace(store, **change),)))
    with pytest.raises(CorruptStoreError, match="X: must have the shape"):
        check(replace(collection, n_vars=WIDTH + 1))


# --- what is read at a time -------------------------------------------------------------------------------------------

LISTS = [[0, 1, 4], [], [2, 3], [], [0, 1, 2, 3, 4], [3]]
"""The column numbers of some rows."""


def verified(matrix: Matrix, *, ascends: bool) -> list[int]:
    reported: list[int] = []
    verify._verify_matrix(matrix, "X", reported.append, ascends=ascends)
    return reported


def by_rows(lists: list[list[int]], dtype: str) -> Matrix:
    indices = np.array([column for columns in lists for column in columns], dtype)
    starts = np.cumsum([0, *map(len, lists)])
    return Matrix("csr", (len(lists), WIDTH), np.dtype("f4"), np.ones(len(indices), np.float32), indices, starts)


def with_one_wrong(wrong: int) -> Iterator[tuple[int, list[list[int]]]]:
    """Put a number in each place, and in the last row, which must not be named unless it is the only one."""
    for row, columns in enumerate(LISTS):
        for place in range(len(columns)):
            lists = [list(columns) for columns in LISTS]
            lists[row][place] = lists[-1][0] = wrong
            yield row, lists


@pytest.mark.parametrize("block", [1, 3, 6, 2**22])
def test_the_first_row_that_is_wrong_is_named(block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verify, "_BLOCK_ELEMENTS", block)
    for ascends, dtype, numbers, rule in (
        (True, "u2", [WIDTH], "ascend within a row and be"),
        (False, "i4", [WIDTH, -1], "be"),
    ):
        assert sum(verified(by_rows(LISTS, dtype), ascends=ascends)) == len(LISTS)
        for wrong in numbers:
            for row, lists in with_one_wrong(wrong):
                with pytest.raises(CorruptStoreError) as error:
                    verified(by_rows(lists, dtype), ascends=ascends)
                assert str(error.value) == f"X: column numbers must {rule} in [0, 5), row {row} has {lists[row]}"
    backwards = [columns[::-1] for columns in LISTS]
    assert sum(verified(by_rows(backwards, "i4"), ascends=False)) == len(LISTS)
    with pytest.raises(CorruptStoreError, match=r"row 0 has \[4, 1, 0\]$"):
        verified(by_rows(backwards, "u2"), ascends=True)


@pytest.mark.parametrize(
    ("n_columns", "block", "expected"),
    [
        (5, 1, [1] * 8),
        (5, 10, [2] * 4),
        (5, 16, [3, 3, 2]),
        (5, 40, [8]),
        (1, 3, [3, 3, 2]),
        (0, 3, [3, 3, 2]),
    ],
)
def test_rows_of_dense_matrices_are_reported(
    n_columns: int, block: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(verify, "_BLOCK_ELEMENTS", block)
    values = np.zeros((N, n_columns), np.float32)
    assert verified(Matrix("dense", values.shape, values.dtype, values), ascends=True) == expected


# --- modalities -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """One store with two modalities of the same cells."""
    path = tmp_path_factory.mktemp("joint") / "store"
    found = create_anndata_collection(samples(1, N, aligned=True), path, **CUT)
    return replace(found, stores=tuple(replace(store, files={}) for store in found.stores))


def test_rows_of_modalities_are_reported_once(joint: Collection):
    assert sum(check(joint)) == N
    for name, entry in joint.modalities.items():
        assert sum(check(replace(joint, modalities={name: entry}))) == N


def exchange(path: str, rows: list[int]) -> Callable[[Any], None]:
    def damage(root: Any) -> None:
        found = root[path][:]
        found[rows] = found[rows[::-1]]
        root[path][:] = found

    return damage


MODALITIES: dict[str, tuple[Callable[[Any], None], str]] = {
    "cells of the first in another order": (
        exchange("mod/rna/obs/_index", [2, 5]),
        "mod/rna/obs: must have the cells of the store in their order, got another name than 'cell.*' in row 2$",
    ),
    "cells of the last in another order": (
        exchange("mod/adt/obs/_index", [0, 7]),
        "mod/adt/obs: must have the cells of the store in their order, got another name than 'cell.*' in row 0$",
    ),
    "one cell less": (
        lambda root: shorten(root, "mod/adt/obs/_index"),
        f"mod/adt/obs: must have the {N} rows of the manifest, got 7",
    ),
    "one cell less in the store": (
        lambda root: shorten(root, "obs/_index"),
        f"obs: must have the {N} rows of the manifest, got 7",
    ),
    "a column beyond the last": (
        lambda root: edit(root["mod/adt/X/indices"], 0, PROTEINS),
        "mod/adt/X: column numbers must ascend",
    ),
}


@pytest.mark.parametrize("name", MODALITIES)
def test_modalities_that_are_damaged(joint: Collection, tmp_path: Path, name: str):
    damage, message = MODALITIES[name]
    copied = replace(joint, path=Path(shutil.copytree(joint.directory, tmp_path / "store")))
    damage(zarr.open_group(copied.store_paths[0], mode="r+"))
    with pytest.raises(CorruptStoreError, match=message):
        check(copied)
