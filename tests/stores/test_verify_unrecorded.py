"""Does `verify` find damage in stores of which no checksums are recorded, as those of other programs are?"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import zarr

from annbatch import verify
from annbatch.errors import CorruptStoreError
from annbatch.stores.collection import Collection
from annbatch.write import create_anndata_collection

N, WIDTH = 8, 5


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """X and a layer are sparse, another layer is dense; two elements or more stand in every row."""
    x = np.arange(1, N * WIDTH + 1, dtype=np.float32).reshape(N, WIDTH)
    x[:, 2] = 0
    layers = {"raw": sp.csr_matrix(x), "dense": x}
    adata = ad.AnnData(sp.csr_matrix(x), layers=layers)
    adata.obs_names = [f"cell{i}" for i in range(N)]
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
            rf"{_path}: column numbers must ascend within a row and be in \[0, {WIDTH}\), row {_row} has",
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
    "fewer obs names": (
        lambda root: shorten(root, "obs/_index"),
        f"obs: must have the {N} rows of the manifest, got 7",
    ),
}


@pytest.mark.parametrize("name", MATRICES)
def test_what_is_damaged(collection: Collection, name: str, monkeypatch: pytest.MonkeyPatch):
    damage, message = MATRICES[name]
    damage(zarr.open_group(collection.store_paths[0], mode="r+"))
    for block in (9, 2**22):
        monkeypatch.setattr(verify, "_BLOCK_ELEMENTS", block)
        with pytest.raises(CorruptStoreError, match=message):
            check(collection)


@pytest.mark.parametrize("change", [{"nnz": 4 * N - 1}, {"nnz": 4 * N + 1}, {"n_obs": N + 1}], ids=str)
def test_what_the_manifest_says(collection: Collection, change: dict[str, int]):
    (store,) = collection.stores
    with pytest.raises(CorruptStoreError, match="must have"):
        check(replace(collection, stores=(replace(store, **change),)))
    with pytest.raises(CorruptStoreError, match="X: must have the shape"):
        check(replace(collection, n_vars=WIDTH + 1))
