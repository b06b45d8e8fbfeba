"""Does a real CUDA device give the batches of the CPU, bit for bit?"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from annbatch import CSR, Batch, Capacity, Collection, DeviceMemoryError, Emit, Loader, create_anndata_collection
from annbatch.device import nvcomp as nvcomp_module

pytestmark = pytest.mark.gpu

N_OBS, N_VARS = 20_000, 1_000
WINDOWS: dict[str, Any] = {"casting": "unsafe", "batch_size": 512, "chunk_size": 64, "preload_nchunks": 32, "seed": 5}
DECODES = [
    "cpu",
    pytest.param("gpu", marks=pytest.mark.skipif(nvcomp_module.missing() is not None, reason="no nvCOMP")),
]


@pytest.fixture(scope="module")
def collections(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Collection]:
    folder = tmp_path_factory.mktemp("gpu")
    rng = np.random.default_rng(0)
    x = sp.random(N_OBS, N_VARS, 0.1, "csr", random_state=rng)
    x.data = np.minimum(rng.geometric(0.2, x.nnz) * rng.choice([1, 100], x.nnz), 60_000).astype(np.float32)
    obs = pd.DataFrame({"stage": pd.Categorical(rng.choice(["early", "late"], N_OBS))})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        obs.index = obs.index.astype(str)
        adata = ad.AnnData(X=x, obs=obs, var=pd.DataFrame(index=[f"g{c}" for c in range(N_VARS)]))
        adata.obsm["pca"] = rng.normal(size=(N_OBS, 5)).astype(np.float32)
        adata.write_h5ad(folder / "cells.h5ad")
    return {
        codec: create_anndata_collection(
            [folder / "cells.h5ad"], folder / codec, rows_per_store=9_000, chunk_elements=2**12, codec=codec,
            progress=False,
        )  # type: ignore[call-overload]
        for codec in ("blosc", "packed", "zstd")
    }  # fmt: skip


@pytest.fixture
def ours(collections: dict[str, Collection]) -> Path:
    return collections["zstd"].directory


def parts_of(matrix: Any) -> list[Any]:
    return [matrix.data, matrix.indices, matrix.indptr] if isinstance(matrix, CSR) else [matrix]


def check_same(found: list[Batch], expected: list[Batch]) -> None:
    import cupy

    cupy.cuda.Device().synchronize()
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.index, other.index)
        pairs = [(one.data, other.data)]
        pairs += [(one.obsm[name], other.obsm[name]) for name in one.obsm or ()]  # type: ignore[index]
        for matrix, truth in pairs:
            assert matrix.shape == truth.shape
            for part, true_part in zip(parts_of(matrix), parts_of(truth), strict=True):
                assert isinstance(part, cupy.ndarray)
                assert part.dtype == true_part.dtype
                assert part.get().tobytes() == true_part.tobytes()


EMITS = {
    "csr": Emit(),
    "wide": Emit(dtype=np.dtype("f8"), index_dtype=np.dtype("i8")),
    "integers": Emit(dtype=np.dtype("i4")),
    "padded": Emit(nse=Capacity(), pad_rows=True),
    "dense": Emit(layout="dense", dtype=np.dtype("f4")),
    "dense padded": Emit(layout="dense", pad_rows=True),
}


@pytest.mark.parametrize("emit", EMITS)
@pytest.mark.parametrize("decode", DECODES)
def test_bit_for_bit(ours: Path, emit: str, decode: Any) -> None:
    options = WINDOWS | {"obsm": ["pca"]}
    expected = list(Loader(**options).use_collection(ours).batches(EMITS[emit]))
    with Loader(**options, device="cuda", decode=decode).use_collection(ours) as ds:
        assert ds.decode == decode
        for _ in range(2):
            ds.set_epoch(0)
            check_same(list(ds.batches(EMITS[emit])), expected)


@pytest.mark.parametrize("emit", EMITS)
@pytest.mark.parametrize("chunk_size", [64, 1])
def test_packed_chunks_need_no_nvcomp(
    collections: dict[str, Collection], emit: str, chunk_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("annbatch.dataset.missing", lambda: "nvCOMP is not here")
    path = collections["packed"].directory
    options = WINDOWS | {"chunk_size": chunk_size, "preload_nchunks": 2048 // chunk_size}
    expected = list(Loader(**options).use_collection(path).batches(EMITS[emit]))
    with Loader(**options, device="cuda").use_collection(path) as ds:
        assert ds.decode == "gpu"
        check_same(list(ds.batches(EMITS[emit])), expected)


def test_chunks_that_only_the_cpu_decodes(collections: dict[str, Collection]) -> None:
    path = collections["blosc"].directory
    expected = list(Loader(**WINDOWS).use_collection(path))
    with Loader(**WINDOWS, device="cuda").use_collection(path) as ds:
        assert ds.decode == "cpu"
        check_same(list(ds), expected)


@pytest.mark.parametrize("decode", DECODES)
def test_sixteen_bits(ours: Path, decode: Any) -> None:
    expected = list(Loader(**WINDOWS).use_collection(ours).batches(Emit(layout="dense")))
    assert expected
    ds = Loader(**WINDOWS, device="cuda", decode=decode).use_collection(ours)
    halves = list(ds.batches(Emit(layout="dense", dtype=np.dtype(np.float16))))
    ds.set_epoch(0)
    brains = list(ds.batches(Emit(layout="dense", bfloat16=True)))
    for half, brain, truth in zip(halves, brains, expected, strict=True):
        bits = truth.data.view(np.uint32)
        np.testing.assert_array_equal(half.data.get(), truth.data.astype(np.float16))
        np.testing.assert_array_equal(brain.data.get(), (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)


def test_chosen_genes(ours: Path) -> None:
    options = WINDOWS | {"var_names": ["g700", "g3", "g999"]}
    for emit in (Emit(), Emit(layout="dense")):
        expected = list(Loader(**options).use_collection(ours).batches(emit))
        check_same(list(Loader(**options, device="cuda").use_collection(ours).batches(emit)), expected)


def busy(stream: Any) -> None:
    """Keep a stream at work for some milliseconds."""
    import cupy

    with stream:
        a = cupy.ones((2048, 2048), cupy.float32)
        for _ in range(3):
            a = a @ a * cupy.float32(1e-4)


@pytest.mark.parametrize("decode", DECODES)
@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_slow_streams(ours: Path, decode: Any, prefetch: int) -> None:
    """Batches are asked for, used and dropped on changing streams that are far behind; nothing waits on the host."""
    import cupy

    options = WINDOWS | {"prefetch": prefetch}
    expected = list(Loader(**options).use_collection(ours))
    assert expected
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(3)]
    ds = Loader(**options, device="cuda", decode=decode).use_collection(ours)
    kept = []
    for k, _ in enumerate(expected):
        stream = streams[k % 3]
        busy(stream)
        with stream:
            if k == 0:
                batches = iter(ds)
            batch = next(batches)
            kept.append([part.copy() for part in parts_of(batch.data)])
            del batch
    cupy.cuda.Device().synchronize()
    for found, truth in zip(kept, expected, strict=True):
        for part, true_part in zip(found, parts_of(truth.data), strict=True):
            assert part.get().tobytes() == true_part.tobytes()


@pytest.mark.parametrize("decode", DECODES)
def test_early_exits_and_two_loaders(ours: Path, decode: Any) -> None:
    expected = list(Loader(**WINDOWS).use_collection(ours))
    train, valid = (Loader(**WINDOWS, device="cuda", decode=decode).use_collection(ours) for _ in range(2))
    for n in (1, 3, 7):
        train.set_epoch(0)
        batches = iter(train)
        taken = [next(batches) for _ in range(n)]
        valid.set_epoch(0)
        check_same(list(valid), expected)
        check_same(taken, expected[:n])
    for ds in (train, valid):
        ds.close()
        assert ds._slabs.idle_bytes == 0
        assert ds._staging is not None
        assert not ds._staging._copies


@pytest.fixture
def rmm_pool() -> Iterator[Any]:
    rmm = pytest.importorskip("rmm")
    import cupy
    from rmm.allocators.cupy import rmm_cupy_allocator

    before = cupy.cuda.get_allocator()
    rmm.reinitialize(pool_allocator=True, initial_pool_size=2**28)
    cupy.cuda.set_allocator(rmm_cupy_allocator)
    yield rmm
    cupy.cuda.set_allocator(before)


@pytest.mark.parametrize("decode", DECODES)
def test_memory_of_rmm(ours: Path, decode: Any, rmm_pool: Any) -> None:
    expected = list(Loader(**WINDOWS).use_collection(ours))
    with Loader(**WINDOWS, device="cuda", decode=decode).use_collection(ours) as ds:
        check_same(list(ds), expected)


@pytest.mark.parametrize("decode", DECODES)
def test_no_memory_left(ours: Path, decode: Any) -> None:
    import cupy

    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    ds = Loader(**WINDOWS, device="cuda", decode=decode).use_collection(ours)
    pool.set_limit(size=pool.total_bytes() + 2**17)
    try:
        with pytest.raises(DeviceMemoryError, match="free bytes: lower preload_nchunks or chunk_size"):
            list(ds)
    finally:
        pool.set_limit(size=0)
    ds.set_epoch(0)
    check_same(list(ds), list(Loader(**WINDOWS).use_collection(ours)))


def test_other_devices(ours: Path) -> None:
    import cupy

    n_devices = cupy.cuda.runtime.getDeviceCount()
    with pytest.raises(ValueError, match=f"must be one of the {n_devices} CUDA devices"):
        Loader(**WINDOWS, device=f"cuda:{n_devices}")
    if n_devices < 2:
        pytest.skip("one device only")
    batch = next(iter(Loader(**WINDOWS, device="cuda:1").use_collection(ours)))
    assert batch.data.data.device.id == 1
    check_same([batch], [next(iter(Loader(**WINDOWS).use_collection(ours)))])
