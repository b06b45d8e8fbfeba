"""Are other files that hold parts of an `.h5ad` file watched as that file is, and refused where they are damaged?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from annbatch import InputError, Loader, StoreError, create_anndata_collection
from annbatch.stores.hdf5_links import files_behind
from annbatch.write.inputs.opening import as_origins
from datagen import awkward_obs, named_matrix
from epochs import each_batch

N_OBS, N_VARS = 40, 9
OPTIONS: dict[str, Any] = {"batch_size": 16, "chunk_size": 3, "preload_nchunks": 4, "threads": 1}


def link(*keys: str) -> Callable[[h5py.File, Path], None]:
    """Move elements into another file, to which links lead."""

    def divide(file: h5py.File, other: Path) -> None:
        with h5py.File(other, "w") as there:
            for key in keys:
                file.copy(key, there, name=key)
                del file[key]
                file[key] = h5py.ExternalLink(other.name, key)

    return divide


def external(file: h5py.File, other: Path) -> None:
    """Keep the values of X as bytes of another file."""
    values = file["X/data"][()]
    other.write_bytes(b"head" + values.tobytes())
    del file["X/data"]
    file["X"].create_dataset("data", values.shape, values.dtype, external=[(str(other), 4, values.nbytes)])


def virtual(file: h5py.File, other: Path) -> None:
    """Show the values of X from another file, where they are those of a dataset that is virtual, too."""
    values = file["X/data"][()]
    with h5py.File(other, "w") as there:
        there["values"] = values
        layout = h5py.VirtualLayout(values.shape, values.dtype)
        layout[:] = h5py.VirtualSource(there["values"])
        there.create_virtual_dataset("all", layout)
    del file["X/data"]
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[:] = h5py.VirtualSource(other.name, "all", values.shape)
    file["X"].create_virtual_dataset("data", layout)


DIVIDED: dict[str, Callable[[h5py.File, Path], None]] = {
    "X": link("X"),
    "a part of X": link("X/indices"),
    "obs": link("obs"),
    "a column": link("obs/cell_type", "obs/_index"),
    "var": link("var"),
    "external": external,
    "virtual": virtual,
}
ANOTHER = {
    "X": "X/data",
    "a part of X": "X/indices",
    "obs": "obs/n_counts",
    "a column": "obs/cell_type/codes",
    "var": "var/length",
    "virtual": "values",
}
"""A dataset of the other file."""


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    x = named_matrix(np.random.default_rng(0), range(N_OBS), range(N_VARS), density=0.5)
    var = pd.DataFrame({"length": np.arange(N_VARS)}, index=[f"g{gene}" for gene in range(N_VARS)])
    return ad.AnnData(x, awkward_obs(range(N_OBS)), var)


@pytest.fixture(scope="module")
def whole(cells: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "cells.h5ad"
    cells.write_h5ad(path)
    return path


def settled(path: Path, seconds: int = 0) -> None:
    """Let a file be an hour old: what has just been written is not kept."""
    os.utime(path, (1_700_000_000 + seconds,) * 2)


def divided(whole: Path, folder: Path, name: str) -> tuple[Path, Path]:
    """Give a file, and the one that holds a part of it."""
    folder.mkdir()
    path, other = Path(shutil.copyfile(whole, folder / "cells.h5ad")), folder / "other.bin"
    with h5py.File(path, "r+") as file:
        DIVIDED[name](file, other)
    settled(path)
    settled(other)
    return path, other


def altered(other: Path, name: str) -> None:
    """Change one number in a file, whose size stays."""
    if name == "external":
        with other.open("r+b") as file:
            file.seek(4)
            file.write(np.float32(77).tobytes())
    else:
        with h5py.File(other, "r+") as there:
            there[ANOTHER[name]][0] = 1 - (there[ANOTHER[name]][0] > 0)
    settled(other, 60)


def opened(path: Path, cache: Path | None = None) -> Loader:
    return Loader(**OPTIONS, cache_dir=cache).use_h5ad(path)


def check(ds: Loader, cells: ad.AnnData) -> None:
    for batch in each_batch(ds):
        assert (batch.data.to_scipy() != cells.X[batch.index]).nnz == 0
        assert list(batch.labels["n_counts"]) == list(cells.obs["n_counts"].iloc[batch.index])


@pytest.mark.parametrize("name", DIVIDED)
def test_the_other_file_changes(whole: Path, cells: ad.AnnData, tmp_path: Path, name: str) -> None:
    """While it is read, between saving and resuming, and while an index keeps what was found."""
    path, other = divided(whole, tmp_path / "files", name)
    cache = tmp_path / "cache"
    ds, before = opened(path, cache), as_origins(str(path), None)[0].stamp()
    check(ds, cells)
    check(opened(path, cache), cells)
    state = ds.state_dict()
    shutil.copytree(path.parent, tmp_path / "copies")
    if name != "external":
        opened(tmp_path / "copies" / "cells.h5ad").load_state_dict(state)
    altered(other, name)
    with pytest.raises(StoreError, match=r"other\.bin: has changed"):
        list(ds)
    with pytest.raises(InputError, match=r"other\.bin: must be the file with which the state was saved"):
        opened(path, cache).load_state_dict(state)
    adata, changed = ad.read_h5ad(path), opened(path, cache)
    check(changed, adata)
    pd.testing.assert_frame_equal(changed.var, adata.var)
    types = adata.obs["cell_type"].astype(str)
    assert list(changed.obs(["cell_type"])["cell_type"].astype(str)) == list(types)
    assert before != as_origins(str(path), None)[0].stamp()


def test_backed(whole: Path, cells: ad.AnnData, tmp_path: Path) -> None:
    """The same holds for an AnnData that is backed by the file."""
    path, other = divided(whole, tmp_path / "files", "virtual")
    backed = ad.read_h5ad(path, backed="r")
    ds = Loader(**OPTIONS).add_anndatas([backed])
    check(ds, cells)
    state, before = ds.state_dict(), as_origins(backed, None)[0].stamp()
    altered(other, "virtual")
    with pytest.raises(StoreError, match=r"other\.bin: has changed"):
        list(ds)
    with pytest.raises(InputError, match=r"other\.bin: must be the file with which the state was saved"):
        Loader(**OPTIONS).add_anndatas([backed]).load_state_dict(state)
    assert before != as_origins(backed, None)[0].stamp()
    backed.file.close()


def without_the_file(path: Path, other: Path) -> None:
    other.unlink()


def too_short(path: Path, other: Path) -> None:
    os.truncate(other, other.stat().st_size - 4)


def without_the_dataset(path: Path, other: Path) -> None:
    with h5py.File(other, "r+") as there:
        del there["values"]


def of_a_pattern(path: Path, other: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["X/data"]
        n, unlimited = file["X/indices"].size, h5py.h5s.UNLIMITED
        space, settings = h5py.h5s.create_simple((n,), (unlimited,)), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        space.select_hyperslab((0,), (unlimited,), (n,), (n,))
        settings.set_layout(h5py.h5d.VIRTUAL)
        settings.set_virtual(space, b"part%b.h5", b"values", h5py.h5s.create_simple((n,)))
        h5py.h5d.create(file["X"].id, b"data", h5py.h5t.IEEE_F32LE, space, settings)


DAMAGED: dict[str, tuple[str, Callable[[Path, Path], None], str]] = {
    "no external file": (
        "external",
        without_the_file,
        r"X/data: its external file .*other\.bin is missing",
    ),
    "a short external file": ("external", too_short, r"X/data: its external files must hold \d+ bytes, got \d+;"),
    "no file of a virtual dataset": ("virtual", without_the_file, r"X/data: the file 'other\.bin' of this virtual"),
    "no dataset of a virtual dataset": ("virtual", without_the_dataset, "other.bin/all: .*got '/?values' of"),
    "a pattern": ("virtual", of_a_pattern, r"X/data: .*must name its files, got the pattern part%b\.h5/values"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_hdf5_would_fill_up(whole: Path, tmp_path: Path, name: str) -> None:
    """HDF5 gives zeros for what is not there."""
    kind, damage, message = DAMAGED[name]
    path, other = divided(whole, tmp_path / "files", kind)
    damage(path, other)
    with pytest.raises(StoreError, match=message):
        opened(path)
    with pytest.raises(InputError, match=message):
        create_anndata_collection([path], tmp_path / "collection", progress=False)


def test_links_in_a_circle(whole: Path, cells: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links around themselves and to nothing are passed over; names may be relative to the working directory."""
    path, other = divided(whole, tmp_path / "files", "virtual")
    with h5py.File(path, "r+") as file:
        file["obs/again"] = h5py.SoftLink("/obs")
        file["obs/nothing"] = h5py.SoftLink("/nowhere")
        file["obs/gone"] = h5py.ExternalLink("gone.h5", "obs")
    check(opened(path), cells)
    moved = Path(shutil.move(other, tmp_path / "other.bin"))
    monkeypatch.chdir(tmp_path)
    with h5py.File(path) as file:
        assert files_behind(file["X"]) == [path, moved]
    monkeypatch.chdir("/")
    monkeypatch.setenv("HDF5_VDS_PREFIX", f"/nowhere:{tmp_path}")
    with h5py.File(path) as file:
        assert files_behind(file) == [path, moved]
