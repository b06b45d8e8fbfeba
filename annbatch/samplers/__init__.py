"""Which rows come in an epoch, in which batches? Samplers say it; a loader takes one as ``sampler=``.

`Shuffled` (what a loader does by itself), `Sequential`, `Weighted`, `ClassBalanced`, `Stratified`, `Grouped` and
`MatchedPairs` are ready; anything that follows the `Sampler` protocol is a sampler too.
"""

from __future__ import annotations

from annbatch.order.consumers import Order
from annbatch.order.row_table import Classes, Sampler, Table
from annbatch.samplers.blocks import RowOrder, Sequential, Shuffled
from annbatch.samplers.classes import Grouped, Stratified
from annbatch.samplers.pairs import MatchedPairs
from annbatch.samplers.weighted import ClassBalanced, Weighted

__all__ = [
    "Shuffled",
    "Sequential",
    "Weighted",
    "ClassBalanced",
    "Stratified",
    "Grouped",
    "MatchedPairs",
    "Sampler",
    "Table",
    "Classes",
    "Order",
    "RowOrder",
]
