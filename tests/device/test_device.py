"""Does a loader on a device give the batches of one on the CPU, bit for bit, whatever waits for whatever?

The device is that of `host_device`: its streams work as late as they may, and drop no hint when something should have
waited for them but did not.
"""

from __future__ import annotations

import gc
import pickle
import sys
import threading
import warnings
from functools import cache
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import host_device
from annbatch import (
    Batch,
    Binarize,
    Capacity,
    Collection,
    CorruptStoreError,
    DeviceMemoryError,
    Emit,
    InputError,
    Loader,
    LogNormalize,
    Partition,
    create_anndata_collection,
    reshuffle_collection,
)
from annbatch import dataset as dataset_module
from annbatch import fetch as fetch_module
from annbatch import loader_data as loader_module
from annbatch.batches import on_device as staged_module
from annbatch.device import cuda as device_module
from annbatch.device import nvcomp as nvcomp_module
from annbatch.shards.decode_kernels import Status
from annbatch.shards.uncached_reads import UncachedChunks
from annbatch.stores import chunk_arrival
from datagen import write_inputs
from device_epochs import both, check_same
from epochs import each_batch
from host_device import HostDevice
from live_threads import background_threads
from stores import named_stores, opened, write_store

pytestmark = pytest.mark.skipif(host_device.COMPILER is None, reason="no C++ compiler")

SMALL: dict[str, Any] = {"batch_size": 8, "chunk_size": 5, "preload_nchunks": 3, "seed": 3}
SHUFFLE = {"name": "numcodecs.shuffle", "configuration": {"elementsize": 2}}
ZSTD = zarr.codecs.ZstdCodec(level=3)


@pytest.fixture
def device(monkeypatch) -> HostDevice:
    found = HostDevice()
    monkeypatch.setattr(loader_module, "open_device", lambda name: found)
    monkeypatch.setattr(dataset_module, "missing", lambda: None)
    return found


@pytest.fixture(scope="module")
def stores_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return cache(lambda form: named_stores(folder / form.replace(" ", "_"), form)[0])


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Collection:
    """One that a device can decode: small chunks, several stores, a layer."""
    folder = tmp_path_factory.mktemp("collection")
    inputs = write_inputs(folder, sizes=(70, 50), columns=[range(40)] * 2, obs_columns=["stage"], density=0.4)
    for path in inputs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adata = ad.read_h5ad(path)
            adata.layers["twice"] = adata.X * 2
            adata.obsm["pca"] = np.asarray(adata.X[:, :3].toarray(), np.float32)
            adata.write_h5ad(path)
    return create_anndata_collection(
        inputs, folder / "out", rows_per_store=50, chunk_elements=64, shard_elements=256, codec="zstd", progress=False
    )


EMITS = {
    "csr": Emit(),
    "wide": Emit(dtype=np.dtype("f8"), index_dtype=np.dtype("i8")),
    "integers": Emit(dtype=np.dtype("i4")),
    "padded": Emit(nse=Capacity(smallest=8), pad_rows=True),
    "parts": Emit(nse=Capacity(smallest=8), pad_rows=True, parts=2),
    "dense": Emit(layout="dense"),
    "dense padded": Emit(layout="dense", pad_rows=True),
}


@pytest.mark.parametrize(
    "form",
    [
        "v3 sharded",
        "v3 big endian",
        *(pytest.param(form, marks=pytest.mark.slow) for form in ("v3 sharded uint16", "v3 gzip", "v2", "in memory")),
    ],
)
@pytest.mark.parametrize("emit", ["csr", "dense"])
def test_every_store_form(device, stores_of, form, emit):
    adatas = stores_of(form)
    both(device, lambda ds: ds.add_anndatas(adatas), EMITS[emit], **SMALL, decode="cpu")


@pytest.mark.parametrize("emit", EMITS)
@pytest.mark.parametrize("decode", ["cpu", "gpu"])
def test_every_emit(device, collection, emit, decode):
    options = SMALL | {"layers": ["twice"], "obsm": ["pca"], "decode": decode}
    ds, _ = both(device, lambda ds: ds.use_collection(collection.path), EMITS[emit], **options)
    assert ds.decode == decode
    stats = ds.stats()
    assert stats.cells == 120
    assert stats.bytes_decoded > stats.bytes_read / 4 > 0
    assert 0 < stats.device_seconds <= stats.wait_seconds
    assert stats.peak_slab_bytes > 0


@pytest.mark.parametrize("layout", ["csr", "dense"])
@pytest.mark.parametrize("decode", ["cpu", "gpu"])
def test_chosen_genes(device, collection, layout, decode):
    genes = ["g7", "g3", "no", "g39", "g0"]
    both(
        device, lambda ds: ds.use_collection(collection.path), Emit(layout=layout), **SMALL, var_names=genes,
        absent="zero", decode=decode,
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["csr", "dense"])
@pytest.mark.parametrize("decode", ["cpu", "gpu"])
def test_values_that_kernels_change(device, collection, layout, decode):
    options: dict[str, Any] = SMALL | {"layers": ["twice"], "decode": decode}
    if layout == "dense":
        options |= {"var_names": ["g7", "g3", "no", "g39", "g0"], "absent": "zero"}
    for transform in (LogNormalize(100, ["X", "layers/twice"]), [Binarize(["layers/twice"]), LogNormalize()]):
        _, found = both(
            device, lambda ds: ds.use_collection(collection.path), Emit(layout=layout), transform=transform, **options
        )
        made = found[0].data.data if layout == "csr" else found[0].data
        assert 0 < made.max() < 10


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_columns_that_occur_twice_are_summed_up_before_the_logarithm(device, tmp_path, layout):
    x = sp.csr_matrix(
        (np.array([1, 5, 2, 4, 9, 1], "f4"), np.array([2, 0, 2, 1, 0, 3]), np.array([0, 4, 4, 6])), (3, 4)
    )
    adatas = [opened(write_store(tmp_path / "a.zarr", x, pd.DataFrame(index=["a", "b", "c"])))]
    both(device, lambda ds: ds.add_anndatas(adatas), Emit(layout=layout), batch_size=3, transform=LogNormalize())


def test_functions_get_what_was_made_on_the_device(device, collection):
    main = threading.current_thread()

    def scaled(batch: Batch) -> Batch:
        assert threading.current_thread() is main
        device.synchronize()
        return batch.replace(data=batch.data.replace(data=batch.data.data * 2))

    ds = Loader(**SMALL, device="cuda").use_collection(collection.path, labels=[])
    batches = list(each_batch(ds))
    device.synchronize()
    expected = [batch.data.data * 2 for batch in batches]
    found = list(Loader(**SMALL, device="cuda", transform=scaled).use_collection(collection.path, labels=[]))
    for one, truth in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.data.data, truth)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
@given(
    dice=st.one_of(st.none(), st.integers(0, 2**32)),
    batch_size=st.integers(1, 130),
    chunk_size=st.integers(1, 60),
    preload_nchunks=st.integers(1, 20),
    seed=st.integers(0, 2**64 - 1),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    prefetch=st.integers(0, 3),
    threads=st.sampled_from([1, 3]),
    decode=st.sampled_from(["cpu", "gpu"]),
    layout=st.sampled_from(["csr", "dense"]),
)
def test_every_option(collection, dice, decode, layout, **options):
    """Whatever is kept until the end, and however late or early streams are."""
    device = HostDevice(seed=dice)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader_module, "open_device", lambda name: device)
        patch.setattr(dataset_module, "missing", lambda: None)
        both(device, lambda ds: ds.use_collection(collection.path), Emit(layout=layout), decode=decode, **options)


@pytest.mark.parametrize("decode", ["cpu", "gpu"])
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 2, 3, 4))])
def test_dropped_batches_and_several_streams(device, collection, decode, seed):
    """Each batch is used on its stream and dropped at once, while memory of windows and batches goes round."""
    device.dice.seed(seed)
    streams = [device.users, device.new_stream(), device.new_stream()]
    expected = list(each_batch(Loader(**SMALL).use_collection(collection.path)))
    ds = Loader(**SMALL, device="cuda", decode=decode).use_collection(collection.path)
    for _ in range(2):
        ds.set_epoch(0)
        batches, used = iter(ds), []
        for truth in expected:
            device.users = streams[device.dice.randrange(3)]
            batch = next(batches)
            kept = np.zeros(batch.data.data.size, np.float32)
            device.users.copy(kept.ctypes.data, batch.data.data.ctypes.data, kept.nbytes)
            used.append((kept, truth.data.data))
            del batch
        assert next(batches, None) is None
        device.synchronize()
        for kept, truth in used:
            np.testing.assert_array_equal(kept, truth)


@pytest.mark.parametrize("decode", ["cpu", "gpu"])
def test_early_exits_several_loaders_and_resuming(device, collection, decode):
    def loader(**options: Any) -> Loader:
        return Loader(**SMALL, **options).use_collection(collection.path)

    on_device = {"device": "cuda", "decode": decode}
    expected = list(loader())
    train, valid = loader(**on_device), loader(**on_device)
    for n_taken in (0, 1, 3):
        train.set_epoch(0)
        batches = iter(train)
        taken = [next(batches) for _ in range(n_taken)]
        valid.set_epoch(0)
        found = list(valid)
        device.synchronize()
        check_same(taken, expected[: len(taken)])
        check_same(found, expected)
    state = train.state_dict()
    resumed = loader(**on_device)
    resumed.load_state_dict(state)
    rest = list(resumed)
    device.synchronize()
    check_same(rest, expected[len(taken) :])
    two = [list(loader(**on_device, partition=Partition(i, 2))) for i in range(2)]
    device.synchronize()
    for i in range(2):
        check_same(two[i], list(loader(partition=Partition(i, 2))))


def test_batches_handed_over_ahead(device, collection):
    ds = Loader(**SMALL, device="cuda").use_collection(collection.path)
    expected = list(Loader(**SMALL).use_collection(collection.path))
    epoch = ds.batches(Emit())
    first = next(epoch)
    ahead = epoch.ahead(1)
    rest = list(epoch)
    assert all(one is other for one, other in zip(ahead, rest, strict=False))
    device.synchronize()
    check_same([first, *rest], expected)


def test_closing_leaves_nothing(device, collection):
    ds = Loader(**SMALL, device="cuda").use_collection(collection.path)
    for n_batches in (1, 4, None):
        batches = [batch for batch, _ in zip(ds, range(n_batches or 99), strict=False)]
        assert batches
        ds.close()
        assert not background_threads()
        pool = ds._staging
        assert not pool._idle
        assert not pool._copies
        assert ds._slabs.idle_bytes == 0
    gc.collect()
    live = [one for one in gc.get_objects() if type(one) is staged_module.DeviceWindow]
    assert not live


def test_windows_go_round(device, collection, monkeypatch):
    """Memory on the device does not grow with the epoch, and is not taken anew."""
    taken = []
    memory = device.copying.memory
    monkeypatch.setattr(device.copying, "memory", lambda n: taken.append(n) or memory(n))
    ds = Loader(**SMALL, device="cuda", decode="cpu").use_collection(collection.path)
    for _ in range(5):
        for _ in ds:
            pass
    assert 0 < len(taken) <= ds.prefetch + 2


def test_bfloat16(device, collection):
    """The bits of what float32 rounds to."""
    cpu = Loader(**SMALL).use_collection(collection.path)
    expected = list(each_batch(cpu.batches(Emit(layout="dense")), len(cpu)))
    for decode in ("cpu", "gpu"):
        ds = Loader(**SMALL, device="cuda", decode=decode).use_collection(collection.path)
        found = list(ds.batches(Emit(layout="dense", bfloat16=True)))
        device.synchronize()
        for batch, truth in zip(found, expected, strict=True):
            bits = truth.data.view(np.uint32)
            rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
            assert batch.data.dtype == np.uint16
            np.testing.assert_array_equal(batch.data, rounded)
    with pytest.raises(InputError, match="bfloat16 needs Loader"):
        next(Loader(**SMALL).use_collection(collection.path).batches(Emit(layout="dense", bfloat16=True)))
    with pytest.raises(ValueError, match="bfloat16 needs layout"):
        Emit(bfloat16=True)


def zstd_store(folder: Any, *, seed: int = 0, n: int = 60, **options: Any) -> tuple[Any, sp.csr_matrix]:
    """A store of small chunks that a device can decode."""
    rng = np.random.default_rng(seed)
    x = sp.random(n, 30, 0.3, "csr", random_state=rng)
    x.data = rng.integers(1, 60_000, x.nnz).astype("u2")
    x.sort_indices()
    options = {"chunks": 16, "shards": 4, "index_dtype": np.uint16, "compressors": [SHUFFLE, ZSTD]} | options
    obs = ad.AnnData(np.zeros((n, 1), np.float32)).obs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return write_store(str(folder), x, obs, **options), x


def add(*roots: Any) -> Any:
    def to(ds: Loader) -> Loader:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ds.add_anndatas([opened(root) for root in roots])

    return to


@pytest.mark.parametrize(
    "options",
    [
        {"compressors": [ZSTD]},
        {"compressors": [ZSTD, zarr.codecs.Crc32cCodec()]},
        {"compressors": [SHUFFLE, ZSTD, zarr.codecs.Crc32cCodec()], "shards": None},
        {"compressors": [zarr.codecs.ZstdCodec(level=3, checksum=True)], "index_dtype": np.int32, "chunks": 5},
    ],
    ids=["zstd", "zstd crc32c", "shuffle zstd crc32c unsharded", "zstd checksum"],
)
def test_chains_of_codecs_that_a_device_decodes(device, tmp_path, options):
    root, _ = zstd_store(tmp_path / "0.zarr", **options)
    ds, _ = both(device, add(root), **SMALL, decode="auto")
    assert ds.decode == "gpu"


def test_stores_with_and_without_differences(device, tmp_path):
    """As in a collection that was written before differences were, and appended to since; one has a missing chunk."""
    delta = {"name": "numcodecs.delta", "configuration": {"dtype": "<u2"}}
    forms: list[dict[str, Any]] = [{}, {"filters": [delta]}, {"filters": [delta], "fill_value": 7}, {}]
    roots = [zstd_store(tmp_path / f"{i}.zarr", seed=i, **form)[0] for i, form in enumerate(forms)]
    assert both(device, add(*roots), **SMALL, decode="auto")[0].decode == "cpu"  # one has another fill value
    del roots[2]
    for stores in (roots, roots[1:], roots[1:2]):
        ds, _ = both(device, add(*stores), **SMALL, decode="auto")
        assert ds.decode == "gpu"
    filled = zstd_store(tmp_path / "filled.zarr", filters=[delta], fill_value=7, shards=None)[0]
    (tmp_path / "filled.zarr" / "X" / "data" / "c" / "3").unlink()
    ds, found = both(device, add(filled), **SMALL, shuffle=False, decode="auto")
    assert ds.decode == "gpu"
    assert np.concatenate([batch.data.data for batch in found])[48:64].tolist() == [7] * 16


@pytest.mark.parametrize("compressors", [[ZSTD], [SHUFFLE, ZSTD, zarr.codecs.Crc32cCodec()]])
def test_missing_chunks_are_all_fill_value(device, tmp_path, compressors):
    """zarr leaves out chunks of zeros only: here, values and column numbers of many rows of one element each."""
    root, _ = zstd_store(tmp_path / "0.zarr", compressors=compressors)
    x = sp.csr_matrix((np.r_[1:21, np.zeros(180)].astype("u2"), np.zeros(200, int), np.arange(201)), (200, 30))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        obs = ad.AnnData(np.zeros((200, 1), np.float32)).obs
        root = write_store(
            str(tmp_path / "1.zarr"), x, obs, chunks=16, shards=4, index_dtype=np.uint16, compressors=compressors,
            config={"write_empty_chunks": False},
        )  # fmt: skip
    ds, found = both(device, add(root), **SMALL)
    assert ds.decode == "gpu"
    assert sum(int(batch.data.data.astype(int).sum()) for batch in found) == 210


@pytest.mark.parametrize("codec", ["zstd", "packed"])
def test_chunks_that_were_read_past_the_page_cache(device, collection, tmp_path, monkeypatch, codec):
    """Of a collection whose stores differ in whether column numbers are differences, for zstd."""
    if codec == "zstd":
        delta = {"name": "numcodecs.delta", "configuration": {"dtype": "<u2"}}
        forms: list[dict[str, Any]] = [{}, {"filters": [delta]}, {}]
        to = add(*(zstd_store(tmp_path / f"{i}.zarr", seed=i, **form)[0] for i, form in enumerate(forms)))
    else:
        place = tmp_path / "packed"
        options: dict[str, Any] = {"chunk_elements": 64, "shard_elements": 256, "progress": False}
        reshuffle_collection(collection.path, place, codec="packed", **options)
        to = lambda ds: ds.use_collection(place)  # noqa: E731
    arrived = []
    result = UncachedChunks.result
    monkeypatch.setattr(UncachedChunks, "result", lambda chunks: arrived.append(result(chunks)) or arrived[-1])
    monkeypatch.setattr(fetch_module, "exceed_memory", lambda arrays: True)
    monkeypatch.setattr(chunk_arrival, "are_cached", lambda chunks: False)
    for decode in ("gpu", "cpu"):
        ds, _ = both(device, to, **SMALL, decode=decode)
        assert ds.decode == decode
    assert len(arrived) > 4


def test_a_window_that_touches_many_files(device, tmp_path, monkeypatch):
    monkeypatch.setattr("annbatch.device.stored_chunks.MAX_FILES", 2)
    monkeypatch.setattr("annbatch.batches.decoded_on_device.AT_ONCE", 3)
    root, _ = zstd_store(tmp_path / "0.zarr", n=200, shards=1)
    both(device, add(root), batch_size=50, chunk_size=1, preload_nchunks=100, decode="gpu")


@pytest.mark.parametrize("which", ["data", "indices"])
@pytest.mark.parametrize("crc", [True, False])
def test_damaged_chunks(device, tmp_path, which, crc):
    """A checksum tells; without one, the frame's header, or nvCOMP. The error names the file and the chunk."""
    compressors = [SHUFFLE, ZSTD, *([zarr.codecs.Crc32cCodec()] if crc else [])]
    root, _ = zstd_store(tmp_path / "0.zarr", compressors=compressors, shards=None)
    chunk = tmp_path / "0.zarr" / "X" / which / "c" / "3"
    whole = chunk.read_bytes()
    damages = {
        "header": whole[:1] + b"?" + whole[2:],
        "size": whole[:5] + bytes([whole[5] ^ 1]) + whole[6:],
        "cut": whole[: len(whole) - 6],
    }
    for name, damaged in damages.items():
        chunk.write_bytes(damaged)
        ds = add(root)(Loader(**SMALL, device="cuda", decode="gpu"))
        with pytest.raises(CorruptStoreError, match=rf"X/{which}/c/3: its ") as caught:
            list(ds)
        if crc:
            assert Status.CHECKSUM.text in str(caught.value), name
        with pytest.raises(CorruptStoreError):
            list(add(root)(Loader(**SMALL, device="cuda", decode="cpu")))


def test_a_column_number_out_of_range_is_never_handed_over(device, tmp_path):
    root, x = zstd_store(tmp_path / "0.zarr")
    x.indices[x.indptr[17]] = 30
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root["X/indices"][:] = x.indices.astype(np.uint16)
    for decode in ("cpu", "gpu"):
        ds = add(root)(Loader(**SMALL, shuffle=False, device="cuda", decode=decode))
        batches, error = iter(ds), None
        try:
            for batch in batches:
                device.synchronize()
                assert batch.data.indices.max() < 30
        except CorruptStoreError as e:
            error = str(e)
        assert error is not None
        assert "not below the limit of 30" in error
        if decode == "gpu":
            assert "adatas[0] X/indices: row 17:" in error


def test_columns_that_come_twice_are_summed_up(device, tmp_path):
    root, x = zstd_store(tmp_path / "0.zarr")
    x.indices[x.indptr[17] + 1] = x.indices[x.indptr[17]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root["X/indices"][:] = x.indices.astype(np.uint16)
    for decode in ("cpu", "gpu"):
        both(device, add(root), Emit(layout="dense", dtype=np.dtype("f4")), **SMALL, decode=decode)


def test_what_cannot_be_decoded_there_is_said(device, stores_of, collection, caplog, monkeypatch):
    adatas = stores_of("v3 gzip")
    with caplog.at_level("INFO", "annbatch"):
        ds = Loader(batch_size=8, device="cuda")
        assert ds.decode == "auto"
        assert ds.add_anndatas(adatas).decode == "cpu"
        assert Loader(batch_size=8, device="cuda").use_collection(collection.path).decode == "gpu"
        assert Loader(batch_size=8, device="cuda", decode="cpu").use_collection(collection.path).decode == "cpu"
        monkeypatch.setattr(dataset_module, "missing", lambda: "nvCOMP 6 could not be loaded")
        assert Loader(batch_size=8, device="cuda").use_collection(collection.path).decode == "cpu"
    assert [record.message for record in caplog.records if "chunks are" in record.message] == [
        "chunks are decoded on the CPU: the chunks of adatas[0] X/data are gzip, not packed or zstd",
        "chunks are decoded on the device",
        "chunks are decoded on the CPU: decode is 'cpu'",
        "chunks are decoded on the CPU: nvCOMP 6 could not be loaded",
    ]
    with pytest.raises(InputError, match="decode='gpu' is not possible: nvCOMP 6"):
        Loader(batch_size=8, device="cuda", decode="gpu").use_collection(collection.path)
    with pytest.raises(InputError, match="decode='gpu' is not possible: .*gzip, not packed or zstd"):
        Loader(batch_size=8, device="cuda", decode="gpu").add_anndatas(adatas)


def test_no_memory_left(device, collection):
    ds = Loader(**SMALL, device="cuda").use_collection(collection.path)
    device.room = 100
    with pytest.raises(DeviceMemoryError):
        list(ds)
    device.room = 1 << 40
    expected = list(Loader(**SMALL).use_collection(collection.path))
    ds.set_epoch(0)
    found = list(ds)
    device.synchronize()
    check_same(found, expected)


def test_pickled_and_split(device, collection):
    ds = Loader(**SMALL, device="cuda").use_collection(collection.path)
    expected = list(Loader(**SMALL).use_collection(collection.path))
    next(iter(ds))
    copied = pickle.loads(pickle.dumps(ds))
    copied.set_epoch(0)
    found = list(copied)
    parts = ds.split({"train": 0.5, "test": None})
    assert parts["train"]._staging is None
    split = [batch for part in parts.values() for batch in part]
    device.synchronize()
    check_same(found, expected)
    assert sorted(np.concatenate([batch.index for batch in split]).tolist()) == list(range(collection.n_obs))


# --- without a device -------------------------------------------------------------------------------------------------


def test_what_is_no_device_is_refused(monkeypatch):
    with pytest.raises(InputError, match="device must be 'cpu', 'cuda' or"):
        Loader(batch_size=8, device="gpu")
    with pytest.raises(InputError, match="decode must be 'auto' if device is 'cpu'"):
        Loader(batch_size=8, decode="gpu")
    with pytest.raises(ValueError, match="decode must be one of"):
        Loader(batch_size=8, decode="nvcomp")
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(InputError, match=r"device 'cuda' needs CuPy.*pip install cupy-cuda12x"):
        Loader(batch_size=8, device="cuda")


def test_nvcomp_that_is_not_there_is_missed():
    if nvcomp_module.missing() is not None:
        assert "pip install 'nvidia-libnvcomp-cu12>=6,<7'" in nvcomp_module.missing()
    assert isinstance(nvcomp_module._load(), str | nvcomp_module.Library)


def test_the_device_of_the_tests_has_what_a_device_has():
    for protocol, kind in ((device_module.Device, HostDevice), (device_module.Stream, host_device.HostStream)):
        wanted = {name for name in vars(protocol) if not name.startswith("_")}
        real = {device_module.Device: device_module.Cuda, device_module.Stream: device_module.CudaStream}[protocol]
        instance = HostDevice() if kind is HostDevice else HostDevice().users
        assert wanted <= set(dir(instance))
        assert wanted - {"name", "copying"} <= set(dir(real))
