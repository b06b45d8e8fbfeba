"""What do the tests read?

Cells and genes that say who they are. Cell ``cell{r}`` has, for gene ``g{c}``, either nothing or `value` (r, c), so a
misplaced number names the place that it came from.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

Form = Literal["csr", "csc", "dense"]
FileKind = Literal["h5ad", "zarr2", "zarr3"]

FORMS: tuple[Form, ...] = ("csr", "csc", "dense")
FILE_KINDS: tuple[FileKind, ...] = ("h5ad", "zarr2", "zarr3")

_COLUMNS = 100


def value(row: Any, column: Any) -> Any:
    """The number that cell ``row`` has for gene ``column`` if it has one; below 2**16 for the first 655 rows."""
    return row * _COLUMNS + column + 1


def named_matrix(
    rng: np.random.Generator,
    rows: Sequence[int],
    columns: Sequence[int],
    *,
    density: float = 0.3,
    dtype: Any = np.float32,
) -> sp.csr_matrix:
    """A random pattern whose elements are `value` of their own place; some rows are empty, unless ``density`` is 1."""
    present = rng.random((len(rows), len(columns))) < density
    present[rng.random(len(rows)) < (0.1 if density < 1 else 0)] = False
    numbers = value(np.asarray(rows)[:, None], np.asarray(columns)[None, :])
    return sp.csr_matrix(np.where(present, numbers, 0).astype(dtype))


def awkward_obs(rows: Sequence[int], categories: Sequence[str] = ("B", "T", "NK")) -> pd.DataFrame:
    """A column of each kind, some with missing values; every value follows from the row and ``categories``."""
    rows = np.asarray(rows)
    of = np.asarray(categories, dtype=object)
    codes = rows % len(of)
    return pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(np.where(rows % 5 == 4, -1, codes), categories=list(of)),
            "stage": pd.Categorical.from_codes(rows % 3, categories=["early", "mid", "late"], ordered=True),
            "donor": pd.Series([f"donor{r % 4}" for r in rows], dtype=object).to_numpy(),
            "n_counts": rows * 10,
            "score": np.where(rows % 7 == 3, np.nan, rows / 2).astype(np.float32),
            "doublet": rows % 2 == 0,
            "age": pd.arrays.IntegerArray(rows.astype(np.int64), rows % 3 == 1),
            "treated": pd.arrays.BooleanArray(rows % 2 == 1, rows % 4 == 2),
        },
        index=pd.Index([f"cell{r}" for r in rows], dtype=object),
    )


def named_adata(
    rng: np.random.Generator,
    rows: Sequence[int],
    columns: Sequence[int],
    *,
    form: Form = "csr",
    dtype: Any = np.float32,
    density: float = 0.3,
    obs: pd.DataFrame | None = None,
) -> ad.AnnData:
    """AnnData of the named cells and genes, with X in the given form and type."""
    x = named_matrix(rng, rows, columns, density=density, dtype=dtype)
    return ad.AnnData(
        X=in_form(x, form),
        obs=awkward_obs(rows) if obs is None else obs,
        var=pd.DataFrame(
            {"gene_id": [f"ENSG{c:05d}" for c in columns], "length": np.asarray(columns) * 3},
            index=pd.Index([f"g{c}" for c in columns], dtype=object),
        ),
    )


def in_form(matrix: sp.csr_matrix, form: Form) -> Any:
    """The same numbers as CSR, CSC or a dense array."""
    return {"csr": lambda: matrix, "csc": matrix.tocsc, "dense": matrix.toarray}[form]()


def write_adata(adata: ad.AnnData, path: Path, kind: FileKind) -> Path:
    """Write ``adata`` as ``path`` with the suffix of ``kind``; gives the path written."""
    path = path.with_suffix(".h5ad" if kind == "h5ad" else ".zarr")
    with warnings.catch_warnings():
        # What AnnData and zarr have to say about writing is no concern of the tests that read.
        warnings.simplefilter("ignore")
        if kind == "h5ad":
            adata.write_h5ad(path)
        else:
            with ad.settings.override(zarr_write_format=2 if kind == "zarr2" else 3):
                adata.write_zarr(path)
    return path


def write_inputs(
    directory: Path,
    *,
    sizes: Sequence[int] = (7, 5),
    columns: Sequence[Sequence[int]] | None = None,
    form: Form = "csr",
    kind: FileKind = "h5ad",
    seed: int = 0,
    obs_columns: Sequence[str] | None = None,
    **kwargs: Any,
) -> list[Path]:
    """Write one input per size, with consecutive rows and, unless told otherwise, genes that overlap in part.

    ``obs_columns`` are those of `awkward_obs` to write; None for all, which costs more than all else.
    """
    rng = np.random.default_rng(seed)
    paths, row = [], 0
    for i, size in enumerate(sizes):
        genes = columns[i] if columns is not None else range(i * 3, i * 3 + 12)
        adata = named_adata(rng, range(row, row + size), genes, form=form, **kwargs)
        if obs_columns is not None:
            adata.obs = adata.obs[list(obs_columns)]
        paths.append(write_adata(adata, directory / f"input{i}", kind))
        row += size
    return paths
