"""How does somebody check a sampler or an adapter of their own?

`make_cells` and `make_collection` make small data whose values name their row and column. `check_sampler` and
`check_adapter` raise an AssertionError that names the broken rule and the values. They need no test framework.

In the order of what they need: `rules` (how a broken rule is reported), `cells` (the data), `epochs` (the batches of an
epoch, without reading any data), `sampler_cases` and `sampler_rules`, `truth` (what a batch must hold), `adapter_cases`
and `adapter_rules`.
"""

from __future__ import annotations

from annbatch.testing.adapter_rules import check_adapter
from annbatch.testing.cells import make_cells, make_collection, make_modalities
from annbatch.testing.sampler_rules import check_sampler

__all__ = ["check_sampler", "check_adapter", "make_cells", "make_collection", "make_modalities"]
