"""The bare calls by themselves, as rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.comparison import Plan
from bench.limit_rows import LIMIT_NAMES, limit_rows
from bench.sharing import SharedSync

THREADS = 4
RECORD = b"a record of some bytes"
PLAN = Plan(rounds=2, slice_s=0.001, open_s=0.1)
LATE = "a call that does nothing, at 1,000/s"


def test_each_limit_is_a_row_and_only_calls_at_a_rate_have_latencies(tmp_path: Path) -> None:
    rows = {row.case: row for row in limit_rows(tmp_path, PLAN)}
    assert tuple(rows) == LIMIT_NAMES
    assert all(row.ops_per_s and row.rounds == 2 for row in rows.values())
    assert [case for case, row in rows.items() if row.p99_us is not None] == [LATE]


def test_calls_that_do_nothing_come_at_their_rate_and_each_is_counted_from_when_it_was_due(
    tmp_path: Path,
) -> None:
    row = next(row for row in limit_rows(tmp_path, PLAN) if row.case == LATE)
    assert row.ops_per_s is not None
    assert 0 < row.ops_per_s < 2_000  # of the schedule; how far a busy machine falls behind it says nothing
    latencies = (row.p50_us, row.p90_us, row.p99_us, row.p999_us, row.max_us)
    known = [latency for latency in latencies if latency is not None]
    assert len(known) == len(latencies)
    assert known[0] > 0
    assert known == sorted(known)


def test_threads_that_share_syncs_write_each_record_once_and_return_when_it_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = 0
    sync = os.fdatasync

    def count_synced(descriptor: int) -> None:
        nonlocal synced
        size = os.fstat(descriptor).st_size
        sync(descriptor)
        synced = size // len(RECORD)

    monkeypatch.setattr(os, "fdatasync", count_synced)
    with opened(tmp_path / "log") as log:
        shared = SharedSync(log, RECORD)
        returned: list[int] = []
        write = shared.write

        def write_and_count() -> None:
            write()
            returned.append(1)
            assert len(returned) <= synced

        monkeypatch.setattr(shared, "write", write_and_count)
        assert shared.rate_per_s(0.2, THREADS) > 0
        assert len(returned) >= THREADS
        assert (tmp_path / "log").read_bytes() == RECORD * len(returned)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        yield log
    finally:
        os.close(log)
