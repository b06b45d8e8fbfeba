"""What do all tests share?

1. Hypothesis profiles: no deadlines (first calls compile kernels); the same examples in every run, unless asked.
2. Tests marked ``gpu`` are skipped where no CUDA device answers.
3. Threads that a test finds at its beginning are not its own.
4. XLA compiles quickly rather than well, here and in the processes that tests start.
5. The garbage collector leaves alone what imports and collection made, so that a full collection in a test is short.
6. Nothing waits for the disk, which only a loss of power would show. `test_write_power_loss` sees that builds do.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings

from live_threads import remember

settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
# For mutants, of which it matters only whether they are noticed, however busy the machine is.
settings.register_profile(
    "mutants",
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# Read when JAX is imported, which no test has done yet.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def cuda_device_answers() -> bool:
    try:
        import cupy
    except ImportError:
        return False
    try:
        return bool(cupy.cuda.runtime.getDeviceCount() > 0)
    except cupy.cuda.runtime.CUDARuntimeError:
        return False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not cuda_device_answers():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device, or no CuPy"))


def pytest_collection_finish() -> None:
    """Take modules out of garbage collections: with all frameworks imported, each goes through 600,000 objects."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def disk_that_nobody_waits_for() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def threads_of_other_tests() -> None:
    """Tell the threads that a test starts from those that others left."""
    remember()
