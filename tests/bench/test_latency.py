"""The histogram against all values sorted."""

from __future__ import annotations

import random

import pytest

from bench.latency import Histogram, bucket_of, highest_of


def test_buckets_follow_each_other_without_gap_or_overlap() -> None:
    edge = -1
    for bucket in range(128 * 20):
        assert bucket_of(edge + 1) == bucket
        assert bucket_of(highest_of(bucket)) == bucket
        edge = highest_of(bucket)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.99, 0.999, 1.0])
def test_a_percentile_is_that_of_the_sorted_values_within_one_part_in_128(share: float, seed: int) -> None:
    choice = random.Random(seed)
    values = sorted(int(choice.lognormvariate(10, 2)) for _ in range(5000))
    histogram = Histogram()
    histogram.record(values)
    exact = values[max(0, -(-len(values) * share // 1).__int__() - 1)]
    got = histogram.percentile_us(share)
    assert got is not None
    assert exact <= got * 1000 <= exact + exact / 128 + 1


def test_the_sum_of_two_histograms_is_that_of_all_calls_together() -> None:
    one, other, both = Histogram(), Histogram(), Histogram()
    one.record([100, 200, 300])
    other.record([1_000_000, 5])
    both.record([100, 200, 300, 1_000_000, 5])
    one.add(other)
    assert (one.counts, one.max_ns) == (both.counts, both.max_ns)


def test_the_highest_percentile_is_the_exact_maximum_and_none_without_calls() -> None:
    histogram = Histogram()
    assert histogram.percentile_us(0.99) is None
    histogram.record([999_999, -5])
    assert histogram.percentile_us(1.0) == 999.999
    assert histogram.percentile_us(0.5) == 0.0
