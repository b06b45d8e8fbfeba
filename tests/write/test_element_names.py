"""Can a zarr store hold every name that comes out, and is every element still there?"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from annbatch.errors import InputError
from annbatch.write.inputs.element_names import MAX_NAME_BYTES, TABLE_NAMES, output_names, warn_renamed

CASES = {
    "fit": (["a", "b c", "Ä", "a.b", "__x"], ["a", "b c", "Ä", "a.b", "__x"]),
    "slashes": (["x/y", "/x", "x\\y/"], ["x_y", "_x", "x_y_"]),
    "taken": (["x/y", "x_y", "x\\y"], ["x_y_1", "x_y", "x_y_2"]),
    "empty": (["", "unnamed"], ["unnamed_1", "unnamed"]),
    "periods": ([".", "..", "..."], ["_", "__", "___"]),
    "reserved": (["_index", "index"], ["index_", "index"]),
    "of zarr": (["zarr.json", ".zgroup"], ["zarr.json_", "zgroup_"]),
    "numbers": ([0, 1, "1", 2.5, ("a", 1)], ["0", "1_1", "1", "2.5", "('a', 1)"]),
    "too long": (["ä" * 300], ["ä" * (MAX_NAME_BYTES // 2)]),
    "not to be encoded": (["a\ud800\0"], ["a__"]),
}


@pytest.mark.parametrize("case", CASES)
def test_names(case: str):
    own, written = CASES[case]
    assert list(output_names(own, "a.h5ad: obs", TABLE_NAMES).items()) == list(zip(written, own, strict=True))


def test_only_a_table_has_an_index():
    assert output_names(["_index"], "layers") == {"_index": "_index"}


@pytest.mark.parametrize("names", [["a", "b", "a"], [1, 1], ["x/y", "x/y"]])
def test_a_repeated_name_is_refused(names: list[Any]):
    with pytest.raises(InputError, match=r"^a.h5ad: obs: names must be unique, got more than one of .*; rename"):
        output_names(names, "a.h5ad: obs")


def test_what_is_renamed_is_named():
    with pytest.warns(UserWarning, match=r"^a.h5ad: obs: .* renamed: 'x/y' as 'x_y', 3 as '3'$"):
        warn_renamed(output_names(["x/y", "z", 3], "a.h5ad: obs"), "a.h5ad: obs")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_renamed(output_names(["z"], "a.h5ad: obs"), "a.h5ad: obs")


ANY_NAME = st.one_of(st.text(max_size=5), st.text("./\\_a", max_size=4), st.sampled_from(["_index", "zarr.json", 1, 2]))


@given(st.lists(ANY_NAME, unique=True, max_size=8))
def test_a_store_holds_what_comes_out(own: list[Any]):
    written = output_names(own, "obs", TABLE_NAMES)
    assert list(written.values()) == own
    assert list(output_names(written, "obs", TABLE_NAMES)) == list(written)
    group = zarr.create_group(zarr.storage.MemoryStore())
    for name in written:
        group.create_array(name, data=np.zeros(1), chunks=(1,))
    assert sorted(group.keys()) == sorted(written)


def test_a_directory_holds_the_longest_names(tmp_path: Path):
    names = output_names(["ä" * 300, "ä" * 301, "\n", "zarr.json", " "], "obs")
    group = zarr.create_group(tmp_path)
    for name in names:
        group.create_array(name, data=np.zeros(1), chunks=(1,))
    assert set(zarr.open_group(tmp_path, mode="r").keys()) == set(names)
