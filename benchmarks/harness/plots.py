"""What do the results look like?

`plot_headline` draws this project beside the peer; `plot_speeds` the main benchmark, a panel a setting; `plot_lines`
speed over something, a line a contender.
Every dot is one round, every bar or line the median of its rounds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from harness.settings import TITLES

INK, GRID = "#22303c", "#d9dee3"
OURS, OTHERS, LIMIT = "#0b7a75", "#9aa5b1", "#e3e7eb"

HEADLINE_SETTINGS = ("512x32", "32x256", "1x16384")
HEADLINE_BARS = {
    "annbatch-dlpack": ("default\ncodec", OURS),
    "annbatch-dlpack, codec packed": ("codec\npacked", "#4aa39f"),
    "scverse annbatch 0.3.1": ("scverse\nannbatch", OTHERS),
}
"""Contender -> what the headline calls it, and its colour; the last one is what the others are compared with."""


def style() -> None:
    """Set the look of all figures."""
    mpl.rcParams.update(
        {
            "figure.dpi": 150,
            "font.size": 9,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.titlesize": 9.5,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "axes.titlecolor": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "xtick.color": INK,
            "ytick.color": INK,
            "text.color": INK,
            "svg.hashsalt": "annbatch",
        }
    )


def write_figure(figure: Figure, results: Path) -> Path:
    """Write a figure as a PNG beside the file of results that it shows; give its path."""
    path = results.with_suffix(".png")
    figure.savefig(path)
    plt.close(figure)
    return path


def color_of(contender: str) -> str:
    """Give this project, the decoding limit and everybody else their colours."""
    if contender.startswith(("annbatch-dlpack", "ours ")):
        return OURS
    return LIMIT if contender.startswith("decoding") else OTHERS


def short(rate: float) -> str:
    """Write a rate for people: 282,000 as 282k, 1,300 as 1.3k."""
    if rate < 1000:
        return f"{rate:,.0f}"
    return f"{rate / 1000:,.{0 if rate >= 10_000 or rate % 1000 == 0 else 1}f}k"


def plot_speeds(results: Path, shows: Callable[[dict[str, Any]], bool] = bool) -> Path:
    """Draw those rows that ``shows`` picks of a file of the main benchmark as a PNG beside it; give its path."""
    style()
    record = json.loads(results.read_text())
    record["rows"] = [row for row in record["rows"] if shows(row)]
    settings = list(dict.fromkeys(row["setting"] for row in record["rows"]))
    groups = [[row for row in record["rows"] if row["setting"] == setting] for setting in settings]
    figure, panels = plt.subplots(
        len(groups),
        1,
        figsize=(7.6, sum(0.55 + 0.3 * len(group) for group in groups) + 0.7),
        height_ratios=[len(group) + 0.8 for group in groups],
        squeeze=False,
        layout="constrained",
    )
    longest = max(max(row["cells_per_s"]) for row in record["rows"])
    for setting, group, axes in zip(settings, groups, panels[:, 0], strict=True):
        group.sort(key=lambda row: np.median(row["cells_per_s"]))
        for y, row in enumerate(group):
            middle = float(np.median(row["cells_per_s"]))
            axes.barh(y, middle, height=0.66, color=color_of(row["contender"]), zorder=2)
            axes.scatter(
                row["cells_per_s"], np.full(len(row["cells_per_s"]), y), s=9, color=INK, alpha=0.75, lw=0, zorder=3
            )
            axes.text(max(row["cells_per_s"]) + longest * 0.012, y, short(middle), va="center", fontweight="bold")
        axes.set_yticks(range(len(group)), [row["contender"] for row in group])
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, longest * 1.1)
        axes.grid(axis="x", color=GRID, lw=0.6, zorder=0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,.0f}k")
        axes.set_title(TITLES.get(setting, setting))
        if axes is not panels[-1, 0]:
            axes.tick_params(axis="x", labelbottom=False)
    panels[-1, 0].set_xlabel("cells per second (bar: median, dots: rounds)")
    facts = record["input"]
    figure.suptitle(
        f"{facts['n_obs']:,} cells × {facts['n_vars']:,} genes, {facts['nnz'] / facts['n_obs']:,.0f} values a cell\n"
        f"{record['machine']}, {record['date']}",
        x=0.01,
        ha="left",
        fontsize=8,
    )
    return write_figure(figure, results)


def plot_lines(results: Path, key: str, label: str, *, log: bool = True) -> Path:
    """Draw cells per second over a row's field ``key``, a line a contender, as a PNG beside the results."""
    style()
    rows: Sequence[dict[str, Any]] = json.loads(results.read_text())["rows"]
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    names = list(dict.fromkeys(row["contender"] for row in rows))
    shades = iter([OURS, INK, OTHERS, "#c77d11", "#7b5ea7", "#3c78b4"])
    for name in names:
        own = sorted((row for row in rows if row["contender"] == name), key=lambda row: row[key])
        x = [row[key] for row in own]
        color = next(shades, INK)
        axes.plot(x, [np.median(row["cells_per_s"]) for row in own], color=color, lw=2, label=name)
        for row in own:
            axes.scatter([row[key]] * len(row["cells_per_s"]), row["cells_per_s"], s=10, color=color, lw=0, alpha=0.7)
    ticks = sorted({row[key] for row in rows})
    if log:
        axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(0)
    axes.grid(color=GRID, lw=0.6)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value / 1000:,.0f}k")
    axes.set_xlabel(label)
    axes.set_ylabel("cells per second")
    axes.legend(frameon=False, fontsize=8)
    return write_figure(figure, results)


def plot_headline(record: dict[str, Any], path: Path) -> Path:
    """Draw this project beside the peer, a panel a setting with a scale of its own, as an SVG; give its path.

    The figure has a background of its own, so that it can be read on light and on dark pages.
    """
    style()
    names = [name for name in HEADLINE_BARS if any(row["contender"] == name for row in record["rows"])]
    found = {(row["setting"], row["contender"]): row for row in record["rows"]}
    settings = [one for one in HEADLINE_SETTINGS if all((one, name) in found for name in names)]
    # Letters as text instead of outlines are a tenth of the bytes.
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure, panels = plt.subplots(1, len(settings), figsize=(7.6, 3.1), squeeze=False)
        figure.subplots_adjust(left=0.02, right=0.98, bottom=0.22, top=0.78, wspace=0.08)
        for setting, axes in zip(settings, panels[0], strict=True):
            rows = [found[setting, name] for name in names]
            slowest = float(np.median(rows[-1]["cells_per_s"]))
            top = max(max(row["cells_per_s"]) for row in rows)
            for x, (name, row) in enumerate(zip(names, rows, strict=True)):
                rates = row["cells_per_s"]
                middle = float(np.median(rates))
                axes.bar(x, middle, width=0.72, color=HEADLINE_BARS[name][1], zorder=2)
                axes.scatter(np.full(len(rates), x), rates, s=7, color=INK, alpha=0.75, lw=0, zorder=3)
                times = "" if row is rows[-1] else f" {middle / slowest:.1f}×"
                axes.text(
                    x, max(rates) + top * 0.03, f"{short(middle)}{times}", ha="center", fontsize=8, fontweight="bold"
                )
            axes.set_xticks(range(len(names)), [HEADLINE_BARS[name][0] for name in names], fontsize=8)
            axes.set_yticks([])
            axes.set_ylim(0, top * 1.14)
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="x", length=0)
            title = TITLES[setting]
            axes.set_title(f"{title[0].upper()}{title[1:]}".replace(", ", ",\n", 1), fontsize=8.5)
        facts = record["input"]
        figure.text(
            0.02,
            0.955,
            "Cells per second of this project (green) and of scverse annbatch (grey)",
            fontsize=10,
            fontweight="bold",
            va="center",
        )
        figure.text(
            0.02,
            0.05,
            f"{record['machine']}; {record['date']}; {facts['n_obs']:,} cells × {facts['n_vars']:,} genes. "
            "Each panel has its own scale.\nBars: medians; dots: rounds; ×: times the cells of scverse annbatch.",
            fontsize=6.8,
            va="center",
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path
