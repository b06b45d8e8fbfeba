"""Which tables do the documentation and the README show, so that nobody types a number by hand?

1. Every file under ``benchmarks/results`` has a kind: the first part of its name.
2. Each kind has a function that turns its record into Markdown (`harness.report.sections`).
3. The sections of all files, with machine, date and command, go to ``docs/{page}-tables.inc``, which the pages include.
4. The README gets this project beside the peer, between two comments that mark the place.

Usage: ``python benchmarks/report.py``
"""

from __future__ import annotations

import argparse
import json
import os
from operator import itemgetter
from pathlib import Path

from harness import BENCHMARKS
from harness.report.markdown import origin
from harness.report.sections import NOTHING_YET, SECTIONS
from harness.report.speeds import readme_table

DOCS = BENCHMARKS.parent / "docs"
README = BENCHMARKS.parent / "README.md"
BEGIN, END = "<!-- speed -->", "<!-- /speed -->"


def section(kind: str, results: Path, target: Path) -> str:
    """Give the Markdown of all records of one kind, or nothing where there is none."""
    shown = SECTIONS[kind]
    paths = sorted(results.glob(f"{kind}-*.json"))
    parts = [f"{shown.about}\n"] if shown.about else []
    for path in paths:
        record = json.loads(path.read_text())
        own = shown.figure == "own"
        image = path.with_suffix(".png") if own else results / shown.figure if shown.figure else None
        parts.append(origin(record))
        if image is not None and image.exists() and (own or path is paths[0]):
            place = Path(os.path.relpath(image, target.parent)).as_posix()
            parts.append(f"![{shown.heading}]({place})\n")
        parts.append(shown.render(record))
    return f"## {shown.heading}\n\n" + "\n".join(parts) + "\n" if paths else ""


def fill_readme(results: Path, readme: Path) -> None:
    """Put the table of the newest results between the README's two comments."""
    records = [json.loads(path.read_text()) for path in sorted(results.glob("cpu-*.json"))]
    if not records:
        print(f"{results} holds no results of bench.py: the table in {readme} is left as it is")
        return
    newest = max(records, key=itemgetter("date"))
    before, rest = readme.read_text().split(BEGIN)
    _, after = rest.split(END)
    readme.write_text(f"{before}{BEGIN}\n\n{readme_table(newest)}\n{origin(newest)}\n{END}{after}")


def main() -> None:
    """Write the fragments and the README's table."""
    parser = argparse.ArgumentParser(description="Turn results into the tables of the documentation.")
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results", help="folder of the results")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the pages that include the fragments")
    parser.add_argument("--readme", type=Path, default=README, help="the README with its two comments")
    arguments = parser.parse_args()
    for page in dict.fromkeys(shown.page for shown in SECTIONS.values()):
        tables = arguments.docs / f"{page}-tables.inc"
        kinds = [kind for kind, shown in SECTIONS.items() if shown.page == page]
        text = "".join(section(kind, arguments.results, tables) for kind in kinds)
        text = text or NOTHING_YET.get(page, "")
        if text:
            tables.write_text(text.rstrip() + "\n")
            print(f"wrote {tables}")
        else:
            print(f"{arguments.results} holds no results for the page {page}")
    fill_readme(arguments.results, arguments.readme)


if __name__ == "__main__":
    main()
