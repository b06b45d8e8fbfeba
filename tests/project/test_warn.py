"""Does a warning name the line of the user?"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import ModuleType
from typing import Any

import pytest

from annbatch.warn import warn, with_caller


def through(name: str, inner: Callable[[], Any]) -> Callable[[], Any]:
    """Give a function of a module of that name, which calls another."""
    module = ModuleType(name)
    code = compile("def call():\n    return inner()\n", f"{name}.py", "exec")
    vars(module)["inner"] = inner
    exec(code, vars(module))
    return module.call  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "callers",
    [
        [],
        ["annbatch.write.build"],
        ["annbatch.write.inputs", "annbatch.write.build", "annbatch"],
        ["annbatch.loader", "annbatch_torch._loader"],
        # A context manager of this package is entered through the standard library.
        ["annbatch.write.build", "contextlib", "annbatch.write.create"],
    ],
)
def test_a_warning_names_the_line_of_the_user(callers: list[str]) -> None:
    call: Callable[[], Any] = partial(warn, "a column is left out")
    for name in callers:
        call = through(name, call)
    with pytest.warns(UserWarning, match="^a column is left out$") as warned:
        through("annbatch_of_a_user", call)()
    assert [(one.filename, one.lineno) for one in warned] == [("annbatch_of_a_user.py", 2)]


def test_so_does_one_of_a_thread() -> None:
    def in_thread() -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(with_caller(through("annbatch.write.build", partial(warn, "a column is left out")))).result()

    with pytest.warns(UserWarning, match="left out") as warned:
        through("user", through("annbatch.write.create", in_thread))()
    assert [(one.filename, one.lineno) for one in warned] == [("user.py", 2)]
