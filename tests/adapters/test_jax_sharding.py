"""Do batches spread over devices and processes hold the right rows in shapes that all agree on?

The checks stand in `jax_process`: the number of devices is fixed when JAX starts, and processes have to be real.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ports import free_port

pytest.importorskip("jax")

SCRIPT = Path(__file__).parents[1] / "support/jax_process.py"
PATIENCE_S = 240


def start(n_devices: int, *arguments: str) -> subprocess.Popen[str]:
    # No proxy stands between processes of one machine; JAX asks for its coordinator by HTTP.
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment
        | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={n_devices}",
        },
    )


def check_all_hold(processes: list[subprocess.Popen[str]]) -> None:
    try:
        for process in processes:
            output, errors = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0, f"behind {output.split()[-1:]}: {errors}"
            assert output.endswith("all hold\n")
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_eight_devices() -> None:
    check_all_hold([start(8, "devices")])


def test_two_processes() -> None:
    port = str(free_port())
    check_all_hold([start(2, "processes", str(rank), port) for rank in range(2)])
