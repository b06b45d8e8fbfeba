"""Where do the adapters' tests get their loader from?

`adapter_truth` makes the stores once; each test opens them with the options that it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anndata as ad
import pytest
from adapter_truth import Truth, make_stores

from annbatch import Loader


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
