"""Are the obs of several inputs, joined on disk, what pandas makes of them? No input is a file here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from annbatch.errors import InputError
from annbatch.stores import column_join
from annbatch.stores.column_join import KnownColumn
from annbatch.write.inputs.contents import Source
from annbatch.write.inputs.obs_table import NAMES, ObsColumn, ObsTable, check_groupby, spool
from annbatch.write.inputs.spill import save


@dataclass
class Input:
    """An input in memory."""

    name: str
    frame: pd.DataFrame

    @contextmanager
    def open(self) -> Iterator[Input]:
        yield self

    def column(self, name: str) -> pd.Series[Any]:
        return self.frame[name].reset_index(drop=True)

    def obs_names(self) -> np.ndarray[Any, Any]:
        return self.frame.index.to_numpy(object)


def source(name: str, columns: Mapping[str, Any], index_name: str | None = None, names: list[str] | None = None) -> Any:
    n = max((len(values) for values in columns.values()), default=2)
    frame = pd.DataFrame(columns, index=[f"{name}{i}" for i in range(n)] if names is None else names)
    origin: Any = Input(name, frame)
    return Source(origin, len(frame), {column: column for column in columns}, index_name, {}, {})


def spooled(folder: Path, *sources: Source, names: Any = None, **options: Any) -> ObsTable:
    folder.mkdir(exist_ok=True)
    told: list[int] = []
    table = spool(sources, folder, names=names, report=told.append, **({"repeats": "unique"} | options))
    assert sum(told) == len(sources)
    return table


def plain(column: Any) -> list[Any]:
    return [None if pd.isna(value) else value for value in pd.Series(column).astype(object)]


def values_of(table: ObsTable, name: str, start: int = 0, stop: int | None = None) -> list[Any]:
    column = next(column for column in table.columns if column.name == name)
    stop = table.n_obs if stop is None else stop
    if column.dtype is None:
        return table.text(column.field).read(start, stop).tolist()
    return plain(column.decoded(table.read(start, stop)))


FIRST = {
    "category": pd.Categorical(["x", None, "y"], ["y", "x"]),
    "ordered": pd.Categorical(["b", "a", "a"], ["a", "b"], ordered=True),
    "text": ["p", "q", "p"],
    "int": [1, -2, 3],
    "nullable": pd.array([1, None, 3], dtype="Int16"),
    "bool": [True, False, True],
    "nullable bool": pd.array([True, None, False], dtype="boolean"),
    "float": [0.5, np.nan, 1.5],
    "lacking": [7, 8, 9],
    "identifier": ["id0", "id1", "id2"],
}
SECOND = {
    "category": pd.Categorical(["z", "x"], ["x", "z"]),
    "ordered": pd.Categorical(["a", "b"], ["a", "b"], ordered=True),
    "text": ["r", "p"],
    "int": [40, 50],
    "nullable": pd.array([None, 5], dtype="Int16"),
    "bool": [False, False],
    "nullable bool": pd.array([None, True], dtype="boolean"),
    "float": [2.5, -1],
    "identifier": ["id3", "id4"],
}


def test_columns_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(column_join, "MAX_CATEGORIES", 4)
    table = spooled(tmp_path, source("a", FIRST), source("b", SECOND))
    assert table.n_obs == 5
    assert [column.name for column in table.columns] == [*FIRST, "src_path"]
    for name in FIRST:
        second = SECOND.get(name, [None, None])
        expected = [*plain(FIRST[name]), *plain(second)]
        assert values_of(table, name) == expected, name
        assert values_of(table, name, 1, 4) == expected[1:4], name
    assert values_of(table, "src_path") == ["a", "a", "a", "b", "b"]
    assert table.text(NAMES).read(0, 5).tolist() == ["a0", "a1", "a2", "b0", "b1"]
    assert table.texts == [NAMES, "obs9"]

    found = {column.name: column for column in table.columns}
    assert found["category"].categories.tolist() == ["y", "x", "z"]
    assert (found["category"].ordered, found["ordered"].ordered) == (False, True)
    assert [column.number for column in table.columns] == list(range(11))
    assert {name: column.masked for name, column in found.items() if column.masked} == {
        "nullable": True,
        "nullable bool": True,
    }
    assert found["nullable"].fields() == [("obs4", np.dtype("i2")), ("obs4?", np.dtype(bool))]
    assert found["int"].fields() == [("obs3", np.dtype("i8"))]
    assert found["identifier"].fields() == []
    assert table.record.names is not None
    assert len(table.record.names) == 12
    assert all(column.ranks is None for column in table.columns)


# --- where cells come from --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["k", None], ["k", "a"]),
        (pd.Categorical(["k", None]), ["k", "a"]),
        ([None, None], ["a", "a"]),
        ([np.nan, np.nan], ["a", "a"]),
    ],
    ids=["text", "category", "none", "NaN"],
)
def test_where_cells_first_came_from_stays(given: Any, expected: list[str], tmp_path: Path):
    table = spooled(tmp_path, source("a", {"src_path": given, "n": [1, 2]}), names=["n"])
    assert [column.name for column in table.columns] == ["n", "src_path"]
    assert values_of(table, "src_path") == expected


@pytest.mark.parametrize("given", [[1, 2], pd.Categorical([1, 2])], ids=["numbers", "categories of numbers"])
def test_numbers_do_not_say_where_cells_come_from(given: Any, tmp_path: Path):
    with pytest.raises(InputError, match="a: obs column 'src_path' must hold strings, got"):
        spooled(tmp_path, source("a", {"src_path": given}))


# --- which columns ----------------------------------------------------------------------------------------------------


def test_columns_are_chosen(tmp_path: Path):
    sources = source("a", {"x": [1, 2], "y": [3, 4]}), source("b", {"y": [5, 6], "z": [7, 8]})
    table = spooled(tmp_path / "all", *sources)
    assert [column.name for column in table.columns] == ["x", "y", "z", "src_path"]
    table = spooled(tmp_path / "some", *sources, names=["z", "y", "z"])
    assert [column.name for column in table.columns] == ["z", "y", "src_path"]
    table = spooled(tmp_path / "none", *sources, names=[])
    assert [column.name for column in table.columns] == ["src_path"]
    with pytest.raises(InputError, match=r"obs_columns must be in at least one input, got \['w'\]; there are"):
        spooled(tmp_path / "unknown", *sources, names=["x", "w"])
    with pytest.raises(InputError, match=r"obs_as_strings must be in at least one input, got \['w'\]; there are"):
        spooled(tmp_path / "strings", *sources, strings=["w"])
    table = spooled(tmp_path / "as strings", *sources, strings=["y"])
    assert values_of(table, "y") == ["3", "4", "5", "6"]


def test_columns_that_do_not_go_together(tmp_path: Path):
    sources = source("a", {"x": [1, 2], "y": [3, 4]}), source("b", {"x": ["p", "q"], "y": [5, 6]})
    table = spooled(tmp_path / "all", *sources)
    assert [column.name for column in table.columns] == ["y", "src_path"]
    assert list(table.unjoined) == ["x"]
    assert "must be of one kind everywhere" in table.unjoined["x"]
    for number, options in enumerate([{"names": ["x"]}, {"required": ["x"]}]):
        with pytest.raises(InputError, match="'x' must be of one kind everywhere"):
            spooled(tmp_path / str(number), *sources, **options)
    schema = {"x": KnownColumn(pd.Series(np.empty(0, np.int64)), True)}
    with pytest.raises(InputError, match="'x' must be of one kind everywhere"):
        spooled(tmp_path / "schema", *sources, schema=schema)


def test_columns_of_a_collection_are_taken(tmp_path: Path):
    schema = {
        "y": KnownColumn(pd.Series(pd.Categorical([], ["c", "d"])), True),
        "src_path": KnownColumn(pd.Series(pd.Categorical([], ["old"])), True),
        "n": KnownColumn(pd.Series(np.empty(0, np.float32)), True),
    }
    given = source("a", {"n": [1, 2], "y": ["d", "e"], "more": [0, 0]})
    for names, n in ((None, [1, 2]), (["y"], [None, None])):
        table = spooled(tmp_path / str(n[0]), given, names=names, schema=schema)
        assert [column.name for column in table.columns] == ["y", "src_path", "n"]
        assert values_of(table, "y") == ["d", "e"]
        assert table.columns[0].categories.tolist() == ["c", "d", "e"]
        assert table.columns[1].categories.tolist() == ["old", "a"]
        assert values_of(table, "n") == n


# --- faults -----------------------------------------------------------------------------------------------------------


def test_columns_and_names_of_other_lengths_are_refused(tmp_path: Path):
    long = replace(source("a", {"x": [1, 2, 3]}), n_obs=2)
    with pytest.raises(InputError, match=r"a: obs column 'x' must have 2 rows, got 3") as caught:
        spooled(tmp_path / "column", long)
    assert "a: obs must have 2 names, one for each row of X, got 3" in str(caught.value)
    with pytest.raises(InputError, match=r"obs column 'src_path' must have 2 rows, got 3"):
        spooled(tmp_path / "origin", replace(source("a", {"src_path": ["p"] * 3}), n_obs=2), names=[])


def test_names_that_repeat(tmp_path: Path):
    sources = source("a", {"x": [1, 2]}, names=["c", "d"]), source("b", {"x": [3]}, names=["d"])
    table = spooled(tmp_path / "unique", *sources)
    assert table.text(NAMES).read(0, 3).tolist() == ["c", "d", "d-1"]
    with pytest.raises(InputError, match=r"obs names must be unique .*got more than one of \['d'\]"):
        spooled(tmp_path / "refused", *sources, repeats="refuse")
    known = table.text(NAMES)
    table = spooled(tmp_path / "others", sources[0], others=[known])
    assert table.text(NAMES).read(0, 2).tolist() == ["c-1", "d-2"]
    table = spooled(tmp_path / "distinct", sources[0], repeats="refuse")
    assert table.text(NAMES).read(0, 2).tolist() == ["c", "d"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["barcode", "barcode"], "barcode"),
        (["barcode", "cell"], None),
        ([None, None], None),
        (["barcode", None], None),
        (["x", "x"], None),
        (["_index", "_index"], None),
    ],
    ids=str,
)
def test_the_name_of_the_index(names: list[str | None], expected: str | None, tmp_path: Path):
    sources = [source("ab"[i], {"x": [1]}, index_name=name) for i, name in enumerate(names)]
    assert spooled(tmp_path, *sources).index_name == expected


def test_a_name_of_the_index_that_cannot_be_is_changed(tmp_path: Path):
    with pytest.warns(UserWarning, match="a: obs index: .*'a/b' as 'a_b'"):
        assert spooled(tmp_path / "free", source("a", {"x": [1]}, index_name="a/b")).index_name == "a_b"
    with pytest.warns(UserWarning, match="'a/b' as 'a_b'"):
        assert spooled(tmp_path / "taken", source("a", {"a_b": [1]}, index_name="a/b")).index_name is None


# --- groups -----------------------------------------------------------------------------------------------------------

GROUPED = {
    "int": [30, 10, 20, 10],
    "nullable": pd.array([5, None, 4, 5], dtype="Int8"),
    "bool": [True, False, True, True],
    "category": pd.Categorical(["b", None, "a", "b"], ["b", "a"]),
    "float": [0.5, 1, 1.5, 2],
}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["int"], [2, 0, 1, 0]),
        (["nullable"], [1, 2, 0, 1]),
        (["bool"], [1, 0, 1, 1]),
        (["category"], [0, 2, 1, 0]),
        (["category", "int"], [0 * 4 + 2, 2 * 4 + 0, 1 * 4 + 1, 0 * 4 + 0]),
        (["bool", "nullable"], [1 * 3 + 1, 0 * 3 + 2, 1 * 3 + 0, 1 * 3 + 1]),
        ([], [0, 0, 0, 0]),
    ],
    ids=str,
)
def test_groups_are_numbered(names: list[str], expected: list[int], tmp_path: Path):
    table = spooled(tmp_path, source("a", GROUPED), required=names)
    found = table.groups(names, 0, 4)
    assert found.dtype == np.uint64
    assert found.tolist() == expected
    assert table.groups(names, 1, 3).tolist() == expected[1:3]


def test_columns_that_make_no_groups(tmp_path: Path):
    table = spooled(tmp_path, source("a", GROUPED), required=["float"])
    for name in ("float", "int"):
        with pytest.raises(InputError, match=f"groupby must be an obs column of strings.*, got '{name}'"):
            table.groups([name], 0, 4)


def test_there_are_fewer_than_2_to_the_64_groups(tmp_path: Path):
    def grouped(n_values: int) -> np.ndarray[Any, Any]:
        columns = [
            ObsColumn(name, i, np.dtype("i8"), False, None, False, (np.dtype("i8"), n))
            for i, (name, n) in enumerate([("a", 2**32 - 1), ("b", n_values)])
        ]
        for i in range(2):
            save(tmp_path / f"obs{i}.ranks", np.array([-1, 0], np.int64))
        return ObsTable(tmp_path, 2, tuple(columns), None).groups(["a", "b"], 0, 2)

    assert grouped(2**32 - 2).tolist() == [(2**32 - 1) * (2**32 - 1) + 2**32 - 2, 0]
    with pytest.raises(InputError, match=r"fewer than 2\*\*64 groups, got more with 'b'"):
        grouped(2**32 - 1)


def test_what_is_grouped_by_must_become_a_column():
    sources = [source("a", {"x": [1]}), source("b", {"y": [1]})]
    check_groupby(["x", "y", "src_path"], None, sources)
    check_groupby(["x", "src_path"], ["x"], sources)
    with pytest.raises(InputError, match="groupby must be an obs column, got 'y'; there are"):
        check_groupby(["y"], ["x"], sources)
    with pytest.raises(InputError, match="groupby must be an obs column, got 'z'; there are"):
        check_groupby(["z"], None, sources)


def test_numbers_among_objects_stay_numbers(tmp_path: Path):
    table = spooled(tmp_path, source("a", {"x": np.array([1, None, 3], object)}))
    assert values_of(table, "x") == [1, None, 3]
    assert (table.columns[0].dtype, table.columns[0].masked) == (np.dtype(np.int64), True)
