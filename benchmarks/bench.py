"""How fast does each loader deliver shuffled mini-batches of the same cells?

1. Generate the input, unless the work folder has it (`harness.generate`).
2. Let each contender make its environment and write its own store with its own defaults (`harness.stores.prepare`).
3. For each setting, time all contenders in interleaved rounds (`harness.rounds.measure`).
4. Print medians, spreads and ratios; write JSON, and a figure beside it (`harness.plots`).

Usage: ``python benchmarks/bench.py [--contenders direct,peer] [--settings 512x32,32x256] [--cells 200000] …``
"""

from __future__ import annotations

from harness.command_line import options, prepared
from harness.contenders.registry import CONTENDERS
from harness.plots import plot_speeds
from harness.results import median, print_table, save
from harness.rounds import measure
from harness.settings import SETTINGS, Setting
from harness.stores import jobs_of

DEFAULT_CONTENDERS = (
    "direct", "direct-packed", "zarr", "direct-peer-store", "peer", "scdataset", "mapped", "annloader",
    "limit", "limit-peer-store",
)  # fmt: skip
RANDOM_ACCESS = {"mapped", "annloader"}
"""Contenders that read random rows whatever the setting: they run once, at ``1x16384``."""
BLOCKLESS = {"limit", "limit-peer-store"}
"""Contenders that know no setting: they run beside the first one."""


def says_something(name: str, setting: Setting, is_first: bool) -> bool:
    """Say whether a contender has something to say to a setting."""
    if name in RANDOM_ACCESS and setting.name != "1x16384":
        return False
    if (name in BLOCKLESS and not is_first) or (name == "scdataset" and setting.batch_size != 4096):
        return False
    return not setting.frame or name.startswith("direct")


def main() -> None:
    """Run the benchmark from the command line."""
    parser = options("Time this project's loader beside others.")
    parser.add_argument("--contenders", default=",".join(DEFAULT_CONTENDERS), help=f"of {', '.join(CONTENDERS)}")
    parser.add_argument("--settings", default=",".join(SETTINGS), help="which settings to run")
    parser.add_argument(
        "--prepare", action="store_true", help="only generate the input, the environments and the stores"
    )
    arguments = parser.parse_args()
    names, settings = arguments.contenders.split(","), arguments.settings.split(",")
    for given, known in ((names, CONTENDERS), (settings, SETTINGS)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    bench = prepared(arguments)
    rows = []
    for number, setting in enumerate(map(SETTINGS.__getitem__, settings)):
        print(f"setting {setting.name}", flush=True)
        chosen = [name for name in names if says_something(name, setting, number == 0)]
        jobs = jobs_of(bench, chosen, setting)
        if not arguments.prepare:
            rows += measure(bench, jobs)
    if not rows:
        return
    peer = CONTENDERS["peer"].title
    print_table(rows, reference=peer)
    path = save("cpu", arguments, bench.facts, rows)
    plot_speeds(path)
    limits = {row["contender"]: median(row) for row in rows if row["contender"].startswith("decoding")}
    for name, limit in (("direct", "limit"), ("direct-peer-store", "limit-peer-store")):
        title = CONTENDERS[name].title
        for row in rows:
            if row["contender"] == title and CONTENDERS[limit].title in limits and row["setting"] == settings[0]:
                print(f"{title}: {median(row) / limits[CONTENDERS[limit].title]:.0%} of {CONTENDERS[limit].title}")


if __name__ == "__main__":
    main()
