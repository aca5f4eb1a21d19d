"""Replicas whose state is in memory: readers fold for themselves, and the folder checks."""

from __future__ import annotations

from pathlib import Path

from perdure.recovery import take_snapshot
from perdure.shipping import shipping_status
from perdure.store import SessionStore
from perdure.store.page import Word
from tests.cluster.nodes import cluster_of, session_ids, until
from tests.cluster.test_shipping_bootstrap import drop_log_before_snapshot, write_segments


def test_a_reader_on_a_replica_sees_what_was_shipped_and_the_folder_checks_it(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2, backend="memory") as cluster:
        cluster.start_here()
        store = cluster.open("n1")
        ids = {store.create({"n": number}) for number in range(50)}
        cluster.wait_applied(cluster.word("n1", Word.APPENDED))
        with SessionStore.open(cluster.path("n2"), create=False) as reader:
            until(lambda: set(reader.ids()) == ids, "the reader sees all")
            reader._keeper.fold_now()
            id = store.create({"late": True})
            until(lambda: reader.get(id) is not None, "the reader follows")
            cluster.wait_applied(cluster.word("n1", Word.APPENDED))
            assert reader.stats()["digest"] == store.stats()["digest"]
        known = shipping_status(cluster.path("n2"))
        assert not known.is_state_shared
        assert known.folded_lsn == cluster.word("n1", Word.APPENDED)
        assert shipping_status(cluster.path("n1")).folded_lsn == 0


def test_a_reader_goes_on_when_a_snapshot_replaces_the_log_under_it(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2, backend="memory") as cluster:
        cluster.start_here()
        store = cluster.open("n1")
        early = store.create({"early": True})
        cluster.wait_applied(cluster.word("n1", Word.APPENDED))
        cluster.stop_here()
        with SessionStore.open(cluster.path("n2"), create=False) as reader:
            assert reader.get(early) is not None
            reader.fold()
            write_segments(cluster)
            store.delete(early)
            take_snapshot(cluster.path("n1"))
            drop_log_before_snapshot(cluster)
            cluster.start_here()
            until(lambda: reader.count() == store.count(), "the reader has what the snapshot holds")
            id = store.create({"late": True})
            until(lambda: reader.get(id) is not None, "the reader follows the new log")
            assert set(reader.ids()) == set(store.ids()) == session_ids(cluster.path("n1"))
            assert reader.get(early) is None
