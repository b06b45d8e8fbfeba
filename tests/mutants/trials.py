"""Do the tests of a copy of the tree fail?

1. One process imports what the tests import, except the copy's own modules, and forks for each run: starting Python and
   importing its packages would take longer than most of the tests.
2. The child changes to its copy and runs pytest there. The tests that failed in earlier runs come first.
3. CPU time is limited, not time on the clock, so that other load on the machine changes no result. A generous limit on
   the clock ends deadlocks.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import types
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

# A process that forks must have no other threads, and several of them share the cores.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

MAX_MEMORY_BYTES = 8 << 30
"""Of one process. A mutant that allocates without end fails before the machine is out of memory."""

_CRASHED = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGXCPU}
"""What ends a process that a mutant spoilt. Other signals come from elsewhere."""

_FAILED = {code for code in pytest.ExitCode if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)}
"""How pytest ends if a test fails, or a test file or a module that it needs cannot be imported."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a run may take."""

    cpu_s: float
    """Of each of its processes."""
    clock_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    is_killed: bool | None
    """Whether tests failed, or a limit was hit; None if neither that nor its contrary is certain."""
    code: int
    """pytest's exit code; negative for the signal that ended it."""
    cpu_s: float
    clock_s: float
    failed: str | None
    """The test that failed, if it could be told."""
    imported: dict[str, str]
    """Names of imported modules to their files."""
    output: str
    """What pytest printed."""


@dataclass(slots=True)
class Trial:
    """A run of the tests that is under way."""

    pid: int
    copy: Path
    limits: Limits
    began: float
    """By the monotonic clock."""
    is_late: bool = False
    """Whether it hit the limit on the clock."""


def begin(
    copy: Path, tests: Sequence[str], limits: Limits, *, first: Sequence[str] = (), keep_bytecode: bool = False
) -> Trial:
    """Begin to run tests in a copy of the tree, the ones named in ``first`` before the others."""
    shutil.rmtree(_scratch(copy), ignore_errors=True)
    _scratch(copy).mkdir(exist_ok=True)
    sys.stdout.flush()
    with warnings.catch_warnings():
        # JAX warns of forks. Nothing of it runs here.
        warnings.simplefilter("ignore", RuntimeWarning)
        pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = _run_pytest(copy, tests, limits, first, keep_bytecode)
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    return Trial(pid, copy, limits, time.monotonic())


def end_of_one(trials: Collection[Trial]) -> tuple[Trial, Outcome]:
    """Wait until one of the runs ends."""
    while True:
        for trial in trials:
            if os.waitid(os.P_PID, trial.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return trial, _ended(trial)
            if not trial.is_late and time.monotonic() - trial.began > trial.limits.clock_s:
                trial.is_late = True
                os.killpg(trial.pid, signal.SIGKILL)
        time.sleep(0.01)


def run(
    copy: Path, tests: Sequence[str], limits: Limits, *, first: Sequence[str] = (), keep_bytecode: bool = False
) -> Outcome:
    """Run tests in a copy of the tree."""
    return end_of_one([begin(copy, tests, limits, first=first, keep_bytecode=keep_bytecode)])[1]


def stop(trials: Iterable[Trial]) -> None:
    """End runs whose outcome is not wanted."""
    for trial in trials:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(trial.pid, signal.SIGKILL)
        os.waitpid(trial.pid, 0)


def import_packages(imported: dict[str, str], copy: Path) -> None:
    """Import here, once, the modules of the tests that are not of the copy itself."""
    for name, file in imported.items():
        if name not in sys.modules and not file.startswith(str(copy)):
            with contextlib.suppress(ImportError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(name)
    if threading.active_count() > 1:
        raise RuntimeError(f"a package started threads when it was imported: {threading.enumerate()}")
    # The children's garbage collectors need not look at these.
    gc.collect()
    gc.freeze()


def _scratch(copy: Path) -> Path:
    return copy / "scratch"


def _run_pytest(copy: Path, tests: Sequence[str], limits: Limits, first: Sequence[str], keep_bytecode: bool) -> int:
    """Run pytest in this process, which has just been forked for it."""
    # A group of its own can be ended with the processes that tests started.
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    scratch = _scratch(copy)
    output = os.open(scratch / "output", os.O_CREAT | os.O_WRONLY)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (round(limits.cpu_s), round(limits.cpu_s) + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    os.chdir(copy)
    paths = [str(copy), str(copy / "adapters")]
    sys.path[:0] = paths
    sys.dont_write_bytecode = not keep_bytecode
    # For processes that tests start.
    os.environ |= {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "" if keep_bytecode else "1",
        "HYPOTHESIS_PROFILE": "mutants",
        "TMPDIR": str(scratch),
    }
    tempfile.tempdir = None
    # Or the processes that tests spawn would import the program that plants faults.
    sys.modules["__main__"] = types.ModuleType("__main__")
    order = _FailedFirst(first)
    # Packages that are imported already cannot be rewritten for detailed assertions.
    options = ["-x", "-q", "-p", "no:cacheprovider", "-o", "timeout=0", "--assert=plain"]
    code = pytest.main([*options, f"--basetemp={scratch / 'tmp'}", *tests], plugins=[order])
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    report = {"failed": order.failed, "imported": {name: file for name, file in files.items() if file}}
    (scratch / "report.json").write_text(json.dumps(report))
    return int(code)


class _FailedFirst:
    """Runs some tests before the others, and remembers which test failed."""

    def __init__(self, first: Sequence[str]) -> None:
        self._rank = {name: i for i, name in enumerate(first)}
        self.failed: str | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self._rank.get(item.nodeid, len(self._rank)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = report.nodeid


def _ended(trial: Trial) -> Outcome:
    """Collect what a run left, and end the processes that its tests left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(trial.pid, signal.SIGKILL)
    _, status, usage = os.wait4(trial.pid, 0)
    code, cpu_s = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
    report = {"failed": None, "imported": {}}
    with contextlib.suppress(FileNotFoundError):
        report = json.loads((_scratch(trial.copy) / "report.json").read_text())
    output = ""
    with contextlib.suppress(FileNotFoundError):
        output = (_scratch(trial.copy) / "output").read_text(errors="replace")
    is_killed: bool | None = None
    if code == pytest.ExitCode.OK:
        is_killed = False
    elif code in _FAILED or -code in _CRASHED or trial.is_late:
        is_killed = True
    clock_s = time.monotonic() - trial.began
    return Outcome(is_killed, code, cpu_s, clock_s, **report, output=output)
