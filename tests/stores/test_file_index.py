"""Is an `.h5ad` file that was opened before opened again without HDF5, and is what is kept of it always right?"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

from annbatch import InputError, Loader
from annbatch.stores import store_var
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


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write(tmp_path, number, "gzip" if number else None) for number in range(3)]


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
        # Fewer labels and elements need no file either.
        opened(files, cache, labels=[], layers=[])
        opened(files, cache, labels=["only here"])
        assert not seen
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
    check_equal(opened(files, None), opened(files, cache))
    kept = FileIndex(cache / "h5ad-index")
    assert len(list(kept.folder.glob("*.h5ad-index"))) == 3
    os.utime(files[1])
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
    for kind in (".h5ad-index", ".genes"):
        for damage in (cut, flipped):
            for path, content in whole.items():
                if path.suffix == kind:
                    path.write_bytes(damage(content))
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


def _stored(arrays: Arrays, packed: Any) -> bytes:
    assert packed is not None
    return arrays.with_header({"it": packed})
