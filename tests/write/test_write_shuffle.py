"""Is the order of the rows a published function of (seed, row), and a permutation?"""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annbatch.write import create_anndata_collection
from annbatch.write.shuffle.row_keys import DOMAIN, row_keys
from datagen import write_inputs

GOLDEN = {
    0: [3, 8, 2, 9, 0, 5, 4, 10, 11, 1, 6, 7],
    2**64 - 1: [8, 3, 11, 10, 4, 1, 6, 7, 5, 2, 0, 9],
}

SEEDS = st.integers(0, 2**64 - 1)
_MASK = 2**64 - 1


def philox4x64(counter: int, key: tuple[int, int]) -> list[int]:
    """Philox4x64-10 as it was published, for a counter below 2**64."""
    c = [counter, 0, 0, 0]
    k0, k1 = key
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(second >> 64) ^ c[1] ^ k0, second & _MASK, (first >> 64) ^ c[3] ^ k1, first & _MASK]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & _MASK, (k1 + 0xBB67AE8584CAA73B) & _MASK
    return c


def test_the_oracle_gives_the_published_words():
    # Known answer of the Random123 library for a counter and key of zeros.
    assert philox4x64(0, (0, 0)) == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]


@given(seed=SEEDS, start=st.integers(0, 2**40), length=st.integers(0, 40))
def test_keys_are_philox_words_of_seed_and_row(seed: int, start: int, length: int):
    expected = [philox4x64(r // 4 + 1, (seed, DOMAIN))[r % 4] for r in range(start, start + length)]
    assert row_keys(seed, start, start + length).tolist() == expected


def order_of(seed: int, n_obs: int) -> list[int]:
    """The order as its definition says it."""
    keys = row_keys(seed, 0, n_obs).tolist()
    return sorted(range(n_obs), key=lambda row: (keys[row], row))


def test_the_order_never_changes():
    assert order_of(0, 12) == GOLDEN[0]
    assert order_of(2**64 - 1, 12) == GOLDEN[2**64 - 1]


@pytest.mark.parametrize("seed", GOLDEN)
def test_a_collection_has_that_order(tmp_path: Path, seed: int):
    collection = create_anndata_collection(
        write_inputs(tmp_path), tmp_path / "store", seed=seed, rows_per_store=5, progress=False
    )
    names = [name for path in collection.store_paths for name in ad.read_zarr(path).obs_names]
    assert names == [f"cell{row}" for row in GOLDEN[seed]]


def test_places_are_uniform():
    """Chi-square over (row, place) of 3,000 shuffles of 10 rows: far from the tail for a uniform shuffle."""
    counts = np.zeros((10, 10))
    for seed in range(3000):
        counts[order_of(seed, 10), np.arange(10)] += 1
    chi_square = ((counts - 300) ** 2 / 300).sum()
    assert 40 < chi_square < 140  # 81 degrees of freedom: mean 81, standard deviation 12.7


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int):
    with pytest.raises(ValueError, match=rf"seed must be in \[0, 2\*\*64\), got {seed}"):
        row_keys(seed, 0, 1)
