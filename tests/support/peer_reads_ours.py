"""Does scverse annbatch 0.3.1 read a collection of ours? Run by its own Python: ``python -I peer_reads_ours.py STORE``.

1. The stores are opened as its documentation says: AnnData objects on `anndata.io.sparse_dataset`, for `add_adatas`.
2. Every row that its loader gives is compared with what ``data/make_peer_store.py`` says about the cell of that name.
"""

from __future__ import annotations

import runpy
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import zarr

from annbatch import Loader


def main(collection: Path) -> None:
    """Read all rows of the collection, shuffled and unshuffled."""
    if version("annbatch") != "0.3.1":
        sys.exit(f"annbatch must be 0.3.1, got {version('annbatch')}")
    make: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[1] / "data/make_peer_store.py"))
    stores = sorted(collection.glob("*.zarr"), key=lambda store: int(store.stem.partition("_")[2]))
    for shuffle in (True, False):
        adatas = []
        for store in stores:
            group = zarr.open_group(store, mode="r")
            obs, var = ad.io.read_elem(group["obs"]), ad.io.read_elem(group["var"])
            adatas.append(ad.AnnData(X=ad.io.sparse_dataset(group["X"]), obs=obs, var=var))
        loader = Loader(batch_size=16, chunk_size=4, preload_nchunks=8, shuffle=shuffle, return_index=True)
        columns = [int(name.removeprefix("gene_")) for name in adatas[0].var_names]
        seen = []
        for batch in loader.add_adatas(adatas):
            for name, values, cell_type in zip(
                batch["obs"].index, to_dense(batch["X"]), batch["obs"]["cell_type"], strict=True
            ):
                row = int(name.removeprefix("cell_"))
                np.testing.assert_array_equal(values, make["expected_row"](row)[columns])
                assert cell_type == make["expected_labels"](row)[0], (row, cell_type)
                seen.append(row)
        assert sorted(seen) == list(range(make["N_OBS"])), seen
    print(f"{len(seen)} rows")


def to_dense(matrix: Any) -> np.ndarray:
    """Give the values, whatever kind of matrix the loader chose."""
    if hasattr(matrix, "to_dense"):
        matrix = matrix.to_dense()
    return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
