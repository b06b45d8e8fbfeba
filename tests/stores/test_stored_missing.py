"""Is what is missing in a stored column missing in batches, in classes and in what is built of it?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from annbatch import append_to_collection, create_anndata_collection, reshuffle_collection
from annbatch.batches.label_rows import LabelReader
from annbatch.plan.window import plan_readings
from annbatch.remote.request_pool import Requests
from annbatch.stores import label_columns, slices
from annbatch.stores.label_columns import columns_of_frame, columns_of_group, has_value
from annbatch.stores.united_columns import merge_columns
from stores import write_store

N = 12
MISSING = np.arange(N) % 3 == 1
"""What stands under the mask is no default: a mask that is not looked at shows."""
COLUMNS: dict[str, Any] = {
    "category": pd.Categorical.from_codes(np.where(MISSING, -1, np.arange(N) % 2), ["x", "y"]),
    "ordered": pd.Categorical.from_codes(np.where(MISSING, -1, np.arange(N) % 2), ["x", "y"], ordered=True),
    "boolean": pd.arrays.BooleanArray(np.arange(N) % 2 == 1, MISSING),
    "all true": pd.arrays.BooleanArray(np.ones(N, bool), MISSING),
    "text": pd.array([None if lacks else f"t{i % 2}" for i, lacks in enumerate(MISSING)], dtype="string"),
    "float": np.where(MISSING, np.nan, np.arange(N)),
}
for _name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"):
    COLUMNS[_name] = pd.arrays.IntegerArray(np.arange(1, N + 1).astype(_name), MISSING)


@pytest.fixture(scope="module")
def obs_group(tmp_path_factory: pytest.TempPathFactory) -> zarr.Group:
    obs = pd.DataFrame(COLUMNS, index=[f"cell{i}" for i in range(N)])
    path = str(tmp_path_factory.mktemp("stored") / "s.zarr")
    with ad.settings.override(allow_write_nullable_strings=True):
        found = write_store(path, sp.csr_matrix((N, 2), dtype=np.float32), obs)["obs"]
    assert isinstance(found, zarr.Group)
    return found


def values_of(column: Any) -> list[Any]:
    return [None if pd.isna(value) else value for value in pd.Series(column).astype(object)]


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "sliced"])
def test_stored_columns(obs_group: zarr.Group, kept: bool, monkeypatch: pytest.MonkeyPatch):
    """Rows of a stored column, behind those of one in memory."""
    if not kept:
        monkeypatch.setattr(slices, "KEEP_BYTES", 0)
    frame = pd.DataFrame(COLUMNS).iloc[::-1]
    stored = columns_of_group(obs_group, None, "stored", {})
    columns = merge_columns([("memory", N, columns_of_frame(frame, None, "memory")), ("stored", N, stored)]).columns
    assert {column.name for column in columns} == set(COLUMNS)
    rows = np.array([N + 1, 3, *range(N, 2 * N), N + 4, 1])
    plan = plan_readings(rows, np.array([0, 5, len(rows)]), np.array([0, N, 2 * N]))
    reader = LabelReader(columns)
    batches = reader.read(plan, rows, reader.begin(plan, Requests()))
    for column in columns:
        whole = [*values_of(frame[column.name]), *values_of(COLUMNS[column.name])]
        shown = [value for batch in batches for value in values_of(batch.frame(batch.index)[column.name])]
        assert shown == [whole[row] for row in rows], column.name
        codes = np.concatenate([batch.codes(column.name) for batch in batches]) if "64" not in column.name else None
        if codes is not None:
            missing = np.isnan(codes) if codes.dtype.kind == "f" else codes == -1
            np.testing.assert_array_equal(missing, [whole[row] is None for row in rows], err_msg=column.name)


@pytest.mark.parametrize("at", [0, 4, 5, 11, None])
@pytest.mark.parametrize("column", ["category", "boolean", "int8", "float"])
def test_a_column_has_a_value_in_whichever_piece_it_lies(column: str, at: int | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(label_columns, "_ROWS_AT_ONCE", 5)
    there = np.arange(N) == (-1 if at is None else at)
    series = pd.Series(COLUMNS[column]).reset_index(drop=True)
    series = series.where(~series.isna(), series[0]).where(there)
    (found,) = columns_of_frame(pd.DataFrame({"x": series}), None, "s").values()
    assert has_value(found) == (at is not None)


# --- where cells come from --------------------------------------------------------------------------------------------

ORIGINS = ["a.h5ad", None, "b.h5ad", None, "a.h5ad", "a.h5ad"]


@pytest.mark.parametrize("form", ["text", "category"])
def test_where_cells_came_from_is_kept_where_it_is_known(form: str, tmp_path: Path):
    def cells(prefix: str, origins: list[Any] | None) -> ad.AnnData:
        adata = ad.AnnData(sp.csr_matrix(np.eye(6, 3, dtype=np.float32)))
        adata.obs_names = [f"{prefix}{i}" for i in range(6)]
        if origins is not None:
            column = pd.Series(origins, index=adata.obs_names, dtype=object)
            adata.obs["src_path"] = column.astype("category" if form == "category" else "string")
        return adata

    paths = []
    for name, origins in (("p", ORIGINS), ("q", ORIGINS[::-1]), ("r", None), ("s", [None] * 6)):
        paths.append(tmp_path / f"{name}.h5ad")
        with ad.settings.override(allow_write_nullable_strings=True):
            cells(name, origins).write_h5ad(paths[-1])
    expected = {}
    for path, origins in zip(paths, (ORIGINS, ORIGINS[::-1], [None] * 6, [None] * 6), strict=True):
        expected |= {f"{path.stem}{i}": origin or str(path) for i, origin in enumerate(origins)}
    create_anndata_collection(paths[:1], tmp_path / "store", progress=False)
    old = append_to_collection(paths[1:], tmp_path / "store", progress=False)
    for collection in (old, reshuffle_collection(old.path, tmp_path / "anew", progress=False)):
        found = pd.concat([ad.read_zarr(path).obs["src_path"].astype(object) for path in collection.store_paths])
        assert found.to_dict() == expected
