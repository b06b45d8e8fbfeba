"""Does `check_adapter` pass what keeps the rules, and name the rule that something breaks?

`tests/adapters/test_contracts.py` puts the adapters of this project through it; `docs/write-an-adapter.md` calls it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annbatch import Loader
from annbatch.adapter import WHOLE, Adapter, Batch, Emit, converted, converted_modalities
from annbatch.testing import make_cells, make_collection
from annbatch.testing.adapter_cases import Samples
from annbatch.testing.adapter_rules import check_with
from annbatch.testing.truth import Framework
from epochs import each_batch


class ScipyLoader(Adapter):
    """An adapter that keeps the rules: SciPy's matrices. Each case below breaks one thing of it."""

    def __init__(self, ds: Loader) -> None:
        super().__init__(ds, Emit())

    def _hand_over(self, batch: Batch) -> Batch:
        return replace(
            batch,
            data=None if batch.data is None else _scipy(batch.data),
            layers=converted(batch.layers, _scipy),
            obsm=converted(batch.obsm, _scipy),
            modalities=converted_modalities(batch.modalities, _scipy, lambda _, held: _scipy(held), lambda mask: mask),
        )


def _scipy(matrix: Any) -> Any:
    return matrix.to_scipy() if hasattr(matrix, "to_scipy") else matrix


def address(matrix: Any) -> int:
    return int(matrix.data.ctypes.data)


def test_an_adapter_of_scipys_matrices_keeps_the_rules(samples: Samples) -> None:
    check_with(
        samples, ScipyLoader, Framework(address=address, code_dtypes={"cell_type": np.int32, "n_counts": np.int64})
    )


# --- broken ones ------------------------------------------------------------------------------------------------------


class Changed(ScipyLoader):
    """Changes each batch."""

    def changed(self, batch: Batch) -> Batch:
        raise NotImplementedError

    def _hand_over(self, batch: Batch) -> Batch:
        return self.changed(super()._hand_over(batch))


BUFFERS = np.zeros((16, 10_000), np.float32)


class LacksTheLast(ScipyLoader):
    def __iter__(self) -> Iterator[Batch]:
        return iter(list(super().__iter__())[:-1])


class SortsTheIndex(Changed):
    def changed(self, batch: Batch) -> Batch:
        return replace(batch, index=None if batch.index is None else np.sort(batch.index))


class ShortIndex(Changed):
    def changed(self, batch: Batch) -> Batch:
        return replace(batch, index=None if batch.index is None else batch.index.astype(np.int32))


class SortsTheRows(Changed):
    def changed(self, batch: Batch) -> Batch:
        return replace(batch, data=None if batch.data is None else batch.data[::-1])


class LosesLayers(Changed):
    def changed(self, batch: Batch) -> Batch:
        return replace(batch, layers=None)


class LayersAreData(Changed):
    def changed(self, batch: Batch) -> Batch:
        return replace(batch, layers=converted(batch.layers, lambda _: batch.data))


class FloatCodes(Changed):
    def changed(self, batch: Batch) -> Batch:
        return replace(batch, codes={name: codes.astype(np.float32) for name, codes in batch.codes.items()})


class CodesOfOthers(Changed):
    def changed(self, batch: Batch) -> Batch:
        return replace(batch, codes={name: np.roll(codes, 1) for name, codes in batch.codes.items()})


class LabelsOfOthers(Changed):
    def changed(self, batch: Batch) -> Batch:
        make = batch.make_labels
        return replace(batch, make_labels=lambda: make().iloc[::-1])


class LosesModalities(Changed):
    def changed(self, batch: Batch) -> Batch:
        one = None if batch.modalities is None else {"rna": batch.modalities["rna"], "adt": batch.modalities["rna"]}
        return replace(batch, modalities=one)


class FewBuffers(Changed):
    """Copies the values of every batch into memory that is used again while batches are kept."""

    n_batches = 0

    def changed(self, batch: Batch) -> Batch:
        if batch.data is None:
            return batch
        self.n_batches += 1
        values = BUFFERS[self.n_batches % len(BUFFERS)][: batch.data.nnz]
        values[:] = batch.data.data
        data = batch.data.copy()
        data.data = values
        return replace(batch, data=data)


class NoPartition(ScipyLoader):
    def __iter__(self) -> Iterator[Batch]:
        return map(self._hand_over, self.loader.batches(self._emit, WHOLE))


class NoState(ScipyLoader):
    def load_state_dict(self, state: Any) -> None:
        pass


class ArraysInState(ScipyLoader):
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"epoch": np.int64(0)}


class NoEpochs(ScipyLoader):
    def set_epoch(self, epoch: int) -> None:
        pass


class Repeats(ScipyLoader):
    def __iter__(self) -> Iterator[Batch]:
        self.loader.set_epoch(0)
        return super().__iter__()


class Generator(ScipyLoader):
    """A generator cannot be shared by threads."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            # Long enough for another thread to ask.
            time.sleep(0.002)
            yield batch


class OtherWidth(ScipyLoader):
    n_vars = 7  # type: ignore[assignment]


BROKEN: dict[str, tuple[Callable[[Loader], Any], str]] = {
    "lacks a batch": (LacksTheLast, "as many as len.* says: 7 batches came instead of 8"),
    "sorts index": (SortsTheIndex, r"index must be that of the core's batch.*index\[0\] must be \d+, got \d+"),
    "narrows index": (ShortIndex, "index must be int64, got int32"),
    "other rows": (SortsTheRows, r"data must hold X of the rows of index.*data\[\d+, \d+\] must be"),
    "no layers": (LosesLayers, r"keys of the core's batch: \['layers'\] are not among"),
    "layers are data": (LayersAreData, r"layers must hold.*doubled\[\d+, \d+\] must be"),
    "codes are floats": (FloatCodes, r"codes\['cell_type'\] must be int64 or like it, got float32"),
    "codes of others": (CodesOfOthers, r"codes must be those of the rows of index.*codes\['cell_type'\]\[\d+\]"),
    "labels of others": (LabelsOfOthers, "labels must hold obs of the rows of index"),
    "modalities": (LosesModalities, r"batch\['adt'\] must hold the modality.*data must have the shape"),
    "few buffers": (FewBuffers, r"a batch that is kept, or its data, must not change.*data\[\d+, \d+\] must be"),
    "no partition": (NoPartition, r"a consumer must get the batches of its partition.*Partition\(0, 3\)"),
    "does not go on": (NoState, "load_state_dict must go on with the next batch: behind batch 3 of 8"),
    "a state that JSON does not take": (ArraysInState, "must survive JSON.*TypeError was raised"),
    "set_epoch is ignored": (NoEpochs, "set_epoch must choose the next epoch: it begins with"),
    "always epoch 0": (Repeats, "index must be that of the core's batch"),
    "a generator": (Generator, "threads that share an iterator.*ValueError was raised: generator already executing"),
    "another width": (OtherWidth, "must be what the core says: n_vars is 7 instead of 30"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_adapter_is_named(case: str, samples: Samples) -> None:
    make, message = BROKEN[case]
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        check_with(samples, make, Framework())


def test_what_is_written_comes_back_in_the_order_of_the_collection(tmp_path: Path) -> None:
    cells = make_collection(tmp_path / "cells", 40, 7, seed=5)
    given = make_cells(40, 7, seed=5)
    assert cells.obs_names.tolist() != given.obs_names.tolist()
    np.testing.assert_array_equal(cells.X.toarray(), given[cells.obs_names].X.toarray())
    rows, columns = cells.X.nonzero()
    first = cells.obs["n_counts"].to_numpy()[rows] // 10
    np.testing.assert_array_equal(np.asarray(cells.X[rows, columns]).ravel(), 100 * first + columns + 1)
    with Loader(batch_size=7).use_collection(tmp_path / "cells") as ds:
        for batch in each_batch(ds):
            assert (batch["data"].to_scipy() != cells.X[batch["index"]]).nnz == 0
    with pytest.raises(ValueError, match=r"n_vars must be in \[1, 101\), got 101"):
        make_cells(3, 101)
