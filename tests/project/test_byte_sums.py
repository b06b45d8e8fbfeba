"""Does the program that compares the bytes of two machines run, and give the same bytes twice?"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "arm64"


def test_the_same_bytes_come_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    byte_sums = importlib.import_module("byte_sums")
    monkeypatch.setattr(byte_sums, "get_args", lambda codecs: ["blosc"])
    found = []
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        monkeypatch.chdir(tmp_path / run)
        (collection, _) = byte_sums.collections().values()
        parts = (byte_sums.files_of(collection.path), byte_sums.batches(collection), byte_sums.orders("pairs"))
        found.append([byte_sums.digest(part) for part in parts])
    assert found[0] == found[1]
    assert len(set(found[0])) == 3
