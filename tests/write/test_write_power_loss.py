"""Is everything on the disk before something refers to it?

A killed process loses nothing that it wrote (`test_write_steps.py`). A loss of power may lose everything that no
process waited for. So at each rename that counts, this test compares what is there with what `os.fsync` was called for.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from annbatch import append_to_collection, create_anndata_collection
from annbatch.stores.collection import Collection
from annbatch.write.output import directory_swap
from small_budget import small_budget

CUT: dict[str, Any] = {"rows_per_store": 12, "chunk_elements": 16, "shard_elements": 32, "progress": False}


class Disk:
    """Knows what is on the disk, and looks at each rename that a build makes.

    Parameters
    ----------
    output
        Path of the collection.
    patch
        Lets it see what the build does.
    """

    def __init__(self, output: Path, patch: pytest.MonkeyPatch) -> None:
        self.output = output
        self.hidden = output.with_name(f".{output.name}.building")
        self.seen: list[str] = []
        """What was looked at."""
        self.lost: list[str] = []
        """What a loss of power might have cost."""
        self._files: dict[int, bytes] = {}
        self._folders: dict[int, dict[str, int]] = {}
        self._runs: dict[Path, dict[str, bytes]] = {}
        rename, exchange = os.rename, directory_swap._exchange_at_once

        def renamed(source: Any, target: Any, **options: Any) -> None:
            self._look(Path(source), Path(target))
            rename(source, target, **options)

        def exchanged(new: Path, old: Path) -> bool:
            self._check("exchange", new)
            return exchange(new, old)

        patch.setattr(os, "fsync", self._fsync)
        patch.setattr(os, "rename", renamed)
        patch.setattr(directory_swap, "_exchange_at_once", exchanged)

    def _fsync(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            self._folders[found.st_ino] = entries(descriptor)
        else:
            self._files[found.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def _look(self, source: Path, target: Path) -> None:
        if target.parent.name == "runs" and source != target:
            # Runs need not survive a loss of power, but a run that has its name is whole.
            self._runs[target] = content(source)
            self.seen.append("run")
        elif source.name == f".{target.name}.writing":
            self._check(target.name, source)
            if target == self.hidden / "committed.json":
                self._check("what is committed", self.hidden / "collection")
            if target == self.output / "collection.json":
                self._check("what the manifest names", self.output)
        elif target.suffix == ".zarr":
            self._check("store", source)
            if "partial" in source.parts:
                runs = source.parent.with_name("runs")
                known = {path: held for path, held in self._runs.items() if path.parent == runs}
                if {path: content(path) for path in runs.iterdir()} != known:
                    self.lost.append("a run changed, or was written in its place")
                self.seen.append("runs")
        elif target == self.output:
            self._check("collection", source)
        elif source == self.hidden:
            self._check("what is in its place", self.output)
            place = self._folders.get(self.output.parent.stat().st_ino, {})
            if place.get(self.output.name) != self.output.stat().st_ino:
                self.lost.append("the place of the collection")
            self._runs.clear()

    def _check(self, what: str, path: Path) -> None:
        self.seen.append(what)
        self.lost += [f"{what}: {one}" for one in (path, *path.rglob("*")) if not self._is_kept(one)]

    def _is_kept(self, path: Path) -> bool:
        inode = path.stat().st_ino
        if not path.is_dir():
            # What is on its way to its name is looked at when it gets it.
            is_temporary = path.parent == self.output and path.name[0] == "."
            return is_temporary or self._files.get(inode) == path.read_bytes()
        held = self._folders.get(inode, {})
        return all(held.get(name) == one for name, one in entries(path).items() if name[0] != ".")


def entries(folder: Any) -> dict[str, int]:
    """The names in a folder, and what they stand for."""
    with os.scandir(folder) as found:
        return {entry.name: entry.inode() for entry in found}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cells(first: int, prefix: str = "g") -> ad.AnnData:
    rows = np.arange(first, first + 20)
    obs = pd.DataFrame({"kind": pd.Categorical(np.array(["a", "b"])[rows % 2])}, index=[f"cell{row}" for row in rows])
    x = sp.csr_matrix(np.outer(rows, [1, 0, 2]).astype(np.float32))
    return ad.AnnData(x, obs, pd.DataFrame(index=[f"{prefix}{column}" for column in range(3)]))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs the names of open files")
def test_what_is_referred_to_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    disk = Disk(tmp_path / "store", monkeypatch)
    small_budget(monkeypatch, run_bytes=1000, tasks=1)

    def seen(n_obs: int, build: Any, inputs: Any, **options: Any) -> Counter[str]:
        build(inputs, disk.output, **CUT, **options)
        assert disk.lost == []
        assert Collection.open(disk.output).n_obs == n_obs
        found, disk.seen = Counter(disk.seen), []
        assert found.pop("run") > 1
        return found

    names = ["build.json", "runs.json", "0.json", "1.json", "collection.json", "committed.json"]
    written = Counter([*names, "what is committed", "what is in its place", *["store", "runs"] * 2])
    new = written + Counter({"zarr.json": 1})
    assert seen(20, create_anndata_collection, cells(0)) == new + Counter({"collection": 1})
    # Stores are moved once more, and the manifest is written where it is to be.
    moved = Counter({"store": 2, "collection.json": 1, "what the manifest names": 1})
    assert seen(40, append_to_collection, cells(20)) == written + moved
    assert seen(20, create_anndata_collection, cells(0), overwrite=True) == new + Counter({"exchange": 1})
    modalities = [{"rna": cells(0), "adt": cells(0, "p")}]
    assert seen(20, create_anndata_collection, modalities, overwrite=True)["exchange"] == 1
    monkeypatch.setattr(directory_swap, "_exchange_at_once", lambda new, old: False)
    assert seen(20, create_anndata_collection, cells(0), overwrite=True) == new + Counter({"collection": 1})
