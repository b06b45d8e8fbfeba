"""Where do the adapters' tests get their loader from?

1. `adapter_truth` makes stores in memory once; each test opens them with the options that it needs.
2. `make_disk_loader` opens sharded stores on disk, and comes in two ways: read directly, and through zarr.
3. `samples` are the collections that `annbatch.testing.check_adapter` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anndata as ad
import pytest

from adapter_truth import Truth, make_stores
from annbatch import Loader
from annbatch.stores import array_opening as opening_module
from annbatch.testing.adapter_cases import Samples
from stores import named_stores

MakeLoader = Callable[..., Loader]


@pytest.fixture(scope="session")
def stores_and_truth() -> tuple[list[ad.AnnData], Truth]:
    return make_stores()


@pytest.fixture
def truth(stores_and_truth: tuple[list[ad.AnnData], Truth]) -> Truth:
    return stores_and_truth[1]


@pytest.fixture
def make_loader(stores_and_truth: tuple[list[ad.AnnData], Truth]) -> Iterator[Callable[..., Loader]]:
    """Give a function that opens the two stores: small windows, and a last batch that is short."""
    loaders: list[Loader] = []

    def make(**options: Any) -> Loader:
        defaults: dict[str, Any] = {"batch_size": 32, "chunk_size": 8, "preload_nchunks": 8}
        loader = Loader(**(defaults | options)).add_anndatas(stores_and_truth[0])
        loaders.append(loader)
        return loader

    yield make
    for loader in loaders:
        loader.close()


@pytest.fixture(scope="session")
def stores_on_disk(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[ad.AnnData], Truth]:
    adatas, x, obs = named_stores(tmp_path_factory.mktemp("stores"), "v3 sharded", sizes=(130, 53))
    return adatas, Truth(x, obs)


@pytest.fixture
def disk_truth(stores_on_disk: tuple[list[ad.AnnData], Truth]) -> Truth:
    return stores_on_disk[1]


@pytest.fixture(params=["direct", "zarr"])
def make_disk_loader(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    stores_on_disk: tuple[list[ad.AnnData], Truth],
) -> Iterator[MakeLoader]:
    """Give a function that opens the two stores on disk: small windows, and a last batch that is short."""
    monkeypatch.setattr(opening_module, "DIRECT", request.param == "direct")
    loaders: list[Loader] = []

    def make(**options: Any) -> Loader:
        defaults: dict[str, Any] = {"batch_size": 16, "chunk_size": 4, "preload_nchunks": 8}
        loaders.append(Loader(**(defaults | options)).add_anndatas(stores_on_disk[0]))
        # As much as the windows take would be too little for a single slab, so small are they.
        loaders[-1]._slabs.max_idle_bytes = 1 << 24
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Give the collections that `annbatch.testing.check_adapter` reads."""
    return Samples.written(tmp_path_factory.mktemp("samples"))
