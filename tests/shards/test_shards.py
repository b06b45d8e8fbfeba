from __future__ import annotations

import copy
import json
import os
import pickle
import re
import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
import zarr.codecs as zc
from hypothesis import given
from hypothesis import strategies as st

from annbatch.errors import CorruptStoreError, StoreError
from annbatch.plan.chunk_pieces import Pieces
from annbatch.shards import chunk_files as shard_tables
from annbatch.shards.codecs import Codec, Workspace, numcodecs_are_known
from annbatch.shards.local_array import ShardedArray
from annbatch.shards.scatter import Scatter

CHUNK, PER_SHARD, SIZE = 512, 4, 5000
"""Elements in a chunk, chunks in a shard, elements in the array: the last shard and the last chunk are partial."""
DTYPES = ["bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]


def of_numcodecs(name: str, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr says that these codecs are not in its specification
        import zarr.codecs.numcodecs

        return getattr(zarr.codecs.numcodecs, name)(**options)


def compressors(name: str) -> list[Any]:
    """Give what follows ``bytes`` in a chain: parts of ``name`` at the pluses."""
    out: list[Any] = []
    for part in filter(None, name.split("+")):
        kind, *rest = part.split("-")
        match kind:
            case "blosc":
                out.append(zc.BloscCodec(cname=rest[0], clevel=3, shuffle=rest[1], typesize=2))
            case "zstd":
                out.append(zc.ZstdCodec(level=3))
            case "gzip":
                out.append(zc.GzipCodec(level=4))
            case "zlib":
                out.append(of_numcodecs("Zlib", level=4))
            case "shuffle":
                out.append(of_numcodecs("Shuffle", elementsize=int(rest[0])))
            case "crc32c":
                out.append(zc.Crc32cCodec())
    return out


def values(dtype: str, size: int = SIZE) -> np.ndarray[Any, Any]:
    """Give values that say where they belong, as far as their type can."""
    return (np.arange(size) * 7 % 251).astype(dtype)


def write(path: Path, x: np.ndarray[Any, Any], chain: str = "blosc-lz4-shuffle+crc32c", **options: Any) -> Path:
    rest = x.shape[1:]
    options = {"chunks": (CHUNK, *rest), "shards": (CHUNK * PER_SHARD, *rest)} | options
    if chain.startswith("delta+"):
        chain = chain.removeprefix("delta+")
        options["filters"] = [{"name": "numcodecs.delta", "configuration": {"dtype": x.dtype.str}}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = zarr.create_array(path, shape=x.shape, dtype=x.dtype, compressors=compressors(chain), **options)
        array[...] = x
    return path


def opened(path: Path) -> ShardedArray:
    array = ShardedArray.open(path)
    assert isinstance(array, ShardedArray), array
    return array


def read(array: ShardedArray, workspace: Workspace | None = None) -> np.ndarray[Any, Any]:
    size = int(np.prod(array.shape))
    return array.read_ranges(workspace or Workspace(), np.array([0]), np.array([size]))


def scatter(array: ShardedArray, lo: Any, hi: Any, dtype: str, limit: int | None = None) -> np.ndarray[Any, Any]:
    """Read the ranges backwards into one array, piece by piece, as a plan would."""
    lo, hi = np.asarray(lo), np.asarray(hi)
    out = np.zeros(int((hi - lo).sum()), dtype)
    pieces = []
    end = out.size
    for start, stop in zip(lo.tolist(), hi.tolist(), strict=True):
        end -= stop - start
        for chunk in range(start // CHUNK, -(-stop // CHUNK)):
            first, last = max(start, chunk * CHUNK), min(stop, (chunk + 1) * CHUNK)
            target = out.ctypes.data + (end + first - start) * out.itemsize
            pieces.append((chunk, first - chunk * CHUNK, last - first, target))
    chunk, source, length, target = np.array(sorted(pieces), np.int64).reshape(-1, 4).T
    chunks, bounds = np.unique(chunk, return_index=True)
    bounds = np.append(bounds, chunk.size)
    plan = Pieces(chunks, (0, len(chunks)), bounds, *map(np.ascontiguousarray, (source, length, target)))
    array.scatter(Workspace(), plan, np.dtype(dtype), limit)
    return out


BLOSC = [
    f"blosc-{cname}-{mode}"
    for cname in ("lz4", "lz4hc", "zstd", "zlib")
    for mode in ("noshuffle", "shuffle", "bitshuffle")
]
CHAINS = [
    "",
    "zstd",
    "gzip",
    "zlib",
    "shuffle-2",
    "shuffle-4+zstd",
    "shuffle-2+gzip",
    "shuffle-8+zstd",
    "blosc-blosclz-shuffle",
    *BLOSC,
]


@pytest.mark.parametrize("checksum", ["", "+crc32c"])
@pytest.mark.parametrize("chain", CHAINS)
def test_every_codec_gives_what_was_written(tmp_path: Path, chain: str, checksum: str) -> None:
    for dtype in ("u2", "f4") if "shuffle-8" not in chain else ("f8",):
        x = values(dtype)
        path = write(tmp_path / dtype, x, chain + checksum)
        assert (read(opened(path)) == x).all()
        assert opened(path).decoder.crc32c == bool(checksum)
        got = scatter(opened(path), [0, 700, 1000, 3333], [13, 800, 3000, SIZE], "f4" if dtype != "f8" else "f8")
        expected = np.concatenate([x[3333:], x[1000:3000], x[700:800], x[0:13]])
        assert (got == expected).all()


@pytest.mark.parametrize("chain", ["blosc-lz4-shuffle+crc32c", "", "shuffle-{}+zstd", "gzip"])
@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype[0] in "iu"])
def test_differences_become_elements_again(tmp_path: Path, dtype: str, chain: str) -> None:
    """Of extreme values, which wrap; chunks have no whole number of vectors; a row goes on in the next one."""
    info, chain = np.iinfo(dtype), chain.format(dtype[1])
    x = np.random.default_rng(0).integers(info.min, info.max, 2000, dtype, endpoint=True)
    x[7:900] = np.sort(x[7:900])
    path = write(tmp_path / "a", x, f"delta+{chain}", chunks=(301,), shards=(903,))
    assert opened(path).decoder.delta
    with numcodecs_are_known():
        assert (zarr.open_array(path, mode="r")[:] == x).all()
    assert (read(opened(path)) == x).all()
    got = opened(path).read_ranges(Workspace(), np.array([5, 299, 800]), np.array([7, 650, 2000]))
    assert (got == np.concatenate([x[5:7], x[299:650], x[800:]])).all()
    y = x[:1995].reshape(285, 7)
    path = write(tmp_path / "b", y, f"delta+{chain}", chunks=(9, 7), shards=(90, 7))
    assert (read(opened(path)) == y.reshape(-1)).all()


def test_missing_chunks_have_no_differences(tmp_path: Path) -> None:
    x = np.full(SIZE, 3, "u2")
    x[CHUNK : 2 * CHUNK] = 5
    path = write(tmp_path / "a", x, "delta+blosc-lz4-shuffle", fill_value=3)
    assert (opened(path).locate(np.arange(3)).offsets < 0).tolist() == [True, False, True]
    assert (read(opened(path)) == x).all()


CHAINS, WANTED = ("blosc-lz4-shuffle", "zstd+crc32c", "gzip"), ("f4", "i8", "f2")


# Each type in one chain, cast to one type, each time. `test_kernels.py` casts each type to more of them.
@pytest.mark.parametrize(
    ("dtype", "chain", "wanted"),
    [
        pytest.param(dtype, chain, wanted, marks=[] if {(i + j) % 3, (i // 3 + k) % 3} == {0} else pytest.mark.slow)
        for i, dtype in enumerate(DTYPES)
        for j, chain in enumerate(CHAINS)
        for k, wanted in enumerate(WANTED)
    ],
)
def test_every_dtype_and_random_bytes(tmp_path: Path, dtype: str, chain: str, wanted: str) -> None:
    # Random bytes do not compress, so that each format's way of storing them is met.
    x = values(dtype)
    noise = np.random.default_rng(1).integers(0, 256, 2000 * x.itemsize, np.uint8)
    x[1000:3000] = (noise & 1 if dtype == "bool" else noise).view(x.dtype)
    array = opened(write(tmp_path / "a", x, chain))
    assert read(array).tobytes() == x.tobytes()
    assert array.dtype == np.dtype(dtype)
    with np.errstate(all="ignore"):
        got = scatter(array, [1, 3000], [1000, SIZE], wanted)
        assert np.array_equal(got, np.concatenate([x[3000:], x[1:1000]]).astype(wanted))


LAYOUTS: dict[str, dict[str, Any]] = {
    "chunk files": {"shards": None},
    "v2 keys": {"shards": None, "chunk_key_encoding": {"name": "v2", "separator": "."}},
    "dotted keys": {"shards": None, "chunk_key_encoding": {"name": "default", "separator": "."}},
    "v2 keys of shards": {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "one chunk a shard": {"shards": CHUNK},
}


@pytest.mark.parametrize("chain", ["", "+crc32c", "blosc-lz4-bitshuffle", "zstd+crc32c", "gzip"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n_columns", [None, 3])
def test_every_layout(tmp_path: Path, chain: str, layout: str, n_columns: int | None) -> None:
    x = values("i4", 3 * SIZE).reshape(SIZE, 3) if n_columns else values("i4")
    options = dict(LAYOUTS[layout])
    if options.get("shards"):
        options["shards"] = (options["shards"], *x.shape[1:])
    array = opened(write(tmp_path / "a", x, chain, **options))
    assert (read(array) == x.reshape(-1)).all()
    assert array.shape == x.shape


def write_sharding(path: Path, x: np.ndarray[Any, Any], chain: str, location: Any) -> Path:
    """Write with the index at a given end of the shards."""
    rest = x.shape[1:]
    sharding = zc.ShardingCodec(
        chunk_shape=(CHUNK, *rest), codecs=[zc.BytesCodec(), *compressors(chain)], index_location=location
    )
    shards = (CHUNK * PER_SHARD, *rest)
    array = zarr.create_array(path, shape=x.shape, dtype=x.dtype, chunks=shards, serializer=sharding, compressors=None)
    array[...] = x
    return path


@pytest.mark.parametrize("chain", ["", "blosc-lz4-bitshuffle", "zstd+crc32c"])
@pytest.mark.parametrize("location", ["start", "end"])
@pytest.mark.parametrize("shape", [(SIZE,), (SIZE, 3)], ids=str)
def test_either_place_of_the_index(tmp_path: Path, chain: str, location: str, shape: tuple[int, ...]) -> None:
    x = values("i4", int(np.prod(shape))).reshape(shape)
    array = opened(write_sharding(tmp_path / "a", x, chain, location))
    assert array.tables.layout.index_at == location
    assert (read(array) == x.reshape(-1)).all()


@pytest.fixture
def zarrs() -> Iterator[None]:
    pytest.importorskip("zarrs")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        yield


@pytest.mark.parametrize(
    "chain", ["blosc-lz4-shuffle", "blosc-zstd-bitshuffle+crc32c", "zstd", "zstd+crc32c", "crc32c"]
)
@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_what_zarrs_wrote(zarrs: None, tmp_path: Path, chain: str, dtype: str) -> None:
    x = values(dtype)
    assert (read(opened(write(tmp_path / "a", x, chain))) == x).all()


def test_missing_chunks_and_shards_are_fill_value(tmp_path: Path) -> None:
    for chain in ("blosc-lz4-shuffle+crc32c", "", "gzip"):
        x = np.full(SIZE, 9, "i4")
        x[100:600] = values("i4", 500)
        path = write(tmp_path / f"a{chain}", x, chain, fill_value=9)
        assert sorted(file.name for file in (path / "c").iterdir()) == ["0"]
        assert (read(opened(path)) == x).all()
        assert (scatter(opened(path), [50], [SIZE], "f4") == x[50:]).all()


@pytest.mark.parametrize(
    ("dtype", "fill"), [("f4", np.nan), ("f8", -np.inf), ("f2", 1.5), ("bool", True), ("i8", -(2**62))]
)
def test_fill_values(tmp_path: Path, dtype: str, fill: Any) -> None:
    x = np.full(SIZE, fill, dtype)
    assert np.array_equal(read(opened(write(tmp_path / "a", x, fill_value=fill))), x, equal_nan=dtype != "bool")


@given(data=st.data())
def test_ranges(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    chain = data.draw(st.sampled_from(["", "blosc-lz4-shuffle+crc32c"]))
    path = tmp_path_factory.getbasetemp() / f"ranges{bool(chain)}"
    x = values("u2")
    x[2 * CHUNK * PER_SHARD :] = 0  # the last shard is missing
    if not path.exists():
        write(path, x, chain)
    cuts = sorted(data.draw(st.lists(st.integers(0, SIZE), max_size=30)))
    lo, hi = np.array(cuts[: len(cuts) // 2 * 2 : 2], np.int64), np.array(cuts[1::2], np.int64)
    expected = np.concatenate([x[:0], *[x[a:b] for a, b in zip(lo, hi, strict=True)]])
    assert np.array_equal(opened(path).read_ranges(Workspace(), lo, hi), expected)


def test_ranges_beyond_the_array_are_refused(tmp_path: Path) -> None:
    array = opened(write(tmp_path / "a", values("u2")))
    for lo, hi in ((-1, 5), (5, 4), (0, SIZE + 1)):
        with pytest.raises(StoreError, match="ranges must lie within"):
            array.read_ranges(Workspace(), np.array([lo]), np.array([hi]))
    with pytest.raises(StoreError, match=r"chunks must be in 0\.\.9"):
        array.locate([10])
    one = np.array([1])
    with pytest.raises(StoreError, match="reaches beyond"):
        array.scatter(Workspace(), Pieces(one, (0, 1), np.array([0, 1]), one, np.array([CHUNK]), one), np.dtype("u2"))
    with pytest.raises(StoreError, match="ranges must ascend"):
        array.read_ranges(Workspace(), np.array([9, 3]), np.array([12, 14]))
    for chunks in ([3, 1, 4], [0, 9, 2, 9]):
        with pytest.raises(ValueError, match="chunks must ascend"):
            array.locate(chunks)


def test_an_empty_array(tmp_path: Path) -> None:
    array = opened(write(tmp_path / "a", values("u2", 0)))
    assert read(array).size == 0
    assert array.locate([]).fds.size == 0


def test_a_limit_on_columns(tmp_path: Path) -> None:
    for chain in ("blosc-lz4-shuffle", "gzip"):
        for dtype in ("u2", "i4", "i8"):
            x = values(dtype)
            path = write(tmp_path / f"{dtype}{chain}", x, chain)
            assert (scatter(opened(path), [0], [SIZE], "i4", limit=251) == x).all()
            with pytest.raises(CorruptStoreError, match=r"inner chunk 0: .* not below the limit of 250"):
                scatter(opened(path), [0], [SIZE], "i4", limit=250)
            if dtype != "u2":
                x[1700] = -1
                path = write(tmp_path / f"{dtype}{chain}-1", x, chain)
                with pytest.raises(CorruptStoreError, match=r"c/0: inner chunk 3: .* negative"):
                    scatter(opened(path), [0], [SIZE], "i4", limit=251)
                assert (scatter(opened(path), [0], [1700], "i4", limit=251) == x[:1700]).all()
    with pytest.raises(ValueError, match="limit needs integers"):
        scatter(opened(write(tmp_path / "f", values("f4"))), [0], [1], "f4", limit=1)


@pytest.mark.parametrize("chain", ["blosc-lz4-shuffle+crc32c", "gzip+crc32c"])
def test_like_arrays_are_scattered_together_and_errors_name_theirs(tmp_path: Path, chain: str) -> None:
    x = [values("u2") + k for k in range(3)]
    arrays = [opened(write(tmp_path / str(k), own, chain)) for k, own in enumerate(x)]
    assert len({array.form for array in arrays}) == 1
    out = np.zeros((3, 700), "f4")
    chunks, sources = [[4, 5], [0, 1], [8, 9]], [100, 0]
    pieces = Pieces(
        np.array(chunks).reshape(-1),
        (0, 2, 4, 6),
        np.arange(7),
        np.array(sources * 3),
        np.array([CHUNK - 100, 288] * 3),
        (out.ctypes.data + np.arange(3)[:, None] * out.strides[0] + np.array([[0, (CHUNK - 100) * 4]])).reshape(-1),
    )
    Scatter.of(arrays[0].form, [array.tables for array in arrays], pieces, np.dtype("f4"), None).run(Workspace())
    for own, found, (first, _) in zip(x, out, chunks, strict=True):
        assert (found == own[first * CHUNK + 100 :][:700]).all()
    flip(tmp_path / "1" / "c" / "0", 30)
    with pytest.raises(CorruptStoreError, match=re.escape(f"{tmp_path}/1/c/0: inner chunk 0: ")):
        Scatter.of(arrays[0].form, [array.tables for array in arrays], pieces, np.dtype("f4"), None).run(Workspace())


REASONS = {
    "not there": ({}, "no zarr.json"),
    "group": ({"node_type": "group"}, "not an array of zarr v2 or v3"),
    "string": ({"data_type": "string"}, "dtype must be one of"),
    "datetime": ({"data_type": {"name": "numpy.datetime64"}}, "are invalid|dtype must be"),
    "transformers": ({"storage_transformers": [{"name": "x"}]}, "storage transformers"),
    "rectilinear": ({"chunk_grid": {"name": "rectilinear", "configuration": {}}}, "must be regular"),
    "key encoding": ({"chunk_key_encoding": {"name": "other"}}, "key encoding"),
    "codecs around": ({"codecs+": [{"name": "crc32c"}]}, "codecs around"),
    "column chunks": ({"shape": [5000, 2]}, "whole rows"),
    "no codecs": ({"codecs": []}, "are invalid"),
    "three dimensions": ({"shape": [10, 2, 2]}, "whole rows"),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_cannot_be_read_says_why(tmp_path: Path, name: str) -> None:
    change, reason = REASONS[name]
    path = write(tmp_path / "a", values("u2"))
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["codecs"] += change.get("codecs+", [])
    (path / "zarr.json").write_text(json.dumps(metadata | {k: v for k, v in change.items() if not k.endswith("+")}))
    if not change:
        (path / "zarr.json").unlink()
    result = ShardedArray.open(path)
    assert isinstance(result, str)
    assert re.search(reason, result), result


def test_index_codecs_and_location_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "a", values("u2"))
    metadata = json.loads((path / "zarr.json").read_text())
    sharding = metadata["codecs"][0]["configuration"]
    for key, value, reason in (("index_codecs", [{"name": "bytes"}], "index codecs"), ("index_location", "mid", "mid")):
        changed = copy.deepcopy(metadata)
        changed["codecs"][0]["configuration"] = sharding | {key: value}
        (path / "zarr.json").write_text(json.dumps(changed))
        assert reason in str(ShardedArray.open(path))


def flip(file: Path, place: int, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1 << bit
    file.write_bytes(data)


@pytest.mark.parametrize("chain", ["blosc-lz4-shuffle", "blosc-zstd-bitshuffle", "zstd", "shuffle-2+zstd", "", "gzip"])
def test_a_flipped_bit_is_an_error_with_checksums_and_no_crash_without(tmp_path: Path, chain: str) -> None:
    x = values("u2")
    rng = np.random.default_rng(2)
    for checksum in ("+crc32c", ""):
        path = write(tmp_path / f"a{checksum}", x, chain + checksum)
        file, copy_of = path / "c" / "1", tmp_path / "copy"
        shutil.copy(file, copy_of)
        located = opened(path).locate([PER_SHARD + 2])
        start, nbytes = int(located.offsets[0]), int(located.nbytes[0])
        for place in rng.integers(0, nbytes, 60).tolist():
            flip(file, start + place, place % 8)
            lo, hi = (PER_SHARD + 2) * CHUNK, (PER_SHARD + 3) * CHUNK
            if checksum:
                with pytest.raises(CorruptStoreError, match=rf"{re.escape(str(file))}: inner chunk 2: .* checksum"):
                    scatter(opened(path), [lo], [hi], "f4")
            else:
                try:
                    scatter(opened(path), [lo], [hi], "f4")
                except CorruptStoreError as error:
                    assert f"{file}: inner chunk 2: " in str(error)  # noqa: PT017
            shutil.copy(copy_of, file)
        assert (read(opened(path)) == x).all()


@pytest.mark.parametrize("location", ["end", "start"])
def test_a_flipped_bit_in_a_shard_index_is_an_error(tmp_path: Path, location: str) -> None:
    path = write_sharding(tmp_path / "a", values("u2"), "zstd", location)
    file = path / "c" / "0"
    nbytes = file.stat().st_size
    for k in range(16 * PER_SHARD + 4):
        place = k if location == "start" else nbytes - 1 - k
        flip(file, place, k % 8)
        with pytest.raises(CorruptStoreError, match=rf"{re.escape(str(file))}: shard index does not match"):
            opened(path).locate([0])
        flip(file, place, k % 8)
    assert opened(path).locate([0]).nbytes[0] > 0


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ((2**63, 10), "must lie within"),
        ((0, 2**63), "must lie within"),
        ((10**6, 50), "got 50 bytes at 1000000"),
        ((0, 0), "got 0"),
    ],
)
def test_an_index_that_leads_out_of_the_file_is_an_error(tmp_path: Path, entry: tuple[int, int], message: str) -> None:
    import google_crc32c

    path = write(tmp_path / "a", values("u2"))
    file = path / "c" / "0"
    data = file.read_bytes()
    index = np.frombuffer(data[-16 * PER_SHARD - 4 : -4], "<u8").reshape(-1, 2).copy()
    index[1] = entry
    table = index.tobytes()
    file.write_bytes(data[: -len(table) - 4] + table + google_crc32c.value(table).to_bytes(4, "little"))
    with pytest.raises(CorruptStoreError, match=rf"{re.escape(str(file))}: inner chunk 1: .*{message}"):
        opened(path).locate([0])


@pytest.mark.parametrize("keep", [0, 1, 20, 67, -1, -100])
def test_a_truncated_shard_is_an_error(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "a", values("u2"))
    file = path / "c" / "1"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CorruptStoreError, match=rf"{re.escape(str(file))}: shard index"):
        read(opened(path))


def test_a_shard_that_shrinks_after_its_index_was_read_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a", values("u2"))
    array = opened(path)
    array.locate([0])
    file = path / "c" / "0"
    os.truncate(file, 100)
    with pytest.raises(CorruptStoreError, match=rf"{re.escape(str(file))}: inner chunk .: the file ends"):
        read(array)


def test_a_truncated_chunk_file_is_an_error(tmp_path: Path) -> None:
    for chain in ("", "blosc-lz4-shuffle", "zstd", "gzip"):
        path = write(tmp_path / f"a{chain}", values("u2"), chain, shards=None)
        file = path / "c" / "3"
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(CorruptStoreError, match=re.escape(str(file))):
            read(opened(path))


def test_a_directory_in_place_of_a_shard_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a", values("u2"))
    (path / "c" / "0").unlink()
    (path / "c" / "0").mkdir()
    with pytest.raises(StoreError, match="c/0"):
        read(opened(path))


def test_few_files_stay_open_and_none_is_closed_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_tables, "_max_recent", 2)
    x = values("u2")
    array = opened(write(tmp_path / "a", x, shards=(CHUNK,)))
    located = array.locate(range(10))
    inodes = [os.fstat(fd).st_ino for fd in located.fds]
    for chunk in range(10):
        array.locate([chunk])
    assert [os.fstat(fd).st_ino for fd in located.fds] == inodes
    assert len(array.tables._files) <= 2
    fds = located.fds.tolist()
    del located
    assert sum(_is_open(fd) for fd in fds) <= 2
    assert (read(array) == x).all()
    del array
    assert not any(_is_open(fd) for fd in fds)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_store_written_anew_is_read_anew(tmp_path: Path) -> None:
    for factor in (1, 2):
        x = values("u2") * factor
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        assert (read(opened(write(tmp_path / "a", x))) == x).all()


def test_it_pickles_without_descriptors(tmp_path: Path) -> None:
    x = values("u2")
    array = opened(write(tmp_path / "a", x))
    read(array)
    again = pickle.loads(pickle.dumps(array))
    assert again.tables._files == {}
    assert (read(again) == x).all()
    assert (again.path, again.shape, again.decoder) == (array.path, array.shape, array.decoder)


def test_threads_with_a_workspace_each(tmp_path: Path) -> None:
    arrays = [
        (opened(write(tmp_path / f"a{k}", values("u2") + k, chain)), values("u2") + k)
        for k, chain in enumerate(["blosc-lz4-shuffle+crc32c", "blosc-zstd-shuffle", "zstd+crc32c", "gzip", ""])
    ]
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            workspace = Workspace()
            for k in np.random.default_rng(seed).integers(0, len(arrays), 60):
                array, x = arrays[k]
                assert (read(array, workspace) == x).all()
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")
def test_a_forked_child_reads_on_while_the_parent_reads(tmp_path: Path) -> None:
    x = values("u2")
    array = opened(write(tmp_path / "a", x))
    workspace = Workspace()
    read(array, workspace)
    stop = threading.Event()

    def work() -> None:
        own = Workspace()
        while not stop.is_set():
            read(opened(array.path), own)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(5):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python 3.12 warns of forks beside threads, which is the point here
                pid = os.fork()
            if pid == 0:
                inherited = workspace._context
                good = (read(array, workspace) == x).all() and workspace._context != inherited
                os._exit(0 if good and (read(opened(array.path)) == x).all() else 1)
            assert os.waitpid(pid, 0)[1] == 0
    finally:
        stop.set()
        thread.join()


def test_blosc_chunks_as_numcodecs_splits_them(tmp_path: Path) -> None:
    # Many blocks in a chunk, and block sizes that do not divide it.
    x = values("u2", CHUNK)
    path = write(tmp_path / "a", x, "blosc-lz4-shuffle", shards=None)
    for cname in numcodecs.blosc.list_compressors():
        for blocksize in (0, 128, 200, 1000):
            for mode in (0, 1, 2):
                chunk = bytes(numcodecs.Blosc(cname, 5, mode, blocksize=blocksize).encode(x))
                (path / "c" / "0").write_bytes(chunk)
                assert opened(path).decoder.codec is Codec.BLOSC
                assert (read(opened(path)) == x).all(), (cname, blocksize, mode)
