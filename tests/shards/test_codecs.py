from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from annbatch.shards import codecs
from annbatch.shards.codecs import Codec, Decoder, Library, Workspace, gunzip, library, parse_codecs

BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
BLOSC = {"name": "blosc", "configuration": {"typesize": 2, "cname": "lz4", "clevel": 3, "shuffle": "shuffle"}}
ZSTD = {"name": "zstd", "configuration": {"level": 3, "checksum": False}}
GZIP = {"name": "gzip", "configuration": {"level": 5}}
CRC = {"name": "crc32c"}
DELTA = {"name": "numcodecs.delta", "configuration": {"dtype": "<u2"}}
SHUFFLE = {"name": "numcodecs.shuffle", "configuration": {"elementsize": 4}}
U2 = np.dtype("u2")

CHAINS = {
    "raw": ([BYTES], Decoder(Codec.RAW)),
    "raw+crc": ([BYTES, CRC], Decoder(Codec.RAW, crc32c=True)),
    "blosc": ([BYTES, BLOSC], Decoder(Codec.BLOSC)),
    "blosc+crc": ([BYTES, BLOSC, CRC], Decoder(Codec.BLOSC, crc32c=True)),
    "shuffle+zstd+crc": ([BYTES, SHUFFLE, ZSTD, CRC], Decoder(Codec.ZSTD, 4, True)),
    "shuffle": ([BYTES, SHUFFLE], Decoder(Codec.RAW, 4)),
    "numcodecs.zstd": ([BYTES, {"name": "numcodecs.zstd"}], Decoder(Codec.ZSTD)),
    "gzip": ([BYTES, GZIP], Decoder(Codec.GZIP)),
    "delta+blosc+crc": ([DELTA, BYTES, BLOSC, CRC], Decoder(Codec.BLOSC, crc32c=True, delta=True)),
    "delta as": (
        [DELTA | {"configuration": {"dtype": "<u2", "astype": "<u2"}}, BYTES],
        Decoder(Codec.RAW, delta=True),
    ),
}
REFUSALS = {
    "nothing": ([], "does not start with 'bytes'"),
    "transpose": ([{"name": "transpose", "configuration": {"order": [0]}}, BYTES], "does not start with 'bytes'"),
    "big endian": ([{"name": "bytes", "configuration": {"endian": "big"}}], "little-endian"),
    "unknown": ([BYTES, {"name": "numcodecs.lzma"}], "numcodecs.lzma"),
    "two compressors": ([BYTES, ZSTD, BLOSC], "codecs beyond"),
    "checksum inside": ([BYTES, CRC, BLOSC], "codecs beyond"),
    "snappy": ([BYTES, {"name": "blosc", "configuration": {"cname": "snappy"}}], "snappy"),
    "odd shuffle": ([BYTES, {"name": "numcodecs.shuffle", "configuration": {"elementsize": 3}}], "elementsize"),
    "delta alone": ([DELTA], "does not start with 'bytes'"),
    "delta behind": ([BYTES, DELTA], "codecs beyond"),
    "delta twice": ([DELTA, DELTA, BYTES], "does not start with 'bytes'"),
    "delta of others": ([DELTA | {"configuration": {"dtype": "<u4"}}, BYTES], "the integers' own type, uint16"),
    "delta of big ones": ([DELTA | {"configuration": {"dtype": ">u2"}}, BYTES], "the integers' own type, uint16"),
    "delta as others": ([DELTA | {"configuration": {"dtype": "<u2", "astype": "|u1"}}, BYTES], "integers' own type"),
    "delta of nothing": ([{"name": "numcodecs.delta"}, BYTES], "the integers' own type"),
    "nested shards": ([{"name": "sharding_indexed", "configuration": {}}], "does not start with 'bytes'"),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_that_can_be_decoded(name: str) -> None:
    chain, expected = CHAINS[name]
    assert parse_codecs(chain, U2, 4096) == expected


@pytest.mark.parametrize("name", REFUSALS)
def test_a_chain_that_cannot_says_why(name: str) -> None:
    chain, reason = REFUSALS[name]
    result = parse_codecs(chain, U2, 4096)
    assert isinstance(result, str)
    assert reason in result


def test_chunk_size_must_suit_the_library() -> None:
    assert "inner chunks must decode to" in str(parse_codecs([BYTES, BLOSC], U2, 2**30))
    assert "divide 4098" in str(parse_codecs([BYTES, SHUFFLE], U2, 4098))


def test_only_integers_have_differences() -> None:
    chain = [DELTA | {"configuration": {"dtype": "<f4"}}, BYTES]
    assert "the integers' own type, float32" in str(parse_codecs(chain, np.dtype("f4"), 4096))


def test_single_bytes_have_no_order() -> None:
    assert parse_codecs([{"name": "bytes"}], np.dtype("u1"), 10) == Decoder(Codec.RAW)


def test_library_loads_and_decodes_the_known_chunks() -> None:
    loaded = library()
    assert isinstance(loaded, Library), loaded
    assert loaded is library()
    context = loaded.create_context()
    assert loaded.decompress(context, codecs._KNOWN_CHUNKS[0][:-1], 256) is None
    loaded.free_context(context)


@pytest.fixture
def fresh_library() -> Iterator[None]:
    library.cache_clear()
    yield
    library.cache_clear()


def test_without_the_library_compressed_chains_are_refused(
    fresh_library: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codecs, "_find_library", lambda: None)
    assert "libblosc2 was not found" in str(parse_codecs([BYTES, BLOSC], U2, 4096))
    assert parse_codecs([BYTES], U2, 4096) == Decoder(Codec.RAW)
    assert Workspace().context == 0


def test_a_file_that_is_no_library_is_refused(
    fresh_library: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "libblosc2.so"
    path.write_bytes(b"\x7fELF")
    monkeypatch.setattr(codecs, "_find_library", lambda: path)
    assert "could not be loaded" in str(library())


def test_a_library_that_decodes_wrongly_is_refused(fresh_library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "_KNOWN", bytes(256))
    assert "decoded a known chunk wrongly" in str(library())


def test_contexts_ignore_and_keep_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOSC_NTHREADS", "8")
    tasks = Path("/proc/self/task")
    threads = len(list(tasks.iterdir())) if tasks.is_dir() else 0
    assert Workspace().context
    assert os.environ["BLOSC_NTHREADS"] == "8"
    assert (len(list(tasks.iterdir())) if tasks.is_dir() else 0) == threads


def test_buffers_grow_and_are_aligned() -> None:
    workspace = Workspace()
    for nbytes in (100, 10, 100_000):
        assert workspace.scratch(nbytes).size == workspace.shuffled(nbytes).size == nbytes
        assert workspace.raw(nbytes).size >= nbytes + codecs.HEAD_NBYTES + codecs.TAIL_NBYTES
        assert workspace.raw(nbytes).size % 64 == 0
        for buffer in (workspace.raw(nbytes), workspace.scratch(nbytes), workspace.shuffled(nbytes)):
            assert buffer.ctypes.data % 64 == 0


def _gunzip(stored: bytes, nbytes: int) -> bytes | None:
    plain = gunzip(np.frombuffer(stored, np.uint8), nbytes)
    return None if plain is None else plain.tobytes()


def test_gunzip_gives_exactly_what_is_expected_or_nothing() -> None:
    plain = bytes(range(256)) * 4
    stored = gzip.compress(plain)
    assert _gunzip(stored, 1024) == plain
    assert _gunzip(gzip.compress(plain[:100]) + gzip.compress(plain[100:]), 1024) == plain
    for bad in (stored[:-1], stored + b"x", b"", b"not gzip", stored[:20] + b"\0" + stored[21:]):
        assert _gunzip(bad, 1024) is None
    assert _gunzip(stored, 1023) is None
    assert _gunzip(stored, 1025) is None
    assert _gunzip(gzip.compress(bytes(10**7)), 1024) is None
