"""Shipping between real processes: convergence, durability of acknowledged writes, deaths and resumption."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from perdure.shipping import read_slots, shipping_status
from perdure.store import Indeterminate, NoQuorumError, Position, PositionGoneError
from perdure.store.cursor import LogCursor, list_segments
from perdure.store.frame import cluster_key
from perdure.store.page import Word
from tests.cluster.nodes import CLUSTER, Cluster, cluster_of, session_ids, until


def test_asynchronous_replicas_converge_to_the_primarys_digest(tmp_path: Path) -> None:
    with cluster_of(tmp_path) as cluster:
        cluster.start_all()
        store = cluster.open("n1")
        ids = [store.create({"n": number}) for number in range(300)]
        for id in ids[::3]:
            store.delete(id)
        for id in ids[1::3]:
            store.update(id, lambda session: session.merge({"seen": True}))
        lsn = cluster.word("n1", Word.APPENDED)
        cluster.wait_applied(lsn)
        expected = cluster.state_of("n1")
        assert expected[0] == lsn
        assert expected[2] == 200
        assert cluster.state_of("n2") == expected
        assert cluster.state_of("n3") == expected


def test_replicas_logs_are_the_primarys_bytes(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        cluster.start_here()
        store = cluster.open("n1")
        for number in range(50):
            store.create({"n": number})
        until(lambda: cluster.end("n2") == cluster.end("n1"), "the logs end at one position")
        assert frames_of(cluster, "n1") == frames_of(cluster, "n2")


def test_a_synchronous_write_returns_only_when_a_replica_has_it_on_disk(tmp_path: Path) -> None:
    with cluster_of(tmp_path, sync_replicas=1) as cluster:
        cluster.start_all()
        store = cluster.open("n1")
        acknowledged = [store.create({"n": number}) for number in range(100)]
        for key in ("shipper:n1", "receiver:n2", "receiver:n3", "folder:n2", "folder:n3"):
            cluster.kill(key)
        ends = {name: cluster.end(name) for name in ("n2", "n3")}
        best = max(ends, key=lambda name: ends[name].lsn)
        assert ends[best].lsn >= cluster.word("n1", Word.COMMITTED)
        cluster.start(cluster.receiver(best), cluster.folder_of(best))
        with cluster.client(best) as client:
            held = b"".join(client.fetch(Position(0, 0, 0)))
        assert all(id.encode() in held for id in acknowledged)


def test_a_synchronous_write_without_a_shipper_is_refused_before_it_is_written(tmp_path: Path) -> None:
    with cluster_of(tmp_path, sync_replicas=1) as cluster:
        store = cluster.open("n1", write_timeout_ms=300)
        before = cluster.word("n1", Word.APPENDED)
        with pytest.raises(NoQuorumError):
            store.create({})
        assert cluster.word("n1", Word.APPENDED) == before


def test_a_synchronous_write_is_indeterminate_when_the_replicas_die_under_it(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2, sync_replicas=1) as cluster:
        cluster.start_all()
        cluster.open("n1", write_timeout_ms=30_000).create({"n": 0})
        store = cluster.open("n1", write_timeout_ms=1000)
        cluster.children["receiver:n2"].process.send_signal(19)  # SIGSTOP: connected, and silent
        try:
            with pytest.raises(Indeterminate) as raised:
                store.create({"n": 1})
            position = raised.value.position
            assert position is not None
            assert store.outcome(position).value == "pending"
        finally:
            cluster.children["receiver:n2"].process.send_signal(18)
        until(lambda: store.outcome(position).value == "committed", "the write is committed after all")


@pytest.mark.parametrize("victim", ["shipper:n1", "receiver:n2"])
def test_writes_go_on_after_a_process_was_killed_in_the_middle(tmp_path: Path, victim: str) -> None:
    with cluster_of(tmp_path, 2, sync_replicas=1) as cluster:
        cluster.start_all()
        store = cluster.open("n1", write_timeout_ms=20_000)
        acknowledged: list[str] = []

        def write() -> None:
            for number in range(150):
                acknowledged.append(store.create({"n": number}))  # noqa: PERF401 (looked at meanwhile)

        threads = ThreadPoolExecutor(1)
        writing = threads.submit(write)
        until(lambda: len(acknowledged) >= 30, "some writes are through")
        cluster.kill(victim)
        if victim == "shipper:n1":
            cluster.start(cluster.shipper("n1"))
        else:
            cluster.start(cluster.receiver("n2"))
        writing.result(60)
        threads.shutdown()
        assert len(acknowledged) == 150
        cluster.wait_applied(cluster.word("n1", Word.COMMITTED), "n2")
        assert session_ids(cluster.path("n2")) >= set(acknowledged)
        assert cluster.state_of("n2")[1:] == cluster.state_of("n1")[1:]


def test_a_dead_replica_holds_nobody_up_and_catches_up_later(tmp_path: Path) -> None:
    with cluster_of(tmp_path, sync_replicas=1) as cluster:
        cluster.start_all()
        store = cluster.open("n1")
        store.create({"n": 0})
        cluster.kill("receiver:n3")
        for number in range(200):
            store.create({"n": number})
        until(lambda: cluster.slot_state("n1", "n3")[0] == "disconnected", "the slot says so")
        cluster.start(cluster.receiver("n3"))
        cluster.wait_applied(cluster.word("n1", Word.COMMITTED), "n3")
        assert cluster.state_of("n3") == cluster.state_of("n1")


def test_sealed_segments_are_caught_up_compressed(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        store = cluster.open("n1")
        store._log.segment_bytes = 64 << 10
        for number in range(1500):
            store.create({"n": number, "text": "x" * 100})
        segments = list_segments(cluster.path("n1") / "log")
        assert len(segments) > 3
        until(lambda: segments[0].path.read_bytes().endswith(b"PDRE"), "the first segment is sealed")
        cluster.start_here()
        lsn = cluster.word("n1", Word.APPENDED)
        cluster.wait_applied(lsn)
        assert cluster.state_of("n2") == cluster.state_of("n1")
        first_lsns = [file.first_lsn for file in list_segments(cluster.path("n2") / "log")]
        assert first_lsns == [file.first_lsn for file in list_segments(cluster.path("n1") / "log")]


def test_slots_and_status_say_how_far_each_replica_is(tmp_path: Path) -> None:
    with cluster_of(tmp_path, sync_replicas=1) as cluster:
        cluster.start_here()
        store = cluster.open("n1")
        for number in range(20):
            store.create({"n": number})
        lsn = cluster.word("n1", Word.APPENDED)
        until(lambda: [slot.lsn for slot in read_slots(cluster.path("n1"))] == [lsn, lsn], "slots")
        status = shipping_status(cluster.path("n1"))
        assert [(one.node, one.state, one.lag_events) for one in status.replicas] == [
            ("n2", "streaming", 0),
            ("n3", "streaming", 0),
        ]
        assert (status.committed_lsn, status.pending_events, status.voters_connected) == (lsn, 0, 2)
        assert status.shipper_pid == os.getpid()
        until(lambda: [slot.node for slot in read_slots(cluster.path("n2"))] == ["n1", "n3"], "peers' slots")
        cluster.stop_here()
        assert shipping_status(cluster.path("n1")).shipper_pid == 0


def test_the_asked_node_tells_its_position_and_its_frames(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2, sync_replicas=1) as cluster:
        cluster.start_here()
        store = cluster.open("n1")
        for number in range(20):
            store.create({"n": number})
        with cluster.client("n2") as client:
            status = client.status()
            assert (status.node, status.role, status.primary) == ("n2", "replica", "n1")
            assert (status.voters, status.sync_replicas) == (("n1", "n2"), 1)
            assert status.end == cluster.end("n1")
            assert 0 <= status.primary_heard_ms < 5_000
            raw = b"".join(client.fetch(cluster.end("n1")._replace(epoch=0, lsn=0, chain=0)))
            assert raw == frames_of(cluster, "n1")
            with pytest.raises(PositionGoneError, match="is not in this log"):
                list(client.fetch(cluster.end("n1")._replace(chain=1)))


def frames_of(cluster: Cluster, name: str) -> bytes:
    """The bytes of all frames of a node's log."""
    log = cluster.path(name) / "log"
    cursor = LogCursor(log, CLUSTER, cluster_key(CLUSTER))
    try:
        cursor.open_segment(list_segments(log)[0])
        return b"".join(run.raw for run in cursor.runs())
    finally:
        cursor.close()
