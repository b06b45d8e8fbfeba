"""By which names are the genes of an input joined with those of others?

1. `named_genes` takes them from var's index, or from a var column, and refuses names that occur more than once, or
   makes them unique.
2. `check_key` says which inputs have no such column, when all have been opened.

Both are pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, count

import pandas as pd
from anndata.utils import make_index_unique

from annbatch import summary
from annbatch.errors import InputError
from annbatch.warn import warn
from annbatch.write.inputs.text_file import Repeats
from annbatch.write.inputs.value_names import as_strings


def named_genes(var: pd.DataFrame, path: str, key: str | None, repeats: Repeats) -> pd.DataFrame:
    """Give var, (n_vars, …), under the names of its genes, which are unique.

    Parameters
    ----------
    path
        What messages call the input.
    key
        The var column of the names; None for the index. The names that were in the index become a column, and the
        index is called ``key``. An input without that column keeps its names.
    repeats
        Whether names that occur more than once are refused, or get ``-1``, ``-2``, … behind all but the first.

    Raises
    ------
    InputError
        If a name is missing, or occurs more than once and ``repeats`` is ``"refuse"``.
    """
    what = "var names"
    if key is not None and key in var.columns and key != var.index.name:
        what = f"var column {key!r}"
        names = as_strings(pd.Series(var[key].array)).astype(object)
        if names.isna().any():
            unnamed = list(var.index[names.isna().to_numpy()][:5])
            raise InputError(f"{path}: {what} must name each gene (var_key), got no value for {unnamed}")
        free = (name for name in chain([var.index.name], _spare_names()) if name not in (None, key, *var.columns))
        var = var.assign(**{str(next(free)): var.index})
        var.index = pd.Index(names.to_numpy(dtype=object), dtype=object, name=key)
    if repeats == "unique":
        var.index = make_index_unique(var.index)
    repeated = var.index[var.index.duplicated()].unique()
    if len(repeated):
        columns = summary.short([str(name) for name in var.columns])
        raise InputError(
            f"{path}: {what} must be unique, got more than one of {list(repeated[:5])}; make them unique with "
            f"repeated_genes='unique' or adata.var_names_make_unique(), or name genes by a column of var with "
            f"var_key=: {columns}"
        )
    return var


def check_key(key: str, lacking: Sequence[str], n_inputs: int, *, strict: bool) -> None:
    """Warn of inputs whose var has no column ``key``.

    Raises
    ------
    InputError
        If no input has it, or with ``strict`` if one lacks it.
    """
    if len(lacking) == n_inputs or (lacking and strict):
        raise InputError(f"var_key must be a column of var, but {key!r} is missing in {summary.some_of(lacking)}")
    if lacking:
        warn(f"var has no column {key!r} (var_key) in {summary.some_of(lacking)}, where genes keep their names")


def _spare_names() -> chain[str]:
    return chain(["var_names"], (f"var_names_{number}" for number in count(1)))
