"""Does the program that compares the bytes of two machines run?

That two builds give the same bytes, `test_write_order.py` shows.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "arm64"


def test_it_gives_sums_of_collections_batches_and_orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    byte_sums = importlib.import_module("byte_sums")
    monkeypatch.setattr(byte_sums, "get_args", lambda codecs: [])
    monkeypatch.chdir(tmp_path)
    ((name, collection),) = byte_sums.collections().items()
    assert name == "dense"
    parts = (byte_sums.files_of(collection.path), byte_sums.batches(collection), byte_sums.orders("pairs"))
    assert len({byte_sums.digest(part) for part in parts}) == 3
