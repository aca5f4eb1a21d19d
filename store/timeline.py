"""Deadlines in memory: armed ones by the time when they are due.

Owns their order. They are kept in slots of about 16 s, as columns that are sorted when somebody asks for
them: to arm some costs little, and a pass in which nothing is due looks at one number.

Invariant: every change can be broken off anywhere and done again; what it says is there then, once.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Container, Iterable
from itertools import chain
from typing import Final, TypeAlias

from .ports import Deadline

SLOT_BITS: Final = 14
"""A slot spans 2 to the power of this, ms."""
COLUMNS_MAX: Final = 64
STALE_MIN: Final = 65_536
"""So many deadlines more than twice as many as there are sessions, and those of gone sessions are dropped."""

_Columns: TypeAlias = "tuple[array[int], list[bytes]]"


class _Slot:
    """Deadlines that lie close together, in the parts in which they came."""

    __slots__ = ("is_sorted", "parts")

    def __init__(self) -> None:
        self.parts: list[_Columns] = []
        self.is_sorted = False

    def add(self, deadlines: list[Deadline]) -> None:
        self.is_sorted = False
        self.parts.append(_columns(deadlines))
        if len(self.parts) > COLUMNS_MAX:
            self.parts = [_columns(list(self.entries()))]

    def entries(self) -> Iterable[Deadline]:
        return chain.from_iterable(zip(times_ms, keys, strict=True) for times_ms, keys in self.parts)

    def sorted(self) -> _Columns:
        """All of them in order, each once."""
        if not self.is_sorted or len(self.parts) != 1:
            self.replace(sorted(set(self.entries())))
        return self.parts[0]

    def replace(self, deadlines: list[Deadline]) -> None:
        """Hold these, which are in order, instead."""
        parts = [_columns(deadlines)]
        self.parts, self.is_sorted = parts, True

    def remove(self, gone: set[Deadline]) -> int:
        """Answers how many were there."""
        times_ms, keys = self.sorted()
        count = len(gone)
        if set(zip(times_ms[:count], keys[:count], strict=True)) == gone:
            left = [(times_ms[count:], keys[count:])]  # the earliest ones: what a sweep is done with
        else:
            left = [_columns([entry for entry in zip(times_ms, keys, strict=True) if entry not in gone])]
        self.parts = left
        return len(keys) - len(left[0][1])


class Timeline:
    """Armed deadlines. Not for two threads at once."""

    def __init__(self) -> None:
        self._slots: dict[int, _Slot] = {}
        self._order: list[int] = []
        """The numbers of all slots, in order; one without a slot holds nothing."""
        self._count = 0
        """About how many there are."""

    def arm(self, deadlines: Iterable[Deadline]) -> None:
        """Add these; one that is armed already stays."""
        for number, added in _by_slot(deadlines).items():
            place = bisect_left(self._order, number)
            if place == len(self._order) or self._order[place] != number:
                self._order.insert(place, number)
            self._slots.setdefault(number, _Slot()).add(added)
            self._count += len(added)

    def disarm(self, deadlines: Iterable[Deadline]) -> None:
        """Remove these; what is not armed is passed over."""
        for number, gone in _by_slot(deadlines).items():
            slot = self._slots.get(number)
            if slot is not None:
                self._count -= slot.remove(set(gone))
                self._drop_if_empty(number, slot)

    def due(self, until_ms: int, limit: int) -> list[Deadline]:
        """Up to `limit` of the earliest that are at or before `until_ms`, in order."""
        found: list[Deadline] = []
        for number in self._order:
            if number > until_ms >> SLOT_BITS or len(found) >= limit:
                break
            slot = self._slots.get(number)
            if slot is not None:
                times_ms, keys = slot.sorted()
                end = min(bisect_right(times_ms, until_ms), limit - len(found))
                found += zip(times_ms[:end], keys[:end], strict=True)
        return found

    def drop_stale(self, sessions: Container[bytes], session_count: int) -> None:
        """Where far more are armed than there are sessions: keep the earliest of each session that is there.

        A process that never sweeps would else keep those of every session that another one swept.
        """
        if self._count <= 2 * session_count + STALE_MIN:
            return
        seen: set[bytes] = set()
        for number in list(self._order):
            slot = self._slots.get(number)
            if slot is None:
                continue
            kept: list[Deadline] = []
            for time_ms, key in zip(*slot.sorted(), strict=True):
                if key in sessions and key not in seen:
                    seen.add(key)
                    kept.append((time_ms, key))
            slot.replace(kept)
            self._drop_if_empty(number, slot)
        self._count = len(seen)

    def _drop_if_empty(self, number: int, slot: _Slot) -> None:
        if not any(keys for _, keys in slot.parts):
            del self._slots[number]
            del self._order[bisect_left(self._order, number)]


def _by_slot(deadlines: Iterable[Deadline]) -> dict[int, list[Deadline]]:
    by_slot: dict[int, list[Deadline]] = {}
    for deadline in deadlines:
        number = deadline[0] >> SLOT_BITS
        if number in by_slot:
            by_slot[number].append(deadline)
        else:
            by_slot[number] = [deadline]
    return by_slot


def _columns(deadlines: list[Deadline]) -> _Columns:
    return array("Q", [time_ms for time_ms, _ in deadlines]), [key for _, key in deadlines]
