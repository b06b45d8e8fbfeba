"""Do the examples in public docstrings run, and give what they say?

They find a collection of 120 cells in the working directory, and three ``.h5ad`` files: its halves, and other cells.
"""

from __future__ import annotations

import doctest
import importlib
import shutil
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import annbatch

WITH_EXAMPLES = {
    "annbatch": [
        "Batch",
        "Binarize",
        "Capacity",
        "Collection",
        "LogNormalize",
        "Loader",
        "Partition",
        "append_to_collection",
        "create_anndata_collection",
        "reshuffle_collection",
    ],
    "annbatch.samplers": [
        "ClassBalanced",
        "Grouped",
        "Key",
        "MatchedPairs",
        "Sequential",
        "Shuffled",
        "Stratified",
        "Weighted",
        "permutation",
    ],
    "annbatch_torch": ["TorchLoader"],
    "annbatch_jax": ["JaxLoader", "densify"],
    "annbatch_torch.lightning": ["AnnDataModule"],
    "annbatch_jax.grain": ["LoaderDataset"],
}
NEEDED = {
    "annbatch_torch": "torch",
    "annbatch_jax": "jax",
    "annbatch_torch.lightning": "lightning",
    "annbatch_jax.grain": "grain",
}
METHODS = {"folds", "replace", "split", "state_dict", "stats", "use_collection", "use_h5ad", "write_collection"}


def cells(names: range) -> ad.AnnData:
    rng = np.random.default_rng(len(names))
    n = len(names)
    obs = pd.DataFrame(
        {
            "cell_type": rng.choice(["T", "B", "NK"], n),
            "donor": [f"donor {row % 5}" for row in range(n)],
            "perturbation": rng.choice(["none", "a", "b"], n),
        },
        index=[f"cell {row}" for row in names],
    )
    counts = sp.csr_matrix(rng.poisson(0.5, (n, 6)).astype(np.float32))
    return ad.AnnData(counts, obs, pd.DataFrame(index=list("ABCDEF")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("examples")
    both = cells(range(120))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, adata in {"a": both[:60], "b": both[60:], "c": cells(range(120, 160))}.items():
            adata.copy().write_h5ad(found / f"{name}.h5ad")
    annbatch.create_anndata_collection(both, found / "collection", progress=False)
    return found


@pytest.mark.parametrize(
    ("module", "name"),
    [
        pytest.param(module, name, id=f"{module}.{name}", marks=[pytest.mark.slow] if module in NEEDED else [])
        for module, names in WITH_EXAMPLES.items()
        for name in names
    ],
)
@pytest.mark.filterwarnings("ignore:::lightning", "ignore:::pytorch_lightning")
def test_examples_run(module: str, name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if module in NEEDED:
        pytest.importorskip(NEEDED[module])
    public = getattr(importlib.import_module(module), name)
    bases = [base for base in getattr(public, "__mro__", ())[1:] if base.__module__.startswith("annbatch.")]
    found = (doctest.DocTestFinder().find(one, name, globs={}) for one in (public, *bases))
    tests = [test for of_one in found for test in of_one if test.examples]
    assert name in {test.name.partition(".")[0] for test in tests}
    if name == "Loader":
        shown = {test.name.partition(".")[2] for test in tests}
        assert shown >= METHODS
    for test in tests:
        place = tmp_path / test.name
        shutil.copytree(folder, place)
        monkeypatch.chdir(place)
        said: list[str] = []
        runner = doctest.DocTestRunner(verbose=False)
        runner.run(test, out=said.append)
        assert not runner.failures, "".join(said)
