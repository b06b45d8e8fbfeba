"""What can be typed?

In the order in which a command needs them:

1. `collection_commands`: the commands and their options.
2. `input_lists`: the inputs and genes that files and patterns name.
3. `results`: how a command gives its result.
4. `library_errors`: what went wrong, in words of the command line.

`annbatch.cli` takes `COMMANDS`, and imports this room no sooner than it is asked for a command.
"""

from annbatch.commands.collection_commands import COMMANDS

__all__ = ["COMMANDS"]
