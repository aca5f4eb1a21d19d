"""Damage to one file: every bit, every byte, every length; and the loop that checks each.

Owns the enumeration. The damage is done to bytes in memory; what to do with them is the check's.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from .shards import Report, ShardResult, run_sharded

_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Damage:
    """One change of a file. kind: flip (xor `value` at `offset`), set (`value` at `offset`), cut (to length
    `offset`), zero (from `offset` to the end), grow (`offset` more zeros)."""

    kind: str
    offset: int
    value: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.offset}" + (f" {self.value:#04x}" if self.kind in ("flip", "set") else "")

    def of(self, data: bytes) -> bytes:
        """The damaged copy."""
        if self.kind == "cut":
            return data[: self.offset]
        if self.kind == "zero":
            return data[: self.offset] + bytes(len(data) - self.offset)
        if self.kind == "grow":
            return data + bytes(self.offset)
        changed = bytearray(data)
        changed[self.offset] = self.value if self.kind == "set" else changed[self.offset] ^ self.value
        return bytes(changed)


def flips(
    size: int, *, masks: Sequence[int] = (0x01, 0x80), step: int = 1, start: int = 0
) -> Iterator[Damage]:
    """Each byte from `start` on, `step` apart, xored with each mask (0xFF turns all its bits)."""
    for offset in range(start, size, step):
        for mask in masks:
            yield Damage("flip", offset, mask)


def random_flips(size: int, count: int, seed: int) -> list[Damage]:
    """`count` single-bit flips at random places, without repeats, in rising order."""
    places = random.Random(seed).sample(range(size * 8), min(count, size * 8))
    return [Damage("flip", place // 8, 1 << place % 8) for place in sorted(places)]


def cuts(size: int, *, step: int = 1) -> Iterator[Damage]:
    """Each shorter length, from 0 on."""
    return (Damage("cut", length) for length in range(0, size, step))


def zeroed_tails(size: int, *, step: int = 1) -> Iterator[Damage]:
    """Zeros from each offset to the end, the length kept."""
    return (Damage("zero", offset) for offset in range(0, size, step))


Judge = Callable[[Damage, bytes], Iterable[object]]
"""judge(damage, damaged bytes) -> what is wrong. It runs in a worker process, which it may well kill."""


def damage_sweep(
    data: bytes,
    damages: Iterable[Damage],
    judge: Judge,
    *,
    workers: int = 2,
    deadline_s: float = 20.0,
    stop_after: int = 10,
) -> ShardResult:
    """Judge every damaged copy of `data`, in parallel. totals["checked"] says how many were judged; damage
    that changes nothing is left out and counted in totals["unchanged"]. A judge that dies or hangs is a
    violation named by its damage, and the rest is judged nevertheless."""
    plan = list(damages)
    blocks = [plan[i : i + _BLOCK] for i in range(0, len(plan), _BLOCK)]

    def work(index: int, report: Report) -> None:
        for damage in blocks[index]:
            if not report.at(str(damage)):
                continue
            damaged = damage.of(data)
            if damaged == data:
                report.add("unchanged")
                continue
            report.collect(functools.partial(judge, damage, damaged))
            report.add("checked")

    return run_sharded(len(blocks), work, workers=workers, deadline_s=deadline_s, stop_after=stop_after)
