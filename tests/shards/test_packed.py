"""Do encoder, kernels and a reader written from the page agree, and does damage never pass for data?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from annbatch.errors import CorruptStoreError
from annbatch.shards.packed_codec import PackedCodec, unpacked
from annbatch.shards.packed_encoder import packed
from forked import in_a_fork
from fuzz_packed import fuzz
from packed_reader import read_chunk

PAGE = Path(__file__).parents[2] / "docs" / "packed.md"
DTYPES = [np.dtype(f"{kind}{size}") for kind in "ui" for size in (1, 2, 4, 8)]
SIZES = (1, 2, 255, 256, 257, 1024, 1025, 2900)


def columns(n: int, rng: np.random.Generator) -> Any:
    """Rows that start again at small numbers."""
    return np.concatenate([np.sort(rng.choice(900, 300, replace=False)) for _ in range(n // 300 + 1)])[:n]


MAKERS: dict[str, Any] = {
    "any": lambda n, rng, low, high: rng.integers(low, high, n, endpoint=True, dtype=type(low)),
    "counts": lambda n, rng, low, high: np.minimum(rng.geometric(0.3, n), high),
    "columns": lambda n, rng, low, high: columns(n, rng),
    "rarely large": lambda n, rng, low, high: np.where(rng.random(n) < 0.02, high, high.dtype.type(n % 4)),
    "often large": lambda n, rng, low, high: np.where(rng.random(n) < 0.3, high, low),
    "constant": lambda n, rng, low, high: np.full(n, high),
    "zeros": lambda n, rng, low, high: np.zeros(n),
    "all sizes": lambda n, rng, low, high: high >> rng.integers(0, 8 * high.itemsize, n).astype(high.dtype),
}


def values_of(maker: str, dtype: np.dtype[Any], n: int) -> Any:
    info = np.iinfo(dtype)
    made = MAKERS[maker](n, np.random.default_rng(n), dtype.type(info.min), dtype.type(info.max))
    return made.astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_come_back(dtype: np.dtype[Any]) -> None:
    for maker in MAKERS:
        for n in SIZES:
            values = values_of(maker, dtype, n)
            for delta in (False, True):
                found = unpacked(packed(values, delta=delta), n, dtype, delta=delta)
                assert found.dtype == dtype
                np.testing.assert_array_equal(found, values, f"{maker} {n} {delta}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_page_is_enough_to_read_them(dtype: np.dtype[Any]) -> None:
    for maker in MAKERS:
        values = values_of(maker, dtype, 1100)
        for delta in (False, True):
            stored = packed(values, delta=delta).tobytes()
            np.testing.assert_array_equal(read_chunk(stored, 1100, dtype, delta), values)
            np.testing.assert_array_equal(read_chunk(stored, 1100, dtype, delta, [4]), values[1024:])


EXAMPLES = [
    (np.where(np.arange(40) % 3, 1, 2) + 14 * (np.arange(40) % 10 == 4) + 1000 * (np.arange(40) == 7), False),
    ([3, 4, 5, 6, 2, 3, 4, 8], True),
    ([1, 2] * 128, False),
]


@pytest.mark.parametrize("k", range(len(EXAMPLES)))
def test_examples_of_the_page(k: int) -> None:
    values, delta = EXAMPLES[k]
    block = re.findall(r"```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[k]
    stated = " ".join(re.findall(r"^(?:[0-9a-f]{2} ?|… ?)+", block, re.MULTILINE)).split()
    pattern = " ".join(".*" if byte == "…" else byte for byte in stated)
    assert re.fullmatch(pattern, packed(np.array(values, "u2"), delta=delta).tobytes().hex(" "))


@given(st.data())
def test_damage_is_told(data: st.DataObject) -> None:
    """Any one byte that is another, or missing, is an error; both readers say so."""
    values = values_of("rarely large", np.dtype("u2"), 700)
    delta = data.draw(st.booleans())
    stored = packed(values, delta=delta)
    at = data.draw(st.integers(0, stored.size - 1))
    if data.draw(st.booleans()):
        stored[at] ^= data.draw(st.integers(1, 255))
    else:
        stored = np.delete(stored, at)
    with pytest.raises(CorruptStoreError):
        unpacked(stored, 700, values.dtype, delta=delta)
    with pytest.raises(ValueError, match=r"table|length|group"):
        read_chunk(stored.tobytes(), 700, values.dtype, delta)


def test_zarr_reads_and_writes_them(tmp_path: Path) -> None:
    values = values_of("columns", np.dtype("u4"), 2900)
    codecs: dict[str, Any] = {"serializer": PackedCodec(delta=True), "compressors": None, "filters": None}
    for name, shape, chunks, shards in (("one", (2900,), (400,), (1200,)), ("two", (29, 100), (7, 100), None)):
        array = zarr.create_array(
            tmp_path / name, shape=shape, dtype="u4", chunks=chunks, shards=shards, fill_value=7, **codecs
        )
        array[:10] = values.reshape(shape)[:10]
        expected = np.where(np.arange(2900).reshape(shape) < 10 * np.prod(shape[1:]), values.reshape(shape), 7)
        found = zarr.open_array(tmp_path / name)
        np.testing.assert_array_equal(found[:], expected)
        np.testing.assert_array_equal(found[5:9], expected[5:9])


@pytest.mark.parametrize("dtype", ["f4", "?"])
def test_zarr_refuses_what_cannot_be_packed(dtype: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"annbatch\.packed packs integers"):
        zarr.create_array(
            tmp_path / "a", shape=(5,), dtype=dtype, serializer=PackedCodec(delta=True), compressors=None, filters=None
        )


@pytest.mark.parametrize("configuration", [{}, {"delta": 1}, {"delta": True, "other": 1}])
def test_zarr_refuses_other_configurations(configuration: Any) -> None:
    with pytest.raises(ValueError, match=r"configuration of annbatch\.packed"):
        PackedCodec.from_dict({"name": "annbatch.packed", "configuration": configuration})


def _fuzz(count: int, seed: int = 0, dtypes: Sequence[str] = ("u2",)) -> None:
    assert in_a_fork(lambda: fuzz(count, seed, dtypes)).keys() >= {"OK", "CHECKSUM", "DECODE"}


def test_damaged_chunks_do_no_harm() -> None:
    _fuzz(4000)


@pytest.mark.slow
def test_many_damaged_chunks_do_no_harm() -> None:
    _fuzz(300_000, seed=1, dtypes=("u1", "u2", "u4", "u8"))
