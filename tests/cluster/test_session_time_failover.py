"""Session time over a failover: a replica has its primary's, and goes on with it when it is promoted."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from perdure.recovery import promote
from perdure.store import SessionStore
from perdure.store.clock import LATE_MS_MAX, read_boottime_ms, read_wall_ms
from perdure.store.opening import OpenOptions, open_store
from perdure.store.page import ControlPage, Word, read_boot_id
from tests.cluster.nodes import HOST, SECRET, Cluster, cluster_of, until

HOUR_MS = 3_600_000
NEAR_MS = 2_000
"""What a busy machine may need between two looks at a clock, and a heartbeat."""


def session_time(cluster: Cluster, name: str) -> int:
    """The session time of a node, as its page says it."""
    page = ControlPage(cluster.path(name) / "control", read_boot_id())
    try:
        return read_boottime_ms() + int(page.signed_words[Word.SESSION_OFFSET_MS])
    finally:
        page.close()


def set_session_time(cluster: Cluster, name: str, ahead_ms: int) -> None:
    """Move a node's session time to where it would be if its wall clock had always been so far ahead."""
    page = ControlPage(cluster.path(name) / "control", read_boot_id())
    try:
        page.signed_words[Word.SESSION_OFFSET_MS] = read_wall_ms() + ahead_ms - read_boottime_ms()
    finally:
        page.close()


def is_ahead_by(cluster: Cluster, name: str, ahead_ms: int) -> bool:
    """Is a node's session time so far ahead of this machine's wall clock?

    A primary slews by an eighth of the time that passes; the tests take seconds.
    """
    return abs(session_time(cluster, name) - read_wall_ms() - ahead_ms) < NEAR_MS + LATE_MS_MAX


@pytest.mark.parametrize(("primary_ahead_ms", "replica_ahead_ms"), [(HOUR_MS, 0), (0, HOUR_MS)])
def test_a_promoted_replica_whose_wall_clock_differs_by_an_hour_expires_nothing_and_keeps_nothing(
    tmp_path: Path, primary_ahead_ms: int, replica_ahead_ms: int
) -> None:
    with cluster_of(tmp_path, 3) as cluster:
        set_session_time(cluster, "n1", primary_ahead_ms)
        cluster.serve_here("n2", "n3")
        set_session_time(cluster, "n2", replica_ahead_ms)
        cluster.fold_here("n2")
        cluster.ship_here("n1")
        store = cluster.open("n1")
        kept = [store.create({"n": n}, timeout_ms=600_000) for n in range(20)]
        brief = [store.create({"n": n}, timeout_ms=4_000) for n in range(20)]
        until(lambda: is_ahead_by(cluster, "n2", primary_ahead_ms), "n2 has its primary's time")
        cluster.wait_applied(store.flush().lsn, "n2")
        with SessionStore.open(cluster.path("n2"), create=False) as replica:
            assert all(replica.peek(id) for id in kept)
        store.close()
        cluster.stop_here()
        cluster.serve_here("n3")
        promote(cluster.path("n2"), {"n3": (HOST, cluster.ports["n3"])}, SECRET, accept_data_loss=True)
        options = OpenOptions(create=False, wall_ms=lambda: read_wall_ms() + replica_ahead_ms)
        with SessionStore(open_store(cluster.path("n2"), options), options, None) as promoted:
            assert is_ahead_by(cluster, "n2", primary_ahead_ms)
            fresh = promoted.create({}, timeout_ms=600_000)
            assert all(promoted.get(id) for id in [*kept, fresh])
            until(lambda: not any(promoted.peek(id) for id in brief), "what was idle for its timeout expires")
            promoted.cleanup_expired()
            assert sorted(promoted.ids()) == sorted([*kept, fresh])
            session = promoted.peek(kept[0])
            assert session is not None
            assert 0 <= promoted._now_ms() - session.created_at < 60_000


def test_a_replica_that_was_ahead_takes_its_primarys_time_before_it_shows_a_session_as_expired(
    tmp_path: Path,
) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        store = cluster.open("n1")
        id = store.create({}, timeout_ms=60_000)
        cluster.serve_here("n2")
        set_session_time(cluster, "n2", HOUR_MS)
        cluster.fold_here("n2")
        cluster.ship_here("n1")
        cluster.wait_applied(store.flush().lsn)
        until(lambda: is_ahead_by(cluster, "n2", 0), "n2 has its primary's time")
        with SessionStore.open(cluster.path("n2"), create=False) as replica:
            assert replica.peek(id) is not None


def test_a_replica_that_hears_nothing_goes_on_by_itself(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        set_session_time(cluster, "n1", HOUR_MS)
        cluster.start_here()
        until(lambda: is_ahead_by(cluster, "n2", HOUR_MS), "n2 has its primary's time")
        cluster.stop_here()
        began = time.monotonic()
        before_ms, since = session_time(cluster, "n2"), time.monotonic()
        until(lambda: time.monotonic() - since > 0.3, "some time passes")
        passed_ms = session_time(cluster, "n2") - before_ms
        assert 250 < passed_ms < (time.monotonic() - began) * 1000 + 50
