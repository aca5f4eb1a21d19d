"""Whether popular sessions are as popular as the law says."""

from __future__ import annotations

from collections import Counter

import pytest

from bench.zipf import EXPONENT, Even, Zipfian

IDS = [f"{number:04}" for number in range(1000)]


def test_shares_fall_with_the_rank_as_the_law_says(seed: int) -> None:
    counts = Counter(Zipfian(IDS, seed).take(200_000)).most_common()
    total = sum(rank**-EXPONENT for rank in range(1, 1001))
    assert counts[0][1] / 200_000 == pytest.approx(1 / total, rel=0.05)
    assert counts[9][1] / 200_000 == pytest.approx(10**-EXPONENT / total, rel=0.1)


def test_all_clients_find_the_same_sessions_popular_and_ask_in_another_order() -> None:
    one, other = Zipfian(IDS, 1), Zipfian(IDS, 1).seeded(2)
    asked, also = one.take(20_000), other.take(20_000)
    assert asked != also
    assert Counter(asked).most_common(1)[0][0] == Counter(also).most_common(1)[0][0]


def test_popular_sessions_are_no_neighbours() -> None:
    popular = [int(id) for id, _ in Counter(Zipfian(IDS, 3).take(50_000)).most_common(10)]
    assert max(popular) - min(popular) > 100


def test_the_same_seed_asks_for_the_same_sessions() -> None:
    assert Zipfian(IDS, 7).take(100) == Zipfian(IDS, 7).take(100)
    assert Even(IDS, 7).take(100) == Even(IDS, 7).take(100)


def test_an_even_choice_prefers_nobody(seed: int) -> None:
    counts = Counter(Even(IDS[:10], seed).take(100_000))
    assert all(9_000 < counts[id] < 11_000 for id in IDS[:10])
