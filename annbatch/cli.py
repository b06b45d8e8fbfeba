"""How does the command line begin and end, whatever happens in between?

1. Standard files that are closed are opened on nothing, so that no file of a collection gets their numbers.
2. `annbatch.commands` is loaded, with all that it needs: Ctrl-C ends that at once.
3. A command runs. Whatever goes wrong is said in one line, without a traceback, and in the exit code.
4. What is left to write to standard output is written; where that is impossible, the exit code says so.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import click

_TRACEBACK = "ANNBATCH_TRACEBACK"


class _Program(click.Group):
    """The commands of `annbatch.commands`, which is imported when the first of them is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Give the names of the commands."""
        return list(_loaded())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Give a command by its name."""
        return _loaded().get(cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as e:
            raise _Interrupted(getattr(e, "__notes__", [])) from e

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        """Run the command that the arguments name, and end the program."""
        run: Any = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **kwargs)
        _open_standard_files()
        try:
            code = run(*args, standalone_mode=False, **kwargs)
        except click.ClickException as e:
            code = e.exit_code
            _try(e.show)
        except click.Abort:
            code = _Interrupted.exit_code
            _try(_Interrupted(()).show)
        except Exception as e:
            if os.environ.get(_TRACEBACK):
                raise
            message = " ".join(f"{type(e).__name__}: {e}".split())
            _try(lambda: click.echo(f"Error: {message} (set {_TRACEBACK}=1 in the environment to see where)", err=True))
            raise SystemExit(1) from e
        finally:
            written = [_flushed(stream) for stream in (sys.stdout, sys.stderr)]
        sys.exit(code or int(not written[0]))


class _Interrupted(click.ClickException):
    """Ctrl-C."""

    exit_code = 130

    def __init__(self, notes: Any) -> None:
        super().__init__("\n".join(["Interrupted", *notes]))

    def show(self, file: Any = None) -> None:
        """Write what is to be said about it."""
        click.echo(self.message, err=True)


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="annbatch-dlpack")
def main() -> None:
    """Build shuffled collections from AnnData files, and inspect them.

    \b
    annbatch create a.h5ad b.h5ad collection    shuffle the cells of two files into a new collection
    annbatch append c.h5ad collection           add the cells of another file
    annbatch info collection                    show what the collection holds
    """  # noqa: D301 click wants the character itself


def _loaded() -> dict[str, click.Command]:
    with _interrupted_at_once():
        from annbatch.commands import COMMANDS
    return COMMANDS


@contextmanager
def _interrupted_at_once() -> Iterator[None]:
    """End the program on Ctrl-C without unwinding: libraries that are being imported may catch what is raised."""

    def leave(number: int, frame: object) -> None:
        _try(lambda: click.echo("Interrupted", err=True))
        os._exit(_Interrupted.exit_code)

    earlier = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or earlier is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)


def _open_standard_files() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one.
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        # Older versions of SciPy import a module of NumPy that needs one.
        sys.stderr = os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        # Names of files may hold what the terminal cannot show.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _try(write: Callable[[], object]) -> None:
    with suppress(OSError, ValueError):
        write()


def _flushed(stream: TextIO | None) -> bool:
    """Write what a stream holds; where that is impossible, let it go, since Python would try again at its end."""
    if stream is None:
        return True
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            stream.flush()
        return False
    return True


if __name__ == "__main__":
    main(prog_name="annbatch")
