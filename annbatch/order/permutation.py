"""How are n things put in random order so that the order never changes between versions and machines?

Random bits come from raw Philox4x64-10 words [1]_, whose stream NumPy guarantees, keyed by (seed, epoch) and
counted from (item, purpose). No method of `numpy.random.Generator` is used: those streams may change.

1. Up to `HELD_LIMIT` things are shuffled by Durstenfeld's algorithm [2]_: a uniform permutation, held in memory.
2. More than that are permuted by a Feistel network with cycle walking [3]_: any position is computed when asked for,
   so memory does not grow with n.

References
----------
.. [1] Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3. SC11, 2011.
.. [2] Durstenfeld: Algorithm 235: Random permutation. Communications of the ACM 7 (1964).
.. [3] Black, Rogaway: Ciphers with arbitrary finite domains. CT-RSA 2002.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from annbatch.native import Kernel

HELD_LIMIT = 1 << 22
"""Number of things up to which a permutation is held in memory (32 MiB)."""

MAX_WORD = 1 << 64
"""Seeds and epochs are below this."""

Ints = NDArray[np.int64]


class Purpose(IntEnum):
    """What random words are used for. Each purpose has a stream of its own."""

    BLOCKS = 0
    """Order of the blocks of an epoch."""
    MIX = 1
    """Order of what a window holds."""
    LAYOUT = 2
    """Order of the rows within the batches of a window."""
    DRAW = 3
    """Offset of systematic resampling."""
    CLASS_BLOCKS = 4
    """Order of the blocks of a class."""
    BATCHES = 5
    """Order of the batches of an epoch."""
    SPLIT = 6
    """Rows of the parts of a split."""


@dataclass(frozen=True, slots=True)
class Key:
    """Identifies one stream of random words.

    Examples
    --------
    >>> from annbatch.samplers import Key, Purpose
    >>> words = Key(seed=0, epoch=3, purpose=Purpose.BLOCKS).words(4)
    >>> words.shape, words.dtype
    ((4,), dtype('uint64'))
    """

    seed: int
    """0 <= seed < 2**64."""
    epoch: int
    """0 <= epoch < 2**64."""
    purpose: Purpose
    """What the words are used for."""
    item: int = 0
    """Number of the item that the words are for, such as a window or a class."""
    part: int = 0
    """Number of a part of the item, such as the pass through a class."""

    def words(self, n: int) -> NDArray[np.uint64]:
        """Return the first ``n`` words of the stream, (n,) uint64."""
        philox = np.random.Philox(
            key=np.array([self.seed, self.epoch], np.uint64),
            counter=np.array([0, self.item, self.purpose, self.part], np.uint64),
        )
        return philox.random_raw(n)


class Permutation(Protocol):
    """A bijection of range(n)."""

    def forward(self, positions: Ints) -> Ints:
        """Say which things stand at these positions."""

    def inverse(self, things: Ints) -> Ints:
        """Say at which positions these things stand."""


def shuffled(n: int, key: Key) -> Ints:
    """Return a uniformly random permutation of range(n) as an array, (n,) int64."""
    order = np.arange(n, dtype=np.int64)
    shuffle(order, key)
    return order


def shuffle(things: Ints, key: Key) -> None:
    """Shuffle an array of fewer than 2**32 numbers in place.

    All orders are equally likely, up to 2**-32 at each step: a step multiplies one random word by a number, and uses
    the high bits.

    Parameters
    ----------
    things
        (n,) int64 numbers.
    key
        Selects the order.
    """
    _swap(things, key.words(len(things)))


@Kernel
def _swap(things: Any, words: Any) -> None:
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    for i in range(things.size - 1, 0, -1):
        n = np.uint64(i + 1)
        word = words[i]
        # The high 64 bits of word * n, in 64-bit arithmetic.
        j = np.int64(((word >> half) * n + ((word & low) * n >> half)) >> half)
        things[i], things[j] = things[j], things[i]


def permutation(n: int, key: Key) -> Permutation:
    """Return a random permutation of range(n).

    It has the methods ``forward`` (from positions to numbers) and ``inverse`` (from numbers to positions), each from
    (k,) int64 to (k,) int64. Up to 2**22 numbers it is uniformly random, and held in memory. Beyond that, it is a
    Feistel network, which takes constant memory.

    Parameters
    ----------
    n
        How many numbers to permute.
    key
        Selects the permutation.

    Examples
    --------
    >>> import numpy as np
    >>> from annbatch.samplers import Key, Purpose, permutation
    >>> order = permutation(5, Key(0, 0, Purpose.BLOCKS)).forward(np.arange(5))
    >>> sorted(order.tolist())
    [0, 1, 2, 3, 4]
    """
    return Held(shuffled(n, key)) if n <= HELD_LIMIT else Feistel.make(n, key)


@dataclass(frozen=True, slots=True)
class Identity:
    """Leaves everything where it is."""

    def forward(self, positions: Ints) -> Ints:
        """Give the positions themselves."""
        return positions

    def inverse(self, things: Ints) -> Ints:
        """Give the things themselves."""
        return things


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A permutation held as an array."""

    order: Ints
    """(n,) which thing stands at each position."""

    def forward(self, positions: Ints) -> Ints:
        """Say which things stand at these positions."""
        return self.order[positions]

    def inverse(self, things: Ints) -> Ints:
        """Say at which positions these (few) things stand."""
        places = np.flatnonzero(np.isin(self.order, things))
        found = self.order[places]
        return places[np.argsort(found)][np.searchsorted(np.sort(found), things)]


@dataclass(frozen=True, slots=True, eq=False)
class Feistel:
    """A permutation computed when asked for, in constant memory."""

    n: int
    half_bits: int
    """The network works on 2 * half_bits bits, the smallest such domain that holds n."""
    round_keys: NDArray[np.uint64]
    """(N_ROUNDS,) one word a round."""

    N_ROUNDS = 12

    @classmethod
    def make(cls, n: int, key: Key) -> Feistel:
        """Draw the round keys for a permutation of range(n)."""
        return cls(n, max(1, -(-max(n - 1, 1).bit_length() // 2)), key.words(cls.N_ROUNDS))

    def forward(self, positions: Ints) -> Ints:
        """Say which things stand at these positions."""
        return self._walk(positions, self._encrypt)

    def inverse(self, things: Ints) -> Ints:
        """Say at which positions these things stand."""
        return self._walk(things, self._decrypt)

    def _walk(self, x: Ints, step: Any) -> Ints:
        """Apply ``step`` until every value is below n: at most four times on average."""
        y: NDArray[np.uint64] = step(np.asarray(x).astype(np.uint64))
        while (outside := np.flatnonzero(y >= self.n)).size:
            y[outside] = step(y[outside])
        return y.astype(np.int64)

    def _encrypt(self, x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        shift, low = np.uint64(self.half_bits), np.uint64((1 << self.half_bits) - 1)
        left, right = x >> shift, x & low
        for key in self.round_keys:
            left, right = right, left ^ (_mix(right ^ key) & low)
        return (left << shift) | right

    def _decrypt(self, x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        shift, low = np.uint64(self.half_bits), np.uint64((1 << self.half_bits) - 1)
        left, right = x >> shift, x & low
        for key in self.round_keys[::-1]:
            left, right = right ^ (_mix(left ^ key) & low), left
        return (left << shift) | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix 64 bits: the finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable generators, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
