"""Does a device that unpacks packed chunks give the batches of the CPU, bit for bit, whatever a store holds?"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import google_crc32c
import numpy as np
import pytest
import scipy.sparse as sp
import zarr

import host_device
from annbatch import Capacity, Collection, CorruptStoreError, Emit, InputError, Loader, create_anndata_collection
from annbatch import dataset as dataset_module
from annbatch import loader_data as loader_module
from annbatch.shards.packed_codec import PackedCodec
from annbatch.shards.packed_layout import Layout
from device_epochs import both, check_same
from host_device import HostDevice
from stores import opened, write_store

pytestmark = pytest.mark.skipif(host_device.COMPILER is None, reason="no C++ compiler")

BLOCKS: dict[str, Any] = {"batch_size": 16, "chunk_size": 16, "preload_nchunks": 4, "seed": 3}
SINGLE_ROWS: dict[str, Any] = {"batch_size": 16, "chunk_size": 1, "preload_nchunks": 16, "seed": 3}
EMITS = {
    "csr": Emit(),
    "wide": Emit(dtype=np.dtype("f8"), index_dtype=np.dtype("i8")),
    "padded": Emit(nse=Capacity(smallest=8), pad_rows=True),
    "dense": Emit(layout="dense"),
}


@pytest.fixture
def device(monkeypatch) -> HostDevice:
    """A device without nvCOMP."""
    found = HostDevice()
    monkeypatch.setattr(loader_module, "open_device", lambda name: found)
    monkeypatch.setattr(dataset_module, "missing", lambda: "nvCOMP is not here")
    return found


def matrix(n: int, *, seed: int = 0, n_vars: int = 700, largest: int = 3000) -> sp.csr_matrix:
    """Counts: mostly small, some large; about a hundred a row, some rows without any."""
    rng = np.random.default_rng(seed)
    x = sp.random(n, n_vars, 0.15, "csr", random_state=rng)
    x.data = np.where(rng.random(x.nnz) < 0.05, rng.integers(1, largest, x.nnz), rng.geometric(0.6, x.nnz))
    x.data[np.repeat(rng.random(n) < 0.05, np.diff(x.indptr))] = 0
    x.eliminate_zeros()
    x.sort_indices()
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Collection:
    """Several stores with a layer, in chunks of four groups."""
    folder = tmp_path_factory.mktemp("packed")
    obs = ad.AnnData(np.zeros((300, 1), np.float32)).obs
    adata = ad.AnnData(matrix(300), obs=obs, layers={"other": matrix(300, seed=1)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return create_anndata_collection(
            [adata], folder / "out", rows_per_store=170, chunk_elements=4096, codec="packed", progress=False
        )


def add_collection(collection: Collection, **options: Any) -> Any:
    return lambda ds: ds.use_collection(collection.path, **options)


@pytest.mark.parametrize("emit", EMITS)
def test_batches_are_those_of_the_cpu(device, collection, emit):
    for options in (BLOCKS, SINGLE_ROWS):
        ds, _ = both(device, add_collection(collection), EMITS[emit], **options, layers=["other"])
        assert ds.decode == "gpu"


def test_chosen_genes(device, collection):
    genes = ["5", "699", "0", "17"]
    both(device, add_collection(collection), Emit(layout="dense"), **SINGLE_ROWS, var_names=genes)


def test_only_what_rows_need_is_read(device, collection, monkeypatch):
    """A batch of a few single rows copies far less than the chunks that hold them."""
    sent: list[int] = []
    copy = host_device.HostStream.copy
    monkeypatch.setattr(host_device.HostStream, "copy", lambda *a: (sent.append(a[3]), copy(*a))[1])
    sizes = {}
    for n in (1, 300):
        options = SINGLE_ROWS | {"batch_size": n, "preload_nchunks": n}
        ds = Loader(**options, device="cuda", decode="gpu").use_collection(collection.path)
        sent.clear()
        with ds:
            next(iter(ds))
            device.synchronize()
        sizes[n] = max(sent)
    stored = sum(path.stat().st_size for path in Path(collection.path).rglob("X/*/c/*"))
    assert sizes[1] < stored / 8
    assert stored / 2 < sizes[300] < 2 * stored


def packed_store(
    folder: Path, x: sp.csr_matrix, *, dtype: Any = np.uint16, index_dtype: Any = np.uint16, **options: Any
) -> Any:
    """A store whose values and column numbers are packed."""
    x = sp.csr_matrix((x.data.astype(dtype), x.indices, x.indptr), x.shape)
    options = {"chunks": 2048, "shards": 4} | options
    obs = ad.AnnData(np.zeros((x.shape[0], 1), np.float32)).obs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = write_store(str(folder), x, obs, index_dtype=index_dtype, **options)
        for name, delta in (("data", False), ("indices", True)):
            old = root[f"X/{name}"]
            values, path = old[:], Path(str(folder)) / "X" / name
            form: dict[str, Any] = {"shape": values.shape, "dtype": values.dtype, "chunks": old.chunks}
            form |= {"shards": old.shards, "compressors": None, "filters": None}
            new = zarr.create_array(path, **form, serializer=PackedCodec(delta=delta), overwrite=True)
            new[:] = values
    return zarr.open_group(str(folder))


def add(root: Any) -> Any:
    def to(ds: Loader) -> Loader:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ds.add_anndatas([opened(root)])

    return to


FORMS = {
    "one byte, 32 bits": {"dtype": "u1", "index_dtype": "u4"},
    "signed": {"dtype": "i2", "index_dtype": "i4"},
    "64 bits": {"dtype": "u8", "index_dtype": "i8", "shards": None},
    "chunks that are no whole groups": {"chunks": 1300},
    "chunks of less than a block": {"chunks": 100},
    "many files": {"chunks": 1024, "shards": 1},
}


FURTHER = {"signed", "64 bits", "chunks that are no whole groups"}
"""Forms of which each compiles kernels of its own, or differs little from another."""


@pytest.mark.parametrize("form", [pytest.param(one, marks=[pytest.mark.slow] * (one in FURTHER)) for one in FORMS])
def test_every_form_of_stores(device, tmp_path, form, monkeypatch):
    if form == "many files":
        monkeypatch.setattr("annbatch.device.stored_chunks.MAX_FILES", 2)
    largest = 200 if form.startswith("one byte") else 3000
    root = packed_store(tmp_path / "0.zarr", matrix(120, largest=largest), **FORMS[form])
    for options in (BLOCKS, SINGLE_ROWS):
        both(device, add(root), **options, decode="gpu")


def test_missing_chunks_are_all_fill_value(device, tmp_path):
    """zarr leaves out chunks of zeros only: here, values and column numbers of many rows of one element each."""
    ones = np.r_[1:601, np.zeros(5400)]
    x = sp.csr_matrix((ones, np.zeros(6000, int), np.arange(6001)), (6000, 30))
    root = packed_store(tmp_path / "0.zarr", x)
    assert not (tmp_path / "0.zarr" / "X" / "indices" / "c").exists()
    _, found = both(device, add(root), batch_size=100, chunk_size=10, preload_nchunks=20, decode="gpu")
    assert sum(int(batch.data.data.astype(int).sum()) for batch in found) == ones.sum()


def forge(chunk: bytes, n: int, at: int, byte: int) -> bytes:
    """Change a byte, and let the checksums fit; sizes of blocks must stay."""
    layout, data = Layout(n, 2), bytearray(chunk)
    data[at] = byte
    widths = np.frombuffer(data, np.uint8)[layout.descriptors : layout.bases].reshape(-1, 4).astype(int)
    width, extra, patch, n_extras, n_patches = widths[:, 0], widths[:, 1] & 15, widths[:, 1] >> 4, *widths[:, 2:].T
    sizes = 32 * width + 32 * (extra > 0) + (n_extras * extra + 7) // 8 + n_patches * (1 + patch)
    edges = layout.blocks + np.concatenate([[0], np.cumsum(sizes)])
    for group in range(layout.n_groups):
        part = bytes(data[edges[4 * group] : edges[min(4 * group + 4, layout.n_blocks)]])
        place = layout.checksums + 4 * group
        data[place : place + 4] = google_crc32c.value(part).to_bytes(4, "little")
    data[:4] = google_crc32c.value(bytes(data[4 : layout.blocks])).to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize("which", ["data", "indices"])
def test_damaged_chunks_are_refused(device, tmp_path, which):
    root = packed_store(tmp_path / "0.zarr", matrix(60), shards=None)
    chunk = tmp_path / "0.zarr" / "X" / which / "c" / "1"
    whole, n = chunk.read_bytes(), 2048
    layout = Layout(n, 2)
    damages = [
        ("do not match their crc32c", whole[:9] + bytes([whole[9] ^ 1]) + whole[10:]),
        ("do not match their crc32c", whole[:-1] + bytes([whole[-1] ^ 1])),
        ("cannot be decoded", whole + b"\0"),
        ("cannot be decoded", whole[:-1]),
        ("cannot be decoded", forge(whole, n, layout.descriptors, 17)),
        ("cannot be decoded", forge(whole, n, layout.descriptors + 1, 0x66)),
        ("must lie within the file", whole[: layout.blocks - 1]),
    ]
    for text, damaged in damages:
        chunk.write_bytes(damaged)
        with pytest.raises(CorruptStoreError, match=rf"X/{which}/c/1: .*{text}"):
            list(add(root)(Loader(**BLOCKS, device="cuda", decode="gpu")))
        with pytest.raises(CorruptStoreError):
            list(add(root)(Loader(**BLOCKS)))


@pytest.mark.parametrize("n", [30, pytest.param(3000, marks=pytest.mark.slow)])
def test_forged_chunks_give_what_the_cpu_gives(device, tmp_path, n):
    """Bytes with checksums that fit: both refuse them, or both give the same batches."""
    root = packed_store(tmp_path / "0.zarr", matrix(40), shards=None, chunks=1024)
    rng, verdicts = np.random.default_rng(n), []
    for _ in range(n):
        chunk = tmp_path / "0.zarr" / "X" / str(rng.choice(["data", "indices"])) / "c" / str(rng.integers(3))
        whole = chunk.read_bytes()
        layout = Layout(1024, 2)
        first = layout.descriptors if rng.random() < 0.3 else layout.bases
        at = int(rng.choice([i for i in range(first, len(whole)) if not layout.checksums <= i < layout.blocks]))
        chunk.write_bytes(forge(whole, 1024, at, int(rng.integers(256))))
        results = []
        for options in ({}, {"device": "cuda", "decode": "gpu"}):
            try:
                results.append(list(add(root)(Loader(**BLOCKS, **options))))
                device.synchronize()
            except CorruptStoreError:
                results.append(None)
        on_cpu, on_device = results
        assert (on_cpu is None) == (on_device is None), (chunk, at)
        if on_cpu is not None:
            check_same(on_device, on_cpu)
        verdicts.append(on_cpu is not None)
        chunk.write_bytes(whole)
    assert 0.1 < np.mean(verdicts) < 0.9


def test_column_numbers_out_of_range_are_refused(device, tmp_path):
    x = matrix(60)
    root = packed_store(tmp_path / "0.zarr", x)
    x.indices[x.indptr[17]] = 700
    root["X/indices"][:] = x.indices.astype(np.uint16)
    with pytest.raises(CorruptStoreError, match=r"X/indices: row 17: .*not below the limit of 700"):
        list(add(root)(Loader(**BLOCKS, shuffle=False, device="cuda", decode="gpu")))


def test_nvcomp_is_needed_for_zstd_alone(device, tmp_path, collection):
    """A matrix is packed as a whole, or the CPU decodes it."""
    assert Loader(**BLOCKS, device="cuda").use_collection(collection.path).decode == "gpu"
    root = packed_store(tmp_path / "0.zarr", matrix(20))
    values = root["X/data"][:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.create_array(tmp_path / "0.zarr" / "X" / "data", data=values, chunks=64, overwrite=True,
                          compressors=[zarr.codecs.ZstdCodec()])  # fmt: skip
    ds, _ = both(device, add(root), **BLOCKS)
    assert ds.decode == "cpu"
    with pytest.raises(InputError, match=r"X/data are zstd, those of .*X/indices packed"):
        add(root)(Loader(**BLOCKS, device="cuda", decode="gpu"))
