"""Does any fault of an `.h5ad` file give a wrong batch, a hang, a crash or a leak? A sample of ``fault_files.py``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fault_files import on_file, trials, write_file


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_file(tmp_path_factory.mktemp("faults"))


def test_damage_to_a_file(file: Path) -> None:
    found = list(on_file(file, np.random.default_rng(0), 1, few=True))
    assert len(found) >= 8
    assert [one for one in found if one[-1] not in ("right", "error")] == []
    assert "error" in {one[-1] for one in found}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_faults_of_a_file(file: Path) -> None:
    assert [one for one in trials(file, 1, 1) if one.result not in ("right", "error")] == []
