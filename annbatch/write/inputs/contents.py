"""What do the inputs hold, and which of it goes into the collection?

1. `describe` looks into one input, and checks what will be taken of it; values stay unread. It knows elements by their
   own names; under which they are written, `annbatch.write.inputs.agreed_names` says.
2. `select_elements` decides, from what the inputs share and what the caller chose, which elements are written, and as
   what.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from annbatch import summary
from annbatch.errors import InputError
from annbatch.write.inputs.element_names import TABLE_NAMES, output_names
from annbatch.write.inputs.faults import Faults
from annbatch.write.inputs.gene_naming import named_genes
from annbatch.write.inputs.main_matrix import main_key
from annbatch.write.inputs.matrix_rows import Format, Matrix, matrix_of
from annbatch.write.inputs.opened_input import Root
from annbatch.write.inputs.opening import Origin
from annbatch.write.inputs.text_file import Repeats

_RAW = "raw/"
_CHOOSE_COLUMNS = "; obs_columns= takes only the columns that it names"
_CHOOSE_OBSM = "; obsm= takes only the arrays that it names"


@dataclass(frozen=True, slots=True)
class MatrixInfo:
    """What is known of a matrix before it is read."""

    format: Format
    shape: tuple[int, int]
    """(n_obs, n_columns)."""
    dtype: np.dtype[Any]
    """Type of the values."""
    nnz: int
    """Stored elements; of a dense matrix, all."""
    chunk_rows: int = 1
    """Rows of a dense matrix that are decoded together, see `Matrix.chunk_shape`."""


@dataclass(frozen=True, slots=True)
class Source:
    """One input, described."""

    origin: Origin
    n_obs: int
    """Number of cells."""
    columns: Mapping[str, Any]
    """The obs columns: the names under which they are written, and their own."""
    index_name: str | None
    """Name of the obs index, if it has one."""
    matrices: Mapping[str, MatrixInfo]
    """The main matrix as ``"X"``, wherever it lies in the input, and the layers as ``"layers/…"``."""
    obsm: Mapping[str, MatrixInfo | None]
    """Name of each obsm element; None if it is not a dense numeric array of two dimensions, or not requested."""
    x: str = "X"
    """Key in the input of the main matrix: ``"X"``, ``"raw/X"`` or ``"layers/…"``."""
    var_columns: tuple[Any, ...] = ()
    """Own names of the var columns."""
    layers: tuple[Any, ...] = ()
    """Own names of all layers that may be taken, also of those that are not described. There are none beside raw, whose
    genes they have not."""
    unkept: tuple[str, ...] = ()
    """Own keys of what no collection has room for: raw, uns, and what is in varm, obsp and varp."""
    own_keys: Mapping[str, str] = field(default_factory=dict)
    """The keys in the input of the layers and obsm arrays that are written under another name."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.origin.name

    def own_key(self, key: str) -> str:
        """Give the key in the input of what is written under ``key``."""
        return self.x if key == "X" else self.own_keys.get(key, key)

    def element(self, root: Root, key: str) -> Any:
        """Give an element of the input, which is open as ``root``, by the key under which it is written."""
        return root.element(self.own_key(key))


@dataclass(frozen=True, slots=True)
class Element:
    """A matrix that is written."""

    key: str
    """``"X"``, ``"layers/…"``, ``"obsm/…"``."""
    kind: Literal["csr", "dense"]
    """As what it is written."""
    n_columns: int
    """Columns in the collection."""

    @property
    def has_genes(self) -> bool:
        """Whether its columns are the genes."""
        return not self.key.startswith("obsm/")


def describe(
    origin: Origin,
    x: Sequence[str] = ("X",),
    columns: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    obsm: Sequence[str] | None = None,
    *,
    var_key: str | None = None,
    repeated_genes: Repeats = "refuse",
) -> tuple[Source, pd.DataFrame]:
    """Open an input and say what it holds.

    Parameters
    ----------
    x
        What may be the main matrix, as `annbatch.write.inputs.main_matrix.checked_choice` gives it.
    columns, layers, obsm
        The obs columns, layers and obsm arrays that will be taken, by any of their names; None for all. Others need not
        be readable.
    var_key, repeated_genes
        How genes are named, as `annbatch.write.inputs.gene_naming.named_genes` takes it.

    Returns
    -------
    Source
        What is kept of each input as long as the build lasts: a little, however large it is. If the input has no cells,
        nothing else is looked at.
    DataFrame
        (n_vars, …) with unique string names: the genes of the main matrix.

    Raises
    ------
    MissingInputError
        If nothing is there.
    InputError
        If it is no AnnData, the main matrix is missing, it has cells and no genes, names are not unique, or a column or
        a matrix cannot be read; names all faults that were found.
    """
    path, faults = origin.label, Faults()
    with origin.open() as root:
        var, main, n_obs = pd.DataFrame(), "", -1
        with faults.collecting(path, "X"):
            n_obs, main = _main_matrix(root, x, path)
        with faults.collecting(path, "var"):
            var = root.var(raw=main.startswith(_RAW))
            if n_obs:
                var = _at_least_one(named_genes(var, path, var_key, repeated_genes), f"{path}: var")
        if not n_obs:
            faults.raise_any()
            return Source(origin, 0, {}, None, {}, {}), var
        asked: list[Any] = []
        with faults.collecting(path, "obs"):
            asked = _asked_for(root.column_names, columns, f"{path}: obs", TABLE_NAMES)
        for name in asked:
            with faults.collecting(path, f"obs column {name!r}", _CHOOSE_COLUMNS):
                _check_length(root.check_column(name), n_obs, f"{path}: obs column {name!r}")
        if n_obs < 0 or not len(var):
            faults.raise_any()
        matrices = {}
        # The layers have not the genes of raw.
        offered = () if main.startswith(_RAW) else tuple(n for n in root.names("layers") if f"layers/{n}" != main)
        taken = _asked_for(offered, layers, f"{path}: layers")
        for written, key in {"X": main, **{f"layers/{name}": f"layers/{name}" for name in taken}}.items():
            with faults.collecting(path, key):
                element = root.element(key)
                if element is not None:
                    matrices[written] = _info(matrix_of(element, f"{path}: {key}"), key, (n_obs, len(var)), path)
        held: dict[str, MatrixInfo | None] = {}
        chosen = _asked_for(root.names("obsm"), obsm, f"{path}: obsm")
        for name in root.names("obsm"):
            held[name] = None
            if name in chosen:
                with faults.collecting(path, f"obsm/{name}", _CHOOSE_OBSM):
                    held[name] = info = _obsm_info(root.element(f"obsm/{name}"), name)
                    if info is not None:
                        _check_length(info.shape[0], n_obs, f"{path}: obsm/{name}")
        own = {name: name for name in root.column_names}
        index_name = root.index_name
        unkept = _unkept(root, main)
    faults.raise_any()
    return Source(origin, n_obs, own, index_name, matrices, held, main, tuple(var.columns), offered, unkept), var


def _unkept(root: Root, main: str) -> tuple[str, ...]:
    whole = [part for part in ("raw", "uns") if root.names(part) and not main.startswith(f"{part}/")]
    return (*whole, *(f"{part}/{name}" for part in ("varm", "obsp", "varp") for name in root.names(part)))


def _asked_for(
    names: Sequence[Any], asked: Sequence[str] | None, where: str, reserved: Collection[str] = ()
) -> list[Any]:
    """Give the own names of what is asked for by its own name, or by that under which it is written."""
    written = output_names(names, where, reserved)
    return [own for name, own in written.items() if asked is None or own in asked or name in asked]


def _main_matrix(root: Root, x: Sequence[str], path: str) -> tuple[int, str]:
    """Give the number of cells, and the key of the matrix that becomes X, which an input without cells may lack."""
    try:
        key = main_key(root, x, path)
    except InputError:
        if len(root.obs_names()):
            raise
        return 0, ""
    return matrix_of(root.element(key), f"{path}: {key}").shape[0], key


def _at_least_one(var: pd.DataFrame, where: str) -> pd.DataFrame:
    if not len(var):
        raise InputError(f"{where} must have at least one row, got 0")
    return var


def _check_length(found: int, n_obs: int, where: str) -> None:
    if n_obs >= 0 and found != n_obs:
        raise InputError(f"{where} must have {n_obs} rows, got {found}")


def _info(matrix: Matrix, key: str, shape: tuple[int, int], path: str) -> MatrixInfo:
    if matrix.shape != shape:
        raise InputError(f"{path}: {key} must have the shape of obs and var {shape}, got {matrix.shape}")
    return _info_of(matrix)


def _obsm_info(element: Any, name: Any) -> MatrixInfo | None:
    try:
        found = matrix_of(element, name)
    except InputError:
        return None
    return _info_of(found) if found.format == "dense" else None


def _info_of(matrix: Matrix) -> MatrixInfo:
    chunk_rows = matrix.chunk_shape[0] if matrix.format == "dense" else 1
    return MatrixInfo(matrix.format, matrix.shape, matrix.dtype, matrix.nnz, chunk_rows)


def select_elements(
    sources: Sequence[Source],
    n_vars: int,
    *,
    layers: Sequence[str] | None,
    obsm: Sequence[str] | None,
    dense: Sequence[str],
) -> tuple[Element, ...]:
    """Choose what is written: the main matrix, then layers and obsm arrays that all inputs share, or those asked for.

    Raises
    ------
    InputError
        If what was asked for is not in all inputs, or an obsm array that was asked for is not equally wide in all.
    """
    shared = [key for key in sources[0].matrices if all(key in source.matrices for source in sources)]
    offered = [key.removeprefix("layers/") for key in shared if key.startswith("layers/")]
    names = offered if layers is None else _asked("layers", layers, offered)
    keys = ["X", *(f"layers/{name}" for name in names)]
    if unknown := set(dense) - set(keys):
        raise InputError(f"dense must name elements that are written, got {summary.short(sorted(unknown))}")
    elements = [Element(key, "dense" if key in dense else "csr", n_vars) for key in keys]
    elements += [Element(f"obsm/{name}", "dense", width) for name, width in _shared_obsm(sources, obsm).items()]
    return tuple(elements)


def _asked(what: str, asked: Sequence[str], offered: Sequence[str]) -> list[str]:
    if isinstance(asked, str):
        raise InputError(f"{what} must be a list of names, got the string {asked!r}")
    if missing := [name for name in asked if name not in offered]:
        raise InputError(
            f"{what} must be in all inputs, got {summary.short(missing)}; they share {summary.short(offered)}"
        )
    return list(dict.fromkeys(asked))


def _shared_obsm(sources: Sequence[Source], asked: Sequence[str] | None) -> dict[str, int]:
    offered = [name for name in sources[0].obsm if all(name in source.obsm for source in sources)]
    widths = {}
    for name in offered if asked is None else _asked("obsm", asked, offered):
        if (fault := obsm_fault(sources, name)) is None:
            info = sources[0].obsm[name]
            assert info is not None
            widths[name] = info.shape[1]
        elif asked is not None:
            raise InputError(f"obsm {name!r} must be one array of all inputs, but {fault}")
    return widths


def obsm_fault(sources: Sequence[Source], name: str) -> str | None:
    """Say why the obsm arrays of this name, which all inputs have, cannot be one array; None if they can. Pure."""
    widths: dict[int, str] = {}
    for source in sources:
        info = source.obsm[name]
        if info is None:
            return f"is not a dense numeric array of two dimensions in {source.name}"
        widths.setdefault(info.shape[1], source.name)
    if 0 in widths:
        return f"has no columns in {widths[0]}"
    if len(widths) > 1:
        first = [f"{width} columns in {path}" for width, path in list(widths.items())[:3]]
        return f"has {', '.join(first)}" + (f" and {len(widths) - 3} more widths" if len(widths) > 3 else "")
    return None
