"""Which matrix of each input becomes X, and what becomes of inputs without cells?"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from click.testing import CliRunner

from annbatch import Collection, append_to_collection, create_anndata_collection
from annbatch.cli import main
from annbatch.errors import InputError
from datagen import write_adata

# Inputs hold raw, which is not kept.
pytestmark = pytest.mark.filterwarnings("ignore:a collection keeps:UserWarning")

QUIET: dict[str, Any] = {"shuffle": False, "progress": False}
GENES = [f"g{i}" for i in range(6)]


def counts(number: int, n_vars: int) -> np.ndarray[Any, Any]:
    """Counts that name their input, row and column."""
    return (np.arange(3 * n_vars).reshape(3, n_vars) + 100 * number).astype(np.float32)


def adata(number: int, *, layer: bool, raw: bool, x: bool) -> ad.AnnData:
    """An input with counts where it is said; there are others in its other matrices."""
    names = pd.DataFrame(index=[f"{number}:{i}" for i in range(3)])
    x_of_raw = sp.csr_matrix(counts(number, 6) + (0 if raw else 0.25))
    whole = ad.AnnData(x_of_raw, obs=names, var=pd.DataFrame(index=GENES))
    # Genes were chosen after raw was kept, and in another order.
    own = GENES[4:1:-1]
    found = whole[:, own].copy()
    found.raw = whole
    found.X = sp.csc_matrix(counts(number, 6)[:, 4:1:-1] + (0 if x else 0.5))
    found.layers["counts"] = counts(number, 6)[:, 4:1:-1] + (0 if layer else 0.75)
    return found


HOLDS = {  # what holds counts -> what is taken
    "layer": ({"layer": True, "raw": True, "x": False}, "layers/counts"),
    "raw": ({"layer": False, "raw": True, "x": True}, "raw/X"),
    "X": ({"layer": False, "raw": False, "x": True}, "X"),
}


def inputs(folder: Path) -> list[Any]:
    """One input of each kind: a file, a store, and in memory."""
    made = [adata(number, **holds) for number, (holds, _) in enumerate(HOLDS.values())]
    return [write_adata(made[0], folder / "layer", "h5ad"), write_adata(made[1], folder / "raw", "zarr3"), made[2]]


def back(collection: Collection) -> ad.AnnData:
    return ad.concat([ad.read_zarr(path) for path in collection.store_paths], join="outer")


def taken(adata: ad.AnnData, key: str) -> ad.AnnData:
    """What AnnData makes of one of its matrices."""
    if key == "raw/X":
        return adata.raw.to_adata()
    return ad.AnnData(adata.X if key == "X" else adata.layers["counts"], obs=adata.obs, var=adata.var)


@pytest.mark.parametrize(
    ("x", "keys"),
    [
        ("counts", [key for _, key in HOLDS.values()]),
        (["layers/none", "raw/X", "X"], ["raw/X", "raw/X", "raw/X"]),
        (["layers/none", "X"], ["X", "X", "X"]),
    ],
)
def test_each_input_gives_the_first_that_it_has(tmp_path: Path, x: Any, keys: list[str]):
    given = inputs(tmp_path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "a collection keeps")
        collection = create_anndata_collection(given, tmp_path / "store", x=x, **QUIET)
    assert [entry.x for entry in Collection.open(collection.path).inputs] == keys
    read = [ad.read_h5ad(given[0]), ad.read_zarr(given[1]), given[2]]
    parts = [taken(one, key) for one, key in zip(read, keys, strict=True)]
    for part in parts:
        part.X = sp.csr_matrix(part.X)
    expected = ad.concat(parts, join="outer", fill_value=0)
    found = back(collection)
    assert found.obs_names.tolist() == expected.obs_names.tolist()
    assert set(found.var_names) == set(expected.var_names)
    np.testing.assert_array_equal(found.X.toarray(), expected[:, found.var_names].X.toarray())
    left_out = [str(w.message) for w in said if "left out" in str(w.message)]
    # Where raw becomes X, its genes are others than those of the layers.
    assert (keys == ["X"] * 3) == ("counts" in found.layers)
    assert bool(left_out) == (x == "counts")
    assert all("'layers/counts' becomes X of" in text for text in left_out)


def test_an_append_chooses_too(tmp_path: Path):
    given = inputs(tmp_path)
    create_anndata_collection(given[0], tmp_path / "store", x="counts", **QUIET)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "a collection keeps")
        collection = append_to_collection(given[1:], tmp_path / "store", x="counts", **QUIET)
    assert [str(w.message).split(":")[0] for w in said] == ["genes are left out", "elements are left out"]
    assert [entry.x for entry in collection.inputs] == [key for _, key in HOLDS.values()]
    found = back(collection)
    wanted = np.concatenate([counts(number, 6)[:, 4:1:-1] for number in range(3)])
    np.testing.assert_array_equal(found[:, GENES[4:1:-1]].X.toarray(), wanted)


def test_what_holds_no_counts_is_refused(tmp_path: Path):
    none = adata(0, layer=False, raw=False, x=False)
    none.write_h5ad(tmp_path / "none.h5ad")
    with pytest.raises(InputError, match=r"none.h5ad: x='counts' needs non-negative integers in one of layers/counts"):
        create_anndata_collection(tmp_path / "none.h5ad", tmp_path / "store", x="counts", progress=False)
    with pytest.raises(InputError, match=r"adata_0: each of raw/X, layers/b is missing; x= may be one of \['X'\]"):
        create_anndata_collection(ad.AnnData(np.ones((2, 2))), tmp_path / "o", x=["raw/X", "layers/b"], progress=False)
    for x in ("obsm/a", [], ["counts", "X"], ["X", 3]):
        with pytest.raises(InputError, match="x must be 'X'"):
            create_anndata_collection(none, tmp_path / "store", x=x, progress=False)


@pytest.mark.parametrize("value", [0.5, -1, np.nan, np.inf])
@pytest.mark.parametrize("dense", [[], ["X"]])
def test_every_value_is_checked_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, dense: list[str]
):
    monkeypatch.setattr("annbatch.write.inputs.main_matrix._SAMPLE", 4)
    values = np.ones((20, 2), np.float32)
    values[7, 1] = value
    given = ad.AnnData(sp.csr_matrix(values))
    with pytest.raises(InputError, match=r"adata_0: X must hold counts \(x='counts'\), got .* in row 7 \('7'\)"):
        create_anndata_collection(
            given, tmp_path / "store", x="counts", dense=dense, allow_nonfinite=True, progress=False
        )
    assert list(tmp_path.iterdir()) == []


def test_no_count_is_taken_for_another_number(tmp_path: Path):
    values = np.array([[-0.0, 3], [2, 0]], np.float32)
    collection = create_anndata_collection(ad.AnnData(values), tmp_path / "store", x="counts", dense=["X"], **QUIET)
    np.testing.assert_array_equal(back(collection).X, values)


def test_inputs_without_cells_are_skipped(tmp_path: Path):
    full = [adata(number, **holds) for number, (holds, _) in enumerate(HOLDS.values())]
    paths = [tmp_path / f"{name}.h5ad" for name in ("empty", "bare", "full")]
    empty = full[0][:0].copy()
    empty.var_names = [*GENES[:2], "other"]
    empty.obs["gone"] = np.zeros(0)
    empty.write_h5ad(paths[0])
    # Neither X nor genes.
    ad.AnnData(obs=pd.DataFrame(index=pd.Index([], dtype=object))).write_h5ad(paths[1])
    full[2].write_h5ad(paths[2])
    for x, strict in {"X": False, "counts": True}.items():
        alone = create_anndata_collection(paths[2], tmp_path / f"alone-{x}", x=x, strict=strict, **QUIET)
        with pytest.warns(UserWarning, match=r"inputs without cells are skipped: .*empty.h5ad.*bare.h5ad.*adata_2"):
            found = create_anndata_collection([*paths[:2], empty, paths[2]], tmp_path / x, x=x, **QUIET)
        assert [entry.n_obs for entry in found.inputs] == [0, 0, 0, 3]
        assert [(entry.n_vars, entry.genes_lost) for entry in found.inputs[:3]] == [(3, 3), (0, 0), (3, 3)]
        assert (found.digest(), found.obs_columns) == (alone.digest(), alone.obs_columns)
    with pytest.warns(UserWarning, match="inputs without cells are skipped"):
        grown = append_to_collection([full[2], empty], tmp_path / "X", obs_names="unique", **QUIET)
    assert [entry.n_obs for entry in grown.inputs] == [0, 0, 0, 3, 3, 0]
    with pytest.raises(InputError, match="at least one input must have cells, got none in"):
        append_to_collection([empty], tmp_path / "X", **QUIET)
    with pytest.raises(InputError, match=r"no input may be skipped \(strict=True\)"):
        create_anndata_collection([empty, full[2]], tmp_path / "strict", strict=True, **QUIET)


@pytest.mark.filterwarnings("default::UserWarning")
def test_the_command_line_says_what_was_taken(tmp_path: Path):
    paths = [str(path) for path in inputs(tmp_path)[:2]]
    adata(5, layer=True, raw=True, x=True)[:0].copy().write_h5ad(tmp_path / "empty.h5ad")
    run = CliRunner().invoke
    for x, keys in {("counts",): ["layers/counts", "raw/X"], ("layers/counts", "X"): ["layers/counts"] * 2}.items():
        output = str(tmp_path / "-".join(x).replace("/", "-"))
        options = [part for key in x for part in ("--x", key)]
        done = run(main, ["create", *paths, str(tmp_path / "empty.h5ad"), output, *options, "--no-progress"])
        assert done.exit_code == 0, done.output
        said = run(main, ["info", output]).output
        assert [line.split("X: ")[1] for line in said.splitlines() if "    X: " in line] == keys
        assert "empty.h5ad: no cells, skipped" in said
        entries = json.loads(run(main, ["info", output, "--json"]).output)["inputs"]
        assert [entry.get("x") for entry in entries] == [*keys, None]
