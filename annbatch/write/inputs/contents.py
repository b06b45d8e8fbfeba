"""What do the inputs hold, and which of it goes into the collection?

1. `describe` looks into one input, and checks that it has cells, genes and the main matrix; values stay unread.
2. `select_elements` decides, from what the inputs share and what the caller chose, which elements are written, and as
   what.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from annbatch.errors import InputError
from annbatch.write.inputs.matrix_rows import Format, Matrix, matrix_of
from annbatch.write.inputs.opening import Origin, Root

_RAW = "raw/"


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
    column_names: tuple[str, ...]
    """Names of the obs columns."""
    matrices: Mapping[str, MatrixInfo]
    """The main matrix and the layers, by their keys in the input: ``"X"``, ``"raw/X"``, ``"layers/…"``."""
    obsm: Mapping[str, MatrixInfo | None]
    """Name of each obsm element; None if it is no numeric array of two dimensions."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.origin.name


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


def describe(origin: Origin, x: str = "X") -> tuple[Source, pd.DataFrame]:
    """Open an input and say what it holds; ``x`` is the key of the main matrix.

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
        If it is no AnnData, the main matrix is missing, it has no cells or no genes, or its var names are not unique.
    """
    path = origin.name
    with origin.open() as root:
        main = root.element(x)
        if main is None:
            raise InputError(f"{path}: {x} is missing")
        matrix = matrix_of(main, f"{path}: {x}")
        var = root.var(raw=x.startswith(_RAW))
        n_obs = matrix.shape[0]
        for name, length in (("obs", n_obs), ("var", len(var))):
            if not length:
                raise InputError(f"{path}: {name} must have at least one row, got 0")
        duplicated = var.index[var.index.duplicated()].unique()
        if len(duplicated):
            raise InputError(
                f"{path}: var names must be unique, got more than one of {list(duplicated[:5])}; "
                f"adata.var_names_make_unique() makes them so"
            )
        matrices = {x: _info(matrix, x, (n_obs, len(var)), path)}
        if not x.startswith(_RAW):
            keys = ["X", *(f"layers/{name}" for name in root.names("layers"))]
            for key in keys:
                element = root.element(key)
                if key not in matrices and element is not None:
                    matrices[key] = _info(matrix_of(element, f"{path}: {key}"), key, (n_obs, len(var)), path)
        obsm = {name: _obsm_info(root, name, n_obs) for name in root.names("obsm")}
        return Source(origin, n_obs, tuple(root.column_names), matrices, obsm), var


def _info(matrix: Matrix, key: str, shape: tuple[int, int], path: str) -> MatrixInfo:
    if matrix.shape != shape:
        raise InputError(f"{path}: {key} must have the shape of obs and var {shape}, got {matrix.shape}")
    return MatrixInfo(matrix.format, matrix.shape, matrix.dtype, matrix.nnz)


def _obsm_info(root: Root, name: str, n_obs: int) -> MatrixInfo | None:
    try:
        found = matrix_of(root.element(f"obsm/{name}"), name)
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
        If what was asked for is not in all inputs, or an obsm array is not equally wide in all of them.
    """
    shared = [key for key in sources[0].matrices if all(key in source.matrices for source in sources) and key != x]
    offered = [key.removeprefix("layers/") for key in shared if key.startswith("layers/")]
    names = offered if layers is None else _asked("layers", layers, offered)
    held: list[set[str]] = [set() for _ in sources]
    for source, keys in zip(sources, held, strict=True):
        if layers is None:
            keys.update(key for key in source.matrices if key.startswith("layers/") and key != x)
        if obsm is None:
            keys.update(f"obsm/{name}" for name in source.obsm)
    _warn_of_left_out(sources, held)
    elements = [Element("X", x, "csr", n_vars)]
    elements += [Element(f"layers/{name}", f"layers/{name}", "csr", n_vars) for name in names]
    unknown = set(dense) - {element.key for element in elements}
    if unknown:
        raise InputError(f"dense must name elements that are written, got {sorted(unknown)}")
    elements = [Element(e.key, e.source, "dense" if e.key in dense else "csr", n_vars) for e in elements]
    for name, width in _shared_obsm(sources, obsm).items():
        elements.append(Element(f"obsm/{name}", f"obsm/{name}", "dense", width))
    return tuple(elements)


def _asked(what: str, asked: Sequence[str], offered: Sequence[str]) -> list[str]:
    if isinstance(asked, str):
        raise InputError(f"{what} must be a list of names, got the string {asked!r}")
    if missing := [name for name in asked if name not in offered]:
        raise InputError(f"{what} must be in all inputs, got {missing}; they share {list(offered)}")
    return list(dict.fromkeys(asked))


def _warn_of_left_out(sources: Sequence[Source], held: Sequence[set[str]]) -> None:
    """Name what only some inputs have, and an input that lacks it."""
    left_out = [
        f"{name!r} is not in {next(source.name for source, one in zip(sources, held, strict=True) if name not in one)}"
        for name in sorted(held[0].union(*held) - held[0].intersection(*held))
    ]
    if left_out:
        warnings.warn(f"elements that not all inputs have are left out: {', '.join(left_out)}", stacklevel=2)


def _shared_obsm(sources: Sequence[Source], asked: Sequence[str] | None) -> dict[str, int]:
    offered = [name for name in sources[0].obsm if all(name in source.obsm for source in sources)]
    widths = {}
    for name in offered if asked is None else _asked("obsm", asked, offered):
        unfit = next((source.name for source in sources if source.obsm[name] is None), None)
        if unfit is not None:
            if asked is not None:
                raise InputError(f"{unfit}: obsm {name!r} must be a numeric array of two dimensions")
            warnings.warn(f"obsm {name!r} is left out: it is no numeric array in {unfit}", UserWarning, stacklevel=5)
            continue
        shapes = [(source.name, info.shape[1]) for source in sources if (info := source.obsm[name]) is not None]
        if len({width for _, width in shapes}) > 1:
            found = ", ".join(f"{width} columns in {path}" for path, width in shapes)
            raise InputError(f"obsm {name!r} must have rows of the same shape in all inputs, got {found}")
        widths[name] = shapes[0][1]
    return widths
