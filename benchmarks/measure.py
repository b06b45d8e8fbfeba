"""What else should a user know about the loader's speed?

Each command answers one question with the workers of the main benchmark, and writes its own file of results:

1. ``first-batch``, ``wait``, ``counting``: what does a training loop wait for (`loading.waiting`)?
2. ``chunk-size``, ``threads``, ``labels``, ``options``: what do the loader's options do (`loading.sweeps`)?
3. ``inner-chunk``, ``codecs``, ``checksum``, ``whole``: what does the form of the stores do (`loading.storage`)?
4. ``calls``: what do the calls cost that read no counts (`loading.calls`)?
5. ``growth``, ``workers``, ``ranks``: does speed last with more cells and more processes (`loading.scaling`)?

Usage: ``python benchmarks/measure.py COMMAND [options]``
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from harness.command_line import options, run_command
from loading import scaling, storage, sweeps, waiting
from loading.calls import calls

COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "first-batch": waiting.first_batch,
    "wait": waiting.wait,
    "counting": waiting.counting,
    "chunk-size": sweeps.chunk_size,
    "threads": sweeps.threads,
    "labels": sweeps.labels,
    "options": sweeps.options,
    "inner-chunk": storage.inner_chunk,
    "codecs": storage.codecs,
    "checksum": storage.checksum,
    "whole": storage.whole,
    "calls": calls,
    "growth": scaling.growth,
    "workers": scaling.workers,
    "ranks": scaling.ranks,
}


def main() -> None:
    """Run one measurement from the command line."""
    run_command(options("Answer one question about the loader's speed."), COMMANDS)


if __name__ == "__main__":
    main()
