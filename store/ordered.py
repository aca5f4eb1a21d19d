"""An ordered set in memory whose images cost nothing: what the memory back end scans and finds by.

Owns the order only: sorted buckets, which are replaced when they change, never changed in place. So an
image is the list of buckets as it stood, and whoever holds one goes on reading it, from another thread
too. What is added and removed is only noted; it goes into the buckets, many at once, when somebody asks
for an image or enough of it waits: whoever never asks pays for no order.

Invariant: the buckets, with what is noted on top, are the set.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T", bytes, "tuple[bytes, bytes]")

BUCKET_ITEMS: Final = 512
NOTED_MIN: Final = 16_384
NOTED_FRACTION: Final = 16
"""What waits is put in order once it is so many items, or that part of all that are there."""


class OrderedItems(Generic[T]):
    """A set that can be read in order. Not for two threads at once; its images are for any."""

    __slots__ = ("_buckets", "_count", "_lasts", "_noted")

    def __init__(self) -> None:
        self._buckets: list[list[T]] = []
        self._lasts: list[T] = []
        self._count = 0
        self._noted: dict[T, bool] = {}
        """Is the item there? Of those that were added or removed since the buckets were made."""

    def add(self, items: Iterable[T]) -> None:
        """Make these items members. To add what is there does nothing."""
        self._noted.update(dict.fromkeys(items, True))
        self._settle_if_many()

    def discard(self, items: Iterable[T]) -> None:
        """Make these items no members. To remove what is not there does nothing."""
        self._noted.update(dict.fromkeys(items, False))
        self._settle_if_many()

    def is_empty(self) -> bool:
        if self._noted:
            self._settle()
        return not self._count

    def image(self) -> Image[T]:
        """The members as they are now."""
        if self._noted:
            self._settle()
        return Image(self._buckets, self._lasts)

    def _settle_if_many(self) -> None:
        if len(self._noted) > max(NOTED_MIN, self._count // NOTED_FRACTION):
            self._settle()

    def _settle(self) -> None:
        """Put what was noted into new buckets. Broken off anywhere it has changed nothing."""
        noted = self._noted
        items = sorted(noted)
        buckets: list[list[T]] = []
        lasts: list[T] = []
        done = at = 0
        while at < len(items):
            number = max(0, min(bisect_left(self._lasts, items[at]), len(self._lasts) - 1))
            buckets += self._buckets[done:number]
            lasts += self._lasts[done:number]
            is_last = number >= len(self._lasts) - 1
            end = len(items) if is_last else bisect_right(items, self._lasts[number], at)
            old = self._buckets[number] if self._buckets else []
            for bucket in _rebuilt(old, items[at:end], noted):
                buckets.append(bucket)
                lasts.append(bucket[-1])
            done, at = number + 1, end
        buckets += self._buckets[done:]
        lasts += self._lasts[done:]
        count = sum(map(len, buckets))
        self._buckets, self._lasts, self._count, self._noted = buckets, lasts, count, {}


class Image(Generic[T]):
    """The members of a set as they were at one moment, in order."""

    __slots__ = ("_buckets", "_lasts")

    def __init__(self, buckets: list[list[T]], lasts: list[T]) -> None:
        self._buckets: list[list[T]] = buckets
        self._lasts: list[T] = lasts

    def above(self, item: T) -> Iterator[Sequence[T]]:
        """The members above `item`, in order, some hundreds at a time."""
        number = bisect_right(self._lasts, item)
        if number < len(self._buckets):
            bucket = self._buckets[number]
            yield bucket[bisect_right(bucket, item) :]
            for follows in range(number + 1, len(self._buckets)):
                yield self._buckets[follows]

    def first_above(self, item: T, last: Any, limit: int) -> list[T]:
        """Up to `limit` members above `item`, in order, of those that are below `last`."""
        found: list[T] = []
        for member in islice(chain.from_iterable(self.above(item)), limit):
            if member >= last:
                break
            found.append(member)
        return found


def _rebuilt(old: list[T], changed: Sequence[T], noted: dict[T, bool]) -> Iterator[list[T]]:
    """The buckets that one bucket becomes: without what changed, then with what of that is there."""
    new = [item for item in old if item not in noted]
    new += [item for item in changed if noted[item]]
    new.sort()
    if len(new) <= 2 * BUCKET_ITEMS:
        if new:
            yield new
        return
    for start in range(0, len(new), BUCKET_ITEMS):
        yield new[start : start + BUCKET_ITEMS]
