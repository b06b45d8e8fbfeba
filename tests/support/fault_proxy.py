"""A proxy in a process of its own: what may happen on the way to an object store?

Usage: ``python fault_proxy.py UPSTREAM_PORT``. It prints its port. Each line on standard input is a JSON object of
settings; it answers each with a line of counts. It ends with its standard input.

``latency_s`` delays every answer. A ``fault`` befalls ``times`` requests (-1: all) whose path contains ``match``:

- ``"503"``, ``"500"``, ``"403"``: that answer;
- ``"drop"``: the connection is closed before the answer;
- ``"cut"``: it is reset in the middle of the body;
- ``"short"``: half of the body comes, as if that were all;
- ``"flip"``: one bit of the body is another;
- ``"silence"``: no answer at all.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

settings: dict[str, Any] = {"latency_s": 0.0, "fault": None, "match": "", "times": 0}
counts = {"requests": 0, "faults": 0, "under_way": 0, "most_under_way": 0}


async def head_of(reader: asyncio.StreamReader) -> tuple[bytes, dict[str, str]]:
    head = await reader.readuntil(b"\r\n\r\n")
    fields = [line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:] if line]
    return head, {name.lower(): value.strip() for name, _, value in fields}


async def body_of(reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
    if fields.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(fields.get("content-length", 0)))
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(parts)


def fault_for(path: str) -> str | None:
    if settings["fault"] and settings["times"] and settings["match"] in path:
        settings["times"] -= 1
        counts["faults"] += 1
        return str(settings["fault"])
    return None


def answer(status: str, fields: dict[str, str], body: bytes) -> bytes:
    kept = {name: value for name, value in fields.items() if name not in ("transfer-encoding", "content-length")}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in kept.items())]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode("latin-1") + body


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    upstream: asyncio.StreamWriter | None = None
    try:
        from_upstream, upstream = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))
        while True:
            head, _ = await head_of(reader)
            counts["requests"] += 1
            counts["under_way"] += 1
            counts["most_under_way"] = max(counts["most_under_way"], counts["under_way"])
            try:
                method, path, _ = head.decode("latin-1").split("\r\n")[0].split(" ")
                fault = fault_for(path)
                await asyncio.sleep(settings["latency_s"])
                if fault in ("503", "500", "403"):
                    writer.write(answer(f"{fault} Fault", {"content-type": "application/xml"}, b"<Error/>"))
                    await writer.drain()
                    continue
                if fault == "drop":
                    return
                if fault == "silence":
                    await reader.read()
                    return
                upstream.write(head)
                answer_head, fields = await head_of(from_upstream)
                status = answer_head.decode("latin-1").split("\r\n")[0].split(" ", 1)[1]
                if method == "HEAD":
                    writer.write(answer_head)
                    await writer.drain()
                    continue
                body = await body_of(from_upstream, fields)
                if fault == "flip":
                    body = body[: len(body) // 2] + bytes([body[len(body) // 2] ^ 4]) + body[len(body) // 2 + 1 :]
                if fault == "short":
                    body = body[: len(body) // 2]
                whole = answer(status, fields, body)
                if fault == "cut":
                    writer.write(whole[: len(whole) - len(body) // 2 - 1])
                    await writer.drain()
                    writer.transport.abort()
                    return
                writer.write(whole)
                await writer.drain()
            finally:
                counts["under_way"] -= 1
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()
        if upstream is not None:
            upstream.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20)
    print(server.sockets[0].getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        settings.update(json.loads(line))
        print(json.dumps(counts), flush=True)
        counts.update(requests=0, faults=0, most_under_way=counts["under_way"])


if __name__ == "__main__":
    asyncio.run(main())
