"""An old primary goes over to another history: exact, refused when it cannot be, whole after any crash."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
import time
from pathlib import Path

import pytest

from perdure.recovery import Level, take_snapshot, verify
from perdure.shipping.bootstrap import log_sizes
from perdure.shipping.keys_sender import KeysSender
from perdure.shipping.messages import FetchAsk, FetchReply, Message
from perdure.shipping.messages_rejoin import KeysAsk, KeysOffer, KeysReply, unpack_keys
from perdure.shipping.nodelog import NodeLog
from perdure.shipping.rejoin import begin_rejoin, finish_rejoin
from perdure.shipping.replica_log import ReplicaLog
from perdure.shipping.taking import Taking
from perdure.store import (
    Config,
    CorruptError,
    DivergedError,
    FencedError,
    OpenOptions,
    Position,
    SessionStore,
    StorageError,
    StorageFullError,
    StoreInUseError,
    begin_cluster,
    init_store,
    open_store,
)
from perdure.store.cursor import list_segments
from perdure.store.page import read_boot_id
from perdure.store.promise import Promise, read_promise
from perdure.store.smallfile import publish_small
from perdure.store.state import mark_state
from tests.recovery.nodes import CLUSTER, NOW_MS, opened, replicate
from tests.unit.shipping.test_replacing import Crash, dying_at

SEED = int(os.environ.get("PERDURE_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
VOTERS = ("n1", "n2")


class Parted:
    """n1, the old primary, and n2, the new one, with the position that their logs have in common."""

    def __init__(self, folder: Path, backend: str = "lmdb") -> None:
        self.old, self.new = folder / "n1", folder / "n2"
        for name, path in zip(VOTERS, (self.old, self.new), strict=True):
            init_store(path, node=name, cluster_id=CLUSTER, backend=backend, now_ms=NOW_MS)
        with opened(self.old) as node:
            node.log.lock_any()
            begin_cluster(node.log, Config(VOTERS, 0))
            node.log.unlock()
        self.fork = Position(0, 0, 0)

    def part(self, epoch: int = 2) -> None:
        """n2 has all that n1 has, and becomes the primary."""
        self.fork = replicate(self.old, self.new)
        with opened(self.new) as node:
            node.log.lock_any()
            node.log.start_epoch(Promise(epoch, "n2"), Config(VOTERS, 0), "test")
            node.log.unlock()


def write(path: Path, random_: random.Random, count: int, prefix: str) -> None:
    """Changes of every kind to a few sessions; all of them are folded then."""
    with SessionStore.open(path) as store:
        for number in range(count):
            id = f"k{random_.randrange(15)}"
            match random_.randrange(6):
                case 0:
                    store.delete(id)
                case 1 if store.peek(id) is not None:
                    store.touch(id)
                case 2 if store.peek(id) is not None:
                    store.regenerate_id(id)
                case 3:
                    with store.batch() as batch:
                        batch.put(id, {"by": prefix, "number": number}, None)
                        batch.put(f"{prefix}-{number}", {"by": prefix}, 60_000, group="g")
                case _:
                    store.put(id, {"by": prefix, "number": number}, None, tags=[prefix])


def gather(new: NodeLog, old: NodeLog, fork: Position, *, spoil: bool = False) -> Taking:
    """All that a rejoin needs, from one node to the other without sockets."""
    sender = KeysSender(new, fork)
    taking: Taking | None = None
    deadline = time.monotonic() + 20
    try:
        while taking is None or taking.prepared is None:
            assert time.monotonic() < deadline
            found = sender.next_message(1 << 60)
            if found is not None:
                taking = answer(old, taking, *found, spoil=spoil)
            asked = taking.poll() if taking is not None else None
            match asked:
                case (FetchAsk() as ask, _):
                    sender.frames(FetchAsk(ask.after, 4096))
                case (KeysAsk() as ask, payload):
                    sender.keys(ask, payload)
                case _:
                    time.sleep(0.001)
        return taking
    finally:
        sender.close()
        if taking is not None:
            taking.close()


def answer(
    old: NodeLog, taking: Taking | None, message: Message, payload: bytes, *, spoil: bool
) -> Taking | None:
    match message:
        case KeysOffer():
            return Taking(old, message)
        case FetchReply() if taking is not None:
            taking.take_frames(message, payload)
        case KeysReply() if taking is not None:
            taking.take_records(message, bytes(4 * message.count) if spoil else payload)
    return taking


def cross(parted: Parted, old: Path | None = None) -> None:
    """n1 goes over to n2's history."""
    path = old or parted.old
    with opened(parted.new) as new, opened(path) as node:
        ReplicaLog(node).accept_reign(new.log.promise)
        taking = gather(new, node, parted.fork)
        assert taking.prepared is not None
        reign = read_promise(path)
        assert begin_rejoin(
            path, taking.fork, taking.primary, taking.at, taking.prepared, "kept", reign=reign
        )


def expect_same(old: Path, new: Path) -> None:
    """The two nodes have the same sessions once the old one has the rest of the log; nothing is wrong."""
    replicate(new, old)
    findings = [finding for finding in verify(old) if finding.level in (Level.CORRUPT, Level.WARNING)]
    assert not findings
    with SessionStore.open(old, create=False) as ours, SessionStore.open(new, create=False) as theirs:
        assert {id: record_of(ours, id) for id in ours.ids()} == {
            id: record_of(theirs, id) for id in theirs.ids()
        }
        assert ours.stats()["digest"] == theirs.stats()["digest"]
        assert sorted(ours.ids(group="g")) == sorted(theirs.ids(group="g"))
        assert sorted(ours.ids(tag="old")) == sorted(theirs.ids(tag="old"))


def record_of(store: SessionStore, id: str) -> object:
    session = store.peek(id)
    assert session is not None
    return session.version, session.metadata, session.last_accessed, session.tags


@pytest.mark.parametrize("backend", ["lmdb", "sqlite"])
@pytest.mark.parametrize("number", range(4))
def test_the_state_is_that_of_the_new_history(tmp_path: Path, backend: str, number: int) -> None:
    random_ = random.Random(SEED + number)
    parted = Parted(tmp_path, backend)
    write(parted.old, random_, 40, "shared")
    parted.part()
    write(parted.old, random_, 40, "old")
    write(parted.new, random_, 40, "new")
    with SessionStore.open(parted.old, create=False) as reader:  # open all the time
        cross(parted)
        with SessionStore.open(parted.new, create=False) as theirs:
            assert set(reader.ids()) == set(theirs.ids()), f"seed {SEED}"
            assert {id: record_of(reader, id) for id in reader.ids()} == {
                id: record_of(theirs, id) for id in theirs.ids()
            }
    expect_same(parted.old, parted.new)
    assert list((parted.old / "diverged" / "kept").glob("*.seg"))


def test_a_fork_in_the_middle_of_the_primarys_segment_is_gone_on_from(tmp_path: Path) -> None:
    random_ = random.Random(SEED)
    parted = Parted(tmp_path)
    write(parted.old, random_, 20, "shared")
    replicate(parted.old, parted.new)
    parted.fork = end_of(parted.new)
    with opened(parted.new) as node:  # n2 begins an epoch and writes, while n1 goes on in its own
        node.log.lock_any()
        node.log.start_epoch(Promise(2, "n2"), Config(VOTERS, 0), "test")
        node.log.unlock()
    write(parted.new, random_, 10, "old")
    write(parted.old, random_, 10, "new")
    with opened(parted.old) as node:
        node.log.lock_any()
        node.log.start_epoch(Promise(3, "n1"), Config(VOTERS, 0), "test")
        node.log.unlock()
    write(parted.old, random_, 10, "new")
    parted.old, parted.new = parted.new, parted.old
    cross(parted)
    expect_same(parted.old, parted.new)


def test_records_that_do_not_make_the_digest_change_nothing(tmp_path: Path) -> None:
    random_ = random.Random(SEED)
    parted = Parted(tmp_path)
    write(parted.old, random_, 20, "shared")
    parted.part()
    write(parted.old, random_, 20, "old")
    end = end_of(parted.old)
    with (
        opened(parted.new) as new,
        opened(parted.old) as old,
        pytest.raises(DivergedError, match="must be"),
    ):
        gather(new, old, parted.fork, spoil=True)
    assert end_of(parted.old) == end
    assert not (parted.old / "rejoin.plan").exists()


def test_a_state_that_has_moved_on_since_is_not_changed(tmp_path: Path) -> None:
    random_ = random.Random(SEED)
    parted = Parted(tmp_path)
    write(parted.old, random_, 20, "shared")
    parted.part()
    write(parted.old, random_, 20, "old")
    with opened(parted.new) as new, opened(parted.old) as old:
        taking = gather(new, old, parted.fork)
        write(parted.old, random_, 5, "old")
        end = end_of(parted.old)
        assert taking.prepared is not None
        reign = read_promise(parted.old)
        assert not begin_rejoin(
            parted.old, taking.fork, "n1", taking.at, taking.prepared, "kept", reign=reign
        )
    assert end_of(parted.old) == end


def test_a_rejoin_decided_under_a_promise_that_is_over_changes_nothing(tmp_path: Path) -> None:
    random_ = random.Random(SEED)
    parted = Parted(tmp_path)
    write(parted.old, random_, 20, "shared")
    parted.part()
    write(parted.old, random_, 20, "old")
    write(parted.new, random_, 20, "new")
    with opened(parted.new) as new, opened(parted.old) as old:
        reign = new.log.promise
        ReplicaLog(old).accept_reign(reign)
        taking = gather(new, old, parted.fork)
        assert taking.prepared is not None
        with opened(parted.old) as other:  # meanwhile it stands for an epoch itself
            other.log.lock_any()
            other.log.give_promise(Promise(reign.epoch + 1, "n1"))
            other.log.unlock()
        end = end_of(parted.old)
        with pytest.raises(FencedError, match="stays as it is"):
            begin_rejoin(
                parted.old, taking.fork, taking.primary, taking.at, taking.prepared, "kept", reign=reign
            )
    assert end_of(parted.old) == end
    assert not (parted.old / "rejoin.plan").exists()


def test_a_rejoin_is_whole_after_a_crash_at_any_step(tmp_path: Path) -> None:
    random_ = random.Random(SEED)
    parted = Parted(tmp_path, "sqlite")  # LMDB in this process would not forget what was broken off
    write(parted.old, random_, 15, "shared")
    parted.part()
    write(parted.old, random_, 15, "old")
    write(parted.new, random_, 15, "new")
    with opened(parted.new) as new, opened(parted.old) as old:
        ReplicaLog(old).accept_reign(new.log.promise)
        taking = gather(new, old, parted.fork)
    made = taking.prepared
    assert made is not None
    before = {file.name: file.read_bytes() for file in (parted.old / "log").glob("*.seg")}
    step, is_over = 0, False
    while not is_over:
        step += 1
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(parted.old, tmp_path / "copy")
        copy = tmp_path / "copy"
        trust(copy)
        with dying_at(step):
            try:
                reign = read_promise(copy)
                begin_rejoin(copy, taking.fork, taking.primary, taking.at, made, "kept", reign=reign)
                is_over = True
            except Crash:
                pass
        if (copy / "rejoin.plan").exists():
            with pytest.raises(StoreInUseError, match="receive"):
                open_store(copy, OpenOptions(create=False, write_timeout_ms=10))
        planned = finish_rejoin(copy)
        if planned or is_over or end_of(copy).epoch == 2:
            kept = {file.name: file.read_bytes() for file in (copy / "diverged" / "kept").glob("*.seg")}
            assert kept == before, step
            assert end_of(copy) == taking.at.position, step
            with SessionStore.open(copy, create=False) as store:
                assert store.stats()["digest"] == f"{taking.at.digest:016x}", step
                assert not store._opened.rebuilt, step
        assert not (copy / "rejoin").exists()
        assert not (copy / "rejoin.plan").exists()
    assert step > 25


@pytest.mark.parametrize("lost", ["gone", "damaged"])
def test_a_plan_whose_files_are_lost_before_anything_was_changed_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    parted = planned_without_room(tmp_path, monkeypatch)
    end, snapshots = log_bytes_of(parted.old), sorted((parted.old / "snapshots").iterdir())
    if lost == "gone":
        shutil.rmtree(parted.old / "rejoin")
    else:
        frames = parted.old / "rejoin" / "frames"
        frames.write_bytes(frames.read_bytes()[:-1])
    assert not finish_rejoin(parted.old)
    assert not (parted.old / "rejoin.plan").exists()
    assert not (parted.old / "rejoin").exists()
    assert log_bytes_of(parted.old) == end
    assert sorted((parted.old / "snapshots").iterdir()) == snapshots
    assert len(snapshots) == 1
    cross(parted)
    expect_same(parted.old, parted.new)
    assert not list((parted.old / "snapshots").iterdir())


def test_a_plan_whose_files_are_lost_after_something_was_changed_is_not_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parted = planned_without_room(tmp_path, monkeypatch, published=2)
    shutil.rmtree(parted.old / "rejoin")
    with pytest.raises(StorageError, match="gathered for a rejoin"):
        finish_rejoin(parted.old)
    assert (parted.old / "rejoin.plan").exists()


def test_a_plan_whose_fork_is_in_the_log_no_more_is_damage_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parted = planned_without_room(tmp_path, monkeypatch, published=2)
    mark = (parted.old / "log" / "mark").read_bytes()
    for file in list_segments(parted.old / "log"):
        file.path.unlink()
    with pytest.raises(CorruptError, match="holds the fork"):
        finish_rejoin(parted.old)
    assert (parted.old / "log" / "mark").read_bytes() == mark


def test_what_a_plan_needs_is_not_gathered_anew_while_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parted = planned_without_room(tmp_path, monkeypatch, gathers_again=True)
    assert sorted(file.name for file in (parted.old / "rejoin").iterdir()) == ["frames", "records"]
    assert finish_rejoin(parted.old)
    expect_same(parted.old, parted.new)


def planned_without_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, published: int = 1, gathers_again: bool = False
) -> Parted:
    """n1 after a rejoin for which the disk had no room once its plan had been published so often.

    `gathers_again`: another offer comes to the same process, and is refused.
    """
    random_ = random.Random(SEED)
    parted = Parted(tmp_path, "sqlite")
    write(parted.old, random_, 10, "shared")
    parted.part()
    write(parted.old, random_, 10, "old")
    take_snapshot(parted.old)
    write(parted.new, random_, 10, "new")
    count = 0

    def publish(*arguments: object) -> None:
        nonlocal count
        count += 1
        if count > published:
            no_room()
        publish_small(*arguments)  # type: ignore[arg-type]

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room: made up for this test")

    with opened(parted.new) as new, opened(parted.old) as old:
        ReplicaLog(old).accept_reign(new.log.promise)
        taking = gather(new, old, parted.fork)
        assert taking.prepared is not None
        reign = read_promise(parted.old)
        monkeypatch.setattr("perdure.shipping.rejoin.publish_small", publish)
        monkeypatch.setattr("perdure.shipping.rejoin.set_mark", no_room)
        with pytest.raises(StorageFullError):
            begin_rejoin(
                parted.old, taking.fork, taking.primary, taking.at, taking.prepared, "kept", reign=reign
            )
        monkeypatch.undo()
        if gathers_again:
            with pytest.raises(StoreInUseError, match="not completed"):
                gather(new, old, parted.fork)
    assert (parted.old / "rejoin.plan").exists()
    return parted


def log_bytes_of(path: Path) -> bytes:
    """The bytes of a log that nobody may open now."""
    return b"".join(file.path.read_bytes() for file in list_segments(path / "log"))


def trust(copy: Path) -> None:
    """A copied state is not trusted: mark the copy anew, as if it had always been here."""
    mark_state(copy, backend_name="sqlite", cluster_id=CLUSTER, boot_id=read_boot_id())


def test_readers_see_one_history_or_the_other_while_a_rejoin_goes_on(tmp_path: Path) -> None:
    random_ = random.Random(SEED)
    parted = Parted(tmp_path)
    write(parted.old, random_, 30, "shared")
    parted.part()
    with SessionStore.open(parted.old) as store:
        for number in range(60):
            store.put(f"pair{number % 3}", {"side": "old"}, None)
            store.put(f"twin{number % 3}", {"side": "old"}, None)
    with SessionStore.open(parted.new) as store:
        with store.batch() as batch:
            for number in range(3):
                batch.put(f"pair{number}", {"side": "new"}, None)
                batch.put(f"twin{number}", {"side": "new"}, None)
        write_more = [store.put(f"m{number}", {"n": number}, None) for number in range(20)]
        assert write_more
    wrong: list[object] = []
    is_done = threading.Event()
    seen: set[str] = set()

    def read() -> None:
        with SessionStore.open(parted.old, create=False) as reader:
            while not is_done.is_set() or "new" not in seen:
                found = [reader.peek(id) for id in ("pair0", "twin0")]
                sides = [session.metadata["side"] if session else "" for session in found]
                seen.update(sides)
                if sides == ["new", "old"] or "" in sides:
                    wrong.append(sides)
                    return

    thread = threading.Thread(target=read)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while "old" not in seen and thread.is_alive():
            assert time.monotonic() < deadline, "the reader sees what is there before"
            time.sleep(0.005)
        cross(parted)
    finally:
        is_done.set()
        thread.join(20)
    assert not wrong
    assert seen == {"old", "new"}


def end_of(path: Path) -> Position:
    with opened(path) as node:
        return node.log.cursor.at.position


def test_sizes_of_segments_are_told(tmp_path: Path) -> None:
    parted = Parted(tmp_path)
    assert [first for first, _ in log_sizes(parted.old / "log")] == [1]
    assert unpack_keys(b"", 0) == []
