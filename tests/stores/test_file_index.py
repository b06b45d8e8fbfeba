"""Is an `.h5ad` file that was opened before opened again without HDF5, and is what is kept of it always right?"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from annbatch import InputError, Loader, StoreError
from annbatch.stores import file_index, store_var
from annbatch.stores.file_index import FileIndex
from annbatch.stores.indexed_columns import Arrays, packed_column, unpacked_column
from datagen import awkward_obs, named_matrix
from epochs import each_batch

GENES = [list(range(9)), list(range(9)), [12, 3, 1, 8, 11, 5]]
N_OBS = 40
pytestmark = pytest.mark.filterwarnings("ignore:obs columns are missing in the rows of stores that lack them")
OPTIONS: dict[str, Any] = {
    "batch_size": 16,
    "chunk_size": 3,
    "preload_nchunks": 4,
    "layers": ["doubled"],
    "join": "outer",
}


def settled(path: Path) -> None:
    """Let a file be an hour old: what has just been written is not kept."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 3600 * 10**9))


def write(folder: Path, number: int, compression: str | None) -> Path:
    rows, genes = range(number * N_OBS, (number + 1) * N_OBS), GENES[number]
    x = named_matrix(np.random.default_rng(number), rows, genes, density=0.5)
    obs = awkward_obs(rows)
    if number == 2:
        obs["only here"] = pd.Categorical([f"k{row % 3}" for row in rows])
    var = pd.DataFrame({"id": [f"E{gene}" for gene in genes]}, index=[f"g{gene}" for gene in genes])
    adata = ad.AnnData(x, obs=obs, var=var, layers={"doubled": (x * 2).tocsr()})
    adata.write_h5ad(folder / f"{number}.h5ad", compression=compression)
    settled(folder / f"{number}.h5ad")
    return folder / f"{number}.h5ad"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    return [write(folder, number, "gzip" if number else None) for number in range(3)]


@pytest.fixture
def files(written: list[Path], tmp_path: Path) -> list[Path]:
    """Copies that may be changed."""
    return [Path(shutil.copy2(path, tmp_path)) for path in written]


@contextmanager
def counted_openings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Note the files that h5py opens."""
    noted: list[str] = []

    class Noting(h5py.File):  # type: ignore[misc]
        def __init__(self, name: Any, *args: Any, **options: Any) -> None:
            noted.append(Path(name).name)
            super().__init__(name, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(h5py, "File", Noting)
        yield noted


def opened(files: list[Path], folder: Path | None, labels: list[str] | None = None, **options: Any) -> Loader:
    return Loader(**OPTIONS | options, cache_dir=folder).use_h5ad(files, labels=labels)


def check_equal(one: Loader, other: Loader) -> None:
    for a, b in zip(each_batch(one), each_batch(other), strict=True):
        np.testing.assert_array_equal(a.index, b.index)
        for x, y in ((a.data, b.data), (a["layers"]["doubled"], b["layers"]["doubled"])):
            for key in ("data", "indices", "indptr"):
                assert getattr(x, key).dtype == getattr(y, key).dtype
                np.testing.assert_array_equal(getattr(x, key), getattr(y, key))
        pd.testing.assert_frame_equal(a.labels, b.labels)
    pd.testing.assert_frame_equal(one.var, other.var)


def test_second_opening(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens no HDF5 file before var or another column is asked for, and everything is the same."""
    cache = tmp_path / "cache"
    plain, _ = opened(files, None), opened(files, cache)
    with counted_openings(monkeypatch) as seen:
        again = opened(files, cache)
        assert len(next(iter(again)).index) == OPTIONS["batch_size"]
        assert "n_vars=11" in repr(again)
        # Fewer labels and elements need no file either.
        opened(files, cache, labels=[], layers=[])
        opened(files, cache, labels=["only here"])
        # Nor do genes that are named.
        named = [opened(files, folder, var_names=["g8", "g3"]) for folder in (cache, None)]
        assert seen == [path.name for path in files]
    check_equal(*named)
    check_equal(plain, opened(files, cache))
    # The genes of the first two files are kept once.
    assert len(list((cache / "h5ad-index").glob("*.genes"))) == 2
    with pytest.raises(InputError, match="labels must be obs columns, got 'none'"):
        opened(files, cache, labels=["none"])


def test_more_is_added(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elements and labels that are asked for later are kept with those of before."""
    cache = tmp_path / "cache"
    with counted_openings(monkeypatch) as seen:
        for labels, layers in ((["only here"], []), ([], ["doubled"]), (["only here"], ["doubled"])):
            opened(files[2:], cache, labels=labels, layers=layers)
        assert seen == ["2.h5ad"] * 2


def test_files_that_change(files: list[Path], tmp_path: Path) -> None:
    """A file of another size or time is read again; one that has just been written is not kept."""
    cache = tmp_path / "cache"
    opened(files, cache)
    with h5py.File(files[0], "r+") as file:
        file["X/data"][...] += 1
    settled(files[0])
    check_equal(opened(files, None), opened(files, cache))
    kept = FileIndex(cache / "h5ad-index")
    assert len(list(kept.folder.glob("*.h5ad-index"))) == 3
    # Whoever is slow is not to find it old.
    os.utime(files[1], (time.time() + 3600,) * 2)
    entries = {path.name: path.read_bytes() for path in kept.folder.iterdir()}
    opened(files, cache)
    assert entries == {path.name: path.read_bytes() for path in kept.folder.iterdir()}


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[len(content) // 2] ^= 4
    return bytes(changed)


def test_damaged_index(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever becomes of the files of the index, batches are the same, and it is written again."""
    cache = tmp_path / "cache"
    opened(files, cache)
    whole = {path: path.read_bytes() for path in (cache / "h5ad-index").iterdir()}
    for kind in (".h5ad-index", ".genes", ".gene-lists"):
        assert any(path.suffix == kind for path in whole)
        for damage in (cut, flipped):
            for path, content in whole.items():
                if path.suffix == kind:
                    path.write_bytes(damage(content))
                elif path.suffix == ".gene-lists":
                    # It would stand in for the names.
                    path.unlink()
            # What this process knows of genes would stand in for the files.
            monkeypatch.setattr(store_var, "_known", {})
            found = opened(files, cache)
            check_equal(opened(files, None), found)
            assert {path: path.read_bytes() for path in whole} == whole


def test_folder_that_cannot_be_written(files: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log says so once, and the files are read."""
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, logger="annbatch"):
        check_equal(opened(files, None), opened(files, tmp_path / "file" / "cache"))
    assert caplog.text.count("cannot be written") == 1


COLUMNS: dict[str, Any] = {
    "numbers": np.arange(5, dtype=">i2"),
    "booleans": np.array([True, False]),
    "text": np.array(["b", "a", "b", ""], object),
    "categories of text": pd.Categorical(["b", None, "a"], ["b", "c", "a"], ordered=True),
    "categories of numbers": pd.Categorical([1.5, 0.5, None]),
    "nullable integers": pd.array([1, None, 3], "UInt8"),
    "nullable booleans": pd.array([True, None], "boolean"),
    "strings": pd.array(["a", None, "c"], "string"),
    "no value": np.array([], object),
}


def test_columns() -> None:
    """Columns come back as they were, or are not kept."""
    for name, column in COLUMNS.items():
        arrays = Arrays()
        header, stored = Arrays.parsed(_stored(arrays, packed_column(column, arrays)))
        pd.testing.assert_series_equal(pd.Series(unpacked_column(header["it"], stored)), pd.Series(column), obj=name)
    for column in (np.array(["a", None], object), np.array(["a", 1], object), pd.Categorical(pd.to_datetime(["2020"]))):
        assert packed_column(column, Arrays()) is None


def _stored(arrays: Arrays, packed: Any) -> np.ndarray[Any, Any]:
    assert packed is not None
    return np.frombuffer(bytearray(arrays.with_header({"it": packed})), np.uint8)


def test_more_of_obs(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, classes and other columns that somebody has asked for are kept, too; files that changed are refused."""
    cache, columns = tmp_path / "cache", ["donor", "age", "n_counts"]
    options: dict[str, Any] = {"labels": ["n_counts"], "names": True, "classes": ["donor"]}
    plain = opened(files, None, **options)
    with counted_openings(monkeypatch) as seen:
        first = opened(files, cache, **options)
        first.obs(columns)
        assert len(seen) == 3 * 4
        # Labels are in memory.
        first.obs(["n_counts"])
        assert len(seen) == 3 * 4
        seen.clear()
        again = opened(files, cache, **options)
        pd.testing.assert_frame_equal(again.obs(columns), plain.obs(columns))
        assert seen == [path.name for path in files] * 2
    for one, other in zip(each_batch(plain), each_batch(again), strict=True):
        assert list(one["names"]) == list(other["names"])
        pd.testing.assert_frame_equal(one.labels, other.labels)
    os.utime(files[1])
    with pytest.raises(StoreError, match=r"1\.h5ad: has changed"):
        again.obs(columns)


def test_many_joins(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in another order have another join; the last joins are kept."""
    cache = tmp_path / "cache"
    for order in permutations(files):
        opened(list(order), cache, labels=[])
    # Two lists of genes have two orders.
    assert len(list((cache / "h5ad-index").glob("*.gene-lists"))) == 2
    monkeypatch.setattr(file_index, "_MAX_JOINS", 1)
    for path in (cache / "h5ad-index").glob("*.gene-lists"):
        path.unlink()
    for order in (files, files[::-1], files):
        check_equal(opened(order, None), opened(order, cache))
        assert len(list((cache / "h5ad-index").glob("*.gene-lists"))) == 1


# Python, and JAX where it was imported, warn of threads in a process that forks; that is what is tested.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*fork.*:RuntimeWarning")
def test_several_processes(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes may write the same index at once."""
    cache = tmp_path / "cache"
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=opened, args=(files, cache)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4
    with counted_openings(monkeypatch) as seen:
        found = opened(files, cache)
        assert not seen
    check_equal(opened(files, None), found)
    assert {path.suffix for path in (cache / "h5ad-index").iterdir()} == {".h5ad-index", ".genes", ".gene-lists"}


def read_all(files: list[Path], cache: Path, user: int | None) -> None:
    # Modules are imported before the process becomes a user who may not look everywhere.
    list(opened(files, None))
    if user is not None:
        os.setuid(user)
    with pytest.raises(PermissionError):
        (cache.parent / "new").write_text("")
    assert sum(len(batch.index) for batch in opened(files, cache)) == N_OBS * len(files)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*fork.*:RuntimeWarning")
def test_read_only_folder(files: list[Path]) -> None:
    """Files in a folder that cannot be written, by a user who may only read, are read without an index."""
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(shutil.copy2(path, folder)) for path in files]
        for path in copies:
            path.chmod(0o444)
        Path(folder).chmod(0o555)
        arguments = copies, Path(folder, "cache"), None if os.geteuid() else 65534
        child = multiprocessing.get_context("fork").Process(target=read_all, args=arguments)
        child.start()
        child.join(60)
        Path(folder).chmod(0o755)
        assert child.exitcode == 0


def test_a_file_that_is_written(files: list[Path], tmp_path: Path) -> None:
    """Opened from the index, a file is not locked; it is read until it changes."""
    cache = tmp_path / "cache"
    opened(files, cache)
    ds = opened(files, cache)
    list(ds)
    with h5py.File(files[0], "r+") as file:
        file["X/data"][...] += 1
        file.flush()
        with pytest.raises(StoreError, match=r"0\.h5ad: has changed"):
            next(iter(ds))
