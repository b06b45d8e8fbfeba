"""Does an adapter hand over the core's batches, and leave everything else to the core?

1. `check_adapter` writes a small collection, and one with modalities, opens loaders on them, and gives each to the
   adapter.
2. What a batch holds is compared with the cells (`annbatch.testing.truth`), and their order with the core's
   own batches.
3. Kept batches are compared at the end, after their memory could have been used again.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd

from annbatch.loader import Loader
from annbatch.order.consumers import Partition
from annbatch.testing.adapter_cases import BATCHES, Index, Samples, Subject
from annbatch.testing.rules import expect, rule, same
from annbatch.testing.truth import LAYERS, OBSM, Framework, Truth, as_dense


def check_adapter(
    make_adapter: Callable[[Loader], Any],
    *,
    to_numpy: Callable[[Any], Any] = np.asarray,
    to_dense: Callable[[Any], Any] = as_dense,
    address: Callable[[Any], int] | None = None,
    code_dtypes: Mapping[str, npt.DTypeLike] | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Check that an adapter keeps the rules of `annbatch.adapter.Adapter`.

    These are the rules:

    - its batches are the core's, in the core's order, with the same keys: ``data``, ``index``, codes, ``labels``,
      ``names``, ``layers``, ``obsm``, and modalities;
    - ``len``, ``n_obs``, ``n_vars``, ``var``, ``categories`` and ``obs`` are the core's;
    - each iteration is the next epoch, also after one that was left early, and ``set_epoch`` chooses one;
    - an adapter that loads the state of another one continues with the next batch;
    - consumers, parts of a split and ``Loader.replace`` work as with the core;
    - a batch that is kept, or only its ``data``, does not change while later ones are made;
    - threads may share an iterator.

    Parameters
    ----------
    make_adapter
        Function that takes a loader with data and returns the adapter; usually the adapter's class.
    to_numpy
        Function that takes an array of the framework and returns a NumPy array.
    to_dense
        Function that takes ``batch["data"]`` and returns a dense array of the framework, (n_rows, n_vars). The default
        accepts `annbatch.CSR`, and sparse matrices with ``toarray``.
    address
        Function that takes ``batch["data"]`` and returns the address of its values in memory. With it, the check of
        kept batches also makes sure that memory was reused in the meantime. None leaves that out.
    code_dtypes
        Types of ``batch.codes`` that the adapter promises, by the name of the label column of `make_cells`.
    options
        Options of the loaders, such as ``{"device": "cuda"}``.

    Raises
    ------
    AssertionError
        If a rule is broken. The message names the rule and the values.

    Examples
    --------
    >>> from annbatch_torch import TorchLoader  # doctest: +SKIP
    >>> check_adapter(  # doctest: +SKIP
    ...     TorchLoader,
    ...     to_numpy=lambda tensor: tensor.numpy(),
    ...     to_dense=lambda tensor: tensor.to_dense(),
    ... )
    """
    with TemporaryDirectory(prefix="annbatch-testing-") as folder:
        framework = Framework(to_numpy, to_dense, address, dict(code_dtypes or {}), dict(options or {}))
        check_with(Samples.written(Path(folder)), make_adapter, framework)


def check_with(samples: Samples, make_adapter: Callable[[Loader], Any], framework: Framework) -> None:
    """Do what `check_adapter` does, with collections that are there already."""
    subject = Subject(make_adapter, samples.opened(), Truth(samples.cells, framework))
    _check_batches(subject)
    _check_members(subject)
    _check_epochs(subject)
    _check_states(subject)
    _check_consumers(subject)
    _check_parts(subject)
    _check_kept(subject)
    with subject.loader(batch_size=4) as core:
        check_threads(make_adapter(core), len(samples.cells), framework.to_numpy)
    _check_modalities(subject, samples.modal_path, samples.modalities)


def _check_batches(subject: Subject) -> None:
    """Compare all of two epochs."""
    truth = subject.truth
    with subject.loader(layers=LAYERS, obsm=OBSM, names=True) as core:
        adapter = subject.make(core)
        for epoch in range(2):
            expected = subject.core_epoch(epoch)
            with rule("an epoch must have the batches of the core, and as many as len() says"):
                expect(len(adapter) == len(expected), f"len() is {len(adapter)} instead of {len(expected)}")
                found = list(adapter)
                expect(len(found) == len(expected), f"{len(found)} batches came instead of {len(expected)}")
            for batch, index in zip(found, expected, strict=True):
                with rule("a batch must have the keys of the core's batch"):
                    lacking = {"data", "labels", "index", "names", "layers", "obsm"} - {*batch}
                    expect(not lacking, f"{sorted(lacking)} are not among {[*batch]}")
                n_rows = truth.check_index(batch, index)
                truth.check_matrices(batch, index, n_rows)
                if epoch == 0:
                    truth.check_labels(batch, index, n_rows, adapter.categories)
                truth.check_names(batch, index, n_rows)
    with subject.loader(return_index=False) as core, rule("without return_index there must be no key index"):
        batch = next(iter(subject.make(core)))
        expect("index" not in [*batch], f"its keys are {[*batch]}")


def _check_members(subject: Subject) -> None:
    """Compare what an adapter says of the data."""
    with subject.loader() as core, rule("what an adapter says of the data must be what the core says"):
        adapter = subject.make(core)
        expect(adapter.loader is core, f"loader is {adapter.loader!r}")
        for name in ("n_obs", "n_vars", "partition"):
            found, expected = getattr(adapter, name), getattr(core, name)
            expect(found == expected, f"{name} is {found!r} instead of {expected!r}")
        expect(adapter.var.equals(core.var), f"var is {adapter.var!r}")
        expect(adapter.obs(["stage"]).equals(core.obs(["stage"])), "obs(['stage']) differs")
        found_categories = {name: list(names) for name, names in adapter.categories.items()}
        expected_categories = {name: list(names) for name, names in core.categories.items()}
        expect(found_categories == expected_categories, f"categories are {found_categories}")
        n_batches = sum(1 for _ in adapter)
        stats = adapter.stats()
        expect(
            (stats.cells, stats.batches) == (core.n_obs, n_batches),
            f"stats() counts {stats.cells} cells in {stats.batches} batches, instead of {core.n_obs} in {n_batches}",
        )


def _check_epochs(subject: Subject) -> None:
    """Leave an epoch early, and choose one."""
    with subject.loader() as core:
        adapter = subject.make(core)
        with rule("the epoch behind one that was left early must be the next one"):
            next(iter(adapter))
            expected = [index.tolist() for index in subject.core_epoch(1)]
            expect(
                (found := subject.epoch(adapter)) == expected, f"it begins with {found[:1]} instead of {expected[0]}"
            )
        with rule("set_epoch must choose the next epoch"):
            adapter.set_epoch(5)
            expected = [index.tolist() for index in subject.core_epoch(5)]
            expect(
                (found := subject.epoch(adapter)) == expected, f"it begins with {found[:1]} instead of {expected[0]}"
            )


def _check_states(subject: Subject) -> None:
    """Stop within an epoch, and at its end, and go on in another adapter."""
    expected = [index.tolist() for epoch in range(2) for index in subject.core_epoch(epoch)]
    n = len(expected) // 2
    for n_had in (3, n):
        with rule("state_dict() must survive JSON, and load_state_dict must go on with the next batch"):
            with subject.loader() as core:
                adapter = subject.make(core)
                batches = iter(adapter)
                for _ in range(n_had):
                    next(batches)
                state = json.loads(json.dumps(adapter.state_dict()))
            with subject.loader() as core:
                adapter = subject.make(core)
                adapter.load_state_dict(state)
                found = subject.epoch(adapter) + subject.epoch(adapter)
                expect(
                    found == expected[n_had:],
                    f"behind batch {n_had} of {n} came {found[:1]} instead of {expected[n_had : n_had + 1]}, "
                    f"{len(found)} batches instead of {2 * n - n_had} in two epochs",
                )


def _check_consumers(subject: Subject) -> None:
    """Deal the rows to several consumers."""
    count = 3
    found = []
    for number in range(count):
        partition = Partition(number, count)
        with subject.loader(partition=partition) as core:
            adapter = subject.make(core)
            with rule("a consumer must get the batches of its partition, and len() must count them"):
                own = subject.epoch(adapter)
                expect(len(own) == len(adapter), f"{partition}: {len(own)} batches instead of {len(adapter)}")
                expected = [index.tolist() for index in subject.core_epoch(partition=partition)]
                expect(own == expected, f"{partition}: rows {own[:1]} instead of {expected[:1]}")
            found += [row for rows in own for row in rows]
    with rule("consumers together must get every row once"):
        same("index of all consumers", sorted(found), np.arange(len(subject.truth.cells)))


def _check_parts(subject: Subject) -> None:
    """Give the adapter loaders that were made of loaders."""
    with subject.loader() as core:
        for name, part in core.split({"train": 0.7, "test": 0.3}).items():
            with rule("of a part of a split, the rows of the part must come"):
                rows = sorted(row for index in subject.epoch(subject.make(part)) for row in index)
                same(f"index of the part {name}", rows, part.rows)
        with rule("of a loader that Loader.replace gave, the rows must come in its order"):
            rows = [row for index in subject.epoch(subject.make(core.replace(shuffle=False))) for row in index]
            same("index with shuffle=False", rows, np.arange(core.n_obs))


def _check_kept(subject: Subject) -> None:
    """Keep batches, or their data alone, and drop some at random while others are made."""
    truth = subject.truth
    rng = random.Random(0)
    kept: list[tuple[Any, bool, Index]] = []
    addresses: set[int] = set()
    n_seen = 0
    with subject.loader() as core:
        # Windows of so few rows would otherwise leave too little memory for a second use.
        core._slabs.max_idle_bytes = 1 << 24
        adapter = subject.make(core)
        for epoch in range(4):
            for batch, index in zip(adapter, subject.core_epoch(epoch), strict=True):
                if subject.framework.address is not None:
                    addresses.add(subject.framework.address(batch["data"]))
                is_whole = n_seen % 2 == 0
                kept.append((batch if is_whole else batch["data"], is_whole, index))
                n_seen += 1
                del batch
                if rng.random() < 0.6:
                    del kept[rng.randrange(len(kept))]
        if subject.framework.address is not None:
            with rule("memory must be used again, or keeping batches says nothing"):
                expect(len(addresses) < 0.8 * n_seen, f"{n_seen} batches lay at {len(addresses)} addresses")
            with rule("kept batches must not share memory"):
                held = {subject.framework.address(one["data"] if is_whole else one) for one, is_whole, _ in kept}
                expect(len(held) == len(kept), f"{len(kept)} batches lie at {len(held)} addresses")
        for one, is_whole, index in kept:
            with rule("a batch that is kept, or its data, must not change while later ones are made"):
                if is_whole:
                    n_rows = truth.check_index(one, index)
                    truth.check_labels(one, index, n_rows, adapter.categories)
                truth.check_data(one["data"] if is_whole else one, index)


def _check_modalities(subject: Subject, path: Path, modalities: dict[str, ad.AnnData]) -> None:
    """Compare the batches of a collection with modalities."""
    names = list(modalities)
    chosen: dict[str, Any] = {
        "layers": [f"{name}:{layer}" for name in names for layer in LAYERS],
        "obsm": [f"{name}:{element}" for name in names for element in OBSM],
    }
    labels = [f"{name}:cell_type" for name in names]
    with Loader(**(BATCHES | subject.framework.options), **chosen).use_collection(path, labels=labels) as core:
        with core.replace(device="cpu", decode="auto") as other:
            expected = [np.asarray(batch.index) for batch in other]
        adapter = subject.make(core)
        with rule("an epoch of modalities must have the batches of the core"):
            found = list(adapter)
            expect(len(found) == len(expected), f"{len(found)} batches came instead of {len(expected)}")
        for batch, index in zip(found, expected, strict=True):
            n_rows = subject.truth.check_index(batch, index)
            for name, cells in modalities.items():
                with rule(f"batch[{name!r}] must hold the modality"):
                    held = batch[name]
                    lacking = {"data", "layers", "obsm", "mask"} - {*held}
                    expect(not lacking, f"{sorted(lacking)} are not among {[*held]}")
                    truth = Truth(cells, subject.framework)
                    truth.check_matrices(held, index, n_rows)
                    measured = np.zeros(n_rows, bool)
                    measured[: len(index)] = cells.obs["measured"].to_numpy()[index]
                    same("mask", subject.framework.array(held["mask"]), measured)
                with rule("codes must be those of the rows of index, and missing where a modality lacks the cell"):
                    column = f"{name}:cell_type"
                    codes = subject.framework.array(batch.codes[column])
                    of_rows = cells.obs["cell_type"].iloc[index].astype(object)
                    wanted = np.full(n_rows, -1)
                    wanted[: len(index)] = pd.Index(adapter.categories[column]).get_indexer(of_rows)
                    same(f"codes[{column!r}]", codes, wanted)


def check_threads(batches: Any, n_rows: int, to_numpy: Callable[[Any], Any] = np.asarray) -> None:
    """Let three threads share an iterator.

    Parameters
    ----------
    batches
        A loader or an adapter.
    n_rows
        Rows of an epoch.
    to_numpy
        As in `check_adapter`.

    Raises
    ------
    AssertionError
        If a row does not come once.
    """
    iterator, begun = iter(batches), threading.Barrier(3)

    def work() -> list[int]:
        begun.wait()
        return [row for batch in iterator for row in np.asarray(to_numpy(batch["index"])).tolist() if row >= 0]

    with rule("threads that share an iterator must get every row once"), ThreadPoolExecutor(3) as pool:
        found = [pool.submit(work) for _ in range(3)]
        same("index of all threads", sorted(row for one in found for row in one.result()), np.arange(n_rows))
