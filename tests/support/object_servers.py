"""Object stores for tests: an S3-compatible server, and a proxy in front of it that makes things go wrong.

Both are processes of their own on the loopback interface, and end with the ``with`` block.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ports import free_port

ACCESS_KEY, SECRET_KEY = "a-key", "a-secret-of-the-tests"
REGION = "eu-west-2"


@contextmanager
def s3_server(folder: Path, *, keys: bool = True) -> Iterator[int]:
    """Serve the directories in a folder as buckets, to who knows the keys or to everybody; gives the port."""
    port = free_port()
    options = ["--port", str(port), "--log-level", "critical"]
    if keys:
        options += ["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]
    server = subprocess.Popen([sys.executable, "-m", "hadro", str(folder), *options, "--region", REGION])
    try:
        deadline = time.monotonic() + 60
        while not _answers(port):
            assert server.poll() is None, "the S3 server ended"
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(20)


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
    except urllib.error.HTTPError as refused:
        # It has a connection, which Python 3.14 asks to close.
        refused.close()
        return True
    except OSError:
        return False
    return True


class Proxy:
    """Stands in front of a server."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._process = process
        self.port = int(process.stdout.readline())

    def set(self, **settings: Any) -> dict[str, int]:
        """Change settings (see ``fault_proxy.py``); gives counts since the last time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(settings) + "\n")
        self._process.stdin.flush()
        counts: dict[str, int] = json.loads(self._process.stdout.readline())
        return counts

    def calm(self) -> dict[str, int]:
        """Let nothing go wrong any more."""
        return self.set(latency_s=0.0, fault=None, match="", times=0)


@contextmanager
def fault_proxy(upstream: int) -> Iterator[Proxy]:
    """Stand in front of the server at a port."""
    command = [sys.executable, str(Path(__file__).with_name("fault_proxy.py")), str(upstream)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Proxy(process)
    finally:
        with suppress(OSError):
            process.communicate(timeout=20)


def s3_environment(port: int, **more: str) -> dict[str, str]:
    """Say how obstore reaches the server at a port: by environment variables, as users do."""
    return {
        "AWS_ENDPOINT": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    } | more


def n_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
