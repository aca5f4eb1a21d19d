"""Measuring two things in turn, so that a machine whose speed drifts treats both alike."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

REPORTED = "reported"
"""The aim of a figure that has none, and no peer."""


class Figure(msgspec.Struct, frozen=True):
    """One measured rate beside its limit or peer in the same run."""

    name: str
    rate_per_s: float
    """Median over the slices."""
    best_per_s: float
    peer: str
    peer_rate_per_s: float
    ratio: float
    """Median of the slices' ratios, ours to the peer's: of rates, above 1 is faster than the peer."""
    ratio_min: float
    ratio_max: float
    aim: str
    is_met: bool
    is_less_better: bool = False
    """A time or an amount, of which a lower ratio is the better one."""
    rounds: int = 1
    """That the ratios are of."""

    @property
    def spread(self) -> float | None:
        """How far the ratios lie from their median, as a share of it; None if it was measured once."""
        return (self.ratio_max - self.ratio_min) / 2 / self.ratio if self.ratio_max > self.ratio_min else None


Slice = Callable[[], int]
"""Does some work and answers how many units that was."""


def rate_of(work: Slice) -> float:
    """Units a second of one slice."""
    gc.collect()
    started = time.perf_counter()
    units = work()
    return units / (time.perf_counter() - started)


def compare(
    name: str, ours: Slice, peer_name: str, peer: Slice, *, slices: int = 7, ratio_aim: float = 1.0
) -> Figure:
    """Run both in turn, `slices` times each; the first pair is a warm-up."""
    rates: list[tuple[float, float]] = []
    for number in range(slices + 1):
        pair = (
            (rate_of(ours), rate_of(peer)) if number % 2 else tuple(reversed((rate_of(peer), rate_of(ours))))
        )
        if number:
            rates.append((pair[0], pair[1]))
    ratios = [mine / its for mine, its in rates]
    ratio = statistics.median(ratios)
    return Figure(
        name,
        statistics.median(mine for mine, _ in rates),
        max(mine for mine, _ in rates),
        peer_name,
        statistics.median(its for _, its in rates),
        ratio,
        min(ratios),
        max(ratios),
        f"at least {ratio_aim:.2f} of the peer",
        ratio >= ratio_aim,
        rounds=slices,
    )


def processor_us(pids: Iterable[int]) -> float:
    """Processor time in us that these processes have taken, with all their threads that live."""
    ns = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # it has ended
                ns += int((thread / "schedstat").read_text().split()[0])
    return ns / 1000


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
