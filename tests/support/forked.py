"""How does a test call a function that must not run in its own process?

A forked process has all imports and compiled kernels, which a new interpreter would load for seconds.
"""

from __future__ import annotations

import os
import pickle
import traceback
import warnings
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_a_fork(work: Callable[[], T]) -> T:
    """Call a function in a forked process, and give what it returns; if the process does not end well, so do we."""
    receiver, sender = os.pipe()
    with warnings.catch_warnings():
        # Python, and JAX where it was imported, warn of threads in a process that forks; the child does not use them.
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        os.close(receiver)
        code = 1
        try:
            with os.fdopen(sender, "wb") as file:
                file.write(pickle.dumps(work()))
            code = 0
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            # Not back into what forked it.
            os._exit(code)
    os.close(sender)
    with os.fdopen(receiver, "rb") as file:
        answer = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, f"the process ended with {code}"
    found: T = pickle.loads(answer)
    return found
