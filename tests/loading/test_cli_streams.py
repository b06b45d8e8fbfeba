"""Does the command line end well whatever its streams are, whenever Ctrl-C comes, and whatever goes wrong?"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from annbatch import create_anndata_collection
from annbatch.cli import main
from annbatch.commands import collection_commands as commands
from annbatch.errors import StoreError
from annbatch.stores.collection import Collection
from datagen import write_inputs

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
PROGRAM = [sys.executable, "-m", "annbatch"]


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    return write_inputs(tmp_path, sizes=(4,), obs_columns=["n_counts"])


def shell(script: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run a shell script, in which ``"$@"`` is the command."""
    command = ["sh", "-c", script, "sh", *PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="latin-1", timeout=120)


@needs_full
@pytest.mark.parametrize("stream", ["2>&-", pytest.param("2>/dev/full", marks=pytest.mark.slow)])
def test_a_build_goes_on_when_nobody_sees_its_progress(
    stream: str, tmp_path: Path, inputs: list[Path], monkeypatch: pytest.MonkeyPatch
):
    """And when a terminal cannot show its name."""
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    done = shell(f'exec "$@" {stream}', "create", *inputs, tmp_path / "łód")
    assert (done.returncode, done.stderr) == (0, "")
    assert "/\\u0142ód: 4 cells" in done.stdout
    Collection.open(tmp_path / "łód").verify()


@needs_full
def test_a_result_that_cannot_be_written_leaves_the_work_done(tmp_path: Path, inputs: list[Path]):
    done = shell('exec "$@" >/dev/full', "create", *inputs, tmp_path / "store", "--no-progress")
    said = "Error: standard output cannot be written (No space left on device); the work itself is done\n"
    assert (done.returncode, done.stderr) == (1, said)
    Collection.open(tmp_path / "store").verify()


def test_a_reader_that_is_gone_ends_the_program_in_silence(tmp_path: Path, inputs: list[Path]):
    done = shell('{ "$@"; echo $? >&2; } | true', "create", *inputs, tmp_path / "store", "--no-progress")
    assert done.stderr == "1\n"
    Collection.open(tmp_path / "store").verify()


INTERRUPTED_IMPORT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may have been ignored where the tests were started

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "annbatch.commands":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
from annbatch.cli import main
assert "h5py" not in sys.modules
main()
"""


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_ctrl_c_at_the_start(tmp_path: Path, inputs: list[Path]):
    command = [sys.executable, "-c", INTERRUPTED_IMPORT, "create", *map(str, inputs), str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted\n")


# `python -m annbatch` is what the other tests here run.
@pytest.mark.parametrize("module", [pytest.param("annbatch", marks=pytest.mark.slow), "annbatch.cli"])
def test_modules_are_the_command(module: str, tmp_path: Path, inputs: list[Path]):
    create_anndata_collection(inputs, tmp_path / "store", progress=False)
    command = [sys.executable, "-m", module, "verify", str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "1 of 1 stores are whole\n"), done.stderr
    assert "cell/s" in done.stderr


def test_an_error_that_nobody_foresaw_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def fail(path: str) -> None:
        raise ZeroDivisionError("of\nsome kind")

    monkeypatch.setattr(commands.Collection, "open", fail)
    done = CliRunner().invoke(main, ["info", "store"])
    hint = "(set ANNBATCH_TRACEBACK=1 in the environment to see where)"
    assert (done.exit_code, done.stderr) == (1, f"Error: ZeroDivisionError: of some kind {hint}\n")
    monkeypatch.setenv("ANNBATCH_TRACEBACK", "1")
    assert isinstance(CliRunner().invoke(main, ["info", "store"]).exception, ZeroDivisionError)


def test_a_path_that_is_no_text_is_refused(tmp_path: Path):
    done = CliRunner().invoke(main, ["create", os.fsdecode(b"a\xff.h5ad"), str(tmp_path / "store")])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "Error: 'a\\udcff.h5ad': must be UTF-8 text" in done.stderr


def test_warnings_are_lines_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def warned(path: str) -> Collection:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("obs_columns= chooses", UserWarning, stacklevel=1)
        raise StoreError("nothing")

    monkeypatch.setattr(commands, "create_anndata_collection", lambda *given, **options: warned(""))
    done = CliRunner().invoke(main, ["create", "a.h5ad", str(tmp_path / "store")])
    assert done.stderr == "Warning: --obs-column chooses\nError: nothing\n"
