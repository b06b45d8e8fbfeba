"""Are `.h5ad` files read in place as SciPy indexes their matrices, however they are stored, and what if they change?"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pytest

from annbatch import InputError, Loader, StoreError, create_anndata_collection
from annbatch.errors import MissingInputError
from annbatch.shards import codecs, hdf5_chunks, libdeflate
from annbatch.stores import array_opening, chunk_arrival
from annbatch.stores.anndata_store import SparseMatrix
from datagen import awkward_obs, named_matrix
from epochs import each_batch

hdf5plugin = pytest.importorskip("hdf5plugin", reason="hdf5plugin is not installed")

from flip_bits import FOUND, OTHER, SHOWN, flips  # noqa: E402
from h5ad_files import LAYOUTS, stored_as, write  # noqa: E402

N_OBS, N_VARS = 120, 23
OPTIONS: dict[str, Any] = {"batch_size": 16, "chunk_size": 3, "preload_nchunks": 8, "layers": ["dense"], "threads": 2}


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    rng = np.random.default_rng(0)
    x = named_matrix(rng, range(N_OBS), range(N_VARS), density=0.5)
    # No compressor makes the last third smaller.
    x.data[2 * x.nnz // 3 :] = 200 * rng.random(x.nnz - 2 * x.nnz // 3)
    # A chunk that is all 7.
    x.data[16:40] = 7
    found = ad.AnnData(x, obs=awkward_obs(range(N_OBS)))
    found.obsm["space"] = rng.random((N_OBS, 2))
    return found


@pytest.fixture(scope="module")
def files(cells: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("h5ad")
    return {name: write(cells, folder / f"{name}.h5ad", layout) for name, layout in LAYOUTS.items()}


def in_type(values: np.ndarray[Any, Any], name: str, key: str) -> np.ndarray[Any, Any]:
    """Give numbers as they come back from a layout."""
    return stored_as(values, np.dtype(LAYOUTS[name].types.get(key, "f4")).newbyteorder("="))


def check(ds: Loader, cells: ad.AnnData, name: str) -> None:
    dense, seen = cells.X.toarray(), []
    for batch in each_batch(ds):
        found, x, numbers = batch.data, cells.X[batch.index], batch["layers"]["dense"]
        np.testing.assert_array_equal(found.indptr, x.indptr)
        np.testing.assert_array_equal(found.indices, x.indices)
        for got, wanted in (
            (found.data, in_type(x.data, name, "data")),
            (numbers, in_type(dense[batch.index], name, "dense")),
        ):
            assert got.dtype == wanted.dtype
            np.testing.assert_array_equal(got, wanted)
        seen.append(batch.index)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(N_OBS))


def test_every_layout(files: dict[str, Path], cells: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Direct where the kernels know the layout, through h5py where not, and the loader says which."""
    # What is stored in one piece is cut into several chunks here, too.
    monkeypatch.setattr(hdf5_chunks, "PIECE_NBYTES", 256)
    left_as_they_were = set()
    for name, layout in LAYOUTS.items():
        ds = Loader(**OPTIONS).use_h5ad(files[name], labels=[])
        matrices = ds._opened().stores[0].matrices
        sparse, dense = matrices["X"], matrices["layers/dense"]
        assert isinstance(sparse, SparseMatrix)
        assert (sparse.slow is None) == (layout.why is None or layout.only_dense), (name, sparse.slow)
        assert (dense.slow is None) == (layout.why is None), (name, dense.slow)
        assert (layout.why or "") in (dense.slow or "")
        assert ("h5py, not the direct path, reads" in repr(ds)) == (layout.why is not None), repr(ds)
        if sparse.slow is None and (sparse.data.tables.layout.nbytes < -1).any():
            left_as_they_were.add(name)
        check(ds, cells, name)
    assert left_as_they_were >= {"lzf", "lzf shuffle fletcher32"}


def test_h5py_reads_the_same(files: dict[str, Path], cells: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_opening, "DIRECT", False)
    for name in ("contiguous", "gzip", "big-endian gzip", "float16"):
        ds = Loader(**OPTIONS).use_h5ad(files[name], labels=[])
        assert "the direct path is turned off" in repr(ds)
        check(ds, cells, name)


def test_options_that_read_otherwise(files: dict[str, Path], cells: ad.AnnData) -> None:
    """Few columns, single rows, casts, obsm, names and labels go through the same files."""
    options = OPTIONS | {
        "chunk_size": 1,
        "obsm": ["space"],
        "names": True,
        "var_names": ["3", "20", "7"],
        "dtype": "f8",
    }
    for name in ("contiguous", "gzip", "bitshuffle"):
        for batch in each_batch(Loader(**options).use_h5ad(files[name])):
            x = cells.X[batch.index][:, [3, 20, 7]].astype("f8")
            np.testing.assert_array_equal(batch.data.to_scipy().toarray(), x.toarray())
            np.testing.assert_array_equal(batch["obsm"]["space"], cells.obsm["space"][batch.index])
            expected = cells.obs.iloc[batch.index]
            assert list(batch["names"]) == list(expected.index)
            for column in expected:
                wanted = expected[column].astype(object).where(expected[column].notna(), None)
                got = batch.labels[column].astype(object)
                assert list(got.where(got.notna(), None)) == list(wanted)


def test_casts_that_only_numpy_makes(
    files: dict[str, Path], cells: ad.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of an array in one piece, whose last part is shorter than the others."""
    monkeypatch.setattr(hdf5_chunks, "PIECE_NBYTES", 256)
    dense = cells.X.toarray()
    for name in ("contiguous", "gzip"):
        for dtype in ("f2", "i4"):
            for batch in each_batch(Loader(**OPTIONS, dtype=dtype, casting="unsafe").use_h5ad(files[name], labels=[])):
                np.testing.assert_array_equal(batch.data.data, cells.X[batch.index].data.astype(dtype))
                np.testing.assert_array_equal(batch["layers"]["dense"], dense[batch.index].astype(dtype))


def test_backed_anndatas(files: dict[str, Path], cells: ad.AnnData, tmp_path: Path) -> None:
    """A backed AnnData is read as its file is; dense X and what HDF5 has been given otherwise, too."""
    backed = ad.read_h5ad(files["gzip"], backed="r")
    ds = Loader(**OPTIONS).add_anndatas([backed], labels=[])
    assert ds._opened().stores[0].matrices["X"].slow is None
    check(ds, cells, "gzip")
    backed.file.close()
    check(ds, cells, "gzip")
    dense = ad.AnnData(cells.X.toarray(), obs=cells.obs)
    dense.write_h5ad(tmp_path / "dense.h5ad")
    both = [ad.read_h5ad(tmp_path / "dense.h5ad", backed="r")] * 2
    for batch in each_batch(Loader(batch_size=50).add_anndatas(both, labels=[])):
        np.testing.assert_array_equal(batch.data, dense.X[batch.index % N_OBS])
    both[0].file.close()
    with h5py.File(files["gzip"], "r+") as file, pytest.raises(InputError, match="open for reading only"):
        x = ad.io.sparse_dataset(file["X"])
        Loader(batch_size=8).add_anndatas([ad.AnnData(x, obs=cells.obs, var=cells.var)])


def test_rows_are_those_of_a_collection(files: dict[str, Path], tmp_path: Path) -> None:
    paths = [files["contiguous"], files["gzip 9 shuffle fletcher32"]]
    collection = create_anndata_collection(paths, tmp_path / "store", shuffle=False, progress=False, layers=["dense"])
    options = OPTIONS | {"shuffle": False}
    ours = Loader(**options).use_h5ad(paths, labels=None)
    built = Loader(**options).use_collection(collection, labels=[column.name for column in ours._opened().columns])
    assert ours.n_obs == built.n_obs == 2 * N_OBS
    for one, other in zip(each_batch(ours), each_batch(built), strict=True):
        np.testing.assert_array_equal(one.index, other.index)
        for key in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(one.data, key), getattr(other.data, key))
            assert getattr(one.data, key).dtype == getattr(other.data, key).dtype
        np.testing.assert_array_equal(one["layers"]["dense"], other["layers"]["dense"].to_scipy().toarray())
        assert list(one.labels.columns) == list(other.labels.columns)
        for column in one.labels:
            assert list(one.labels[column].astype(str)) == list(other.labels[column].astype(str))


# Python, and JAX where it was imported, warn of threads in a process that forks; that is what is tested.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*fork.*:RuntimeWarning")
def test_other_processes(files: dict[str, Path], cells: ad.AnnData) -> None:
    """What was opened here is read in a forked child, and after it was pickled; both ways of reading."""
    for name in ("gzip", "external"):
        ds = Loader(**OPTIONS).use_h5ad(files[name], labels=[])
        check(ds, cells, name)
        child = multiprocessing.get_context("fork").Process(target=check, args=(ds, cells, name))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        sent = pickle.loads(pickle.dumps(ds))
        check(sent.replace(batch_size=7, layers=["dense"]), cells, name)


@pytest.mark.slow
def test_a_process_without_the_filter(files: dict[str, Path], cells: ad.AnnData, tmp_path: Path) -> None:
    """Whoever gets a loader loads hdf5plugin when it reads."""
    (tmp_path / "loader").write_bytes(pickle.dumps(Loader(**OPTIONS).use_h5ad(files["bitshuffle"], labels=[])))
    program = f"""
import pickle, sys
sys.path[:] = {sys.path!r}
with open({str(tmp_path / "loader")!r}, "rb") as file:
    ds = pickle.load(file)
assert "hdf5plugin" not in sys.modules
print(sum(batch["layers"]["dense"].sum(dtype=float) for batch in ds))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    np.testing.assert_allclose(float(done.stdout), cells.X.sum(dtype=float))


def test_resume(files: dict[str, Path], cells: ad.AnnData, tmp_path: Path) -> None:
    """A state goes on with a copy of the files, and not with files that hold other numbers."""
    ds = Loader(**OPTIONS).use_h5ad(files["contiguous"], labels=[])
    epoch = iter(ds)
    for _ in range(3):
        next(epoch)
    state, rest = ds.state_dict(), [batch.index for batch in epoch]
    copy = shutil.copyfile(files["contiguous"], tmp_path / "copy.h5ad")
    again = Loader(**OPTIONS).use_h5ad(copy, labels=[])
    again.load_state_dict(state)
    np.testing.assert_array_equal(np.concatenate([batch.index for batch in again]), np.concatenate(rest))
    with h5py.File(copy, "r+") as file:
        file["X/data"][...] += 1
    other = Loader(**OPTIONS).use_h5ad(copy, labels=[])
    with pytest.raises(InputError, match=r"copy\.h5ad: must be the file with which the state was saved"):
        other.load_state_dict(json.loads(json.dumps(state)))
    two = Loader(**OPTIONS).use_h5ad([files["contiguous"], copy], labels=[])
    with pytest.raises(InputError, match="to the same files: it belongs to 1, the loader has 2"):
        two.load_state_dict(state)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def touched(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def replaced(path: Path) -> None:
    path.with_suffix(".new").write_bytes(path.read_bytes() + b"more")
    path.with_suffix(".new").rename(path)


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "ends early": (cut, "has changed from"),
    "is written": (touched, "has changed"),
    "is replaced": (replaced, "has changed from"),
    "is gone": (Path.unlink, "has been removed, or cannot be examined"),
}


@pytest.mark.parametrize("name", ["contiguous", "gzip", "bitshuffle"])
def test_files_that_change(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    """A file that changes between epochs, or within one, is an error that names it, and no other rows."""
    for what, (change, message) in CHANGES.items():
        path = Path(shutil.copyfile(files[name], tmp_path / f"{what}.h5ad"))
        ds = Loader(**OPTIONS, prefetch=0).use_h5ad(path, labels=[])
        list(ds)
        epoch = iter(ds)
        next(epoch)
        change(path)
        # What is open remains whole under another name; the next epoch refuses it.
        if what in ("is replaced", "is gone") and name != "bitshuffle":
            list(epoch)
        else:
            with pytest.raises(StoreError, match=f"{what}.h5ad.*: {message}"):
                list(epoch)
        with pytest.raises(StoreError, match=f"{what}.h5ad: {message}"):
            next(iter(ds))


def nameless(path: Path, cells: ad.AnnData) -> Path:
    cells.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        del file["obs"].attrs["_index"]
    return path


REFUSALS: dict[str, tuple[Callable[[Path, ad.AnnData], Any], dict[str, Any], type[Exception], str]] = {
    "nothing": (lambda p, a: [], {}, InputError, "at least one"),
    "a URL": (lambda p, a: "s3://bucket/x.h5ad", {}, InputError, "local files.*create_anndata_collection"),
    "no path": (lambda p, a: [3], {}, InputError, "got int"),
    "a missing file": (lambda p, a: p, {}, MissingInputError, "no such file"),
    "a folder": (lambda p, a: p.mkdir() or p, {}, InputError, "got a folder"),
    "text": (lambda p, a: p.write_text("cells") and p, {}, StoreError, "cannot be read as HDF5"),
    "no AnnData": (lambda p, a: h5py.File(p, "w").close() or p, {}, InputError, "must be AnnData"),
    "CSC": (
        lambda p, a: ad.AnnData(a.X.tocsc()).write_h5ad(p) or p,
        {},
        InputError,
        "X: must be stored by rows.*create_anndata_collection converts it",
    ),
    "no X": (lambda p, a: ad.AnnData(obs=a.obs).write_h5ad(p) or p, {}, InputError, "X is missing"),
    "no layer": (
        lambda p, a: ad.AnnData(a.X, layers={"b": a.X}).write_h5ad(p) or p,
        {"layers": ["a"]},
        InputError,
        r"layers/a is missing, layers holds \['b'\]",
    ),
    "no names": (nameless, {"names": True}, StoreError, "obs must have the attribute _index"),
    "no column": (lambda p, a: a.write_h5ad(p) or p, {"labels": ["a"]}, InputError, "obs columns, got 'a'"),
}


def test_refusals(cells: ad.AnnData, tmp_path: Path) -> None:
    for what, (make, options, kind, message) in REFUSALS.items():
        options = dict(options)
        labels = options.pop("labels", [])
        given = make(tmp_path / f"{what}.h5ad", cells)
        with pytest.raises(kind, match=f"(?s){message}") as raised:
            Loader(batch_size=8, **options).use_h5ad(given, labels=labels)
        assert what in str(raised.value) or not isinstance(given, Path)


def test_a_file_that_is_written(files: dict[str, Path], tmp_path: Path) -> None:
    path = shutil.copyfile(files["gzip"], tmp_path / "cells.h5ad")
    with h5py.File(path, "r+"), pytest.raises(StoreError, match=r"cells\.h5ad: is open for writing in this process"):
        Loader(batch_size=8).use_h5ad(path)
    code = "import h5py, sys; file = h5py.File(sys.argv[1], 'r+'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(StoreError, match=r"cells\.h5ad: is locked.*HDF5_USE_FILE_LOCKING"):
            Loader(batch_size=8).use_h5ad(path)
        writer.communicate()
    # Nobody keeps it open, and locked, while rows are read in place.
    ds = Loader(**OPTIONS).use_h5ad(path, labels=[])
    next(iter(ds))
    with h5py.File(path, "r+"):
        pass


def test_flipped_bits(files: dict[str, Path]) -> None:
    """gzip and fletcher32 notice every flipped bit of a number; of others it may change values and genes, not rows."""
    for name in SHOWN:
        counts = flips(files[name], 7, np.random.default_rng(0))
        assert counts.total() == 7
        if "gzip" in name or "fletcher32" in name:
            # The last bits of a gzip stream mean nothing.
            assert counts[OTHER] == 0, name
            assert counts[FOUND] >= 6, name


def test_column_numbers_that_are_none(files: dict[str, Path], tmp_path: Path) -> None:
    for name in ("contiguous", "bitshuffle"):
        for number in (-1, N_VARS):
            path = shutil.copyfile(files[name], tmp_path / "cells.h5ad")
            with h5py.File(path, "r+") as file:
                file["X/indices"][17] = number
            with pytest.raises(StoreError, match="negative or not below the limit"):
                list(Loader(**OPTIONS).use_h5ad(path, labels=[]))


def test_libdeflate_is_optional(
    files: dict[str, Path], cells: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gzip is decoded by libdeflate where the package is installed, and the same without it."""
    pytest.importorskip("deflate")
    assert libdeflate.libdeflate() is not None
    monkeypatch.setattr(codecs, "libdeflate", lambda: None)
    for genes in (None, ["3", "7"]):
        ds = Loader(**OPTIONS, var_names=genes).use_h5ad(files["gzip 9 shuffle fletcher32"], labels=[])
        for batch in each_batch(ds):
            x = cells.X[batch.index] if genes is None else cells.X[batch.index][:, [3, 7]]
            np.testing.assert_array_equal(batch.data.to_scipy().toarray(), x.toarray())


def test_older_attributes(files: dict[str, Path], cells: ad.AnnData, tmp_path: Path) -> None:
    path = shutil.copyfile(files["gzip"], tmp_path / "old.h5ad")
    with h5py.File(path, "r+") as file:
        old = file["X"].attrs
        old["h5sparse_format"], old["h5sparse_shape"] = "csr", old["shape"]
        for name in ("encoding-type", "encoding-version", "shape"):
            del old[name]
    check(Loader(**OPTIONS).use_h5ad(path, labels=[]), cells, "gzip")


def test_links(files: dict[str, Path], cells: ad.AnnData, tmp_path: Path) -> None:
    """X, or a part of it, may be a link, into another file, too: that one is then the file that may not change."""
    cache = tmp_path / "cache"
    for name in ("gzip", "virtual"):
        for links in (["X"], ["X/data"], ["X/indices", "X/indptr", "layers/dense"]):
            there = Path(shutil.copy2(files[name], tmp_path / "there.h5ad"))
            path = Path(shutil.copy2(files[name], tmp_path / "cells.h5ad"))
            with h5py.File(path, "r+") as file, h5py.File(there, "r+") as other:
                for link in links:
                    other.move(link, f"moved/{link}")
                    del file[link]
                    file[link] = h5py.ExternalLink("there.h5ad", f"moved/{link}")
                if "layers/dense" not in links:
                    file.move("layers/dense", "elsewhere")
                    file["layers/dense"] = h5py.SoftLink("/elsewhere")
            for one in (there, path):
                os.utime(one, (0, 0))
            for _ in range(2):
                ds = Loader(**OPTIONS, cache_dir=cache).use_h5ad(path, labels=[])
                check(ds, cells, name)
            touched(there)
            with pytest.raises(StoreError, match=r"there\.h5ad.* has changed"):
                list(ds)


def test_what_is_logged(files: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="annbatch"):
        Loader(**OPTIONS).use_h5ad([files["virtual"], files["virtual"]], labels=[])
    assert "h5py, not the direct path, reads" in caplog.text
    assert "and 3 more: it is a virtual dataset" in caplog.text


@pytest.mark.parametrize("count", [40, pytest.param(6000, marks=pytest.mark.slow)])
def test_damaged_files_do_no_harm(count: int) -> None:
    """Damage to metadata and chunks is refused, or gives rows of the right shape; no process dies in our code."""
    script = Path(__file__).parents[1] / "support" / "fuzz_h5ad.py"
    done = subprocess.run(
        [sys.executable, str(script), "--count", str(count)], capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    assert "refused" in done.stdout
    assert "'read'" in done.stdout


def test_chunks_that_are_read_ahead(files: dict[str, Path], cells: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that do not lie in the page cache, or go past it, are those that are decoded."""
    monkeypatch.setattr(chunk_arrival, "are_cached", lambda sampled: False)
    for limit in (sys.maxsize, 0):
        monkeypatch.setattr(chunk_arrival, "room", lambda limit=limit: limit)
        for name in ("contiguous", "lzf shuffle fletcher32"):
            check(Loader(**OPTIONS).use_h5ad(files[name], labels=[]), cells, name)
