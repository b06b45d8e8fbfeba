"""Does a collection appear whole, or not at all?"""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from annbatch.errors import OutputError, OutputExistsError, StoreError
from annbatch.stores.collection import Collection
from annbatch.write import create_anndata_collection
from annbatch.write.output.workplace import claimed
from datagen import write_adata, write_inputs
from forked import in_a_fork


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_inputs(tmp_path_factory.mktemp("inputs"), obs_columns=["n_counts"])


@pytest.fixture(scope="module")
def incompressible(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 8 MB of noise."""
    noise = np.random.default_rng(0).random((200, 10_000), dtype=np.float32)
    return write_adata(ad.AnnData(X=noise), tmp_path_factory.mktemp("noise") / "noise", "h5ad")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if os.name != "posix" or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)]).returncode:
        pytest.skip("may not mount a file system here")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_leaves_nothing(incompressible: Path, small_disk: Path):
    with pytest.raises(OutputError, match=r"disk/store: cannot be written \(No space left on device\)") as caught:
        create_anndata_collection([incompressible], small_disk / "store", progress=False, shard_elements=2**16)
    assert caught.value.errno == errno.ENOSPC
    assert list(small_disk.iterdir()) == []


def test_a_full_disk_leaves_the_old_collection(incompressible: Path, inputs: list[Path], small_disk: Path):
    old = create_anndata_collection(inputs, small_disk / "store", progress=False)
    with pytest.raises(OutputError, match="No space left"):
        create_anndata_collection([incompressible], old.path, overwrite=True, progress=False)
    assert [p.name for p in small_disk.iterdir()] == ["store"]
    Collection.open(old.path).verify()


@pytest.mark.skipif(os.name != "posix", reason="needs resource limits")
def test_a_file_that_may_not_grow_leaves_nothing(incompressible: Path, tmp_path: Path):
    def build() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        with pytest.raises(OutputError) as caught:
            create_anndata_collection([incompressible], tmp_path / "out" / "store", progress=False)
        return f"{caught.value.errno} {caught.value}"

    told = in_a_fork(build)
    assert told.startswith(f"{errno.EFBIG} ")
    assert "out/store: cannot be written (File too large)" in told
    assert list((tmp_path / "out").iterdir()) == []


def test_an_unfinished_build_is_no_collection(tmp_path: Path, inputs: list[Path]):
    collection = create_anndata_collection(inputs, tmp_path / "store", progress=False)
    (collection.path / "collection.json").unlink()
    with pytest.raises(StoreError, match=r"not a collection: it has no collection\.json"):
        Collection.open(collection.path)


def test_overwriting_replaces_a_collection(tmp_path: Path, inputs: list[Path]):
    first = create_anndata_collection(inputs, tmp_path / "out/deep/store", progress=False)
    # The new collection is made from the one that it replaces.
    second = create_anndata_collection(first.store_paths, first.path, seed=9, overwrite=True, progress=False)
    assert second.path == first.path
    assert second.seed == 9
    second.verify()
    assert [p.name for p in first.path.parent.iterdir()] == ["store"]


def test_an_empty_directory_may_be_there(tmp_path: Path, inputs: list[Path]):
    (tmp_path / "store").mkdir()
    create_anndata_collection(inputs, tmp_path / "store", progress=False).verify()


def test_permissions_are_the_usual_ones(tmp_path: Path, inputs: list[Path]):
    collection = create_anndata_collection(inputs, tmp_path / "store", progress=False)
    (tmp_path / "usual").mkdir()
    assert collection.path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_link_stays_a_link(tmp_path: Path, inputs: list[Path]):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "elsewhere")
    create_anndata_collection(inputs, tmp_path / "store", progress=False)
    assert (tmp_path / "store").is_symlink()
    Collection.open(tmp_path / "elsewhere").verify()


def test_a_path_taken_in_the_meantime_stays(tmp_path: Path, inputs: list[Path]):
    output = tmp_path / "store"
    collection = create_anndata_collection(inputs, tmp_path / "other", progress=False)
    with (
        pytest.raises(OutputExistsError, match="store: already exists"),
        claimed(output, "create", {}) as place,
    ):
        output.mkdir()
        (output / "mine").write_text("mine")
        place.commit(collection)
    assert sorted(p.name for p in output.iterdir()) == ["mine"]
    assert not list(tmp_path.glob(".store*"))


def test_an_error_in_between_keeps_its_type(tmp_path: Path):
    with pytest.raises(ZeroDivisionError) as caught, claimed(tmp_path / "store", "create", {}) as place:
        (place.temporary / "part").write_text("half")
        raise ZeroDivisionError
    assert any("store: was not written" in note for note in caught.value.__notes__)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_behind_the_last_step_undoes_nothing(tmp_path: Path, inputs: list[Path]):
    collection = create_anndata_collection(inputs, tmp_path / "other", progress=False)
    with pytest.raises(KeyboardInterrupt) as caught, claimed(tmp_path / "store", "create", {}) as place:
        for store in collection.store_paths:
            store.rename(place.stores / store.name)
        place.commit(collection)
        raise KeyboardInterrupt
    assert any("store: was already complete" in note for note in caught.value.__notes__)
    Collection.open(tmp_path / "store").verify()
    assert not list(tmp_path.glob(".store*"))
