"""An old primary that comes back with a history of its own becomes a replica by itself, and loses nothing."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from perdure.recovery import plan_rejoin, rejoin, take_snapshot
from perdure.shipping import open_node_log, read_fault
from perdure.shipping.peer import KEYS_TRIES
from perdure.store import (
    Config,
    CorruptError,
    DivergedError,
    NotPrimaryError,
    SessionStore,
    StorageFullError,
)
from perdure.store.page import ControlPage, Word, read_boot_id
from perdure.store.promise import Promise
from tests.cluster.nodes import HOST, SECRET, Cluster, cluster_of, session_ids, until
from tests.cluster.test_shipping_safety import become_primary, write_uncommitted


def part(cluster: Cluster, *, backend_folds: bool) -> tuple[SessionStore, str, str]:
    """n1 and n2 share a session; n1 writes one more, then n2 is primary and writes one, too.

    Answers n1's handle, the id of the shared session and that of n1's alone. All are down then.
    """
    cluster.start_here()
    store = cluster.open("n1")
    shared = store.create({"n": "shared"})
    until(lambda: cluster.end("n2") == cluster.end("n1"), "n2 has it")
    cluster.stop_here()
    lost = store.create({"n": "lost"})
    store.update(shared, lambda session: session.merge({"n": "changed on n1"}))
    if backend_folds:
        store.fold()
    become_primary(cluster, "n2", Promise(2, "n2"), Config(cluster.names, 0))
    return store, shared, lost


def return_of_n1(cluster: Cluster) -> None:
    cluster.serve_here("n1")
    cluster.fold_here("n1")
    cluster.ship_here("n2", make_snapshot=lambda: take_snapshot(cluster.path("n2")).path)


def set_word(cluster: Cluster, name: str, word: Word, value: int) -> None:
    """Have a node know something else than it found out by itself."""
    page = ControlPage(cluster.path(name) / "control", read_boot_id())
    try:
        page.words[word] = value
    finally:
        page.close()


def kept_bytes(cluster: Cluster, name: str) -> bytes:
    return b"".join(file.read_bytes() for file in (cluster.path(name) / "diverged").rglob("*.seg"))


@pytest.mark.parametrize("backend", ["lmdb", "sqlite", "memory"])
@pytest.mark.parametrize("folds", [True, False])
def test_an_old_primary_without_sync_replicas_becomes_a_replica_by_itself(
    tmp_path: Path, backend: str, folds: bool
) -> None:
    with cluster_of(tmp_path, 2, backend=backend) as cluster:
        store, shared, lost = part(cluster, backend_folds=folds)
        new = cluster.open("n2").create({"n": "new"})
        return_of_n1(cluster)
        until(lambda: cluster.end("n1") == cluster.end("n2"), "n1 follows n2")
        cluster.wait_applied(cluster.word("n2", Word.APPENDED), "n1")
        assert session_ids(cluster.path("n1")) == {shared, new}
        assert cluster.state_of("n1") == cluster.state_of("n2")
        assert lost.encode() in kept_bytes(cluster, "n1")
        until(lambda: set(store.ids()) == {shared, new}, "the handle that was open all the time sees it")
        assert store.get(shared).metadata == {"n": "shared"}  # type: ignore[union-attr]
        with pytest.raises(NotPrimaryError):
            store.create({"n": "later"})
        until(lambda: cluster.slot_state("n2", "n1")[0] == "streaming", "n1 streams")
        assert not read_fault(cluster.path("n1"))
        assert not list((cluster.path("n1") / "aside").glob("replaced-*")), "no snapshot was needed"
        assert not (cluster.path("n1") / "rejoin").exists()
        late = cluster.open("n2").create({"n": "late"})
        until(lambda: store.peek(late) is not None, "n1 follows")


def test_a_replica_whose_segment_goes_on_at_the_primary_is_cut_in_the_middle_of_it(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 3, sync_replicas=1) as cluster:
        cluster.start_here()
        store = cluster.open("n1")
        store.create({"n": 0})
        until(lambda: cluster.end("n3") == cluster.end("n1") == cluster.end("n2"), "all have it")
        lost = write_uncommitted(cluster, "n1", ("n2",))
        become_primary(cluster, "n3", Promise(2, "n3"), Config(cluster.names, 1))  # and dies at once
        become_primary(cluster, "n1", Promise(3, "n1"), Config(cluster.names, 1))
        cluster.serve_here("n2", "n3")
        cluster.fold_here("n2", "n3")
        cluster.ship_here("n1")
        until(lambda: cluster.end("n3") == cluster.end("n1") == cluster.end("n2"), "all have all")
        new = store.create({"n": 1})
        cluster.wait_applied(cluster.word("n1", Word.COMMITTED))
        for name in ("n2", "n3"):
            assert {lost, new} <= session_ids(cluster.path(name))
            assert cluster.state_of(name) == cluster.state_of("n1")
        assert list((cluster.path("n3") / "diverged").rglob("*.seg"))


def test_two_primaries_that_have_both_committed_are_a_fault_that_is_said_and_nothing_is_cut(
    tmp_path: Path,
) -> None:
    with cluster_of(tmp_path, 3, sync_replicas=1) as cluster:
        cluster.start_here()
        store = cluster.open("n1")
        store.create({"n": 0})
        until(lambda: cluster.end("n3") == cluster.end("n1") == cluster.end("n2"), "all have it")
        write_uncommitted(cluster, "n1", ("n2",))
        end = cluster.end("n1")
        store._log.words[Word.COMMITTED] = end.lsn
        become_primary(cluster, "n3", Promise(2, "n3"), Config(cluster.names, 1))
        cluster.serve_here("n1")
        cluster.ship_here("n3")
        until(lambda: cluster.slot_state("n3", "n1")[0] == "diverged", "the slot says diverged")
        assert "two primaries have committed" in cluster.slot_state("n3", "n1")[1]
        until(lambda: "two primaries" in read_fault(cluster.path("n1")), "n1 says so itself")
        assert cluster.end("n1") == end
        assert not list((cluster.path("n1") / "diverged").iterdir())
        with cluster.client("n1") as client:
            assert "two primaries" in client.status().fault


def test_a_fault_of_two_primaries_goes_when_a_later_primary_has_all_that_the_node_had(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 3, sync_replicas=1) as cluster:
        cluster.start_here()
        store = cluster.open("n1")
        store.create({"n": 0})
        until(lambda: cluster.end("n3") == cluster.end("n1") == cluster.end("n2"), "all have it")
        write_uncommitted(cluster, "n1", ("n2",))
        set_word(cluster, "n1", Word.COMMITTED, cluster.end("n1").lsn)
        become_primary(cluster, "n3", Promise(2, "n3"), Config(cluster.names, 1))
        cluster.serve_here("n1")
        cluster.ship_here("n3")
        until(lambda: read_fault(cluster.path("n1")), "n1 says that it is at fault")
        cluster.stop_here()
        become_primary(cluster, "n2", Promise(3, "n2"), Config(cluster.names, 1))
        del cluster.ports["n3"]
        cluster.serve_here("n1")
        cluster.ship_here("n2")
        until(lambda: not read_fault(cluster.path("n1")), "n1 is at fault no more")
        with cluster.client("n1") as client:
            assert not client.status().fault
        assert cluster.end("n1") == cluster.end("n2")
        assert not list((cluster.path("n1") / "diverged").iterdir())


def test_a_replica_that_is_more_epochs_behind_than_are_told_follows_and_is_not_at_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.shipping.nodelog.EPOCHS_MAX", 2)
    with cluster_of(tmp_path, 2, sync_replicas=1) as cluster:
        cluster.start_here()
        cluster.open("n1").create({"n": 0})
        until(lambda: cluster.end("n2") == cluster.end("n1"), "n2 has it")
        cluster.stop_here()
        for epoch in range(2, 7):
            become_primary(cluster, "n1", Promise(epoch, "n1"), Config(cluster.names, 1))
        cluster.start_here()
        until(lambda: cluster.end("n2") == cluster.end("n1"), "n2 follows")
        assert not read_fault(cluster.path("n2"))
        assert not list((cluster.path("n2") / "aside").iterdir()), "no snapshot was needed"


def test_a_committed_tail_whose_loss_a_promotion_accepted_is_exported_and_left(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 3, sync_replicas=1) as cluster:
        cluster.start_here()
        store = cluster.open("n1")
        kept = store.create({"n": 0})
        until(lambda: cluster.end("n3") == cluster.end("n1") == cluster.end("n2"), "all have it")
        fork = cluster.end("n3")
        lost = write_uncommitted(cluster, "n1", ("n2",))
        store._log.words[Word.COMMITTED] = cluster.end("n1").lsn
        until(lambda: store.peek(lost) is not None, "readers of n1 see it")
        store.fold()
        node = open_node_log(cluster.path("n3"), [])
        node.log.lock_any()
        node.log.start_epoch(
            Promise(2, "n3"), Config(cluster.names, 1), "promoted", (fork.lsn + 1, fork.lsn + 1)
        )
        node.log.unlock()
        node.close()
        cluster.serve_here("n1", "n2")
        cluster.fold_here("n1", "n2")
        cluster.ship_here("n3")
        until(lambda: cluster.end("n1") == cluster.end("n2") == cluster.end("n3"), "both follow n3")
        new = cluster.open("n3").create({"n": 2})
        cluster.wait_applied(cluster.word("n3", Word.COMMITTED), "n1", "n2")
        for name in ("n1", "n2"):
            assert session_ids(cluster.path(name)) == {kept, new}
            assert lost.encode() in kept_bytes(cluster, name)
            assert not read_fault(cluster.path(name))


def test_a_node_that_rejoins_by_command_waits_for_it(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        _, shared, lost = part(cluster, backend_folds=True)
        end = cluster.end("n1")
        cluster.serve_here("n1", rejoin="manual")
        cluster.serve_here("n2")
        cluster.fold_here("n1")
        cluster.ship_here("n2", make_snapshot=lambda: take_snapshot(cluster.path("n2")).path)
        until(lambda: cluster.slot_state("n2", "n1")[0] == "diverged", "the slot says diverged")
        assert "perdure rejoin" in cluster.slot_state("n2", "n1")[1]
        assert cluster.end("n1") == end
        peers = {"n2": (HOST, cluster.ports["n2"])}
        assert plan_rejoin(cluster.path("n1"), peers, SECRET, is_automatic=False).way == "refused"
        told = plan_rejoin(cluster.path("n1"), peers, SECRET)
        assert (told.way, told.primary, told.exported_events, told.exported_sessions) == (
            "take-keys",
            "n2",
            2,
            2,
        )
        assert cluster.end("n1") == end
        done = rejoin(cluster.path("n1"), peers, SECRET, timeout_s=60)
        assert (done.way, done.is_done) == ("take-keys", True)
        until(lambda: session_ids(cluster.path("n1")) == {shared}, "n1 has n2's sessions")
        assert lost.encode() in kept_bytes(cluster, "n1")
        assert rejoin(cluster.path("n1"), peers, SECRET, timeout_s=60).way == "follow"
        anew = rejoin(cluster.path("n1"), peers, SECRET, anew=True, timeout_s=60)
        assert (anew.way, anew.exported_events) == ("bootstrap", 0)


@pytest.mark.parametrize(
    ("is_folded", "is_known", "way"),
    [
        (False, True, "truncate"),
        (False, False, "truncate"),
        (True, True, "take-keys"),
        (True, False, "bootstrap"),
    ],
)
def test_a_fault_of_two_primaries_is_gone_over_by_force(
    tmp_path: Path, is_folded: bool, is_known: bool, way: str
) -> None:
    """`is_folded`: n1's state is beyond the fork. `is_known`: n3 knows that the fork is committed; if not,
    it learns that only once n1, the one other node that runs, has confirmed its epoch."""
    with cluster_of(tmp_path, 3, sync_replicas=1) as cluster:
        cluster.serve_here("n2", "n3")
        cluster.fold_here("n2")
        cluster.ship_here("n1")
        store = cluster.open("n1")
        kept = store.create({"n": 0})
        fork = cluster.end("n1").lsn
        until(lambda: cluster.word("n3", Word.COMMITTED) == fork, "n3 knows that it is committed")
        until(lambda: cluster.end("n2").lsn == fork, "n2 has it")
        store.close()
        lost = write_uncommitted(cluster, "n1", ("n2",))
        set_word(cluster, "n1", Word.COMMITTED, cluster.end("n1").lsn)
        if is_folded:
            with SessionStore.open(cluster.path("n1")) as store:
                store.fold()
        if not is_known:
            set_word(cluster, "n3", Word.COMMITTED, fork - 1)
        become_primary(cluster, "n3", Promise(2, "n3"), Config(cluster.names, 1))
        cluster.serve_here("n1", "n3")
        cluster.ship_here("n3", make_snapshot=lambda: take_snapshot(cluster.path("n3")).path)
        until(lambda: read_fault(cluster.path("n1")), "n1 says that it is at fault")
        peers = {"n3": (HOST, cluster.ports["n3"])}
        with pytest.raises(DivergedError, match="two primaries"):
            rejoin(cluster.path("n1"), peers, SECRET, timeout_s=60)
        done = rejoin(cluster.path("n1"), peers, SECRET, force=True, timeout_s=60)
        assert (done.is_done, done.way) == (True, way)
        assert not read_fault(cluster.path("n1"))
        assert lost.encode() in kept_bytes(cluster, "n1")
        cluster.fold_here("n1")
        cluster.wait_applied(fork + 1, "n1")
        assert session_ids(cluster.path("n1")) == {kept}


def test_records_that_cannot_be_taken_lead_to_a_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        _, shared, lost = part(cluster, backend_folds=True)
        monkeypatch.setattr("perdure.shipping.taking.KEYS_LOG_BYTES_MAX", 10)
        return_of_n1(cluster)
        until(lambda: cluster.end("n1") == cluster.end("n2"), "n1 follows n2")
        cluster.wait_applied(cluster.word("n2", Word.APPENDED), "n1")
        assert session_ids(cluster.path("n1")) == {shared}
        assert lost.encode() in kept_bytes(cluster, "n1")
        assert list((cluster.path("n1") / "aside").glob("replaced-*")), "by a snapshot"


def test_a_rejoin_for_which_there_was_no_room_is_completed_when_the_receiver_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        _, shared, lost = part(cluster, backend_folds=True)
        tried = 0

        def no_room(*_: object) -> None:
            nonlocal tried
            tried += 1
            raise OSError(errno.ENOSPC, "no room: made up for this test")

        monkeypatch.setattr("perdure.shipping.rejoin.keep_copy", no_room)
        return_of_n1(cluster)
        until(lambda: tried, "a rejoin was tried")
        with pytest.raises(StorageFullError, match="cannot rejoin"):
            cluster.stop_here()
        assert tried == 1
        monkeypatch.undo()
        cluster.serve_here("n1")
        assert not (cluster.path("n1") / "rejoin.plan").exists()
        assert session_ids(cluster.path("n1")) == {shared}
        assert lost.encode() in kept_bytes(cluster, "n1")


class _BrokenImage:
    """An image of a state that cannot be read."""

    opened = 0

    def __init__(self, _store: Path, _fork_lsn: int) -> None:
        _BrokenImage.opened += 1

    def at(self) -> None:
        raise CorruptError("the state cannot be read: made up for this test")

    def close(self) -> None:
        pass


def test_a_primary_whose_state_cannot_be_imaged_gives_a_snapshot_after_a_few_tries_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with cluster_of(tmp_path, 2) as cluster:
        _, shared, lost = part(cluster, backend_folds=True)
        monkeypatch.setattr("perdure.shipping.keys_sender.StateImage", _BrokenImage)
        monkeypatch.setattr(_BrokenImage, "opened", 0)
        return_of_n1(cluster)
        until(lambda: cluster.end("n1") == cluster.end("n2"), "n1 follows n2")
        cluster.wait_applied(cluster.word("n2", Word.APPENDED), "n1")
        assert _BrokenImage.opened == KEYS_TRIES
        assert "a snapshot instead of keys: node=n1" in caplog.text
        assert "made up for this test" in caplog.text
        assert session_ids(cluster.path("n1")) == {shared}
        assert lost.encode() in kept_bytes(cluster, "n1")
