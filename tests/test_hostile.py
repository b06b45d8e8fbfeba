"""What does a store that means harm get? See ``SECURITY.md``."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import zarr

from annbatch import CorruptStoreError, Loader, StoreError, elements
from annbatch.array_metadata import describe
from annbatch.store import Wanted, _open_path
from stores import named_stores

HERE = Path(__file__).parent


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("something in the store was executed",))


def test_codecs_that_unpickle_are_refused_unread(tmp_path):
    """Of numbers zarr refuses them itself; of text it does not."""
    named_stores(tmp_path, "v2", sizes=(10,))
    column = tmp_path / "0.zarr/obs/donor"
    if not (column / ".zarray").exists():  # pandas 3 knows text that may be missing, and anndata writes that as a group
        column /= "values"
    fields = json.loads((column / ".zarray").read_text())
    fields["filters"] += [{"id": "pickle", "protocol": 5}]
    (column / ".zarray").write_text(json.dumps(fields | {"compressor": None}))
    (column / "0").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(StoreError, match=r"obs/donor(/values)?: the codec 'pickle' may run what is stored"):
        _open_path(tmp_path / "0.zarr", {}, Wanted(("donor",), ("X",)))


def written(tmp_path: Path) -> Path:
    named_stores(tmp_path, "v3 sharded", sizes=(10,))
    return tmp_path / "0.zarr"


def test_a_row_longer_than_the_matrix_is_wide(tmp_path):
    """It would take any amount of memory, were it believed."""
    path = written(tmp_path)
    indptr = zarr.open_array(path / "X/indptr", mode="r+")
    indptr[5:] = indptr[-1]
    ds = Loader(batch_size=4).add_anndatas([ad.AnnData(X=ad.io.sparse_dataset(zarr.open_group(path, mode="r")["X"]))])
    with pytest.raises(CorruptStoreError, match="a row must have at most 30 elements, one has"):
        list(ds)


@pytest.mark.parametrize(
    ("field", "value"),
    [("shape", [2**50]), ("shape", [2**63]), ("shape", [-5]), ("shape", [2**40, 2**40])],
    ids=str,
)
def test_sizes_beyond_all_memory_are_refused(tmp_path, field, value):
    path = written(tmp_path)
    metadata = path / "X/data/zarr.json"
    fields = json.loads(metadata.read_text())
    metadata.write_text(json.dumps(fields | {field: value}))
    assert isinstance(describe(path / "X/data"), str)


def test_a_shard_index_beyond_all_memory_is_refused(tmp_path):
    path = written(tmp_path)
    metadata = path / "X/data/zarr.json"
    fields = json.loads(metadata.read_text())
    fields["chunk_grid"]["configuration"]["chunk_shape"] = [7 * 2**40]
    metadata.write_text(json.dumps(fields))
    assert isinstance(describe(path / "X/data"), str)


@pytest.mark.parametrize("inputs", [150, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutated_stores(inputs):
    command = [sys.executable, str(HERE / "fuzz_stores.py"), "--seed", str(inputs), "--inputs", str(inputs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout[-1000:]} {done.stderr[-2000:]}"
    record = json.loads(done.stdout)
    assert record["inputs"] == inputs
    outcomes = record["outcomes"]
    # Most changes are noticed, and some do no harm.
    assert sum(n for kind, n in outcomes.items() if "Error" in kind) > inputs / 4
    assert any(kind.endswith(": read") for kind in outcomes)


def test_numbers_of_a_matrix_in_memory_are_shared_out(tmp_path, monkeypatch):
    monkeypatch.setattr(elements, "TASK_BYTES", 64)
    adatas, x, _ = named_stores(tmp_path, "in memory")
    ds = Loader(batch_size=8, chunk_size=4, preload_nchunks=4, threads=2).add_anndatas(adatas)
    for batch in ds:
        assert (batch.data.to_scipy() != x[batch.index]).nnz == 0
    assert len(np.unique(np.concatenate([batch.index for batch in ds]))) == x.shape[0]
