"""A web server that answers byte ranges faster than any loader reads, after a delay for each request.

It is nginx with its Lua module (on Debian: ``apt-get install nginx-light libnginx-mod-http-lua``), started on loopback
for the ``with`` block, and speaks plain HTTP without signatures or listing.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness.environments import Unavailable

_CONFIGURATION = """
load_module modules/ndk_http_module.so;
load_module modules/ngx_http_lua_module.so;
daemon off;
user root;
worker_processes {workers};
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  log_format bytes '$body_bytes_sent';
  access_log {log};
  sendfile on;
  # Else small answers end with a packet that waits some 40 ms for an acknowledgement of those before.
  tcp_nopush off;
  tcp_nodelay on;
  keepalive_requests 1000000;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  {servers}
}}
"""
_SERVER = "server {{ listen 127.0.0.1:{port} reuseport; root {root}; location / {{ {delay} }} }}\n"
_DELAY = "rewrite_by_lua_block {{ ngx.sleep({seconds}) }}"


@dataclass(slots=True)
class Traffic:
    """What a server was asked for; filled in while it runs."""

    log: Path | None = field(default=None)
    """Its log: the bytes of each answer, a line each."""

    def count(self) -> tuple[int, int]:
        """Give the number of requests so far, and the bytes of the answers."""
        assert self.log is not None
        sizes = [int(line) for line in self.log.read_text().splitlines()]
        return len(sizes), sum(sizes)


@contextmanager
def range_server(
    root: Path, latencies_s: Sequence[float], workers: int = 1, traffic: Traffic | None = None
) -> Iterator[dict[float, str]]:
    """Serve a folder with each of the latencies; gives their URLs, and lets ``traffic`` count what is asked for.

    Raises
    ------
    Unavailable
        If nginx or its Lua module is not installed.
    """
    if shutil.which("nginx") is None:
        raise Unavailable("nginx is not installed (apt-get install nginx-light libnginx-mod-http-lua)")
    ports = {}
    for latency in latencies_s:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports[latency] = probe.getsockname()[1]
    servers = "  ".join(
        _SERVER.format(port=port, root=root.resolve(), delay=_DELAY.format(seconds=latency) if latency else "")
        for latency, port in ports.items()
    )
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder, "nginx.conf"), "off"
        if traffic is not None:
            traffic.log = Path(folder, "access.log")
            log = f"{traffic.log} bytes"
        path.write_text(_CONFIGURATION.format(workers=workers, folder=folder, servers=servers, log=log))
        process = subprocess.Popen(["nginx", "-p", "/usr/share/nginx", "-c", str(path)], stderr=subprocess.PIPE)
        try:
            for port in ports.values():
                _wait(process, port)
            yield {latency: f"http://127.0.0.1:{port}" for latency, port in ports.items()}
        finally:
            process.terminate()
            process.wait(20)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if process.poll() is not None:
            assert process.stderr is not None
            raise Unavailable(f"nginx ended: {process.stderr.read().decode()[:500]}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise Unavailable("nginx does not answer")
