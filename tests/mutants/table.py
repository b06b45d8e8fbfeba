"""What did the tests not notice? Makes the table in the documentation of ``results.json`` and ``survivors.toml``.

It says of each module how many mutants there were, and names every survivor, with the reason why it may survive.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OUTPUT = HERE.parents[1] / "docs" / "mutants-table.inc"


def reason(survivor: dict[str, Any], known: list[dict[str, str]]) -> str | None:
    """Give why a mutant may survive, if anybody has said so."""
    for one in known:
        if one["was"] == survivor["was"] and one["is"] in ("*", survivor["is"]):
            return one["why"]
    return None


def table(modules: dict[str, Any], results: dict[str, Any], reasons: dict[str, list[dict[str, str]]]) -> str:
    lines = ["| module | mutants | killed | explained | left | run | source |", "| --- " * 7 + "|"]
    named: list[str] = []
    for path in modules:
        if path not in results:
            lines.append(f"| `{path}` | | | | | not yet | |")
            continue
        found = results[path]
        whys = [reason(survivor, reasons.get(path, [])) for survivor in found["survivors"]]
        n_explained = sum(why is not None for why in whys)
        share = 100 * found["killed"] / max(1, found["mutants"])
        lines.append(
            f"| `{path}` | {found['mutants']} | {found['killed']} ({share:.0f} %) | {n_explained} "
            f"| {len(whys) - n_explained} | {found['date']}, Python {found['python']} | `{found['source']}` |"
        )
        for survivor, why in zip(found["survivors"], whys, strict=True):
            change = f"`{survivor['was']}` → `{survivor['is']}`".replace("|", "\\|")
            named.append(f"| `{path}`, line {survivor['line']} | {change} | {why or 'not looked at yet'} |")
    if named:
        lines += ["", "| survivor | change | why |", "| --- " * 3 + "|", *named]
    return "\n".join(lines) + "\n"


def main() -> None:
    with (HERE / "modules.toml").open("rb") as file:
        modules = tomllib.load(file)["modules"]
    with (HERE / "survivors.toml").open("rb") as file:
        reasons = tomllib.load(file)
    results = json.loads((HERE / "results.json").read_text())
    OUTPUT.write_text(table(modules, results, reasons))


if __name__ == "__main__":
    main()
