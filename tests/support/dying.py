"""A stand-in for `fuzz_stores.read_inputs`: its process dies at input 1 and hangs at input 3. It imports little."""

from __future__ import annotations

import os
import signal
import time
from typing import Any


def read_inputs(connection: Any, pristine: Any, seed: int, first: int, stop: int) -> None:
    connection.send(None)
    for number in range(first, stop):
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 3:
            time.sleep(600)
        connection.send(("read", None))
