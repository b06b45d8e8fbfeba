"""Which rows come in an epoch, in which batches? Samplers say it; a loader takes one as ``sampler=``.

`Shuffled` (what a loader does by itself), `Sequential`, `Weighted`, `ClassBalanced`, `Stratified`, `Grouped` and
`MatchedPairs` are ready; anything that follows the `Sampler` protocol is a sampler too.

In the order of what they need: `blocks` (all rows once, shuffled or as they are stored), `weighted` (rows drawn with
probabilities), `classes` (batches with the classes that they shall have), `pairs` (perturbed cells with controls).

A sampler of one's own is made of what else is here: it is bound to a `Table` with its `Classes`, and gives an `Order`,
perhaps the `RowOrder` of a `Stream`. Random orders come from `permutation` and `shuffle`, and a `Key` says which ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from annbatch import scverse_names
from annbatch.order.consumers import Order
from annbatch.order.permutation import Key, Purpose, permutation, shuffle
from annbatch.order.row_table import Classes, Sampler, Table
from annbatch.order.stream import Stream
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
    "Stream",
    "Key",
    "Purpose",
    "permutation",
    "shuffle",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        raise scverse_names.missing(__name__, name)
