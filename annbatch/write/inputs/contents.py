"""What do the inputs hold, and which of it goes into the collection?

1. `describe` looks into one input, and checks what will be taken of it; values stay unread. It knows elements by their
   own names; under which they are written, `annbatch.write.inputs.agreed_names` says.
2. `select_elements` decides, from what the inputs share and what the caller chose, which elements are written, and as
   what.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd

from annbatch import summary
from annbatch.errors import InputError
from annbatch.write.inputs.element_names import TABLE_NAMES, output_names
from annbatch.write.inputs.faults import Faults
from annbatch.write.inputs.gene_naming import named_genes
from annbatch.write.inputs.matrix_rows import Format, Matrix, matrix_of
from annbatch.write.inputs.opened_input import Root
from annbatch.write.inputs.opening import Origin
from annbatch.write.inputs.text_file import Repeats

T = TypeVar("T")

_RAW = "raw/"
_CHOOSE_COLUMNS = "; obs_columns= takes only the columns that it names"


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
    """The main matrix and the layers, by their keys in the input: ``"X"``, ``"raw/X"``, ``"layers/…"``."""
    obsm: Mapping[str, MatrixInfo | None]
    """Name of each obsm element; None if it is no numeric array of two dimensions."""
    var_columns: tuple[Any, ...] = ()
    """Own names of the var columns."""
    layers: tuple[Any, ...] = ()
    """Own names of all layers that may be taken, also of those that are not described."""
    own_keys: Mapping[str, str] = field(default_factory=dict)
    """The keys in the input of the layers and obsm arrays that are written under another name."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.origin.name

    def element(self, root: Root, key: str) -> Any:
        """Give an element of the input, which is open as ``root``, by the key under which it is written."""
        return root.element(self.own_keys.get(key, key))


@dataclass(frozen=True, slots=True)
class Element:
    """A matrix that is written."""

    key: str
    """In the collection: ``"X"``, ``"layers/…"``, ``"obsm/…"``."""
    source: str
    """In the inputs."""
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
    x: str = "X",
    columns: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    *,
    var_key: str | None = None,
    repeated_genes: Repeats = "refuse",
) -> tuple[Source, pd.DataFrame]:
    """Open an input and say what it holds.

    Parameters
    ----------
    x
        Key of the main matrix.
    columns, layers
        The obs columns and layers that will be taken, by any of their names; None for all. Others need not be readable.
    var_key, repeated_genes
        How genes are named, as `annbatch.write.inputs.gene_naming.named_genes` takes it.

    Returns
    -------
    Source
        What is kept of each input as long as the build lasts: a little, however large it is.
    DataFrame
        (n_vars, …) with unique string names: the genes of the main matrix.

    Raises
    ------
    MissingInputError
        If nothing is there.
    InputError
        If it is no AnnData, the main matrix is missing, it has no cells or no genes, names are not unique, or a column
        or a matrix cannot be read; names all faults that were found.
    """
    path, faults = origin.label, Faults()
    with origin.open() as root:
        var, shape = pd.DataFrame(), (0, 0)
        with faults.collecting(path, "var"):
            var = named_genes(root.var(raw=x.startswith(_RAW)), path, var_key, repeated_genes)
            var = _at_least_one(var, len(var), f"{path}: var")
        with faults.collecting(path, x):
            shape = (_checked_rows(root, x, path), len(var))
        asked: list[Any] = []
        with faults.collecting(path, "obs"):
            asked = _asked_for(root.column_names, columns, f"{path}: obs", TABLE_NAMES)
        for name in asked:
            with faults.collecting(path, f"obs column {name!r}", _CHOOSE_COLUMNS):
                _check_length(root.check_column(name), shape[0], f"{path}: obs column {name!r}")
        if not all(shape):
            faults.raise_any()
        matrices = {}
        # The layers have not the genes of raw.
        offered = () if x.startswith(_RAW) else tuple(root.names("layers"))
        taken = _asked_for(offered, layers, f"{path}: layers")
        for key in (x, *(f"layers/{name}" for name in taken)):
            with faults.collecting(path, key):
                element = root.element(key)
                if key not in matrices and element is not None:
                    matrices[key] = _info(matrix_of(element, f"{path}: {key}"), key, shape, path)
        obsm = {name: _obsm_info(root.element(f"obsm/{name}"), name, shape[0]) for name in root.names("obsm")}
        own = {name: name for name in root.column_names}
        index_name = root.index_name
    faults.raise_any()
    return Source(origin, shape[0], own, index_name, matrices, obsm, tuple(var.columns), offered), var


def _asked_for(
    names: Sequence[Any], asked: Sequence[str] | None, where: str, reserved: Collection[str] = ()
) -> list[Any]:
    """Give the own names of what is asked for by its own name, or by that under which it is written."""
    written = output_names(names, where, reserved)
    return [own for name, own in written.items() if asked is None or own in asked or name in asked]


def _checked_rows(root: Root, x: str, path: str) -> int:
    main = root.element(x)
    if main is None:
        there = [key for key in ("X", "raw/X") if root.element(key) is not None]
        there += [f"layers/{name}" for name in root.names("layers")]
        raise InputError(f"{path}: {x} is missing; x= may be one of {there}")
    n_obs = matrix_of(main, f"{path}: {x}").shape[0]
    return _at_least_one(n_obs, n_obs, f"{path}: obs")


def _at_least_one(found: T, n_rows: int, where: str) -> T:
    if not n_rows:
        raise InputError(f"{where} must have at least one row, got 0")
    return found


def _check_length(found: int, n_obs: int, where: str) -> None:
    if n_obs and found != n_obs:
        raise InputError(f"{where} must have {n_obs} rows, got {found}")


def _info(matrix: Matrix, key: str, shape: tuple[int, int], path: str) -> MatrixInfo:
    if matrix.shape != shape:
        raise InputError(f"{path}: {key} must have the shape of obs and var {shape}, got {matrix.shape}")
    return MatrixInfo(matrix.format, matrix.shape, matrix.dtype, matrix.nnz)


def _obsm_info(element: Any, name: Any, n_obs: int) -> MatrixInfo | None:
    try:
        found = matrix_of(element, name)
    except InputError:
        return None
    if found.format != "dense" or found.shape[0] != n_obs:
        return None
    return MatrixInfo("dense", found.shape, found.dtype, found.nnz)


def select_elements(
    sources: Sequence[Source],
    n_vars: int,
    *,
    x: str,
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
    shared = [key for key in sources[0].matrices if all(key in source.matrices for source in sources) and key != x]
    offered = [key.removeprefix("layers/") for key in shared if key.startswith("layers/")]
    names = offered if layers is None else _asked("layers", layers, offered)
    elements = [Element("X", x, "csr", n_vars)]
    elements += [Element(f"layers/{name}", f"layers/{name}", "csr", n_vars) for name in names]
    unknown = set(dense) - {element.key for element in elements}
    if unknown:
        raise InputError(f"dense must name elements that are written, got {summary.short(sorted(unknown))}")
    elements = [Element(e.key, e.source, "dense" if e.key in dense else "csr", n_vars) for e in elements]
    for name, width in _shared_obsm(sources, obsm).items():
        elements.append(Element(f"obsm/{name}", f"obsm/{name}", "dense", width))
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
            return f"is no numeric array of two dimensions in {source.name}"
        widths.setdefault(info.shape[1], source.name)
    if len(widths) > 1:
        first = [f"{width} columns in {path}" for width, path in list(widths.items())[:3]]
        return f"has {', '.join(first)}" + (f" and {len(widths) - 3} more widths" if len(widths) > 3 else "")
    return None
