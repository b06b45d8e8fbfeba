"""Is each chunk of a dense matrix decoded once, whatever its shape?"""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import anndata as ad
import h5py
import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore, WrapperStore

from annbatch import create_anndata_collection
from annbatch.testing.cells import value
from annbatch.write.inputs.matrix_rows import matrix_of
from annbatch.write.inputs.rewritten_rows import rewrite, rewritten
from small_budget import small_budget

N_OBS, N_VARS = 60, 14
VALUES = np.asarray(value(np.arange(N_OBS)[:, None], np.arange(N_VARS)[None, :]) % 50, np.float32)
OBSM = -VALUES[:, :6] / 4
SLOW = [(60, 1), (25, 7), (13, 14), (60, 14), (1, 14), (2, 14)]
CHUNKS = [(60, 3), (25, 5), *(pytest.param(chunks, marks=pytest.mark.slow) for chunks in SLOW)]


class Counting(WrapperStore[Any]):
    """A store that counts how often each chunk is read."""

    reads: ClassVar[Counter[str]] = Counter()

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        if "/c/" in key:
            self.reads[key] += 1
        return await self._store.get(key, *args, **kwargs)

    def with_read_only(self, read_only: bool = False) -> Counting:
        # zarr has it for stores of this kind since 3.1.4.
        return Counting(self._store.with_read_only(read_only))


def adata() -> ad.AnnData:
    made = ad.AnnData(VALUES, obsm={"pca": OBSM})
    made.layers["half"] = VALUES / 2
    return made


def stored(chunks: tuple[int, int]) -> Counting:
    store = MemoryStore()
    with warnings.catch_warnings():
        # anndata 0.13 warns of the setting itself.
        warnings.simplefilter("ignore")
        with ad.settings.override(zarr_write_format=3):
            adata().write_zarr(store)
        root = zarr.open_group(store, use_consolidated=False)
        for key in ("X", "layers/half", "obsm/pca"):
            values, attributes = root[key][...], dict(root[key].attrs)
            fits = (chunks[0], min(chunks[1], values.shape[1]))
            root.create_array(key, data=values, chunks=fits, overwrite=True, attributes=attributes)
        zarr.consolidate_metadata(store)
    Counting.reads = Counter()
    return Counting(store)


@pytest.mark.parametrize(
    "dense", [[], pytest.param(["X", "layers/half"], marks=pytest.mark.slow)], ids=["csr", "dense"]
)
@pytest.mark.parametrize("rewriting", [False, True])
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_each_chunk_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: tuple[int, int], dense: list[str], rewriting: bool
):
    written: list[Any] = []
    monkeypatch.setattr("annbatch.write.passes.rewrite", lambda *given: written.append(rewrite(*given)))
    # Runs of a few cells, or of all that a chunk holds.
    small_budget(monkeypatch, run_bytes=6000 if rewriting else 120_000, block_elements=100)
    store = stored(chunks)
    collection = create_anndata_collection(store, tmp_path / "store", dense=dense, shuffle=False, progress=False)
    assert bool(written) == (rewriting and chunks[0] > 2)
    assert set(Counting.reads.values()) == {1}
    found = ad.read_zarr(collection.store_paths[0])
    for key, wanted in {"X": VALUES, "half": VALUES / 2}.items():
        matrix = found.X if key == "X" else found.layers[key]
        np.testing.assert_array_equal(matrix if dense else matrix.toarray(), wanted)
    np.testing.assert_array_equal(found.obsm["pca"], OBSM)


@pytest.mark.parametrize("limit_bytes", [50, 1000, 10**9])
@pytest.mark.parametrize("chunks", [(60, 3), (25, 5), *SLOW], ids=str)
def test_rewritten_rows_are_the_rows(tmp_path: Path, chunks: tuple[int, int], limit_bytes: int):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        matrix = matrix_of(file.create_dataset("x", data=VALUES, chunks=chunks, compression="gzip"), "x")
        assert matrix.chunk_shape == chunks
        rewrite(tmp_path / "by_rows", matrix, limit_bytes, lambda: None)
    found = rewritten(tmp_path / "by_rows", matrix)
    assert found.chunk_shape == (1, N_VARS)
    for start, stop in ((0, N_OBS), (7, 8), (20, 47)):
        np.testing.assert_array_equal(found.data[start:stop], VALUES[start:stop])
    assert [path.name for path in (tmp_path / "by_rows").iterdir()] == ["rows"]
