"""Which tables do the documentation and the README show, so that nobody types a number by hand?

1. Every file under ``benchmarks/results`` has a kind: the first part of its name.
2. Each kind has a function that turns its record into Markdown, and a page (`harness.report.sections`).
3. A page shows all records of its kinds, the newest first, with machine, date and command:
   ``docs/{page}-tables.inc``, which it includes.
4. The newest record of the main benchmark, this project beside the peer, is drawn as ``docs/_static/headline.svg``, and
   is the table of the page ``speed`` and of the README. The newest record of random rows is a sentence of the README.
   Two comments mark the place of each in the README.

Usage: ``python benchmarks/report.py``
"""

from __future__ import annotations

import argparse
import json
import os
import textwrap
from dataclasses import dataclass
from pathlib import Path

from harness import BENCHMARKS
from harness.report.markdown import Record, origin
from harness.report.random_rows import random_rows_sentence
from harness.report.sections import HEADLINE, NOTHING_YET, SECTIONS, SENTENCE
from harness.report.speeds import readme_table

DOCS = BENCHMARKS.parent / "docs"
README = BENCHMARKS.parent / "README.md"
WIDTH = 120
"""Columns of the README's lines."""


@dataclass(frozen=True, slots=True)
class Result:
    """A file of results."""

    path: Path
    record: Record


def results_of(kind: str, results: Path) -> list[Result]:
    """Give all records of a kind, the newest one first."""
    found = [Result(path, json.loads(path.read_text())) for path in sorted(results.glob(f"{kind}-*.json"))]
    return sorted(found, key=lambda one: one.record["date"], reverse=True)


def section(kind: str, results: Path, target: Path) -> str:
    """Give the Markdown of all records of one kind, or nothing where there is none."""
    shown, found = SECTIONS[kind], results_of(kind, results)
    parts = [f"{shown.about}\n"] if shown.about else []
    for number, one in enumerate(found):
        own = shown.figure == "own"
        image = one.path.with_suffix(".png") if own else one.path.with_name(shown.figure) if shown.figure else None
        parts.append(origin(one.record))
        if image is not None and image.exists() and (own or number == 0):
            parts.append(f"![{shown.heading}]({relative(image, target)})\n")
        parts.append(shown.render(one.record))
    return f"## {shown.heading}\n\n" + "\n".join(parts) + "\n" if found else ""


def headline(results: Path, docs: Path) -> str:
    """Draw the main benchmark's figure, and give its table; nothing where there are no results of it."""
    found = results_of(HEADLINE, results)
    if not found:
        return ""
    # Other tables need no matplotlib.
    from harness.plots import plot_headline

    image = plot_headline(found[0].record, docs / "_static" / "headline.svg")
    print(f"wrote {image}")
    alt = "Cells per second of this project and of scverse annbatch, in three settings"
    return (
        f"## Compared with scverse annbatch\n\n![{alt}]({relative(image, docs / 'speed-tables.inc')})\n\n"
        f"{readme_table(found[0].record)}\n{origin(found[0].record)}\n{{doc}}`results` has more loaders and settings, "
        "with their memory, and with the limit of the machine.\n\n"
    )


def fill_readme(results: Path, readme: Path) -> None:
    """Put the table and the sentence of the newest results between the comments of the README."""
    for name, kind, text_of in (("speed", HEADLINE, headline_text), ("random rows", SENTENCE, sentence)):
        found = results_of(kind, results)
        if not found:
            print(f"{results} holds no results of the kind {kind}: {readme} is left as it is")
            continue
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = readme.read_text().split(begin)
        _, after = rest.split(end)
        readme.write_text(f"{before}{begin}\n{text_of(found[0].record)}\n{end}{after}")


def headline_text(record: Record) -> str:
    """Give the README's table, with its origin."""
    return f"{readme_table(record)}\n{origin(record).rstrip()}"


def sentence(record: Record) -> str:
    """Give the README's sentence on random rows, in lines."""
    return textwrap.fill(random_rows_sentence(record), WIDTH, break_long_words=False, break_on_hyphens=False)


def relative(path: Path, page: Path) -> str:
    """Give a path as a page refers to it."""
    return Path(os.path.relpath(path, page.parent)).as_posix()


def main() -> None:
    """Write the fragments, the figure, and the README's table."""
    parser = argparse.ArgumentParser(description="Turn results into the tables of the documentation.")
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results", help="folder of the results")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the pages that include the fragments")
    parser.add_argument("--readme", type=Path, default=README, help="the README with its two comments")
    arguments = parser.parse_args()
    for page in dict.fromkeys(("speed", *(shown.page for shown in SECTIONS.values()))):
        tables = arguments.docs / f"{page}-tables.inc"
        text = headline(arguments.results, arguments.docs) if page == "speed" else ""
        kinds = [kind for kind, shown in SECTIONS.items() if shown.page == page]
        text += "".join(section(kind, arguments.results, tables) for kind in kinds)
        text = text or NOTHING_YET.get(page, "")
        if text:
            tables.write_text(text.rstrip() + "\n")
            print(f"wrote {tables}")
        else:
            print(f"{arguments.results} holds no results for the page {page}")
    fill_readme(arguments.results, arguments.readme)


if __name__ == "__main__":
    main()
