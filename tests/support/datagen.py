"""What do the tests read?

Cells and genes that say who they are: those of `annbatch.testing.cells`, in any form and as files.
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

from annbatch.testing.cells import awkward_obs, named_matrix

Form = Literal["csr", "csc", "dense"]
FileKind = Literal["h5ad", "zarr2", "zarr3"]

FORMS: tuple[Form, ...] = ("csr", "csc", "dense")
FILE_KINDS: tuple[FileKind, ...] = ("h5ad", "zarr2", "zarr3")


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
