"""Do worker processes that open `.h5ad` files change anything but the time?"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from annbatch import InputError, Loader, StoreError
from annbatch.stores import array_opening, parallel_opening
from datagen import named_adata
from epochs import each_batch

N_FILES, N_OBS = 7, 20
BY_H5PY = (1, 5)
OPTIONS: dict[str, Any] = {
    "batch_size": 16,
    "chunk_size": 3,
    "preload_nchunks": 4,
    "layers": ["dense"],
    "join": "outer",
    "names": True,
}
LACKING = "obs columns are missing in the rows of stores that lack them"
# Python, and JAX where it was imported, warn of threads in a process that forks.
pytestmark = pytest.mark.filterwarnings(
    f"ignore:{LACKING}", "ignore:.*fork.*:DeprecationWarning", "ignore:.*fork.*:RuntimeWarning"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files with different genes; h5py reads the dense layer of some, which is in chunks of a few genes."""
    folder = tmp_path_factory.mktemp("files")
    paths = []
    for i in range(N_FILES):
        genes = range(9) if i % 2 else [12, 3, 1, 8, 11, 5]
        adata = named_adata(np.random.default_rng(i), range(i * N_OBS, (i + 1) * N_OBS), genes, density=0.5)
        adata.layers["dense"] = adata.X.toarray()
        if i == 5:
            adata.obs["only here"] = pd.Categorical([f"k{row % 3}" for row in range(N_OBS)])
        path = folder / f"{i}.h5ad"
        adata.write_h5ad(path, compression="gzip" if i % 2 else None)
        if i in BY_H5PY:
            with h5py.File(path, "r+") as file:
                attributes = dict(file["layers/dense"].attrs)
                del file["layers/dense"]
                by_genes = file.create_dataset("layers/dense", data=adata.layers["dense"], chunks=(N_OBS, 2))
                by_genes.attrs.update(attributes)
        # What has just been written is not kept in an index.
        os.utime(path, (0, 0))
        paths.append(path)
    return paths


@pytest.fixture
def files(written: list[Path], tmp_path: Path) -> list[Path]:
    return [Path(shutil.copy2(path, tmp_path)) for path in written]


class Forked:
    """A fork in the place of a new interpreter, which would take a second or two to start."""

    def __init__(self, command: list[str], *, pass_fds: list[int], **others: Any) -> None:
        self._process = multiprocessing.get_context("fork").Process(target=self._serve, args=pass_fds)
        self._process.start()

    @staticmethod
    def _serve(descriptor: int) -> None:
        # A new interpreter would not have the other end, which tells it that the opening process is gone.
        os.closerange(3, descriptor)
        os.closerange(descriptor + 1, 1024)
        parallel_opening.serve(descriptor)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> None:
        self._process.join(timeout)
        if self._process.is_alive():
            raise subprocess.TimeoutExpired("worker", timeout or 0)


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let few files be enough for a worker, and wait for it, so that it gets some."""
    exchange = parallel_opening._Openings.exchange

    def patient(self: Any, timeout_s: float | None) -> None:
        is_awaited = self.is_asked or any(not worker.is_ready for worker in self._workers)
        exchange(self, None if is_awaited else timeout_s)

    monkeypatch.setattr(parallel_opening, "_WORTH_S", 1e-9)
    monkeypatch.setattr(parallel_opening, "available_cores", lambda: 2)
    monkeypatch.setattr(parallel_opening._Openings, "exchange", patient)


@pytest.fixture
def forked(many: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_opening.subprocess, "Popen", Forked)


def noted_openings(monkeypatch: pytest.MonkeyPatch, instead: Callable[[Path], None] = lambda path: None) -> list[str]:
    """Note which files are opened in this process; do something before each is opened, there and in workers."""
    noted: list[str] = []
    opening = parallel_opening.open_h5ad

    def open_h5ad(path: Path, *others: Any) -> Any:
        noted.append(path.name)
        instead(path)
        return opening(path, *others)

    monkeypatch.setattr(parallel_opening, "open_h5ad", open_h5ad)
    return noted


def opened(files: list[Path], folder: Path | None = None, **options: Any) -> Loader:
    return Loader(**OPTIONS | options, cache_dir=folder).use_h5ad(files)


def check_equal(one: Loader, other: Loader) -> None:
    assert one.state_dict() == other.state_dict()
    assert repr(one) == repr(other)
    for a, b in zip(each_batch(one), each_batch(other), strict=True):
        for key in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(a.data, key), getattr(b.data, key))
        np.testing.assert_array_equal(a["layers"]["dense"], b["layers"]["dense"])
        pd.testing.assert_frame_equal(a.labels, b.labels)
    pd.testing.assert_frame_equal(one.var, other.var)
    pd.testing.assert_frame_equal(one.obs(), other.obs())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "h5ad-index").iterdir()}


def test_same_loader(files: list[Path], tmp_path: Path, many: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without an index, which is the same afterwards; what an index knows is not opened."""
    monkeypatch.setattr(parallel_opening, "available_cores", lambda: 1)
    plain, kept = opened(files), opened(files, tmp_path / "kept")
    monkeypatch.setattr(parallel_opening, "available_cores", lambda: 2)
    noted = noted_openings(monkeypatch)
    check_equal(plain, opened(files, tmp_path / "cache"))
    assert noted == [path.name for path in files[: len(noted)]]
    assert len(noted) < N_FILES
    assert contents(tmp_path / "cache") == contents(tmp_path / "kept")
    noted.clear()
    # h5py reads a part of the others, so that they are opened again.
    again = opened(files, tmp_path / "cache")
    assert noted == [f"{i}.h5ad" for i in BY_H5PY]
    check_equal(kept, again)


def test_replaced(files: list[Path], forked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader of other elements opens its files in the same way."""
    ds = opened(files, layers=[])
    noted = noted_openings(monkeypatch)
    check_equal(opened(files), ds.replace(layers=["dense"]))
    assert noted.count("0.h5ad") == 2
    assert len(noted) < 2 * N_FILES


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def by_columns(path: Path) -> None:
    named_adata(np.random.default_rng(0), range(N_OBS), range(9), form="csc").write_h5ad(path)


def into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [cut, by_columns, into_folder, Path.unlink])
def test_errors(files: list[Path], damage: Any, forked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is that of the first file that is damaged, and says the same as without workers."""
    found = []
    for n_cores in (1, 2):
        monkeypatch.setattr(parallel_opening, "available_cores", lambda n=n_cores: n)
        for path in files[5:]:
            if n_cores == 1:
                damage(path)
        with pytest.raises((InputError, StoreError), match=r"5\.h5ad") as caught:
            opened(files, layers=[])
        found.append((caught.type, str(caught.value)))
    assert found[0] == found[1]


def test_messages(
    files: list[Path], forked: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Warnings and log messages of each file come once, from this process, in the order of the files."""
    plain = opened(files)

    def talk(path: Path) -> None:
        if path.name in ("3.h5ad", "5.h5ad"):
            warnings.warn(f"{path.name} is old", UserWarning, stacklevel=1)
        if path.name == "4.h5ad":
            logging.getLogger("other").warning("%s is odd", path.name)
        warnings.warn("ignored", DeprecationWarning, stacklevel=1)

    noted = noted_openings(monkeypatch, talk)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", LACKING)
        # JAX warns of the forks of this test, if another test of the process has imported it.
        warnings.filterwarnings("ignore", r"os\.fork\(\)", RuntimeWarning)
        found = opened(files)
    # Nothing was wrong with the last one.
    assert noted == [path.name for path in files[:-1]]
    assert [str(one.message) for one in warned] == ["3.h5ad is old", "5.h5ad is old"]
    assert [record.getMessage() for record in caplog.records if record.name == "other"] == ["4.h5ad is odd"]
    check_equal(plain, found)


class Garbage:
    """Something that the other process cannot make sense of."""

    def __reduce__(self) -> tuple[type[int], tuple[str]]:
        return int, ("no number",)


@pytest.mark.parametrize("how", ["killed", "garbage", "never ready"])
def test_workers_that_fail(
    files: list[Path], how: str, forked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies, answers nonsense or does not start costs time, no more."""
    plain, here = opened(files), os.getpid()

    def fail(path: Path) -> None:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)

    if how == "killed":
        noted_openings(monkeypatch, fail)
    elif how == "garbage":
        opening = parallel_opening.open_h5ad
        monkeypatch.setattr(
            parallel_opening, "open_h5ad", lambda *them: opening(*them) if os.getpid() == here else Garbage()
        )
    else:
        monkeypatch.undo()
        monkeypatch.setattr(parallel_opening, "_WORTH_S", 1e-9)
        monkeypatch.setattr(parallel_opening, "available_cores", lambda: 2)
        program = tmp_path / "python-of-another-kind"
        program.write_text("#!/bin/sh\nexec sleep 60\n")
        program.chmod(0o755)
        monkeypatch.setattr(parallel_opening, "_interpreter", lambda: str(program))
    noted = noted_openings(monkeypatch)
    began = time.monotonic()
    found = opened(files)
    assert time.monotonic() - began < 30
    assert sorted(noted) == [path.name for path in files]
    check_equal(plain, found)


def test_interrupted(files: list[Path], forked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker outlives Ctrl-C."""
    here = os.getpid()

    def interrupt(path: Path) -> None:
        if os.getpid() == here and path.name == "2.h5ad":
            raise KeyboardInterrupt

    noted_openings(monkeypatch, interrupt)
    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt):
        opened(files)
    assert set(multiprocessing.active_children()) == before


def test_when_workers_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their number follows from the work that is left, and from the cores; some processes cannot have any."""
    monkeypatch.setattr(parallel_opening, "available_cores", lambda: 4)
    worth_s = parallel_opening._WORTH_S
    found = [parallel_opening._n_workers(n * worth_s) for n in (0, 0.9, 1.1, 2.1, 100)]
    assert found == [0, 0, 1, 2, 3]
    monkeypatch.setattr(parallel_opening, "available_cores", lambda: 1)
    assert parallel_opening._n_workers(100 * worth_s) == 0
    monkeypatch.setattr(parallel_opening, "available_cores", lambda: 1000)
    assert parallel_opening._n_workers(1000 * worth_s) == parallel_opening._MAX_WORKERS
    with monkeypatch.context() as patch:
        patch.setattr(array_opening, "DIRECT", False)
        assert parallel_opening._n_workers(100 * worth_s) == 0
    assert Path(parallel_opening._interpreter()) == Path(sys.executable)
    for executable in ("/usr/bin/uwsgi", ""):
        monkeypatch.setattr(parallel_opening, "_interpreter", lambda name=executable: name)
        assert parallel_opening._n_workers(100 * worth_s) == 0


def test_the_time_of_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is slow counts, other programs do not; where the system does not tell them apart, both do."""
    for is_known in (True, False):
        if not is_known:
            monkeypatch.setattr(Path, "read_text", lambda self: "nothing")
        began, own = time.perf_counter(), parallel_opening._own_time_s()
        time.sleep(0.1)
        own = parallel_opening._own_time_s() - own
        assert 0.05 < own <= time.perf_counter() - began
