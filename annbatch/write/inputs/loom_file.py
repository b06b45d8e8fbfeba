"""What is in a loom file?

Its matrices are dense, with a row for each gene: `annbatch.write.inputs.transpose` turns them. Everything has the name
and the type that `anndata.io.read_loom` gives it: X is float32, layers are float64. X is the layer ``spliced`` if there
is one, as velocyto writes it, and the main matrix is then the layer ``matrix``.

Format: https://linnarssonlab.org/loompy/format/
"""

from __future__ import annotations

import html
from functools import partial
from typing import Any

import h5py
import numpy as np
import pandas as pd

from annbatch.errors import InputError
from annbatch.stores.stored_frame import as_text
from annbatch.write.inputs.matrix_rows import Matrix
from annbatch.write.inputs.opened_input import Array, PartsRoot

_CELLS, _GENES = "CellID", "Gene"


def is_loom(file: h5py.File) -> bool:
    """Say whether a file is one."""
    return isinstance(file.get("matrix"), h5py.Dataset) and "row_attrs" in file and "col_attrs" in file


def loom_root(file: h5py.File, where: str, part: str | None) -> PartsRoot:
    """Read a loom file.

    Raises
    ------
    InputError
        If a part of it is asked for.
    """
    if part is not None:
        raise InputError(f"{where}: the path must not continue with {part!r}; x='layers/…' takes X from a layer")
    layers = {f"layers/{name}": item for name, item in file.get("layers", {}).items()}
    main = layers.get("layers/spliced", file["matrix"])
    elements = {"X": _by_cells(main, np.dtype(np.float32))}
    if main != file["matrix"]:
        layers = {"layers/matrix": file["matrix"], **layers}
    elements |= {key: _by_cells(item, np.dtype(np.float64)) for key, item in layers.items()}
    columns, arrays = _attributes(file["col_attrs"])
    names = columns.pop(_CELLS, None)
    others = {f"varm/{name}": item for name, item in _attributes(file["row_attrs"])[1].items()}
    for key, graphs in (("obsp", "col_graphs"), ("varp", "row_graphs")):
        others |= {f"{key}/{name}": item for name, item in file.get(graphs, {}).items()}
    return PartsRoot(
        (lambda: as_text(range(main.shape[1]))) if names is None else (lambda: as_text(_values(names))),
        lambda: _var(file["row_attrs"], main.shape[0]),
        elements | {f"obsm/{name}": item for name, item in arrays.items()} | others,
        {name: (len(item), partial(_values, item)) for name, item in columns.items()},
        None if names is None else _CELLS,
    )


def _var(group: h5py.Group, n_vars: int) -> pd.DataFrame:
    columns, _ = _attributes(group)
    names = columns.pop(_GENES, None)
    read = as_text(range(n_vars) if names is None else _values(names))
    index = pd.Index(read, dtype=object, name=None if names is None else _GENES)
    return pd.DataFrame({name: _values(item) for name, item in columns.items()}, index=index)


def _attributes(group: h5py.Group) -> tuple[dict[str, h5py.Dataset], dict[str, h5py.Dataset]]:
    """Give the attributes that are columns, and those that have several."""
    items = {name: item for name, item in group.items() if isinstance(item, h5py.Dataset)}
    wide = {name for name, item in items.items() if item.ndim > 1 and item.shape[1] > 1}
    return {n: i for n, i in items.items() if n not in wide}, {n: i for n, i in items.items() if n in wide}


def _values(item: h5py.Dataset) -> Array:
    values = np.asarray(item[:]).reshape(-1)
    if values.dtype.kind not in "SO":
        return values
    # Loom keeps what is not ASCII as XML entities; files of other programs hold UTF-8.
    decoded = [value.decode("utf-8", "ignore") if isinstance(value, bytes) else str(value) for value in values]
    return np.array([html.unescape(text) for text in decoded], dtype=object)


def _by_cells(item: h5py.Dataset, dtype: np.dtype[Any]) -> Matrix:
    return Matrix("transposed", (int(item.shape[1]), int(item.shape[0])), dtype, item)
