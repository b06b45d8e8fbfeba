"""How fast do loaders read from an object store, and what does its distance cost?

1. The stores of this project and of the peer are written as for ``bench.py``, and served by nginx on loopback, with a
   delay before each answer (`harness.range_server`).
2. For each setting and delay all contenders run in interleaved rounds: this project's loader on both stores, the peer
   with zarr's default and with its fused pipeline, and zarr's own ``ObjectStore`` as fast as it reads the same blocks,
   without shuffling them. Without delay, the loader on the local directory runs beside them.
3. ``cached`` is the loader with a cache on the local disk: it is empty when the process starts, and the first epoch,
   which is not timed, fills it. So what is timed are hits, however far the server is.

Usage: ``python benchmarks/remote.py [--latencies 0,20,100] [--settings 512x32,32x256] [--cells 200000] …``
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from harness.command_line import options, prepared
from harness.jobs import Job
from harness.range_server import range_server
from harness.results import print_table, save
from harness.rounds import measure
from harness.settings import SETTINGS
from harness.stores import Bench, jobs_of, prepare

REMOTE = (
    "direct", "direct-packed", "cached", "direct-peer-store", "peer-remote", "peer-remote-fused",
    "objectstore", "objectstore-fused",
)  # fmt: skip
LOCAL = {
    "direct": "annbatch-dlpack, local directory",
    "direct-packed": "annbatch-dlpack, codec packed, local directory",
    "direct-peer-store": "annbatch-dlpack on scverse annbatch's store, local directory",
}


def jobs_at(bench: Bench, setting: str, names: list[str], urls: dict[float, str], latency_s: float) -> list[Job]:
    """Give the jobs of one setting and delay."""
    named = replace(SETTINGS[setting], name=f"{setting}, {1000 * latency_s:.0f} ms")
    jobs = []
    for job in jobs_of(bench, names, named):
        jobs.append(replace(job, store=f"{urls[latency_s]}/{Path(job.store).name}"))
        if not latency_s and job.contender in LOCAL:
            jobs.append(replace(job, label=LOCAL[job.contender]))
    return jobs


def main() -> None:
    """Run the benchmark from the command line."""
    parser = options("Time loaders on an object store, near and far.")
    parser.add_argument("--contenders", default=",".join(REMOTE), help=f"of {', '.join(REMOTE)}")
    parser.add_argument("--settings", default="512x32,32x256", help="which settings of bench.py to run")
    parser.add_argument("--latencies", default="0,20,100", help="delays before each answer, in milliseconds")
    parser.add_argument("--server-processes", type=int, default=1, help="nginx's worker processes")
    arguments = parser.parse_args()
    latencies = [float(text) / 1000 for text in arguments.latencies.split(",")]
    names = arguments.contenders.split(",")
    bench = prepared(arguments)
    prepare(bench, "direct")
    rows = []
    with range_server(bench.input / "stores", latencies, arguments.server_processes) as urls:
        for setting in arguments.settings.split(","):
            for latency_s in latencies:
                print(f"setting {setting}, {1000 * latency_s:.0f} ms", flush=True)
                rows += measure(bench, jobs_at(bench, setting, names, urls, latency_s))
    print_table(rows)
    save("remote", arguments, bench.facts, rows)


if __name__ == "__main__":
    main()
