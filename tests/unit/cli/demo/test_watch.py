"""Lag is the age of the oldest event that a replica does not have, and a gauge outlives its writer."""

from __future__ import annotations

import random
from pathlib import Path

from perdure.cli.demo.gauge import Count, Gauge, Stage
from perdure.cli.demo.watch import LagMeter


def test_a_replica_that_has_everything_has_no_lag() -> None:
    meter = LagMeter()
    for number in range(10):
        meter.sample(number / 100, number, number)
        assert meter.now_ms == 0.0
    assert meter.percentile_ms(99) == 0.0


def test_lag_counts_from_the_oldest_event_that_is_missing() -> None:
    meter = LagMeter()
    meter.sample(1.000, 10, 10)
    meter.sample(1.010, 11, 10)
    meter.sample(1.020, 15, 10)
    meter.sample(1.030, 15, 10)
    assert round(meter.now_ms) == 20
    meter.sample(1.040, 15, 11)
    assert round(meter.now_ms) == 20  # since 1.020, when what came behind LSN 11 was first seen
    meter.sample(1.050, 15, 15)
    assert meter.now_ms == 0.0


def test_a_replica_that_stands_still_lags_more_and_more() -> None:
    meter = LagMeter()
    meter.sample(0.0, 5, 5)
    for step in range(1, 6):
        meter.sample(step, 5 + step, 5)
    assert meter.now_ms == 4000.0


def test_the_percentile_is_one_of_the_samples(seed: int) -> None:
    rng = random.Random(seed)
    meter = LagMeter()
    lags: list[float] = []
    now_s, appended, held = 0.0, 0, 0
    for _ in range(500):
        now_s += rng.random() / 100
        appended += rng.randrange(3)
        held = min(appended, held + rng.randrange(4))
        meter.sample(now_s, appended, held)
        lags.append(meter.now_ms)
    lags.sort()
    assert abs(meter.percentile_ms(99) - lags[495]) < 0.01
    assert abs(meter.percentile_ms(100) - lags[-1]) < 0.01


def test_a_gauge_is_read_after_its_writer_has_gone(tmp_path: Path) -> None:
    gauge = Gauge(tmp_path / "gauge")
    gauge.add(Count.WRITES, 3)
    gauge[Count.STAGE] = Stage.RUNNING
    gauge.close()
    again = Gauge(tmp_path / "gauge")
    assert (again[Count.WRITES], again.stage) == (3, Stage.RUNNING)
    again.close()
