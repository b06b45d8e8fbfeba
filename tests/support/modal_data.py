"""Which cells do tests of modalities read? CITE-seq in small: RNA, and proteins of most of the same cells."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from datagen import FORMS, named_matrix

GENES, PROTEINS = 60, 9
CUT: dict[str, Any] = {"rows_per_store": 30, "chunk_elements": 64, "shard_elements": 512, "progress": False}


def modality(rng: np.random.Generator, names: list[str], rows: list[int], n_vars: int, form: str, prefix: str) -> Any:
    """One modality of some cells, whose values name row and column."""
    x = named_matrix(rng, rows, range(n_vars), density=0.4)
    stored = {"csr": x, "csc": sp.csc_matrix(x), "dense": x.toarray()}[form]
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([("B", "T", "NK")[row % 3] for row in rows]),
            "depth": np.asarray(rows, np.int32),
            "doublet": np.asarray(rows) % 2 == 0,
        },
        index=names,
    )
    var = pd.DataFrame(index=[f"{prefix}{column}" for column in range(n_vars)])
    adata = ad.AnnData(stored, obs=obs, var=var)
    adata.layers["counts"] = sp.csr_matrix(x * 2)
    adata.obsm["X_pca"] = np.asarray(x[:, :3].toarray(), np.float32)
    return adata


def samples(n_samples: int = 2, n_cells: int = 30, *, aligned: bool = False) -> list[dict[str, ad.AnnData]]:
    """Samples of RNA and proteins (adt).

    Proteins come in another order and lack every sixth cell, RNA lacks every tenth, unless they are ``aligned``. The
    first two names of the first sample are in the second one, too.
    """
    rng = np.random.default_rng(5)
    found = []
    for k in range(n_samples):
        rows = np.arange(k * n_cells, (k + 1) * n_cells)
        names = np.array([f"cell{row}" for row in rows], object)
        if k == 1:
            names[:2] = ["cell0", "cell1"]
        rna = np.flatnonzero(np.arange(n_cells) % 10 != 9)
        adt = rng.permutation(np.flatnonzero(np.arange(n_cells) % 6 != 5))
        if aligned:
            rna = adt = np.arange(n_cells)
        form = FORMS[k % len(FORMS)]
        found.append(
            {
                "rna": modality(rng, list(names[rna]), list(rows[rna]), GENES, form, "g"),
                "adt": modality(rng, list(names[adt]), list(rows[adt]), PROTEINS, FORMS[-1 - k % len(FORMS)], "p"),
            }
        )
    return found


def joined(given: list[dict[str, ad.AnnData]], how: str) -> dict[str, pd.DataFrame]:
    """By modality: X of all joint cells, as pandas joins them; rows that a modality lacks are missing."""
    parts: dict[str, list[pd.DataFrame]] = {"rna": [], "adt": []}
    for number, sample in enumerate(given):
        frames = {
            name: pd.DataFrame(sp.csr_matrix(one.X).toarray(), one.obs_names, one.var_names)
            for name, one in sample.items()
        }
        both = frames["rna"].join(frames["adt"], how=how)
        for name, frame in frames.items():
            own = both[frame.columns]
            again = [f"{cell}-1" if number == 1 and cell in ("cell0", "cell1") else cell for cell in both.index]
            parts[name].append(own.set_axis(again))
    return {name: pd.concat(each) for name, each in parts.items()}
