"""How are figures, tables and the origin of a record written in Markdown?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.results import median, spread

Record = dict[str, Any]


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Give a Markdown table; every column but the first is aligned to the right, and one without any cell left out."""
    kept = [not lines or any(line[i] for line in lines) for i in range(len(head))]
    head, *lines = ([cell for cell, keep in zip(line, kept, strict=True) if keep] for line in (head, *lines))
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines)) + "\n"


def origin(record: Record) -> str:
    """Say on what, when and how a record was measured."""
    facts = record["input"]
    size = f"{facts['n_obs']:,} cells × {facts['n_vars']:,} genes, {facts['nnz'] / facts['n_obs']:,.0f} values a cell"
    return f"{record['machine']}; {record['date']}; {size}. Command: `{record['command']}`\n"


def rate(row: Record) -> str:
    """Write a row's median and spread."""
    return f"{median(row):,.0f} ± {spread(row):.0%}"


def cpu_rate(row: Record) -> str:
    """Write the median and the spread of a row's cells per CPU second; nothing where those were not recorded."""
    key = "cells_per_cpu_s"
    return f"{median(row, key):,.0f} ± {spread(row, key):.0%}" if key in row else ""


def middle(values: Sequence[float]) -> float:
    """Give the median of one figure a round."""
    return float(np.median(values))


def milliseconds(values: Sequence[float], digits: int = 1) -> str:
    """Write a median and half the range, in milliseconds."""
    half = (max(values) - min(values)) / 2 / middle(values) if middle(values) else 0.0
    return f"{middle(values):,.{digits}f} ms ± {half:.0%}"
