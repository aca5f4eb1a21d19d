"""A replica that the log alone no longer reaches: snapshots, sent, resumed, damaged and installed."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from perdure.recovery import take_snapshot
from perdure.shipping import ShipperOptions, read_slots, serve_receiver
from perdure.store import Config, Promise, SessionStore, StorageFullError
from perdure.store.cursor import list_segments
from perdure.store.files import make_directory
from perdure.store.page import Word
from tests.cluster.nodes import HOST, SECRET, Cluster, cluster_of, session_ids, until
from tests.cluster.test_shipping_safety import become_primary
from tests.support.ports import free_ports


def test_a_new_replica_is_bootstrapped_from_a_snapshot_when_the_log_was_dropped(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        store = write_segments(cluster)
        take_snapshot(cluster.path("n1"))
        store.create({"after": "the snapshot"})
        drop_log_before_snapshot(cluster)
        cluster.start_here()
        expect_same(cluster)
        first = list_segments(cluster.path("n2") / "log")[0].first_lsn
        assert first == list_segments(cluster.path("n1") / "log")[0].first_lsn > 1
        with cluster.client("n2") as client:
            assert client.status().voters == ("n1", "n2")
        new = store.create({"later": True})
        cluster.wait_applied(cluster.word("n1", Word.APPENDED))
        assert new in session_ids(cluster.path("n2"))


def test_a_snapshot_is_asked_for_when_there_is_none(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        write_segments(cluster)
        drop_segments(cluster, 2)
        cluster.serve_here("n2")
        cluster.fold_here("n2")
        cluster.ship_here("n1", make_snapshot=lambda: take_snapshot(cluster.path("n1")).path)
        expect_same(cluster)


def test_a_replica_that_needs_a_snapshot_says_so_until_there_is_one(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        write_segments(cluster)
        drop_segments(cluster, 2)
        cluster.start_here()
        until(lambda: cluster.slot_state("n1", "n2")[0] == "snapshot", "the slot says snapshot")
        assert "snapshot create" in cluster.slot_state("n1", "n2")[1]
        take_snapshot(cluster.path("n1"))
        expect_same(cluster)


def test_a_replica_over_its_budget_gets_a_snapshot_instead_of_the_log(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        write_segments(cluster)
        take_snapshot(cluster.path("n1"))
        cluster.serve_here("n2")
        cluster.fold_here("n2")
        cluster.ship_here("n1", options=ShipperOptions(slot_budget_bytes=64 << 10))
        expect_same(cluster)
        assert list_segments(cluster.path("n2") / "log")[0].first_lsn > 1


def test_a_replica_over_its_budget_behind_the_newest_snapshot_gets_that_once_and_then_the_log(
    tmp_path: Path,
) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        write_segments(cluster)
        snapshot = take_snapshot(cluster.path("n1"))
        write_segments(cluster)
        cluster.serve_here("n2")
        cluster.fold_here("n2")
        cluster.ship_here("n1", options=ShipperOptions(slot_budget_bytes=64 << 10))
        expect_same(cluster)
        assert 1 < list_segments(cluster.path("n2") / "log")[0].first_lsn <= snapshot.lsn + 1
        assert len(list((cluster.path("n2") / "aside").glob("replaced-*"))) == 1


def test_no_log_is_kept_for_a_replica_that_is_away_for_longer_than_its_budget(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        cluster.ports["n2"] = 1  # nobody listens there
        cluster.ship_here("n1", options=ShipperOptions(slot_budget_bytes=64 << 10))
        until(lambda: cluster.slot_state("n1", "n2")[0] == "disconnected", "the slot says disconnected")
        assert read_slots(cluster.path("n1"))[0].keeps_log
        write_segments(cluster)
        until(lambda: cluster.slot_state("n1", "n2")[0] == "snapshot", "the slot says snapshot")
        assert not read_slots(cluster.path("n1"))[0].keeps_log


def test_an_old_replica_keeps_its_replaced_log_aside(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        cluster.start_here()
        store = cluster.open("n1")
        early = store.create({"early": True})
        cluster.wait_applied(cluster.word("n1", Word.APPENDED))
        cluster.stop_here()
        write_segments(cluster)
        take_snapshot(cluster.path("n1"))
        drop_log_before_snapshot(cluster)
        cluster.start_here()
        expect_same(cluster)
        kept = list((cluster.path("n2") / "aside").glob("replaced-*/*.seg"))
        assert any(early.encode() in file.read_bytes() for file in kept)


@pytest.mark.parametrize("victim", ["shipper:n1", "receiver:n2"])
def test_a_snapshot_goes_on_where_it_stopped_when_a_side_dies(tmp_path: Path, victim: str) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        store = cluster.open("n1")
        for _ in range(40):
            with store.batch() as batch:
                for _ in range(20):
                    batch.create({"blob": os.urandom(8_000)})
        write_segments(cluster)
        take_snapshot(cluster.path("n1"))
        drop_log_before_snapshot(cluster)
        cluster.start(cluster.receiver("n2"), cluster.folder_of("n2"))
        cluster.start(cluster.shipper("n1"))
        part = cluster.path("n2") / "incoming" / "snapshot"
        installed = cluster.path("n2") / "snapshots"
        until(lambda: size_of(part) > 1 << 20 or os.listdir(installed), "a part of the snapshot is here")
        cluster.kill(victim)
        cluster.start(cluster.shipper("n1") if victim == "shipper:n1" else cluster.receiver("n2"))
        expect_same(cluster)
        until(lambda: not (cluster.path("n2") / "incoming").exists(), "what came is put away")


def test_a_damaged_part_is_found_and_sent_anew(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        write_segments(cluster)
        snapshot = take_snapshot(cluster.path("n1")).path
        good = snapshot.read_bytes()
        snapshot.write_bytes(good[:-100] + bytes([good[-100] ^ 1]) + good[-99:])
        drop_log_before_snapshot(cluster)
        cluster.start_here()
        until(lambda: "snapshot" in cluster.slot_state("n1", "n2")[1], "the replica says what is wrong")
        assert cluster.end("n2").lsn == 0
        snapshot.write_bytes(good)
        expect_same(cluster)


def test_an_installation_that_stopped_halfway_takes_off_nothing_that_was_acknowledged_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """n1's snapshot does not get in; then n3, which has the whole log, ships to the same node."""
    with cluster_of(tmp_path, 3) as cluster:
        cluster.start_here()
        store = cluster.open("n1")
        store.create({"n": 0})
        until(lambda: cluster.end("n2") == cluster.end("n3") == cluster.end("n1"), "all have it")
        cluster.stop_here()
        cluster.ports = {"n3": cluster.ports["n3"]}
        cluster.serve_here("n3")
        cluster.ship_here("n1")
        write_segments(cluster)
        until(lambda: cluster.end("n3") == cluster.end("n1"), "n3 has the whole log")
        cluster.stop_here()
        take_snapshot(cluster.path("n1"))
        drop_log_before_snapshot(cluster)
        has_room = threading.Event()

        def only_with_room(folder: Path) -> None:
            if folder.name.startswith("replaced-") and not has_room.is_set():
                raise OSError(errno.ENOSPC, "no room: made up for this test")
            make_directory(folder)

        monkeypatch.setattr("perdure.shipping.install.make_directory", only_with_room)
        serve_again(cluster, "n2")
        cluster.ship_here("n1")
        until((cluster.path("n2") / "install.plan").exists, "the installation is planned")
        stopping, shipper = cluster._here.pop()
        stopping.set()
        shipper.result(30)
        has_room.set()
        become_primary(cluster, "n3", Promise(2, "n3"), Config(cluster.names, 0))
        cluster.ship_here("n3")
        end = cluster.end("n3")
        until(lambda: acked_lsn(cluster, "n3", "n2") == end.lsn, "n2 has acknowledged all")
        cluster.stop_here()
        cluster.serve_here("n2")
        assert cluster.end("n2") == end


def serve_again(cluster: Cluster, name: str) -> None:
    """A receiver as its supervisor has it: started again whenever it ends for want of room."""
    (port,) = free_ports(1)
    cluster.ports[name] = port
    ready = threading.Event()

    def serve(*, should_stop: Callable[[], bool]) -> None:
        while not should_stop():
            with suppress(StorageFullError):
                serve_receiver(
                    cluster.path(name),
                    HOST,
                    port,
                    secret=SECRET,
                    should_stop=should_stop,
                    on_ready=lambda _port: ready.set(),
                )

    cluster._run_here(ready, serve)


def acked_lsn(cluster: Cluster, primary: str, replica: str) -> int:
    return max((slot.lsn for slot in read_slots(cluster.path(primary)) if slot.node == replica), default=0)


def write_segments(cluster: Cluster) -> SessionStore:
    """Some segments of sessions on n1."""
    store = cluster.open("n1")
    store._log.segment_bytes = 64 << 10
    for number in range(60):
        with store.batch() as batch:
            for _ in range(20):
                batch.create({"n": number, "text": "x" * 100})
    assert len(list_segments(cluster.path("n1") / "log")) > 3
    store._keeper.fold_now()  # the state may not need what is dropped of the log
    return store


def drop_segments(cluster: Cluster, count: int) -> None:
    for file in list_segments(cluster.path("n1") / "log")[:count]:
        file.path.unlink()


def drop_log_before_snapshot(cluster: Cluster) -> None:
    """As retention does: everything before the segment that the newest snapshot needs."""
    newest = max(int(path.name.split("-")[0]) for path in (cluster.path("n1") / "snapshots").iterdir())
    files = list_segments(cluster.path("n1") / "log")
    keep = [file for file in files if file.first_lsn <= newest + 1][-1]
    for file in files:
        if file.first_lsn < keep.first_lsn:
            file.path.unlink()


def expect_same(cluster: Cluster) -> None:
    """n2 ends up with the sessions of n1."""
    cluster.wait_applied(cluster.word("n1", Word.APPENDED), "n2")
    assert cluster.state_of("n2") == cluster.state_of("n1")


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
