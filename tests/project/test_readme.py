"""Does what the README and the pages of the documentation show run?

1. Every Python example is run as it stands, in a folder with small files such as the pages speak of.
2. The README's first example makes the collection that its others read. A page that needs one makes it itself, by the
   example in ``docs/collection.inc``, in a folder of its own.
3. The examples of a page run one after the other, as one reads them.
4. An example whose framework is not installed is skipped, and none may be forgotten here.
5. The README stays short.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from object_servers import s3_environment, s3_server

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = {
    "building.md": 3,
    "loading.md": 6,
    "randomness.md": 1,
    "h5ad.md": 2,
    "transforms.md": 8,
    "sampling.md": 9,
    "reproducibility.md": 2,
    "distributed.md": 7,
    "layouts.md": 2,
    "from-scverse-annbatch.md": 1,
    "remote.md": 2,
    "gpu.md": 2,
    "format.md": 1,
    "write-a-sampler.md": 3,
    "write-an-adapter.md": 3,
}
"""Page -> number of its examples."""

INCLUDED = "```{include} collection.inc\n```\n"


def examples_of(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8").replace(INCLUDED, (ROOT / "docs" / "collection.inc").read_text("utf-8"))
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


EXAMPLES = examples_of(README)


def write_file(path: Path, genes: list[str], cell_types: list[str]) -> None:
    rng = np.random.default_rng(len(genes))
    x = sp.random(60, len(genes), density=0.3, format="csr", dtype=np.float32, random_state=rng)
    x.data = np.ceil(10 * x.data)
    names = [f"{path.stem}-{row}" for row in range(60)]
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(rng.choice(cell_types, 60)),
            "donor": pd.Categorical([f"donor {row % 5}" for row in range(60)]),
            "perturbation": pd.Categorical(rng.choice(["none", "a", "b"], 60)),
        },
        index=names,
    )
    ad.AnnData(X=x, obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with the files that the pages name, and the collection that the README's first example makes."""
    folder = tmp_path_factory.mktemp("readme") / "bucket"
    folder.mkdir()
    write_file(folder / "first.h5ad", ["A", "B", "C", "D"], ["T", "B"])
    write_file(folder / "second.h5ad", ["B", "C", "D", "E", "F"], ["T", "NK"])
    write_file(folder / "third.h5ad", ["A", "B"], ["B", "NK"])
    for plate in (1, 2):
        write_file(folder / f"plate_{plate}.h5ad", ["A", "B", "C"], ["T", "B"])
    ad.read_h5ad(folder / "first.h5ad").to_df().to_csv(folder / "counts.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(EXAMPLES[0], f"{README.name}, example 1", "exec"), {})
    return folder


def test_first_example_writes_the_collection(folder: Path) -> None:
    assert (folder / "collection" / "collection.json").is_file()
    assert list((folder / "collection").glob("*.zarr"))


@pytest.mark.parametrize("number", range(1, len(EXAMPLES)))
def test_example_runs(number: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = EXAMPLES[number]
    for framework in ("torch", "jax"):
        if f"import {framework}" in example:
            pytest.importorskip(framework)
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(compile(example, f"{README.name}, example {number + 1}", "exec"), names)
    assert getattr(names["ds"], "n_obs", 0) == 120


@contextmanager
def _bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve the folder as the bucket of its name."""
    pytest.importorskip("obstore")
    pytest.importorskip("hadro")
    with s3_server(folder.parent) as port:
        for name, value in s3_environment(port).items():
            monkeypatch.setenv(name, value)
        yield


@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.gpu] * (page == "gpu.md")) for page in PAGES])
@pytest.mark.filterwarnings(
    "ignore:.*fork.*",
    "ignore:Sparse",
    "ignore:::lightning",
    "ignore:::pytorch_lightning",
    "ignore:Object at collection",
)
def test_page_runs(page: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = examples_of(ROOT / "docs" / page)
    assert len(examples) == PAGES[page]
    for framework in ("torch", "lightning"):
        if any(f"import {framework}" in example or f"from {framework}" in example for example in examples):
            pytest.importorskip(framework)
    monkeypatch.chdir(tmp_path if INCLUDED in (ROOT / "docs" / page).read_text(encoding="utf-8") else folder)
    names: dict[str, object] = {"__name__": "__main__"}
    with _bucket(folder, monkeypatch) if any("s3://" in example for example in examples) else nullcontext():
        for number, example in enumerate(examples, 1):
            exec(compile(example, f"{page}, example {number}", "exec"), names)


def test_the_readme_is_short() -> None:
    assert len(EXAMPLES) == 3
    assert len(README.read_text(encoding="utf-8").splitlines()) < 150
