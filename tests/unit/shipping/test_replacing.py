"""Cutting a replica's log, and a snapshot in its place: refused when wrong, whole after any crash."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from perdure.shipping.bootstrap import SnapshotSender
from perdure.shipping.cut import cut_log, finish_cut
from perdure.shipping.folder import Folder
from perdure.shipping.install import Incoming, finish_install
from perdure.shipping.messages import FetchAsk, SnapshotWant, unpack_payload
from perdure.shipping.nodelog import NodeLog, monotonic_ms, open_node_log
from perdure.shipping.receiver import Receiver
from perdure.shipping.replica_log import ReplicaLog
from perdure.store import (
    CorruptError,
    DivergedError,
    FencedError,
    LockTimeoutError,
    Position,
    PositionGoneError,
    SessionStore,
    StorageError,
    StorageFullError,
    StoreInUseError,
    WireError,
)
from perdure.store.files import make_directory, remove_durably
from perdure.store.keeper import seal_all
from perdure.store.page import Word
from perdure.store.promise import Promise
from perdure.store.smallfile import publish_small
from perdure.store.snapshot import SnapshotHead, write_snapshot
from tests.support.descriptors import descriptors_below
from tests.support.hostile import Intruder
from tests.unit.shipping.logs import (
    CLUSTER,
    NOW_MS,
    begin_epoch,
    end_of,
    lose_frames,
    make_node,
    make_primary,
    opened,
    runs_of,
    write,
)

REIGN = Promise(1, "n1")
HOST = "127.0.0.1"


class Crash(BaseException):
    """The process dies here."""


@contextmanager
def dying_at(step: int) -> Iterator[Callable[[], int]]:
    """Raise Crash instead of the `step`-th change of a file; gives the number of changes so far."""
    names = ("rename", "unlink", "fsync", "fdatasync", "mkdir", "write", "pwrite", "ftruncate", "rmdir")
    originals = {name: getattr(os, name) for name in names}
    done = 0

    def dying(name: str) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal done
            done += 1
            if done >= step:
                raise Crash
            return originals[name](*arguments, **options)

        return call

    for name in names:
        setattr(os, name, dying(name))
    try:
        yield lambda: done
    finally:
        for name, original in originals.items():
            setattr(os, name, original)


def make_replica(tmp_path: Path) -> tuple[Path, list[Position]]:
    """A replica of an n1 with two segments and k = 1; committed up to the first position of three."""
    primary = make_primary(tmp_path / "n1", k=1)
    positions = [write(primary, 5), write(primary, 5), write(primary, 5, roll=True)]
    path = make_node(tmp_path / "n2", "n2")
    with opened(path) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        log.append(REIGN, [run.raw for run in runs_of(primary)])
        log.commit(positions[0].lsn)
    return path, positions


def cut(path: Path, to: Position) -> None:
    with opened(path) as node:
        cut_log(node, to, node.log.promise)


# -- cutting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 1])
def test_a_cut_log_ends_where_it_was_told_and_what_was_cut_is_kept(tmp_path: Path, kept: int) -> None:
    path, positions = make_replica(tmp_path)
    before = {file.name: file.read_bytes() for file in (path / "log").glob("*.seg")}
    cut(path, positions[kept])
    assert end_of(path) == positions[kept]
    held = {file.name: file.read_bytes() for file in (path / "diverged").rglob("*.seg")}
    assert held == before
    with opened(path) as node:
        assert node.log.must_roll
        assert node.committed_lsn() == positions[0].lsn


def test_a_cut_decided_under_a_promise_that_is_over_changes_nothing(tmp_path: Path) -> None:
    path, positions = make_replica(tmp_path)
    with opened(path) as node:
        with opened(path) as other:  # another promotion of this node has begun its epoch meanwhile
            other.log.lock_any()
            start = other.log.start_epoch(Promise(2, "n2"), other.log.config, "test")
            other.log.unlock()
        with pytest.raises(FencedError, match="stays as it is"):
            cut_log(node, positions[1], REIGN)
    assert end_of(path) == start
    assert not (path / "cut.plan").exists() and not list((path / "diverged").rglob("*.seg"))


def test_a_cut_for_an_epoch_that_this_node_has_begun_changes_nothing(tmp_path: Path) -> None:
    path, positions = make_replica(tmp_path)
    asked = Promise(2, "n2")
    with opened(path) as node:
        with opened(path) as other:
            other.log.lock_any()
            start = other.log.start_epoch(asked, other.log.config, "test")
            other.log.unlock()
        with pytest.raises(FencedError, match="has begun epoch 2"):
            cut_log(node, positions[1], asked)
    assert end_of(path) == start


def test_a_handle_that_was_open_all_the_time_sees_the_cut(tmp_path: Path) -> None:
    path, positions = make_replica(tmp_path)
    with opened(path) as other:
        cut(path, positions[1])
        other.log.lock_any()
        assert other.log.cursor.at.position == positions[1]
        other.log.unlock()


@pytest.mark.parametrize(
    ("to", "why"),
    [
        (lambda positions: positions[1]._replace(chain=1), "this log"),
        (lambda positions: Position(1, positions[0].lsn - 1, 0), "this log"),
    ],
)
def test_a_cut_to_a_position_that_is_not_in_the_log_is_refused(
    tmp_path: Path, to: Callable[[list[Position]], Position], why: str
) -> None:
    path, positions = make_replica(tmp_path)
    with pytest.raises(DivergedError, match=why):
        cut(path, to(positions))
    assert end_of(path) == positions[2]
    assert not (path / "cut.plan").exists()


def test_a_cut_below_what_is_committed_or_folded_is_refused(tmp_path: Path) -> None:
    path, positions = make_replica(tmp_path)
    with opened(path) as node:
        node.log.words[Word.COMMITTED] = positions[1].lsn
    with pytest.raises(DivergedError, match="is committed"):
        cut(path, positions[0])
    with opened(path) as node:
        node.log.words[Word.COMMITTED] = 0
        node.log.words[Word.FOLDED] = positions[1].lsn
    with pytest.raises(DivergedError, match="in the state"):
        cut(path, positions[0])
    assert end_of(path) == positions[2]


def test_a_cut_is_whole_after_a_crash_at_any_step(tmp_path: Path) -> None:
    path, positions = make_replica(tmp_path)
    before = {file.name: file.read_bytes() for file in (path / "log").glob("*.seg")}
    step, is_over = 0, False
    while not is_over:
        step += 1
        copy = tmp_path / f"copy{step}"
        shutil.copytree(path, copy)
        with dying_at(step):
            try:
                cut(copy, positions[0])
                is_over = True
            except Crash:
                pass
        planned = finish_cut(copy)
        end = end_of(copy)
        assert end in ((positions[0],) if planned or is_over else (positions[0], positions[2])), step
        if end == positions[0]:
            held = {file.name: file.read_bytes() for file in (copy / "diverged").rglob("*.seg")}
            assert held == before, step
        with opened(copy) as node:
            assert node.log.words[Word.COMMITTED] == positions[0].lsn
        shutil.rmtree(copy)
    assert step > 15


def test_a_log_that_is_cut_where_a_segment_ends_stays_open_whoever_seals_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, positions = make_replica(tmp_path)
    monkeypatch.setattr("perdure.store.sealing.SEAL_LOCK_MS", 20)
    with opened(path) as node, opened(path) as other:

        def remove_late(file: Path) -> None:
            if file.suffix == ".seg":
                with pytest.raises(LockTimeoutError):
                    seal_all(other.log.cursor, lambda: None)
            remove_durably(file)

        monkeypatch.setattr("perdure.shipping.cut.remove_durably", remove_late)
        cut_log(node, positions[1], node.log.promise, is_open=True)
    with opened(path) as node:
        assert node.log.cursor.at.position == positions[1]
        assert not node.log.must_roll


def test_a_node_whose_log_lacks_frames_does_not_say_that_it_never_had_a_position(tmp_path: Path) -> None:
    path = make_primary(tmp_path / "n1")
    lost, _, end = write(path, 19), write(path, 1), write(path, 5, roll=True)
    lose_frames(path)
    with closing(Receiver(open_node_log(path, []), HOST, 0, b"")) as receiver:
        with pytest.raises(CorruptError, match="was on disk"):
            receiver.fetch(FetchAsk(lost, 4096))  # who asks would take its own frames off
        for other in (lost._replace(lsn=1), end._replace(chain=1), end._replace(lsn=end.lsn + 1)):
            with pytest.raises(PositionGoneError):
                receiver.fetch(FetchAsk(other, 4096))
        assert receiver.fetch(FetchAsk(end, 4096))[1] == b""


def test_a_folder_that_was_there_all_the_time_folds_the_new_history_after_a_cut(tmp_path: Path) -> None:
    other = make_primary(tmp_path / "other", k=1)
    fork = write(other, 5)
    primary = tmp_path / "n1"
    shutil.copytree(other, primary)
    write(primary, 3)
    path = make_node(tmp_path / "n2", "n2")
    with opened(path) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        log.append(REIGN, [run.raw for run in runs_of(primary)])
        log.commit(fork.lsn - 2)
        folder = Folder(path)
        log.commit(fork.lsn)
    fold_all(folder, fork.lsn)
    begin_epoch(other, "n1", 2, k=1)
    end = write(other, 4)
    cut(path, fork)
    with opened(path) as node:
        log = ReplicaLog(node)
        log.accept_reign(Promise(2, "n1"))
        log.append(Promise(2, "n1"), [run.raw for run in runs_of(other, fork.lsn)])
        log.commit(end.lsn)
        expected = node.log.cursor.at
    fold_all(folder, end.lsn)
    assert folder._at == expected
    folder.close()


def fold_all(folder: Folder, lsn: int) -> None:
    for _ in range(100):
        folder.step()
        if folder._at.lsn >= lsn:
            return
    pytest.fail(f"folded up to {folder._at.lsn} of {lsn}")


# -- installing ------------------------------------------------------------------------------------


@pytest.fixture
def primary(tmp_path: Path) -> Path:
    """An n1 with a snapshot in the middle of its second segment."""
    path = make_primary(tmp_path / "p1")
    write(path, 5)
    write(path, 20, roll=True)
    with SessionStore.open(path) as store:
        store.count()
        store._keeper.fold_now()
        scan = store._opened.backend.scan()
        head = SnapshotHead(CLUSTER, 0, "n1", scan.position, NOW_MS, NOW_MS, False)
        write_snapshot(path / "snapshots", head, scan, compress=False)
        scan.close()
    write(path, 5)
    return path


def receive(
    primary: Path, replica: Path, *, stop_after: int = 1 << 30, before: Callable[[], None] = lambda: None
) -> bool:
    """Bring a snapshot over, without sockets; True if it was installed. `before` is called just before."""
    with opened(primary) as source, opened(replica) as target:
        snapshot = next((primary / "snapshots").glob("*.snap"))
        sender = SnapshotSender(source, snapshot, compress=False)
        incoming = Incoming(target, sender.offer, target.log.promise)
        try:
            sender.want(incoming.want())
            while (found := sender.next_message()) is not None:
                piece, payload = found
                raw = unpack_payload(payload, piece.raw_bytes, piece.compressed)
                if stop_after < 1 << 30:
                    incoming.take(piece, raw[:stop_after])
                    return False
                incoming.take(piece, raw)
            while not incoming.check():
                assert incoming._verifier is not None
                incoming._verifier.join()
            before()
            incoming.install()
        finally:
            incoming.close()
            sender.close()
    return True


def test_a_snapshot_that_an_older_primary_offers_is_not_installed_over_an_epoch_that_the_node_began(
    tmp_path: Path, primary: Path
) -> None:
    """The promise is given between the welcome and the offer: the offer is of the reign of the welcome."""
    replica, _ = make_replica(tmp_path)
    with opened(primary) as source, closing(Receiver(open_node_log(replica, []), HOST, 0, b"")) as receiver:
        with opened(replica) as other:
            other.log.lock_any()
            start = other.log.start_epoch(Promise(9, "n2"), other.log.config, "test")
            other.log.unlock()
        sender = SnapshotSender(source, next((primary / "snapshots").glob("*.snap")), compress=False)
        sender.want(receiver.begin_install(sender.offer, REIGN))
        while (found := sender.next_message()) is not None:
            receiver.take_piece(*found)
        sender.close()
        while (incoming := receiver._incoming) is not None:
            receiver._install_if_whole()
            if incoming._verifier is not None:
                incoming._verifier.join()
    assert end_of(replica) == start
    assert not (replica / "install.plan").exists()


def at_of_snapshot(primary: Path) -> int:
    return int(next((primary / "snapshots").glob("*.snap")).name.split("-")[0])


def sessions_of(path: Path) -> list[str]:
    with SessionStore.open(path, create=False) as store:
        return list(store.ids())


def test_an_installed_snapshot_is_a_store_that_frames_can_follow(tmp_path: Path, primary: Path) -> None:
    replica = make_node(tmp_path / "p2", "n2")
    assert receive(primary, replica)
    lsn = at_of_snapshot(primary)
    assert end_of(replica).lsn == lsn
    assert len(sessions_of(replica)) == 25
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        assert log.append(REIGN, [run.raw for run in runs_of(primary, lsn)]) == end_of(primary)
        assert node.log.config.voters == ("n1", "n2")


def test_a_snapshot_that_was_offered_under_a_promise_that_is_over_is_not_installed(
    tmp_path: Path, primary: Path
) -> None:
    replica = make_node(tmp_path / "p2", "n2")

    def promise() -> None:
        with opened(replica) as other:
            other.log.lock_any()
            other.log.give_promise(Promise(7, "n2"))
            other.log.unlock()

    with pytest.raises(FencedError, match="stays as it is"):
        receive(primary, replica, before=promise)
    assert end_of(replica).lsn == 0
    assert not (replica / "install.plan").exists()
    assert receive(primary, replica)


def test_what_arrived_before_a_death_is_not_asked_for_again(tmp_path: Path, primary: Path) -> None:
    replica = make_node(tmp_path / "p2", "n2")
    assert not receive(primary, replica, stop_after=100)
    with opened(primary) as source, opened(replica) as target:
        sender = SnapshotSender(source, next((primary / "snapshots").glob("*.snap")), compress=False)
        incoming = Incoming(target, sender.offer, target.log.promise)
        assert incoming.want().snapshot_offset == 100
        incoming.close()
        sender.close()
    assert receive(primary, replica)
    assert len(sessions_of(replica)) == 25


def test_a_part_that_is_damaged_on_the_way_is_thrown_away_and_comes_anew(
    tmp_path: Path, primary: Path
) -> None:
    replica = make_node(tmp_path / "p2", "n2")
    receive(primary, replica, stop_after=500)
    part = replica / "incoming" / "snapshot"
    data = bytearray(part.read_bytes())
    data[200] ^= 1
    part.write_bytes(bytes(data))
    with pytest.raises(CorruptError):
        receive(primary, replica)
    assert end_of(replica).lsn == 0
    assert receive(primary, replica)


def test_a_snapshot_that_cannot_be_sent_leaves_nothing_open(tmp_path: Path, primary: Path) -> None:
    other = make_primary(tmp_path / "other", "n9", voters=("n9",))
    write(other, 30)
    snapshot = next((primary / "snapshots").glob("*.snap"))
    with opened(other) as source:
        before = descriptors_below(tmp_path)
        for _ in range(3):
            with pytest.raises(DivergedError, match="another history"):
                SnapshotSender(source, snapshot, compress=False)
        assert descriptors_below(tmp_path) == before


def test_pieces_out_of_order_or_beyond_the_offer_are_refused(tmp_path: Path, primary: Path) -> None:
    replica = make_node(tmp_path / "p2", "n2")
    with opened(primary) as source, opened(replica) as target:
        sender = SnapshotSender(source, next((primary / "snapshots").glob("*.snap")), compress=False)
        incoming = Incoming(target, sender.offer, target.log.promise)
        sender.want(incoming.want())
        found = sender.next_message()
        assert found is not None
        piece, raw = found
        incoming.take(piece, raw)
        for bad in (piece, type(piece)(7, 0, 1, False), type(piece)(0, 5, 1, False)):
            with pytest.raises(WireError):
                incoming.take(bad, raw)
        with pytest.raises(WireError, match="more of a snapshot"):
            incoming.take(type(piece)(1, 0, 1, False), bytes(1 << 20))
        incoming.close()
        sender.close()


def test_an_installation_is_whole_after_a_crash_at_any_step(tmp_path: Path, primary: Path) -> None:
    replica, _ = make_replica(tmp_path)
    old_end = end_of(replica)
    lsn = at_of_snapshot(primary)
    step, is_over = 0, False
    while not is_over:
        step += 1
        copy = tmp_path / f"copy{step}"
        shutil.copytree(replica, copy)
        with opened(primary) as source, opened(copy) as target:
            incoming = fill(source, target, primary)
            with dying_at(step):
                try:
                    incoming.install()
                    is_over = True
                except Crash:
                    pass
        planned = finish_install(copy)
        end = end_of(copy)
        if planned or is_over:
            assert end.lsn == lsn, step
            assert len(sessions_of(copy)) == 25
        else:
            assert end in (old_end, end_of(primary)._replace(lsn=lsn, chain=end.chain)), step
        if end != old_end:
            assert list((copy / "aside").glob("replaced-*/*.seg")), step
        assert not (copy / "install.plan").exists()
        shutil.rmtree(copy)
    assert step > 10


def fill(source: NodeLog, target: NodeLog, primary: Path) -> Incoming:
    """A snapshot that has arrived and was checked, but is not installed."""
    sender = SnapshotSender(source, next((primary / "snapshots").glob("*.snap")), compress=False)
    incoming = Incoming(target, sender.offer, target.log.promise)
    sender.want(incoming.want())
    while (found := sender.next_message()) is not None:
        incoming.take(*found)
    while not incoming.check():
        assert incoming._verifier is not None
        incoming._verifier.join()
    sender.close()
    return incoming


# -- installing, where the disk does not play along -------------------------------------------------


def bring(receiver: Receiver, source: NodeLog, primary: Path) -> None:
    """A snapshot comes to a receiver, whole, and was checked; its next tick would install it."""
    sender = SnapshotSender(source, next((primary / "snapshots").glob("*.snap")), compress=False)
    try:
        sender.want(receiver.begin_install(sender.offer, receiver.node.log.promise))
        while (found := sender.next_message()) is not None:
            receiver.take_piece(*found)
    finally:
        sender.close()
    incoming = receiver._incoming
    assert incoming is not None
    while not incoming.check():
        assert incoming._verifier is not None
        incoming._verifier.join()


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, "no room: made up for this test")


def test_a_receiver_whose_installation_stops_halfway_ends_and_its_next_start_finishes_it(
    tmp_path: Path, primary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica, _ = make_replica(tmp_path)
    with opened(primary) as source, closing(Receiver(open_node_log(replica, []), HOST, 0, b"")) as receiver:
        bring(receiver, source, primary)
        monkeypatch.setattr("perdure.shipping.install.make_directory", no_room)
        with pytest.raises(StorageFullError, match="cannot install a snapshot"):
            receiver.run(lambda: receiver._incoming is None)
    assert (replica / "install.plan").exists()
    monkeypatch.undo()
    assert finish_install(replica)
    assert end_of(replica).lsn == at_of_snapshot(primary)
    assert len(sessions_of(replica)) == 25


def test_an_installation_that_fails_before_its_plan_stands_ends_the_connection_only(
    tmp_path: Path, primary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica, positions = make_replica(tmp_path)
    with opened(primary) as source, closing(Receiver(open_node_log(replica, []), HOST, 0, b"")) as receiver:
        bring(receiver, source, primary)
        monkeypatch.setattr("perdure.shipping.install.publish_small", no_room)
        receiver.run(lambda: receiver._incoming is None)
    assert end_of(replica) == positions[-1]


def test_no_other_snapshot_is_taken_while_one_is_half_installed(
    tmp_path: Path, primary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica, _ = make_replica(tmp_path)

    def no_room_aside(folder: Path) -> None:
        if folder.parent.name == "aside":
            no_room()
        make_directory(folder)

    with monkeypatch.context() as patched:
        patched.setattr("perdure.shipping.install.make_directory", no_room_aside)
        with pytest.raises(StorageFullError):
            receive(primary, replica)
    with pytest.raises(StoreInUseError, match="not completed"):
        receive(primary, replica, stop_after=100)
    assert finish_install(replica)
    assert end_of(replica).lsn == at_of_snapshot(primary)
    assert len(sessions_of(replica)) == 25


def test_a_snapshot_that_is_whole_does_not_replace_the_log_on_which_a_stream_goes_on(
    tmp_path: Path, primary: Path
) -> None:
    replica, positions = make_replica(tmp_path)
    with (
        opened(primary) as source,
        closing(Receiver(open_node_log(replica, []), HOST, 0, b"")) as receiver,
        Intruder(receiver.port),
    ):
        assert receiver._selector.select(10)
        receiver._accept(0)
        (visitor,) = receiver._visitors.values()
        visitor.reign = REIGN
        bring(receiver, source, primary)
        receiver.streams_from(visitor)
        receiver._tick(monotonic_ms())
        assert receiver.node.end_on_disk() == positions[-1]
    assert end_of(replica) == positions[-1]
    assert not list((replica / "aside").glob("replaced-*"))


def test_what_a_receiver_that_was_killed_had_written_is_synced_before_it_is_installed(
    tmp_path: Path, primary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica, _ = make_replica(tmp_path)
    with opened(primary) as source, opened(replica) as target:
        fill(source, target, primary).close()
    steps: list[str] = []
    sync = os.fsync

    def noting(descriptor: int) -> None:
        steps.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def publishing(path: Path, *arguments: object) -> None:
        steps.append(path.name)
        publish_small(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr("perdure.shipping.install.publish_small", publishing)
    segment = next((replica / "incoming").glob("*.seg")).name
    assert receive(primary, replica)
    before = steps[: steps.index("install.plan")]
    assert {"snapshot", segment} <= set(before)


def test_parts_whose_sync_failed_come_anew(
    tmp_path: Path, primary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica, _ = make_replica(tmp_path)
    failed = 0
    sync = os.fsync

    def failing(descriptor: int) -> None:
        nonlocal failed
        if not failed and os.readlink(f"/proc/self/fd/{descriptor}").endswith("/incoming/snapshot"):
            failed += 1
            raise OSError(errno.EIO, "the disk: made up for this test")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StorageError, match="cannot receive a snapshot"):
        receive(primary, replica)
    with opened(primary) as source, opened(replica) as target:
        sender = SnapshotSender(source, next((primary / "snapshots").glob("*.snap")), compress=False)
        incoming = Incoming(target, sender.offer, target.log.promise)
        assert incoming.want() == SnapshotWant(0, 0)
        incoming.close()
        sender.close()
    assert receive(primary, replica)
