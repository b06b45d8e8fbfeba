"""After an append, does the manifest say of every field what holds of all stores, and is nothing of obs lost?"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from annbatch import Loader, append_to_collection, create_anndata_collection
from annbatch.stores.collection import FORMAT, Collection
from annbatch.stores.manifest import StoreEntry
from annbatch.write.inputs.append_target import AppendTarget

STAGES = ["late", "early", "mid"]
"""In no order that sorting would give."""
CUT: dict[str, Any] = {"rows_per_store": 4, "progress": False}


def cells(first: int, scale: int = 1, stages: list[str] = STAGES, ordered: bool = True) -> ad.AnnData:
    rows = np.arange(first, first + 6)
    obs = pd.DataFrame(
        {
            "stage": pd.Categorical([stages[row % len(stages)] for row in rows], stages, ordered=ordered),
            "n": rows,
        },
        index=[f"cell{row}" for row in rows],
    )
    x = sp.csr_matrix((np.outer(rows, [1, 0, 2]) * scale).astype(np.float32))
    return ad.AnnData(x, obs, pd.DataFrame(index=["g0", "g1", "g2"]))


def grown(path: Path, old: dict[str, Any], new: dict[str, Any], second: ad.AnnData) -> tuple[Collection, Collection]:
    first = create_anndata_collection(cells(0), path, **CUT, **old)
    append_to_collection(second, path, **CUT, **new)
    return first, Collection.open(path)


def test_every_field_of_the_manifest(tmp_path: Path):
    before, after = grown(tmp_path / "a", {"groupby": "stage", "seed": 3}, {"seed": 3}, cells(6, scale=10_000))
    assert [store.name for store in after.stores] == [f"chunk_{i}.zarr" for i in range(4)]
    nnz = [int((np.asarray(ad.read_zarr(path).X.toarray()) != 0).sum()) for path in after.store_paths]
    wanted: dict[str, Any] = {
        "path": before.path,
        "format": before.format,
        "n_obs": 12,
        "n_vars": 3,
        "var_digest": before.var_digest,
        "obs_columns": before.obs_columns,
        "shuffled": True,
        "seed": 3,
        "software": before.software,
        # The new stores begin with the first category again.
        "grouped_by": None,
        "modalities": {},
    }
    for name, value in wanted.items():
        assert getattr(after, name) == value, name
    assert before.grouped_by == "stage"
    assert after.stores[:2] == before.stores
    assert [store.nnz for store in after.stores] == nnz
    assert [store.n_obs for store in after.stores] == [4, 2, 4, 2]
    assert (before.types["X"].stored, after.types["X"].stored) == ("uint16", "uint32")
    assert after.types["X"].original == "float32"
    assert [entry.n_obs for entry in after.inputs] == [6, 6]
    assert {*wanted, "stores", "types", "inputs"} == {field.name for field in fields(Collection)}
    after.verify()


@pytest.mark.parametrize(
    ("old", "new", "both"),
    [
        ((True, 3), (True, 3), (True, 3)),
        ((True, 3), (True, 4), (True, None)),
        ((False, None), (True, 4), (False, None)),
        ((True, 3), (False, None), (False, None)),
        ((False, None), (False, None), (False, None)),
    ],
    ids=str,
)
def test_whether_all_rows_were_shuffled(old: Any, new: Any, both: Any):
    stores = [StoreEntry(f"chunk_{i}.zarr", 3, 4, {}) for i in range(2)]
    one = Collection(Path("here"), FORMAT, 3, 2, "", (stores[0],), {}, (), *old, "test", "kind")
    target = AppendTarget(one, pd.DataFrame(), {}, (), {}, (), {})
    found = target.extended(replace(one, stores=(stores[1],), shuffled=new[0], seed=new[1]))
    assert (found.shuffled, found.seed, found.grouped_by) == (*both, None)


@pytest.mark.parametrize(
    ("second", "ordered", "categories"),
    [
        (cells(6), True, STAGES),
        (cells(6, ordered=False), False, STAGES),
        (cells(6, stages=[*STAGES, "last"]), False, [*STAGES, "last"]),
    ],
    ids=["the same", "unordered", "more"],
)
def test_ordered_categories_stay_so_where_both_say_the_same(
    tmp_path: Path, second: ad.AnnData, ordered: bool, categories: list[str]
):
    _, after = grown(tmp_path / "a", {}, {}, second)
    last = ad.read_zarr(after.store_paths[-1]).obs["stage"]
    assert (last.cat.ordered, list(last.cat.categories)) == (ordered, categories)
    with Loader(batch_size=12, shuffle=False).use_collection(after.path) as ds:
        labels = next(iter(ds)).labels
    assert (labels["stage"].cat.ordered, list(labels["stage"].cat.categories)) == (ordered, categories)
    expected = pd.concat([cells(0).obs, second.obs]).set_index("n")["stage"].astype(object)
    assert labels["stage"].astype(object).tolist() == expected[labels["n"]].tolist()
