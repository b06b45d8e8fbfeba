"""How do obs tables of any length become rows that travel with their cells?

1. `spool` reads the obs of one input after the other, opening each once, joins one column of all inputs after the
   other, and leaves it on disk as fixed-width numbers: codes, values, masks, or text where it holds identifiers. So no
   more than one column of all cells is in memory.
2. `ObsTable.read` gives consecutive cells as one record each, which the shuffle moves like everything else.
3. `ObsColumn.decoded` turns what arrives back into what AnnData writes.

The names of the cells are text, as identifiers are, and are made distinct on the way
(`annbatch.write.inputs.text_file`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as of_dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from annbatch import summary
from annbatch.errors import InputError
from annbatch.stores.class_columns import classes_of_integers
from annbatch.stores.column_join import KnownColumn, join_column
from annbatch.stores.column_kinds import as_categories
from annbatch.stores.obs_access import SRC_PATH
from annbatch.write.inputs.column_spill import ColumnSpill
from annbatch.write.inputs.contents import Source
from annbatch.write.inputs.element_names import TABLE_NAMES, output_names, warn_renamed
from annbatch.write.inputs.faults import Faults
from annbatch.write.inputs.opened_input import Root
from annbatch.write.inputs.spill import load, save
from annbatch.write.inputs.text_file import Repeats, TextFile, distinct
from annbatch.write.inputs.value_names import as_strings

NAMES = "names"
"""The text of the cells' names."""


@dataclass(frozen=True, slots=True)
class ObsColumn:
    """One joined obs column."""

    name: str
    number: int
    """Its place among the columns; names its files and fields."""
    dtype: np.dtype[Any] | None
    """What a record holds of it: codes, values or booleans; None if it is text."""
    masked: bool
    """Whether a record also says that a value is missing."""
    categories: pd.Index[Any] | None
    """What codes mean."""
    ordered: bool
    """Whether the categories are ordered."""
    ranks: tuple[np.dtype[Any], int] | None = None
    """If cells are grouped by its integers or booleans: type of the file of their ranks, and number of values."""

    @property
    def field(self) -> str:
        """Name of its field in a record, and of its text."""
        return f"obs{self.number}"

    def fields(self) -> list[tuple[str, np.dtype[Any]]]:
        """Give its fields of a record."""
        if self.dtype is None:
            return []
        return [(self.field, self.dtype)] + ([(f"{self.field}?", np.dtype(bool))] if self.masked else [])

    def group_codes(self, directory: Path, start: int, stop: int) -> tuple[npt.NDArray[Any], int]:
        """Read the codes of the groups that its values make, -1 for missing ones, and give their number.

        Raises
        ------
        InputError
            If it is text of too many different values, or holds floats.
        """
        if self.categories is not None and self.dtype is not None:
            return load(directory / self.field, self.dtype, start, stop), len(self.categories)
        if self.ranks is None:
            raise InputError(
                f"groupby must be an obs column of strings, categories, integers or booleans, got {self.name!r}"
            )
        dtype, n_values = self.ranks
        return load(directory / f"{self.field}.ranks", dtype, start, stop), n_values

    def decoded(self, records: npt.NDArray[Any]) -> Any:
        """Give the column of (n,) records as pandas or NumPy has it."""
        values = np.ascontiguousarray(records[self.field])
        if self.categories is not None:
            return pd.Categorical.from_codes(values.astype(np.intp), categories=self.categories, ordered=self.ordered)
        if not self.masked:
            return values
        mask = np.ascontiguousarray(records[f"{self.field}?"])
        boolean = values.dtype.kind == "b"
        return pd.arrays.BooleanArray(values, mask) if boolean else pd.arrays.IntegerArray(values, mask)


@dataclass(frozen=True, slots=True)
class ObsTable:
    """The obs of all inputs, on disk."""

    directory: Path
    n_obs: int
    columns: tuple[ObsColumn, ...]
    index_name: str | None
    """Name of the index, if all inputs agree on one."""
    unjoined: Mapping[str, str] = of_dataclass(default_factory=dict)
    """Columns that are left out because they cannot be joined, and why."""

    @property
    def record(self) -> np.dtype[Any]:
        """Type of one cell's record."""
        return np.dtype([field for column in self.columns for field in column.fields()])

    @property
    def texts(self) -> list[str]:
        """Names of the texts that each cell has: its own name, and columns of identifiers."""
        return [NAMES, *(column.field for column in self.columns if column.dtype is None)]

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read the records of cells ``start`` to ``stop``."""
        records = np.empty(stop - start, self.record)
        for field in self.record.names or ():
            records[field] = load(self.directory / field, self.record[field], start, stop)
        return records

    def text(self, name: str) -> TextFile:
        """Give one of the texts."""
        return TextFile(self.directory / f"{name}.text")

    def groups(self, names: Sequence[str], start: int, stop: int) -> npt.NDArray[np.uint64]:
        """Read to which group cells belong: (stop - start,).

        A group is a tuple with a category, or a number, of each of the columns ``names``. Groups are numbered by that
        of the first column, then of the second, and so on, each column's in their order, missing ones last.

        Raises
        ------
        InputError
            If a column cannot be grouped by, or there are 2**64 tuples or more.
        """
        found, n_groups = np.zeros(stop - start, np.uint64), 1
        for name in names:
            column = next(column for column in self.columns if column.name == name)
            codes, n_values = column.group_codes(self.directory, start, stop)
            n = n_values + 1
            n_groups *= n
            if n_groups >= 2**64:
                raise InputError(f"groupby must be columns of fewer than 2**64 groups, got more with {name!r}")
            found = found * np.uint64(n) + np.where(codes < 0, n - 1, codes).astype(np.uint64)
        return found


def check_groupby(groupby: Sequence[str], names: Sequence[str] | None, sources: Sequence[Source]) -> None:
    """Refuse to group by what will be no column; ``names`` are those that are asked for, None for all.

    Raises
    ------
    InputError
        Names the columns that there are.
    """
    known = chain.from_iterable(source.columns for source in sources) if names is None else names
    columns = list(dict.fromkeys([*known, SRC_PATH]))
    for name in groupby:
        if name not in columns:
            raise InputError(f"groupby must be an obs column, got {name!r}; there are {summary.short(columns)}")


def spool(
    sources: Sequence[Source],
    directory: Path,
    *,
    names: Sequence[str] | None,
    strings: Sequence[str] = (),
    required: Sequence[str] = (),
    repeats: Repeats,
    schema: Mapping[str, KnownColumn] | None = None,
    others: Sequence[TextFile] = (),
    report: Callable[[int], object],
) -> ObsTable:
    """Join the obs of all inputs into ``directory``, which must be empty.

    Parameters
    ----------
    names
        Which columns; None for all. `SRC_PATH` comes with either; one that an input already has, as the stores of a
        collection do, is kept: it names where the cells first came from. If they are named, each must be there.
    strings
        Columns whose values are written as strings, whatever they are.
    required
        Columns that must be there, though all are taken: those to group by. Others that cannot be joined are left out.
    repeats
        Whether names that occur more than once are made unique or refused.
    schema
        The columns that are taken, and whose categories come first: those of a collection which the cells are to join.
        All must be there; ``names`` says which of them have values.
    others
        Names that are taken already.
    report
        Is told of inputs as they are read, and of none between other steps.

    Raises
    ------
    InputError
        If a column that must be there is of different kinds in different inputs, or of a kind that cannot be stored;
        if one is damaged, or unknown.
    """
    n_obs = sum(source.n_obs for source in sources)
    known = list(dict.fromkeys(chain.from_iterable(source.columns for source in sources)))
    for what, chosen in {"obs_columns": names or (), "obs_as_strings": strings}.items():
        if unknown := [name for name in chosen if name not in known]:
            raise InputError(
                f"{what} must be in at least one input, got {summary.short(unknown)}; there are {summary.short(known)}"
            )
    wanted = known if names is None else list(dict.fromkeys(names))
    wanted = [*(name for name in wanted if name != SRC_PATH), SRC_PATH] if schema is None else list(schema)
    given, columns = TextFile(directory / "given.text"), []
    faults, failed = Faults(), set()
    left_out: dict[str, str] = {}
    with ColumnSpill(directory, len(wanted)) as spill:
        for source in sources:
            with source.origin.open() as root:
                for number, name in enumerate(wanted):
                    column, before = None, len(faults)
                    with faults.collecting(source.name, f"obs column {name!r}"):
                        if name == SRC_PATH:
                            column = _origins(root, source, name)
                        elif names is None or name in names:
                            column = _column(root, source, name, name in strings)
                    if len(faults) > before:
                        failed.add(number)
                    spill.append(column)
                with faults.collecting(source.name, "obs names"):
                    given.append(_names(root, source))
            report(1)
        lengths, paths = [source.n_obs for source in sources], [source.name for source in sources]
        for number, name in enumerate(wanted):
            if number not in failed:
                known_column = None if schema is None else schema[name]
                try:
                    joined = join_column(spill.parts(number), lengths, f"obs column {name!r}", paths, known_column)
                except InputError as e:
                    if names is None and schema is None and name not in required:
                        left_out[name] = str(e)
                    else:
                        faults.add(e)
                else:
                    columns.append(_store(joined, name, number, directory, is_grouped=name in required))
            report(0)
    faults.raise_any()
    table = ObsTable(directory, n_obs, tuple(columns), _index_name(sources, wanted), left_out)
    _distinguish(given, table, repeats, others)
    report(0)
    return table


def _store(joined: pd.Series[Any], name: str, number: int, directory: Path, *, is_grouped: bool) -> ObsColumn:
    categories, ordered, masked = None, False, False
    values: npt.NDArray[Any]
    mask: Any = np.ma.nomask
    if isinstance(joined.dtype, pd.CategoricalDtype):
        values, categories, ordered = joined.cat.codes.to_numpy(), joined.cat.categories, bool(joined.cat.ordered)
    elif pd.api.types.is_extension_array_dtype(joined.dtype):
        mask, masked = joined.isna().to_numpy(), True
        values = joined.array._data
        save(directory / f"obs{number}?", mask)
    elif joined.dtype == object:
        column = ObsColumn(name, number, None, False, None, False)
        TextFile(directory / f"{column.field}.text").append(joined.to_numpy())
        return column
    else:
        values = joined.to_numpy()
    column = ObsColumn(name, number, values.dtype, masked, categories, ordered)
    save(directory / column.field, values)
    if is_grouped and categories is None and values.dtype.kind in "biu":
        found = classes_of_integers(name, [np.ma.MaskedArray(values, mask)])
        save(directory / f"{column.field}.ranks", found.codes)
        return replace(column, ranks=(found.codes.dtype, len(found.categories)))
    return column


def _column(root: Root, source: Source, name: str, strings: bool) -> pd.Series[Any] | None:
    """Read one column of one input, as ``strings`` or as it is; None if it has none of that name."""
    if name not in source.columns:
        return None
    column = _checked(root.column(source.columns[name]), source, name)
    return as_strings(column) if strings else _compact(column)


def _checked(column: pd.Series[Any], source: Source, name: str) -> pd.Series[Any]:
    if len(column) != source.n_obs:
        raise InputError(f"{source.name}: obs column {name!r} must have {source.n_obs} rows, got {len(column)}")
    return column


def _compact(column: pd.Series[Any]) -> pd.Series[Any]:
    """Keep each different string once: a column of all inputs has to fit in memory."""
    if column.dtype.kind != "O" and not pd.api.types.is_string_dtype(column.dtype):
        return column
    if isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.infer_dtype(column, skipna=True) != "string":
        return column
    return pd.Series(as_categories(column))


def _origins(root: Root, source: Source, name: str) -> pd.Series[Any]:
    """Read where the cells of one input first came from, or say that they come from it."""
    if name in source.columns:
        given = _checked(root.column(source.columns[name]), source, name)
        text = given.cat.categories if isinstance(given.dtype, pd.CategoricalDtype) else given
        if not given.isna().all() and pd.api.types.infer_dtype(text, skipna=True) != "string":
            raise InputError(f"{source.name}: obs column {name!r} must hold strings, got {given.dtype}")
        strings = given.astype(object)
        return _compact(strings.where(strings.notna(), source.name))
    codes = np.zeros(source.n_obs, dtype=np.int8)
    return pd.Series(pd.Categorical.from_codes(codes, categories=pd.Index([source.name])))


def _names(root: Root, source: Source) -> npt.NDArray[Any]:
    names = root.obs_names()
    if len(names) != source.n_obs:
        raise InputError(f"{source.name}: obs must have {source.n_obs} names, one for each row of X, got {len(names)}")
    return names


def _index_name(sources: Sequence[Source], columns: Sequence[str]) -> str | None:
    found = {source.index_name for source in sources}
    name = found.pop() if len(found) == 1 else None
    if name is None or name in (*columns, "_index"):
        return None
    names = output_names([name], "obs index", TABLE_NAMES)
    warn_renamed(names, f"{sources[0].name}: obs index")
    (written,) = names
    return None if written in columns else written


def _distinguish(given: TextFile, table: ObsTable, repeats: Repeats, others: Sequence[TextFile]) -> None:
    again = distinct(given, others, table.text(NAMES), repeats)
    if again and repeats == "refuse":
        raise InputError(
            f"obs names must be unique (obs_names='refuse'), got more than one of {again}; "
            f"obs_names='unique' makes them unique"
        )
