"""Do two directories swap places, at once or with one of them aside, and does the old one come back if that fails?"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from annbatch.write.output.directory_swap import exchange

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux swaps two names in one step")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A new and an old directory, each with a file that says which it is."""
    new, old = tmp_path / "new", tmp_path / "old"
    for path in (new, old):
        path.mkdir()
        (path / path.name).touch()
    return new, old


def listed(folder: Path) -> dict[str, list[str]]:
    return {path.name: [file.name for file in path.iterdir()] for path in folder.iterdir()}


def renameat2_fails_with(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> int:
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: SimpleNamespace(renameat2=fail))


@linux
def test_at_once(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # A way round would need to rename.
    monkeypatch.setattr(Path, "rename", None)
    monkeypatch.chdir(tmp_path)
    exchange(*pair)
    assert listed(tmp_path) == {"new": ["old"], "old": ["new"]}
    exchange(Path("new"), Path("old"))
    assert listed(tmp_path) == {"new": ["new"], "old": ["old"]}


@linux
def test_the_reason_of_the_system_is_told(pair: tuple[Path, Path], tmp_path: Path):
    ctypes.set_errno(0)
    with pytest.raises(FileNotFoundError, match="gone"):
        exchange(tmp_path / "gone", pair[1])


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, None])
def test_with_one_aside(number: int | None, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if number is None:
        monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: SimpleNamespace())
    else:
        renameat2_fails_with(number, monkeypatch)
    exchange(*pair)
    assert listed(tmp_path) == {"new": ["old"], "old": ["new"]}


def test_the_old_one_comes_back(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    renameat2_fails_with(errno.EINVAL, monkeypatch)
    (pair[0] / "new").unlink()
    pair[0].rmdir()
    with pytest.raises(FileNotFoundError):
        exchange(*pair)
    assert listed(tmp_path) == {"old": ["old"]}


def test_other_errors_are_raised_before_anything_moves(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    renameat2_fails_with(errno.EACCES, monkeypatch)
    with pytest.raises(PermissionError, match=os.strerror(errno.EACCES)) as caught:
        exchange(*pair)
    assert caught.value.errno == errno.EACCES
    assert caught.value.filename == str(pair[0])
    assert listed(tmp_path) == {"new": ["new"], "old": ["old"]}
