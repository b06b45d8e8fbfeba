"""How does a command say errors and warnings of the library in its own words?

Messages of the library name arguments, ``memory_limit``. A parameter of a command has the name of the argument that it
becomes, so that the command knows how to call it: ``--memory-limit``.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

import click

from annbatch.errors import InputError, OutputError, StoreError
from annbatch.progress import say

_WITHOUT_OPTION = {"Pass load= to read other files": "Write it as .h5ad with anndata or scanpy first"}
"""What errors advise that no option does -> what to do instead."""

_RESHUFFLE = {
    "layers": "annbatch reshuffle, with --layers or --no-layers,",
    "obsm": "annbatch reshuffle, with --obsm or --no-obsm,",
}
"""What `annbatch.write.inputs.append_target` calls by the library's function -> the command."""

CODES: tuple[tuple[type[Exception], int], ...] = ((OutputError, 1), (InputError, 2), (StoreError, 3))
"""Exit codes."""


class _Refused(click.ClickException):
    """An error of the library."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]  # click reads it from the object


class Command(click.Command):
    """A command that says what is wrong in words of the command line, with an exit code for each kind of error."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, UserWarning):
                say(f"Warning: {self.in_options(str(message))}")
            else:
                earlier(message, category, *where, **more)

        with warnings.catch_warnings():
            earlier = warnings.showwarning
            warnings.showwarning = show
            try:
                return super().invoke(ctx)
            except (OutputError, InputError, StoreError) as e:
                said = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
                raise _Refused(self.in_options(said), next(code for kind, code in CODES if isinstance(e, kind))) from e

    def in_options(self, message: str) -> str:
        """Say a message that names arguments of the library's function with the options that they are here."""
        for advice, instead in _WITHOUT_OPTION.items():
            message = message.replace(advice, instead)
        message = re.sub(r"reshuffle_collection\((\w+)=\[…\]\)", lambda found: _RESHUFFLE[found[1]], message)
        parameters = {str(parameter.name): parameter for parameter in self.params}
        names = sorted(parameters, key=len, reverse=True)
        # Words like "layers" are no arguments unless a value or a rule stands behind them.
        argument = rf"({'|'.join(names)})(?:=(True\b|False\b|'[^']*')?|(?= must\b))"
        name = rf"({'|'.join(name for name in names if '_' in name)})(?![\w/'\"-]|\.\w)"
        return re.sub(
            rf"(?<![\w./'\"-])(?:{argument}|{name})",
            lambda found: _as_option(parameters[found[1] or found[3]], found[2]),
            message,
        )


def _as_option(parameter: click.Parameter, value: str | None) -> str:
    if isinstance(parameter, click.Argument):
        return (parameter.metavar or parameter.human_readable_name).strip("[].")
    if value == "False" and parameter.secondary_opts:
        return parameter.secondary_opts[0]
    return parameter.opts[0] if value in (None, "", "True") else f"{parameter.opts[0]} {value.strip(chr(39))}"
