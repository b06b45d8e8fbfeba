"""Do names of cells come with the batches of every framework, also from worker processes and after a stop?"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")

from torch.utils.data import DataLoader  # noqa: E402

from annbatch import Loader  # noqa: E402
from annbatch_jax import JaxLoader  # noqa: E402
from annbatch_torch import TorchLoader  # noqa: E402
from stores import named_stores  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*", "ignore:This DataLoader will create", "ignore:Sparse")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return named_stores(tmp_path_factory.mktemp("stores"), "v3 sharded")


def named(stores: Any, **options: Any) -> Loader:
    asked = {"batch_size": 8, "chunk_size": 3, "preload_nchunks": 5, "threads": 1, "names": True} | options
    return Loader(**asked).add_anndatas(stores[0], labels=["stage"])


def check(batch: Any, names: Any) -> list[str]:
    n = len(batch["names"]) - batch.n_padding
    index = np.asarray(batch["index"])[:n]
    assert batch["names"].tolist() == names[index].tolist() + [""] * batch.n_padding
    assert batch["labels"].index.tolist() == names[index].tolist()
    return batch["names"][:n].tolist()


def test_names_come_in_every_framework(stores):
    names = stores[2].index
    for loader in (TorchLoader(named(stores)), JaxLoader(named(stores))):
        assert sorted(name for batch in loader for name in check(batch, names)) == sorted(names)
    batch = next(iter(loader))
    seen = jax.tree.map(lambda leaf: leaf, batch)
    assert seen.names is None
    with pytest.raises(KeyError, match="names is only in the batch"):
        seen["names"]


def test_names_come_from_workers_and_after_a_stop(stores):
    names = stores[2].index
    loader = DataLoader(TorchLoader(named(stores)), batch_size=None, num_workers=2)
    assert sorted(name for batch in loader for name in check(batch, names)) == sorted(names)
    ds = TorchLoader(named(stores, return_index=True))
    batches = iter(ds)
    next(batches)
    state = json.loads(json.dumps(ds.state_dict()))
    rest = [batch["names"].tolist() for batch in batches]
    again = TorchLoader(named(stores))
    again.load_state_dict(state)
    assert [batch["names"].tolist() for batch in again] == rest
    moved = next(iter(again)).to("cpu")
    check(moved, names)
