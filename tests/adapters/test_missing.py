"""Does an adapter whose framework is missing say in one sentence what to install?"""

from __future__ import annotations

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    ("adapter", "framework", "command"),
    [
        ("annbatch_torch", "torch", "pip install torch"),
        ("annbatch_jax", "jax", "pip install jax"),
        ("annbatch_cupy", "cupy", "pip install cupy-cuda12x"),
        ("annbatch_ray", "ray", r"pip install ray\[data\]"),
    ],
)
def test_missing_framework(adapter: str, framework: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == adapter]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, framework, None)
    with pytest.raises(ImportError, match=command) as raised:
        importlib.import_module(adapter)
    assert isinstance(raised.value.__cause__, ImportError)
    assert "annbatch[" not in str(raised.value)
