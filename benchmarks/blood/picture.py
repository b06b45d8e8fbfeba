"""How does the demo's picture look?

1. Loss by epoch, while training and on held-out cells.
2. Share of right predictions, against always guessing the most frequent type.
3. What batches are made of, against all cells and against a file as it came.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from blood.course import Course

INK, FAINT, GRID = "#22303c", "#8a97a3", "#e6eaee"
MODEL_COLOURS = ("#d1495b", "#00798c")
TYPE_COLOURS = (
    "#264b6e", "#4f86b8", "#9ec5e3", "#1b7f6b", "#6fbf9b",
    "#e3a72f", "#f2d492", "#c8553d", "#8d6a9f", "#b9a8c9",
)  # fmt: skip


def draw(
    path: Path, courses: Sequence[Course], baseline: float, shares: dict[str, np.ndarray], types: Sequence[str]
) -> None:
    """Draw all three panels and write them as a PNG file."""
    style = {
        "font.size": 10.5, "axes.edgecolor": FAINT, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK,
        "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
        "axes.titlesize": 12.5, "axes.titleweight": "bold", "axes.titlepad": 12, "legend.frameon": False,
    }  # fmt: skip
    with plt.rc_context(style):
        figure = plt.figure(figsize=(11.5, 9), dpi=150, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1, wspace=0.03, hspace=0.05)
        above, below = figure.subfigures(2, 1, height_ratios=(1, 1.2))
        losses, accuracies = above.subplots(1, 2)
        draw_losses(losses, courses)
        draw_accuracies(accuracies, courses, baseline)
        draw_shares(below.subplots(), shares, types)
        figure.savefig(path)
        plt.close(figure)


def draw_losses(axes: Axes, courses: Sequence[Course]) -> None:
    """Training loss as a full line, held-out loss as a broken one."""
    for course, colour in zip(courses, MODEL_COLOURS, strict=True):
        epochs = np.arange(1, len(course.train_loss) + 1)
        axes.plot(epochs, course.train_loss, color=colour, linewidth=2, label=course.name)
        axes.plot(epochs, course.test_loss, color=colour, linewidth=1.6, linestyle=(0, (3, 2)))
    axes.plot([], [], color=FAINT, linewidth=1.6, linestyle=(0, (3, 2)), label="held-out cells (broken)")
    axes.set(title="Loss", xlabel="epoch", ylabel="cross-entropy", xlim=(1, len(courses[0].train_loss)), ylim=(0, None))
    axes.grid(axis="y", color=GRID)
    axes.legend(loc="upper right", frameon=True, facecolor="white", edgecolor="none", framealpha=1)


def draw_accuracies(axes: Axes, courses: Sequence[Course], baseline: float) -> None:
    """Held-out accuracy by epoch, with the baseline as a line."""
    above = float("inf")
    by_height = sorted(zip(courses, MODEL_COLOURS, strict=True), key=lambda pair: -pair[0].test_accuracy[-1])
    for course, colour in by_height:
        accuracy = 100 * np.array(course.test_accuracy)
        axes.plot(np.arange(1, len(accuracy) + 1), accuracy, color=colour, linewidth=2)
        above = min(accuracy[-1], above - 6)  # figures that would lie on each other move apart
        axes.annotate(
            f"{accuracy[-1]:.0f} %", (len(accuracy), above), xytext=(7, 0), textcoords="offset points", color=colour,
            va="center", fontweight="bold", annotation_clip=False,
        )  # fmt: skip
    axes.axhline(100 * baseline, color=FAINT, linewidth=1.4)
    axes.annotate(
        f"always the most frequent type: {100 * baseline:.0f} %", (1, 100 * baseline), xytext=(8, -6),
        textcoords="offset points", color="#66737f", va="top",
    )  # fmt: skip
    last = len(courses[0].test_accuracy)
    axes.set(title="Held-out cells predicted right", xlabel="epoch", ylabel="%", xlim=(1, last), ylim=(0, 100))
    axes.grid(axis="y", color=GRID)


def draw_shares(axes: Axes, shares: dict[str, np.ndarray], types: Sequence[str]) -> None:
    """One bar for each batch, cut by cell type; the most frequent types come first."""
    order = np.argsort(-shares["all cells"])
    # A little air sets the two that are no batches apart.
    places = np.arange(len(shares), dtype=float)
    places[0] -= 0.4
    places[-1] += 0.4
    left = np.zeros(len(shares))
    for number, code in enumerate(order):
        widths = 100 * np.array([share[code] for share in shares.values()])
        colour = TYPE_COLOURS[number % len(TYPE_COLOURS)]
        axes.barh(places, widths, 0.8, left=left, color=colour, edgecolor="white", linewidth=0.7,
                  label=types[code])  # fmt: skip
        left += widths
    axes.set_yticks(places, list(shares))
    axes.invert_yaxis()
    axes.set(title="What a batch of 64 is made of", xlabel="% of cells", xlim=(0, 100))
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="cell type", alignment="left")
