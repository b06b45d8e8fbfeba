"""Which tables show cells per second?"""

from __future__ import annotations

from harness.report.markdown import Record, cpu_rate, middle, rate, table
from harness.results import median, ratios
from harness.settings import ON_CPU, TITLES

PEER = "scverse annbatch 0.3.1"
OURS = "annbatch-dlpack"
WITH_CODEC = f"{OURS}, codec "
LOCAL, CACHED = ", local directory", ", cached on disk"
CPU = "cells a CPU second"


def main_table(record: Record) -> str:
    """Speeds, spreads, ratios to the peer and peak memory, a table a setting."""
    text = ""
    for setting in dict.fromkeys(row["setting"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["setting"] == setting]
        base = next((median(row) for row in rows if row["contender"] == PEER), None)
        lines = []
        for row in sorted(rows, key=median, reverse=True):
            note = "" if row["whole_epochs"] else f" ({row['cells_per_round']:,} cells a round)"
            ratio = f"{median(row) / base:.2f}×" if base else ""
            memory = f"{row['peak_rss_bytes'] / 1e6:,.0f} MB"
            lines.append((row["contender"] + note, rate(row), ratio, cpu_rate(row), memory))
        title = TITLES.get(setting, setting)
        head = ("", "cells/s", f"against {PEER}" if base else "", CPU, "peak memory")
        text += f"\n**{title[0].upper()}{title[1:]}**\n\n{table(head, lines)}"
    return text


def readme_table(record: Record) -> str:
    """Ours, with the default codec and the next one, beside the peer, a line for each setting."""
    other = next((name for row in record["rows"] if (name := row["contender"]).startswith(WITH_CODEC)), None)
    lines = []
    for setting in dict.fromkeys(row["setting"] for row in record["rows"]):
        rows = {row["contender"]: row for row in record["rows"] if row["setting"] == setting}
        if all(name in rows for name in (OURS, other, PEER)):
            ours = [rows[OURS], rows[other]]
            ratios = [f"{median(row) / median(rows[PEER]):.1f}×" for row in ours]
            lines.append((TITLES.get(setting, setting), *map(rate, [*ours, rows[PEER]]), ", ".join(ratios)))
    codec = (other or "").removeprefix(WITH_CODEC)
    head = ("", "this project", f'with `codec="{codec}"`', PEER, "ratios")
    return table(head, lines)


def gpu_table(record: Record) -> str:
    """Speeds by size of windows beside the peer's best, what the machine can do at best, and idle time in training."""
    rows = record["rows"]
    speeds = [row for row in rows if "model" not in row and not row["contender"].startswith("limit")]
    on_cpu = [row for row in speeds if row["setting"].endswith(ON_CPU)]
    speeds = [row for row in speeds if row not in on_cpu]
    best = max((median(row) for row in speeds if row["contender"].startswith("peer")), default=None)
    text = ""
    for setting in dict.fromkeys(row["setting"] for row in speeds):
        own = sorted((row for row in speeds if row["setting"] == setting), key=median, reverse=True)
        lines = [
            (row["contender"], rate(row), f"{median(row) / best:.2f}×" if best else "", cpu_rate(row)) for row in own
        ]
        title = TITLES.get(setting, setting)
        head = ("", "cells/s", "against the peer's best of all settings" if best else "", CPU)
        text += f"\n**{title[0].upper()}{title[1:]}**\n\n{table(head, lines)}"
    text += main_table({"rows": on_cpu})
    limits = [row for row in rows if row["contender"].startswith("limit")]
    if limits:
        lines = [(row["contender"].removeprefix("limit: "), rate(row), cpu_rate(row)) for row in limits]
        text += f"\n**One stage alone, for all of X**\n\n{table(('', 'cells/s', CPU), lines)}"
    trained = [row for row in rows if "model" in row]
    if trained:
        lines = [
            (
                row["contender"],
                row["setting"],
                rate(row),
                cpu_rate(row),
                f"{middle(row['idle_share']):.1%} ± {(max(row['idle_share']) - min(row['idle_share'])) / 2:.1%}",
            )
            for row in trained
        ]
        facts = trained[0]
        size = (
            f"{facts['n_obs']:,} cells × {facts['n_vars']:,} genes, {facts['nnz'] / facts['n_obs']:,.0f} values a cell"
        )
        head = ("", "model, window", "cells/s", CPU, "time without a step")
        text += f"\n**While training on {size}**\n\n{table(head, lines)}"
    versions = ", ".join(f"{name} {version}" for name, version in record["software"].items())
    return f"{text}\n{versions}.\n"


def remote_table(record: Record) -> str:
    """Speeds by distance, beside the faster of the peer's pipelines and a local directory of the same codec."""
    local = {
        (row["setting"].partition(", ")[0], row["contender"].removesuffix(LOCAL)): median(row)
        for row in record["rows"]
        if row["contender"].endswith(LOCAL)
    }
    text = ""
    for setting in dict.fromkeys(row["setting"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["setting"] == setting]
        base = max((median(row) for row in rows if row["contender"].startswith(PEER)), default=None)
        lines = []
        for row in sorted(rows, key=median, reverse=True):
            near = local.get((setting.partition(", ")[0], row["contender"].removesuffix(CACHED)))
            lines.append(
                (
                    row["contender"],
                    rate(row),
                    f"{median(row) / near:.0%}" if near else "",
                    f"{median(row) / base:.1f}×" if base else "",
                    cpu_rate(row),
                    f"{row['peak_rss_bytes'] / 1e6:,.0f} MB",
                )
            )
        ratio = f"against the faster {PEER}" if base else ""
        head = ("", "cells/s", "share of a local directory", ratio, CPU, "peak memory")
        text += f"\n**chunk_size x preload_nchunks, delay: {setting}**\n\n{table(head, lines)}"
    return text


def in_place_table(record: Record) -> str:
    """Speeds of files read in place, by wall and by CPU time, beside the other loader that reads them."""
    lines = []
    for setting in dict.fromkeys(row["setting"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["setting"] == setting]
        base = next(row for row in rows if not row["contender"].startswith(OURS))
        for row in rows:
            note = "" if row["whole_epochs"] else f" ({row['cells_per_round']:,} cells a round)"
            ratio = "" if row is base else "{:.1f}× ({:.1f}–{:.1f})".format(*ratios(row, base, "cells_per_cpu_s"))
            form, _, name = setting.partition(", ")
            title = f"{form}, {TITLES.get(name, name)}"
            lines.append((title, row["contender"] + note, rate(row), cpu_rate(row), ratio))
    return table(("", "", "cells/s", CPU, "ratio of cells a CPU second"), lines)


def cold_table(record: Record) -> str:
    """Cold and warm speeds beside ``cat``, and bytes read; then requests and bytes of an epoch on an object store."""
    rows = record["rows"]
    reference = {(row["store"], row["state"]): row for row in rows if "bytes_per_s" in row}
    lines = [
        (store, *(f"{middle(reference[store, state]['bytes_per_s']) / 1e6:,.0f} MB/s" for state in ("cold", "warm")))
        for store in dict.fromkeys(store for store, _ in reference)
    ]
    text = f"\n**`cat` of the files**\n\n{table(('store', 'cold', 'warm'), lines)}" if lines else ""
    timed = [row for row in rows if "bytes_per_s" not in row]
    for setting in dict.fromkeys(row["setting"] for row in timed):
        of_setting = [row for row in timed if row["setting"] == setting]
        cold = {row["contender"]: row for row in of_setting if row["state"] == "cold"}
        warm = {row["contender"]: row for row in of_setting if row["state"] == "warm"}
        base = median(cold[PEER]) if PEER in cold else None
        lines = []
        for name, row in sorted(cold.items(), key=lambda each: -median(each[1])):
            least = median(warm[name])
            if (row["store"], "cold") in reference:
                least = min(least, median(reference[row["store"], "cold"]))
            read = row["device_bytes_per_cell"]
            lines.append(
                (
                    *(name, rate(row), rate(warm[name]), f"{median(row) / least:.0%}"),
                    f"{median(row) / base:.1f}×" if base else "",
                    "" if read is None else f"{middle(read):,.0f}",
                )
            )
        head = (
            *("", "cold, cells/s", "warm, cells/s", "cold, of the smaller of warm and `cat`"),
            *(f"cold, against {PEER}" if base else "", "bytes a cell from the device"),
        )
        title = TITLES.get(setting, setting)
        text += f"\n**{title[0].upper()}{title[1:]}**\n\n{table(head, lines)}"
        far = [row for row in of_setting if row["state"] == "object store"]
        if far:
            lines = [
                (
                    *(row["contender"], f"{median(row):,.0f}", f"{row['requests_per_1000_cells']:,.1f}"),
                    f"{row['bytes_per_cell']:,.0f}",
                )
                for row in sorted(far, key=median, reverse=True)
            ]
            head = ("on an object store", "cells/s", "requests for 1,000 cells", "bytes a cell")
            text += f"\n{table(head, lines)}"
    return text


def speeds_table(record: Record) -> str:
    """One line a contender and setting."""
    lines = [
        (row["contender"], row["setting"], rate(row), cpu_rate(row), f"{row['peak_rss_bytes'] / 1e6:,.0f} MB")
        for row in record["rows"]
    ]
    return table(("", "setting", "cells/s", CPU, "peak memory"), lines)


def pivot(record: Record, key: str) -> str:
    """Speeds with a column a contender, a line for each value of ``key``."""
    names = list(dict.fromkeys(row["contender"] for row in record["rows"]))
    lines = []
    for value in dict.fromkeys(row[key] for row in record["rows"]):
        found = {row["contender"]: row for row in record["rows"] if row[key] == value}
        lines.append([f"{value:,}", *(both_rates(found[name]) if name in found else "" for name in names)])
    return table([key, *names], lines)


def both_rates(row: Record) -> str:
    """Write cells per second and, where they were recorded, per CPU second: for tables with a column a contender."""
    return f"{rate(row)}, {cpu_rate(row)} a CPU second" if cpu_rate(row) else rate(row)


def growth_table(record: Record) -> str:
    """Speeds of each contender on the small and on the large collection, and what of its speed it keeps."""
    lines = []
    sizes = sorted({row["n_obs"] for row in record["rows"]})
    for setting, name in dict.fromkeys((row["setting"], row["contender"]) for row in record["rows"]):
        rows = [row for row in record["rows"] if (row["setting"], row["contender"]) == (setting, name)]
        found = {row["n_obs"]: row for row in rows}
        kept = f"{median(found[sizes[-1]]) / median(found[sizes[0]]):.0%}" if len(found) == len(sizes) else ""
        lines.append(
            (
                name,
                TITLES.get(setting, setting),
                *(both_rates(found[size]) if size in found else "" for size in sizes),
                kept,
            )
        )
    return table(("", "setting", *(f"{size:,} cells" for size in sizes), "kept"), lines)


def workers_table(record: Record) -> str:
    """Speeds beside the loader alone, with peak memory."""
    base = median(record["rows"][0])
    lines = []
    for row in record["rows"]:
        note = "" if row["whole_epochs"] else f" ({row['cells_per_round']:,} cells a round)"
        memory = f"{row['peak_rss_bytes'] / 1e6:,.0f} MB"
        lines.append((row["contender"] + note, rate(row), f"{median(row) / base:.2f}×", cpu_rate(row), memory))
    return table(("", "cells/s", "of the loader alone", CPU, "peak memory, workers included"), lines)


def codecs_table(record: Record) -> str:
    """Bytes a cell and speeds, a line for each codec."""
    settings = list(dict.fromkeys(row["setting"] for row in record["rows"]))
    lines = []
    for contender in dict.fromkeys(row["contender"] for row in record["rows"]):
        rows = {row["setting"]: row for row in record["rows"] if row["contender"] == contender}
        codec = contender.partition("codec ")[2] or "blosc"
        lines.append(
            (f"`{codec}`", f"{rows[settings[0]]['bytes_per_cell']:,.0f}", *(both_rates(rows[one]) for one in settings))
        )
    return table(("`codec`", "bytes a cell", *(TITLES.get(one, one) for one in settings)), lines)
