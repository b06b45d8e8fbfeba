"""What do the results look like?

`plot_speeds` draws the main benchmark, a panel a setting; `plot_lines` draws speed over something, a line a contender.
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
