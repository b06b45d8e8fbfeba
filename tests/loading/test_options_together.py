"""Do obs, names, classes, panels, transforms, samplers and splits go together, whatever the rows are read from?

The truth is `anndata.concat` of the inputs, and its rows by their numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from annbatch import Batch, Loader, LogNormalize, Partition, create_anndata_collection
from annbatch.samplers import Grouped, MatchedPairs, Sampler
from epochs import each_batch

OPTIONS: dict[str, Any] = {"batch_size": 8, "chunk_size": 4, "preload_nchunks": 8, "threads": 1, "seed": 3}
GENES = [list("ABCDEF"), list("CADXY")]
"""Of each file."""


def cells(start: int, genes: list[str]) -> ad.AnnData:
    rows = np.arange(start, start + 60)
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical(np.array(["T", "B", "NK"])[rows % 3]),
            "donor": [f"d{row % 5}" for row in rows],
            "leiden": rows % 4,
            "flag": rows % 2 == 0,
        },
        index=[f"c{row}" for row in rows],
    )
    x = sp.csr_matrix((rows[:, None] * 7 + [ord(gene) for gene in genes]) % 5, dtype=np.float32)
    return ad.AnnData(x, obs, pd.DataFrame({"gene_ids": [f"id {gene}" for gene in genes]}, index=genes))


class Source:
    """Opens what was written, and knows what it holds."""

    def __init__(self, whole: ad.AnnData, add: Callable[[Loader], Loader], **options: Any) -> None:
        self.obs, self.genes, self.x = whole.obs, list(whole.var_names), whole.X.toarray()
        self._add, self._options = add, options

    def open(self, **options: Any) -> Loader:
        return self._add(Loader(**OPTIONS | self._options | options))

    def normalized(self, genes: list[str]) -> np.ndarray[Any, Any]:
        """X after `LogNormalize`; 0 for genes that are nowhere."""
        x = np.log1p(self.x / np.maximum(self.x.sum(axis=1, keepdims=True), 1) * 1e4)
        columns = [x[:, self.genes.index(gene)] if gene in self.genes else np.zeros(len(x)) for gene in genes]
        return np.stack(columns, axis=1)

    def check(self, batch: Batch, genes: list[str], times: float = 1) -> list[int]:
        rows = batch["index"]
        found = batch["data"]
        found = found if isinstance(found, np.ndarray) else found.to_scipy().toarray()
        np.testing.assert_allclose(found, times * self.normalized(genes)[rows], rtol=1e-6)
        expected = self.obs.iloc[rows]
        assert batch["names"].tolist() == batch["labels"].index.tolist() == expected.index.tolist()
        for name in ("leiden", "flag"):
            assert batch.codes[name].dtype == np.int32
            assert batch["labels"][name].tolist() == expected[name].tolist()
        return rows.tolist()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    folder = tmp_path_factory.mktemp("together")
    paths: list[Path] = []
    inputs = [cells(60 * number, genes) for number, genes in enumerate((GENES[0], GENES[1], GENES[0]))]
    for number, adata in enumerate(inputs):
        paths.append(folder / f"{number}.h5ad")
        adata.write_h5ad(paths[-1])
    first, other, same = inputs
    outer = ad.concat([first, other], join="outer", fill_value=0)[:, [*"ABCDEFXY"]]
    collection = create_anndata_collection(paths[::2], folder / "c", shuffle=False, rows_per_store=50, progress=False)
    return {
        "a collection": Source(ad.concat([first, same]), lambda ds: ds.use_collection(collection)),
        "files": Source(ad.concat([first, same]), lambda ds: ds.use_h5ad(paths[::2])),
        "joined files": Source(outer, lambda ds: ds.use_h5ad(paths[:2]), join="outer"),
        "common genes": Source(ad.concat([first, other]), lambda ds: ds.add_anndatas([first, other]), join="inner"),
    }


def doubled(batch: Batch) -> Batch:
    return batch.replace(data=2 * batch["data"].to_scipy().toarray())


SAMPLERS: list[Sampler | None] = [
    None,
    Grouped(["flag", "donor"]),
    Grouped("leiden", weights={0: 1, 2: 3}, n_rows=80),
    Grouped("leiden", weights={1: 1, 3: 1}, n_rows=32, replace=False),
    MatchedPairs("kind", "T", within=["flag"]),
]


def has_one_class(obs: pd.DataFrame, sampler: Sampler | None) -> bool:
    return not isinstance(sampler, Grouped) or len(obs[list(sampler.columns)].drop_duplicates()) == 1


@pytest.mark.parametrize("name", ["a collection", "files", "joined files", "common genes"])
def test_options_go_together(sources: dict[str, Source], name: str) -> None:
    """On two ranks, in a part of a stratified split, and after a stop."""
    source = sources[name]
    options: dict[str, Any] = {"names": True, "classes": ["leiden", "flag"], "transform": [LogNormalize(), doubled]}
    genes = list(source.genes)
    if name != "common genes":
        options |= {"var_names": ["id D", "id none", "id A"], "var_key": "gene_ids", "absent": "zero"}
        genes = ["D", "none", "A"]
    ds = source.open(**options)
    if name != "common genes":
        assert ds.var["absent"].tolist() == [False, True, False]
    obs = ds.obs(columns=None)
    assert obs.index.tolist() == source.obs.index.tolist()
    for column in source.obs:
        assert obs[column].tolist() == source.obs[column].tolist()
    for sampler in SAMPLERS:
        part = ds.replace(sampler=sampler).split({"a": 0.8, "b": None}, stratify=["leiden", "kind"])["a"]
        seen = []
        for rank in range(2):
            one, again = (part.replace(partition=Partition(rank, 2)) for _ in range(2))
            batches = iter(one)
            begun = source.check(next(batches), genes, 2)
            again.load_state_dict(one.state_dict())
            rest = []
            for batch in batches:
                rest += source.check(batch, genes, 2)
                assert has_one_class(source.obs.iloc[batch["index"]], sampler)
            assert rest == [row for batch in again for row in batch["index"].tolist()]
            seen += [*begun, *rest]
        assert set(seen) <= set(part.rows)
        assert sampler is not None or sorted(seen) == part.rows.tolist()
        assert part.obs([]).index.tolist() == source.obs.index[part.rows].tolist()


def test_panels_that_are_masks_are_normalised_by_the_totals_of_all_joined_genes(sources: dict[str, Source]) -> None:
    for source in sources.values():
        chosen = [gene for gene in source.genes if gene in "AD"]
        ds = source.open(
            names=True,
            classes=["leiden", "flag"],
            transform=LogNormalize(),
            var_names=lambda var: var.index.isin([*"AD"]),
        )
        assert ds.var.index.tolist() == chosen
        seen = [row for batch in each_batch(ds) for row in source.check(batch, chosen)]
        assert sorted(seen) == list(range(120))
    joined = sources["joined files"].open(join="outer")
    assert joined.replace(join="inner").var.index.tolist() == sources["common genes"].genes
