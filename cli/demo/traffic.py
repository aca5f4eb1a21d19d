"""Made-up session traffic: seeded, skewed like web traffic, split among writers.

Owns the generator and its mixes. Knows no store and no clock. Invariant: the same plan and writer always
yield the same operations, each of them possible after those before it; a session belongs to one writer; and
memory is 8 bytes for each of a writer's places plus a fixed 64 KiB or so, however long the stream runs.

Popularity follows Zipf's law, drawn as in Gray et al., "Quickly generating billion-record synthetic
databases" (SIGMOD 1994), which is also what the YCSB benchmark does.
"""

from __future__ import annotations

from array import array
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from itertools import count
from random import Random

import msgspec

from ...store import UsageError
from .operations import Content, Create, Delete, Get, Operation, Peek, Regenerate, Touch, Update

PLACES_MAX = 10_000_000
WRITERS_MAX = 1_024
PAYLOAD_BYTES_MAX = 32_768

_TEXT_BYTES = 65_536


class Mix(msgspec.Struct, frozen=True):
    """Weights of what happens to a live session; they need not add up to 1. A dead one is created anew."""

    get: float
    update: float
    touch: float = 0.0
    peek: float = 0.0
    regenerate: float = 0.0
    delete: float = 0.0


WEB = Mix(get=0.60, update=0.30, touch=0.04, peek=0.02, regenerate=0.01, delete=0.03)
YCSB_A = Mix(get=0.5, update=0.5)
"""YCSB's core workload A ("session store recording recent actions"): half reads, half updates."""


class Plan(msgspec.Struct, frozen=True):
    """Everything that decides the traffic.

    `sessions` is the number of places, each of which holds one live session or none; `theta` (0 < theta < 1)
    is the skew; `payload_bytes` the size of the largest content, the smallest being half of it. With
    `is_preloaded` every place is filled once before the mix begins.
    """

    seed: int = 1
    sessions: int = 10_000
    writers: int = 1
    mix: Mix = WEB
    theta: float = 0.99
    payload_bytes: int = 256
    is_preloaded: bool = True


def places_of(plan: Plan, writer: int) -> int:
    """Return how many of the plan's places belong to a writer: place n to writer n modulo writers."""
    return (plan.sessions - writer + plan.writers - 1) // plan.writers


def operations(plan: Plan, writer: int) -> Iterator[Operation]:
    """Yield one writer's operations, without end.

    `time_ms` of an operation is its number in this stream, from 0: the generator's own time. Raises
    UsageError, before anything is drawn, for a plan out of its bounds.
    """
    _check(plan, writer)
    return _operations(plan, writer)


def zipf(places: int, theta: float, random: Callable[[], float]) -> Callable[[], int]:
    """Return a function that draws from 0..places-1, 0 the most popular. To prepare it takes O(places)."""
    zeta = sum(rank**-theta for rank in range(1, places + 1))
    head = 1.0 + 0.5**theta
    alpha = 1.0 / (1.0 - theta)
    eta = (1.0 - (2.0 / places) ** (1.0 - theta)) / (1.0 - head / zeta) if places > 2 else 0.0
    last = places - 1

    def draw() -> int:
        uniform = random()
        scaled = uniform * zeta
        if scaled < 1.0:
            return 0
        if scaled < head or places <= 2:
            return min(1, last)
        return min(int(places * (eta * uniform - eta + 1.0) ** alpha), last)

    return draw


def _check(plan: Plan, writer: int) -> None:
    mix = msgspec.structs.astuple(plan.mix)
    for is_fine, what in (
        (1 <= plan.writers <= WRITERS_MAX, f"writers must be 1 to {WRITERS_MAX:,}, not {plan.writers:,}"),
        (0 <= writer < plan.writers, f"writer {writer} of {plan.writers}: writers are numbered from 0"),
        (
            plan.writers <= plan.sessions <= PLACES_MAX,
            f"sessions must be {plan.writers:,} (one a writer) to {PLACES_MAX:,}, not {plan.sessions:,}",
        ),
        (0.0 < plan.theta < 1.0, f"theta must lie between 0 and 1, not be {plan.theta}"),
        (
            0 <= plan.payload_bytes <= PAYLOAD_BYTES_MAX,
            f"payload_bytes must be 0 to {PAYLOAD_BYTES_MAX:,}, not {plan.payload_bytes:,}",
        ),
        (
            min(mix) >= 0 and 0 < sum(mix) < float("inf"),
            "a mix needs weights that are not negative, one above 0",
        ),
    ):
        if not is_fine:
            raise UsageError(what)


def _operations(plan: Plan, writer: int) -> Iterator[Operation]:
    rng = Random(f"perdure traffic {plan.seed} {writer}")
    places = places_of(plan, writer)
    generations = array("I", bytes(4 * places))  # how many ids the place has had
    counters = array("I", bytes(4 * places))  # hits of its live session, 0 when there is none
    content_of = _contents(plan, writer, rng)
    prefix = f"{plan.seed & 0xFFFFFFFF:08x}-{writer}-"
    if plan.is_preloaded:
        for place in range(places):
            counters[place] = generations[place] = 1
            yield Create(f"{prefix}{place}-1", place, 1, content_of(place, 1, place))
    random = rng.random
    draw = zipf(places, plan.theta, random)
    get, update, touch, peek, regenerate = _thresholds(plan.mix)
    for time_ms in count(places if plan.is_preloaded else 0):
        place = draw()
        hits = counters[place]
        if not hits:
            generations[place] += 1
            counters[place] = 1
            yield Create(f"{prefix}{place}-{generations[place]}", time_ms, 1, content_of(place, 1, time_ms))
            continue
        key = f"{prefix}{place}-{generations[place]}"
        choice = random()
        if choice < get:
            yield Get(key, time_ms, hits)
        elif choice < update:
            counters[place] = hits + 1
            yield Update(key, time_ms, hits + 1, content_of(place, hits + 1, time_ms))
        elif choice < touch:
            yield Touch(key, time_ms)
        elif choice < peek:
            yield Peek(key, time_ms, hits)
        elif choice < regenerate:
            generations[place] += 1
            counters[place] = hits + 1
            new_key = f"{prefix}{place}-{generations[place]}"
            yield Regenerate(key, new_key, time_ms, hits + 1, content_of(place, hits + 1, time_ms))
        else:
            counters[place] = 0
            yield Delete(key, time_ms, hits)


def _contents(plan: Plan, writer: int, rng: Random) -> Callable[[int, int, int], Content]:
    """Return the function from place, hits and time to a content that no other operation of the plan has."""
    size_bytes = plan.payload_bytes
    text = urlsafe_b64encode(rng.randbytes(_TEXT_BYTES + size_bytes)).decode()
    writers = plan.writers
    half = size_bytes // 2
    spread = size_bytes - half + 1

    def content(place: int, hits: int, time_ms: int) -> Content:
        mixed = (place * 2_654_435_761 + time_ms * 40_503) & 0xFFFFFFFF
        start = mixed % _TEXT_BYTES
        cart = text[start : start + half + (mixed >> 16) % spread]
        return {"hits": hits, "seen_ms": time_ms, "user": place * writers + writer, "cart": cart}

    return content


def _thresholds(mix: Mix) -> list[float]:
    """Return where the share of each kind but the last ends in [0, 1), in the order of the mix's fields."""
    weights = msgspec.structs.astuple(mix)
    total = sum(weights)
    # The last kind that has a weight ends beyond every draw, whatever the sums were rounded to.
    return [sum(weights[:n]) / total if any(weights[n:]) else 2.0 for n in range(1, len(weights))]
