"""What can be typed?

In the order in which a command needs them:

1. `collection_commands`: the commands that make and show collections, and their options; `bench_command`: the one that
   measures, with `bench_measurements` and `bench_advice`.
2. `input_lists`: the inputs and genes that files and patterns name.
3. `results`: how a command gives its result.
4. `library_errors`: what went wrong, in words of the command line.

`annbatch.cli` takes `COMMANDS`, and imports this room no sooner than it is asked for a command.
"""

import click

from annbatch.commands import collection_commands
from annbatch.commands.bench_command import bench

COMMANDS: dict[str, click.Command] = {**collection_commands.COMMANDS, "bench": bench}
"""All commands, by name."""

__all__ = ["COMMANDS"]
