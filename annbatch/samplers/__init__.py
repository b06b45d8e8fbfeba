"""Which rows come in an epoch, and in which batches? Samplers for ``Loader(sampler=…)``.

`Shuffled` (the default of a loader), `Sequential`, `Weighted`, `ClassBalanced`, `Stratified`, `Grouped` and
`MatchedPairs` are ready to use. Any object that follows the `Sampler` protocol is a sampler too.

The modules, in the order in which they build on each other: `blocks` (all rows once, shuffled or as they are stored),
`weighted` (rows drawn with probabilities), `classes` (batches with given classes), `pairs` (perturbed cells with
controls).

The other names here are for samplers of your own. A sampler is bound to a `Table` with its `Classes`, and returns an
`Order`, for example the `RowOrder` of a `Stream`. Random orders come from `permutation` and `shuffle`; a `Key` selects
them.
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
