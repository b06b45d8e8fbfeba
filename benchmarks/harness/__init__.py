"""How is a benchmark run, so that its figures can be compared and believed?

Nothing here asks a question of its own: each question is a command in the folder above. In the order in which a
benchmark passes through the modules:

1. `machine`: what does it run on? `settings`: how is a loader asked to read?
2. `command_line`: the options that all commands know.
3. `generate`: the cells, from a seed; `bixverse_cells`: those that bixverse draws.
4. `contenders`: who takes part; `jobs`: what they and the benchmark say to each other.
5. `environments`, `stores`: in which Python does each contender run, and who writes which store?
6. `worker`: what happens in the process of one contender? `touch` and `training` are what it does with each batch, and
   `page_cache` lets it begin with files that are not in memory.
7. `rounds`: several of those processes, timed in turns.
8. `results`, `mixing`, `plots`, `report`: what is kept of it, computed, drawn and tabulated.

`range_server` is the web server of the commands that read from one. `worker`, and what it imports, also runs in the
environments of the other contenders: those modules import nothing but NumPy at their top.
"""

from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]
"""The folder of the commands, from which `harness` is imported."""
