"""Does any fault give a wrong batch, a hang, a crash or a leak? A sample of ``fault_matrix.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fault_matrix import (
    Batches,
    few_descriptors,
    forked,
    in_a_kernel_thread,
    interrupted,
    on_disk,
    served,
    trials,
    two_epochs,
    write_collection,
)


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Path:
    return write_collection(tmp_path_factory.mktemp("matrix"))


@pytest.fixture(scope="module")
def wanted(collection) -> Batches:
    return two_epochs(collection, lambda now: None)


def check(found: Any) -> None:
    results = [(kind, moment, result) for kind, moment, result in found]
    assert results
    assert [one for one in results if one[2] not in ("right", "error")] == []


def test_damage_on_disk(collection, wanted):
    check(on_disk(collection, wanted, np.random.default_rng(0), 1, few=True))


# An interrupt that falls into a finaliser is told on standard error, as Python does, and goes no further. One that
# falls into Python's own lock code may surface as its RuntimeError, which is rare: no test for every run.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts(collection, wanted):
    check(interrupted(collection, wanted, np.random.default_rng(0), 20))


def test_what_happens_to_the_process(collection, wanted):
    check(forked(collection, wanted, 1, every=8))
    check(in_a_kernel_thread(collection, wanted, 1, every=9))
    check(few_descriptors(collection, wanted, every=20))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_all_of_it(collection):
    pytest.importorskip("obstore")
    pytest.importorskip("hadro")
    with served(collection) as proxy:
        check((trial.kind, trial.moment, trial.result) for trial in trials(collection, proxy, 1, 1))
