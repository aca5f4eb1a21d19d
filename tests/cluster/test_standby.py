"""A shipper in waiting: it ships once its node is primary, and waits again when it is no more."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from perdure.recovery import promote
from perdure.shipping import run_standby, shipping_status
from perdure.store import FencedError, NotPrimaryError
from perdure.store.page import Word
from tests.cluster.nodes import HOST, SECRET, Cluster, cluster_of, until


def standby(cluster: Cluster, name: str) -> None:
    """A standby shipper in a thread of the test."""
    ready = threading.Event()
    replicas = {other: (HOST, port) for other, port in cluster.ports.items() if other != name}
    cluster._run_here(ready, run_standby, cluster.path(name), replicas, secret=SECRET, on_ready=ready.set)


def addresses(cluster: Cluster, name: str) -> dict[str, tuple[str, int]]:
    return {other: (HOST, port) for other, port in cluster.ports.items() if other != name}


def test_a_node_that_is_promoted_ships_at_once_and_the_old_primary_goes_back_to_wait(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 3, sync_replicas=1) as cluster:
        cluster.serve_here("n1", "n2", "n3")
        for name in cluster.names:
            standby(cluster, name)
        first = cluster.open("n1")
        kept = [first.create({"n": number}) for number in range(5)]
        assert shipping_status(cluster.path("n2")).shipper_pid == 0

        until(lambda: cluster.end("n2").lsn == cluster.word("n1", Word.APPENDED), "n2 has everything")
        promote(cluster.path("n2"), addresses(cluster, "n2"), SECRET)
        promoted_s = time.monotonic()
        second = cluster.open("n2", write_timeout_ms=20_000)
        kept.append(second.create({"n": "after"}))
        assert time.monotonic() - promoted_s < 15
        until(lambda: cluster.word("n1", Word.SHIPPER) == 0, "the old primary's shipper waits")
        try:
            first.create({"n": "too late"})
        except (FencedError, NotPrimaryError):
            pass
        else:
            raise AssertionError("the old primary wrote after a promotion")

        until(lambda: cluster.end("n1") == cluster.end("n2"), "the old primary follows")
        promote(cluster.path("n1"), addresses(cluster, "n1"), SECRET)
        kept.append(first.create({"n": "primary again"}))
        assert shipping_status(cluster.path("n1")).voters_connected >= 1
        until(lambda: cluster.word("n2", Word.SHIPPER) == 0, "the second one waits, too")
        assert [first.peek(id) is not None for id in kept] == [True] * len(kept)
