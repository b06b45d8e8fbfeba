"""How fast does each loader deliver shuffled mini-batches of the same cells?

1. Generate the input, unless the work folder has it (`generate`).
2. Let each contender make its environment and write its own store with its own defaults (`rounds.prepare`).
3. For each setting, time all contenders in interleaved rounds (`rounds.measure`).
4. Print medians, spreads and ratios; write JSON, and a figure beside it (`plots`).

Usage: ``python benchmarks/bench.py [--contenders direct,peer] [--settings 512x32,32x256] [--cells 200000] …``
"""

from __future__ import annotations

from harness.contenders.registry import CONTENDERS, Job, Setting
from harness.plots import plot_speeds
from harness.results import median, options, prepared, print_table, save
from harness.rounds import Bench, measure, runnable

SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("512x32"),
        Setting("32x256", chunk_size=32, preload_nchunks=256),
        Setting("1x16384", chunk_size=1, preload_nchunks=16384),
        Setting("128-1", batch_size=128),
        Setting("128-20", batch_size=128, columns=20),
        Setting("128-20-frame", batch_size=128, columns=20, frame=True),
    )
}
"""Name -> setting; batches of 4096 unless the name begins with their size."""

DEFAULT_CONTENDERS = (
    "direct", "direct-delta", "zarr", "direct-peer-store", "peer", "scdataset", "mapped", "annloader",
    "limit", "limit-peer-store",
)  # fmt: skip
RANDOM_ACCESS = {"mapped", "annloader"}
"""Contenders that read random rows whatever the setting: they run once, at ``1x16384``."""
BLOCKLESS = {"limit", "limit-peer-store"}
"""Contenders that know no setting: they run beside the first one."""


def jobs_of(bench: Bench, setting: Setting, names: list[str], is_first: bool) -> list[Job]:
    """Give the jobs of a setting, leaving out who cannot run or has nothing to say to it."""

    def says_something(name: str) -> bool:
        if name in RANDOM_ACCESS and setting.name != "1x16384":
            return False
        if (name in BLOCKLESS and not is_first) or (name == "scdataset" and setting.batch_size != 4096):
            return False
        return not setting.frame or name.startswith("direct")

    stores = runnable(bench, filter(says_something, names))
    return [Job(name, setting, bench.files, str(store)) for name, store in stores]


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
    for number, setting in enumerate(settings):
        print(f"setting {setting}", flush=True)
        jobs = jobs_of(bench, SETTINGS[setting], names, number == 0)
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
