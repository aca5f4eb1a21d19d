"""The traffic generator: the same every time, possible at every step, skewed, split, bounded."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from itertools import islice

import msgspec
import pytest

from perdure.cli.demo.operations import Create, Get, Operation, Regenerate, Update, content_hash
from perdure.cli.demo.traffic import (
    PAYLOAD_BYTES_MAX,
    WEB,
    YCSB_A,
    Mix,
    Plan,
    operations,
    places_of,
    zipf,
)
from perdure.store import UsageError
from tests.unit.cli.demo.model import ModelStore


def first(plan: Plan, writer: int, count: int) -> list[Operation]:
    return list(islice(operations(plan, writer), count))


def test_the_same_plan_gives_the_same_operations_and_another_seed_gives_others(seed: int) -> None:
    plan = Plan(seed=seed, sessions=50, writers=2)
    assert first(plan, 1, 1_000) == first(plan, 1, 1_000)
    assert first(plan, 1, 1_000) != first(msgspec.structs.replace(plan, seed=seed + 1), 1, 1_000)


@pytest.mark.parametrize(
    "mix", [WEB, YCSB_A, Mix(get=0, update=0, delete=1), Mix(get=1, update=1, regenerate=1)]
)
@pytest.mark.parametrize("is_preloaded", [True, False])
def test_every_operation_fits_what_came_before_it(seed: int, mix: Mix, is_preloaded: bool) -> None:
    store = ModelStore()
    plan = Plan(seed=seed, sessions=40, writers=3, mix=mix, is_preloaded=is_preloaded)
    for writer in range(3):
        store.run(first(plan, writer, 3_000))
    assert 0 < len(store.sessions) <= 40


def test_writers_share_the_places_and_no_session() -> None:
    plan = Plan(sessions=11, writers=4)
    assert [places_of(plan, writer) for writer in range(4)] == [3, 3, 3, 2]
    keys = [{operation.key for operation in first(plan, writer, 2_000)} for writer in range(4)]
    assert len(set().union(*keys)) == sum(map(len, keys))


def test_a_preload_fills_every_place_before_the_mix_begins() -> None:
    loaded = first(Plan(sessions=30, writers=1), 0, 31)
    assert all(isinstance(operation, Create) for operation in loaded[:30])
    assert len({operation.key for operation in loaded[:30]}) == 30
    assert not isinstance(loaded[30], Create)


def test_times_count_the_operations() -> None:
    for is_preloaded in (True, False):
        plan = Plan(sessions=5, is_preloaded=is_preloaded)
        assert [operation.time_ms for operation in first(plan, 0, 50)] == list(range(50))


def test_a_mix_shows_in_the_shares_of_its_operations() -> None:
    ycsb = first(Plan(seed=7, sessions=100, mix=YCSB_A), 0, 20_100)[100:]
    shares = Counter(type(operation) for operation in ycsb)
    assert set(shares) == {Get, Update}
    assert abs(shares[Get] - 10_000) < 500
    web = Counter(type(operation).__name__ for operation in first(Plan(seed=7, sessions=100), 0, 20_000))
    assert web["Get"] > web["Update"] > web["Touch"] > web["Peek"] > web["Regenerate"] > 100
    assert web["Delete"] > 300


def test_popularity_is_skewed_and_more_so_with_a_higher_theta() -> None:
    def share_of_the_top(theta: float) -> float:
        draw = zipf(1_000, theta, random.Random(5).random)
        counts = Counter(draw() for _ in range(20_000))
        assert max(counts) < 1_000
        return sum(sorted(counts.values())[-10:]) / 20_000

    assert share_of_the_top(0.99) > 0.35
    assert share_of_the_top(0.99) > share_of_the_top(0.5) > share_of_the_top(0.01) > 0.008


@pytest.mark.parametrize("places", [1, 2, 3, 10])
def test_few_places_are_all_drawn_and_no_other(places: int) -> None:
    draw = zipf(places, 0.99, random.Random(3).random)
    counts = Counter(draw() for _ in range(5_000))
    assert sorted(counts) == list(range(places))
    assert counts.most_common(1)[0][0] == 0


def test_zipf_frequencies_follow_the_law() -> None:
    draw = zipf(100, 0.99, random.Random(11).random)
    counts = Counter(draw() for _ in range(100_000))
    zeta = sum(rank**-0.99 for rank in range(1, 101))
    for rank in (1, 2):  # exact by construction; the others are an approximation of the method
        assert abs(counts[rank - 1] / 100_000 - rank**-0.99 / zeta) < 0.01


@pytest.mark.parametrize("payload_bytes", [0, 1, 100])
def test_no_two_changes_leave_the_same_content(payload_bytes: int) -> None:
    plan = Plan(sessions=20, writers=2, payload_bytes=payload_bytes)
    stream = [operation for writer in range(2) for operation in first(plan, writer, 3_000)]
    contents = [op.content for op in stream if isinstance(op, Create | Update | Regenerate)]
    assert len({content_hash(content) for content in contents}) == len(contents)
    sizes = {len(str(content["cart"])) for content in contents}
    assert min(sizes) == payload_bytes // 2
    assert max(sizes) == payload_bytes


def test_a_long_stream_needs_no_more_memory_than_a_short_one() -> None:
    stream = operations(Plan(sessions=1_000, writers=1), 0)
    tracemalloc.start()
    try:
        for _ in islice(stream, 2_000):
            pass
        before_bytes, _ = tracemalloc.get_traced_memory()
        for _ in islice(stream, 20_000):
            pass
        after_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after_bytes - before_bytes < 10_000


@pytest.mark.parametrize(
    ("plan", "writer"),
    [
        (Plan(sessions=0), 0),
        (Plan(sessions=3, writers=4), 0),
        (Plan(sessions=10_000_001), 0),
        (Plan(writers=0), 0),
        (Plan(writers=2), 2),
        (Plan(writers=2), -1),
        (Plan(theta=0.0), 0),
        (Plan(theta=1.0), 0),
        (Plan(theta=float("nan")), 0),
        (Plan(payload_bytes=-1), 0),
        (Plan(payload_bytes=PAYLOAD_BYTES_MAX + 1), 0),
        (Plan(mix=Mix(get=0, update=0)), 0),
        (Plan(mix=Mix(get=1, update=-1)), 0),
        (Plan(mix=Mix(get=float("inf"), update=1)), 0),
        (Plan(mix=Mix(get=float("nan"), update=1)), 0),
    ],
)
def test_a_plan_out_of_its_bounds_is_refused_at_once(plan: Plan, writer: int) -> None:
    with pytest.raises(UsageError):
        operations(plan, writer)
