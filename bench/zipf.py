"""Which sessions are asked for: evenly, or a few of them most of the time.

The skewed choice is that of YCSB (Cooper et al. 2010): the session of rank r is asked for in proportion to
1 / r ** 0.99, and the ranks are strewn over the sessions, so that the popular ones are no neighbours. The
weights are summed exactly; YCSB's closed form (Gray et al. 1994) approximates them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import copy
from itertools import accumulate

EXPONENT = 0.99


class Even:
    """Every session as often as any other."""

    def __init__(self, ids: Sequence[str], seed: int) -> None:
        self._ids = ids
        self._random = random.Random(seed)

    def take(self, count: int) -> list[str]:
        """So many ids."""
        return self._random.choices(self._ids, k=count)


class Zipfian:
    """A session's share falls with its rank. Which session has which rank depends on `order_seed` alone, so
    that all clients find the same sessions popular."""

    def __init__(self, ids: Sequence[str], seed: int, *, order_seed: int = 0) -> None:
        self._ids = list(ids)
        random.Random(order_seed).shuffle(self._ids)
        self._sums = list(accumulate(rank**-EXPONENT for rank in range(1, len(self._ids) + 1)))
        self._random = random.Random(seed)

    def seeded(self, seed: int) -> Zipfian:
        """The same, chosen from anew."""
        again = copy(self)
        again._random = random.Random(seed)
        return again

    def take(self, count: int) -> list[str]:
        """So many ids, the popular ones again and again."""
        return self._random.choices(self._ids, cum_weights=self._sums, k=count)
