"""Are batches as plain dicts the same rows, and is refused what a dict of arrays would not hold?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch.utils.data import DataLoader  # noqa: E402

from annbatch import InputError, Loader, create_anndata_collection  # noqa: E402
from annbatch_torch import TorchLoader  # noqa: E402
from epochs import each_batch  # noqa: E402
from modal_data import CUT, samples  # noqa: E402

X = sp.csr_matrix((np.arange(60).reshape(10, 6) % 7).astype(np.float32))
PCA = np.arange(30, dtype=np.float32).reshape(10, 3)


def loader(**options: Any) -> Loader:
    obs = pd.DataFrame({"kind": pd.Categorical(list("ababababab")), "index": range(10)}, index=list("0123456789"))
    adata = ad.AnnData(X, obs, layers={"doubled": sp.csr_matrix(X * 2)}, obsm={"pca": PCA})
    labels = options.pop("labels", ["kind"])
    return Loader(batch_size=4, **options).add_anndatas([adata], labels=labels)


@pytest.mark.filterwarnings("ignore:.*fork.*")
@pytest.mark.parametrize("n_workers", [0, 1])
def test_a_dict_holds_what_a_batch_holds(n_workers: int) -> None:
    ds = TorchLoader(loader(layers=["doubled"], obsm=["pca"]), layout="dense", form="dict")
    batches = list(DataLoader(ds, batch_size=None, num_workers=n_workers))
    assert [type(batch) for batch in batches] == [dict] * 3
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in ("data", "kind", "index")}
    assert list(batches[0]) == ["data", "kind", "index", "layers", "obsm"]
    index = whole["index"].numpy()
    assert sorted(index) == list(range(10))
    np.testing.assert_array_equal(whole["data"].numpy(), X[index].toarray())
    np.testing.assert_array_equal(whole["kind"].numpy(), index % 2)
    for batch in batches:
        rows = batch["index"].numpy()
        np.testing.assert_array_equal(batch["layers"]["doubled"].numpy(), 2 * X[rows].toarray())
        np.testing.assert_array_equal(batch["obsm"]["pca"].numpy(), PCA[rows])
    assert list(next(iter(TorchLoader(loader(return_index=False), form="dict")))) == ["data", "kind"]


def test_modalities_are_dicts(tmp_path: Path) -> None:
    create_anndata_collection(samples(), tmp_path / "collection", join_obs="outer", **CUT)
    core = Loader(batch_size=16, shuffle=False).use_collection(tmp_path / "collection", labels=[])
    batches = each_batch(TorchLoader(core.replace(), form="dict", layout="dense"))
    for batch, truth in zip(batches, core, strict=True):
        assert type(batch["rna"]) is dict
        for name in ("rna", "adt"):
            np.testing.assert_array_equal(batch[name]["data"].numpy(), truth[name]["data"].to_scipy().toarray())
            np.testing.assert_array_equal(batch[name]["mask"].numpy(), truth[name]["mask"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": True}, r"names must be False for dicts of arrays.*ds\.obs\(\[\]\)"),
        ({"labels": ["kind", "index"]}, r"got index: rename the column, or leave it out of labels="),
    ],
    ids=str,
)
def test_what_a_dict_would_not_hold_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TorchLoader(loader(**options), form="dict")
    TorchLoader(loader(**options))
    with pytest.raises(InputError, match="form must be 'batch' or 'dict', got 'list'"):
        TorchLoader(loader(), form="list")  # type: ignore[arg-type]
