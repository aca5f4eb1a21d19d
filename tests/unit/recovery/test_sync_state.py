"""The words for how replicas stand, row by row."""

from __future__ import annotations

import pytest

from perdure.recovery.sync_state import ClusterSync, Holder, SessionSync, cluster_sync, session_sync

HAS, LACKS, AWAY, AWAY_HAS = (
    Holder("n2", True, True),
    Holder("n3", True, False),
    Holder("n4", False, False),
    Holder("n5", False, True),
)


@pytest.mark.parametrize(
    ("holders", "connected", "k", "word"),
    [
        ([], 0, 0, ClusterSync.ALONE),
        ([], 0, 1, ClusterSync.STALLED),
        ([HAS], 1, 1, ClusterSync.SYNCED),
        ([HAS, LACKS], 2, 1, ClusterSync.LAGGING),
        ([HAS, AWAY], 1, 1, ClusterSync.DEGRADED),
        ([HAS, AWAY_HAS], 1, 1, ClusterSync.DEGRADED),
        ([AWAY], 0, 1, ClusterSync.STALLED),
        ([AWAY], 0, 0, ClusterSync.DEGRADED),
    ],
)
def test_the_word_for_a_cluster_follows_from_its_replicas(
    holders: list[Holder], connected: int, k: int, word: ClusterSync
) -> None:
    assert cluster_sync(holders, connected, k) is word


@pytest.mark.parametrize(
    ("holders", "facts", "word"),
    [
        ([HAS, LACKS], "primary", SessionSync.INITIALIZING),
        ([HAS, LACKS], "primary flushed", SessionSync.SYNCING),
        ([HAS, LACKS], "primary flushed committed", SessionSync.SYNCING),
        ([HAS], "primary flushed", SessionSync.SYNCING),
        ([HAS], "primary flushed committed", SessionSync.ACTIVE),
        ([], "primary flushed committed", SessionSync.ACTIVE),
        ([HAS, AWAY], "primary flushed committed", SessionSync.RECOVERING),
        ([HAS, AWAY, LACKS], "primary flushed committed", SessionSync.SYNCING),
        ([HAS, LACKS], "primary flushed committed removed", SessionSync.TERMINATING),
        ([HAS], "primary flushed committed removed", SessionSync.ACTIVE),
        ([LACKS], "flushed", SessionSync.FAILOVER),
        ([LACKS], "flushed committed", SessionSync.FAILOVER),
        ([HAS], "flushed committed", SessionSync.ACTIVE),
    ],
)
def test_the_word_for_a_session_follows_from_who_has_its_last_change(
    holders: list[Holder], facts: str, word: SessionSync
) -> None:
    found = session_sync(
        holders,
        has_primary="primary" in facts,
        is_flushed="flushed" in facts,
        is_committed="committed" in facts,
        is_removed="removed" in facts,
    )
    assert found is word


def test_every_word_can_come_out() -> None:
    cluster = {
        cluster_sync(holders, connected, k)
        for holders in ([], [HAS], [HAS, LACKS], [AWAY])
        for connected in (0, 1)
        for k in (0, 1)
    }
    assert cluster == set(ClusterSync) - {ClusterSync.UNKNOWN}
