"""Snapshots: consistent at one LSN while others write, never ahead of the disk, pruned with care."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from perdure.recovery import Level, inspect_snapshots, prune_snapshots, summarise, take, take_snapshot
from perdure.store import (
    CorruptError,
    DivergedError,
    OpenOptions,
    PoisonedError,
    Position,
    SessionStore,
    StoreMissingError,
    UsageError,
    init_store,
    open_store,
)
from perdure.store.files import translate
from perdure.store.mark import read_marks
from perdure.store.opening import Opened
from perdure.store.page import Word
from perdure.store.snapshot import SnapshotReader, read_head, verify_snapshot
from tests.recovery.kills import killed
from tests.recovery.stores import contents, small_segments
from tests.support.machine import stop_background


def snapshot_contents(path: Path) -> dict[bytes, bytes]:
    with SnapshotReader(path) as reader:
        return dict(reader)


@pytest.mark.parametrize("backend", ["lmdb", "sqlite"])
def test_a_snapshot_holds_exactly_the_sessions_of_its_lsn(tmp_path: Path, backend: str) -> None:
    with SessionStore.open(tmp_path / "s", backend=backend) as store:
        ids = [store.create({"n": n}) for n in range(50)]
        store.delete(ids[0])
        file = take_snapshot(store._opened)
        store.create({"later": True})
        assert set(snapshot_contents(file.path)) == {id.encode() for id in ids[1:]}
        assert file.lsn == read_head(file.path).at.lsn


def test_by_directory_it_works_on_a_store_that_others_have_open(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "s") as store:
        for n in range(20):
            store.create({"n": n})
        file = take_snapshot(tmp_path / "s", compress=True)
        assert read_head(file.path).is_compressed
        assert len(snapshot_contents(file.path)) == 20
        store.create({})  # the store goes on


def test_while_writers_write_each_snapshot_is_the_fold_of_the_log_at_its_lsn(tmp_path: Path) -> None:
    stop = threading.Event()
    with SessionStore.open(tmp_path / "s") as store:

        def write(number: int) -> None:
            ids: list[str] = []
            while not stop.is_set():
                ids.append(store.create({"n": number}))
                if len(ids) > 5:
                    store.update(ids[-3], lambda session: session.merge({"m": 1}))
                    store.delete(ids.pop(0))

        threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        try:
            files = []
            for _ in range(5):
                files.append(take_snapshot(store._opened))
                until = time.monotonic() + 20
                while store._log.cursor.at.lsn <= files[-1].lsn and time.monotonic() < until:
                    time.sleep(0.001)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert len({file.lsn for file in files}) == 5
    # The digest at each LSN is what the frame there says: inspect compares with the log's chain, the
    # reader with the head's digest, replay with every frame's.
    assert [state.finding.level for state in inspect_snapshots(tmp_path / "s", check=True)] == [Level.OK] * 5


def test_the_log_is_on_disk_up_to_a_snapshot_before_it_has_its_name(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "s") as store:
        for n in range(10):
            store.create({"n": n})
        assert store.stats()["flushed_lsn"] < store.stats()["appended_lsn"]
        file = take_snapshot(store._opened)
        mark, _ = read_marks(tmp_path / "s" / "log" / "mark", store._opened.log.key)
        assert mark is not None
        assert mark.position.lsn >= file.lsn
        assert store.stats()["flushed_lsn"] >= file.lsn


def test_a_poisoned_store_gives_no_snapshot(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "s") as store:
        store.create({})
        opened = store._opened
        opened.log.words[Word.POISON] = 1
        with pytest.raises(PoisonedError):
            take_snapshot(opened)
        opened.log.words[Word.POISON] = 0
    assert list((tmp_path / "s" / "snapshots").iterdir()) == []


def test_a_damaged_state_gives_no_snapshot_and_names_the_session(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "s", backend="sqlite") as store:
        stop_background(store)  # it would end the reading of the back end
        id = store.create({"n": 1})
        store.fold()
        opened = store._opened
        state = opened.backend.refresh()
        record = bytearray(opened.backend.get(id.encode()) or b"")
        record[-1] ^= 1
        opened.backend.release()
        opened.backend.fold([(id.encode(), bytes(record))], [], [], state)
        with pytest.raises(CorruptError, match=id):
            take_snapshot(opened)
    assert list((tmp_path / "s" / "snapshots").iterdir()) == []


def test_a_store_without_a_log_is_refused(tmp_path: Path) -> None:
    init_store(tmp_path / "s", node="a", now_ms=0)
    with pytest.raises(UsageError, match="no log"):
        take_snapshot(tmp_path / "s")
    with pytest.raises(StoreMissingError):
        take_snapshot(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_prune_keeps_the_newest_ones_and_always_a_good_one(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "s") as store:
        files = []
        for n in range(5):
            store.create({"n": n})
            files.append(take_snapshot(store._opened))
        with pytest.raises(UsageError):
            prune_snapshots(tmp_path / "s", keep=0)
        assert prune_snapshots(tmp_path / "s", keep=3) == [files[0].path, files[1].path]
        for file in files[3:]:
            data = bytearray(file.path.read_bytes())
            data[140] ^= 1
            file.path.write_bytes(data)
        assert prune_snapshots(tmp_path / "s", keep=1) == [files[3].path]
        assert [state.is_good for state in inspect_snapshots(tmp_path / "s", check=True)] == [True, False]
        data = bytearray(files[2].path.read_bytes())
        data[10] ^= 1
        files[2].path.write_bytes(data)
        assert prune_snapshots(tmp_path / "s", keep=1) == []


def test_with_keep_older_ones_go_once_the_new_one_stands(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "s") as store:
        taken = []
        for n in range(4):
            store.create({"n": n})
            taken.append(take_snapshot(store._opened, keep=2))
        left = inspect_snapshots(tmp_path / "s")
        assert [state.file for state in left] == taken[-2:]
        assert left[-1].finding.level is Level.UNKNOWN  # unread is not the same as good
        assert not left[-1].is_good


def test_a_snapshot_of_another_history_is_told_by_its_chain(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for path in (first, second):
        init_store(path, node="local", cluster_id=bytes(16), now_ms=0)
        with open_and_fill(path, 5):
            pass
    file = take_snapshot(first)
    (second / "snapshots" / file.name).write_bytes(file.path.read_bytes())
    (state,) = inspect_snapshots(second, check=True)
    assert state.finding.kind == "snapshot-diverged"


def open_and_fill(path: Path, count: int) -> SessionStore:
    store = SessionStore(open_store(path, OpenOptions()), OpenOptions(), None)
    for n in range(count):
        store.create({"n": n})
    return store


def test_a_log_that_was_replaced_right_behind_the_image_gives_no_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SessionStore.open(tmp_path / "s") as store:
        store.create({})

        def replace_log(opened: Opened, position: Position) -> int:
            opened.log.words[Word.GENERATION] += 1
            return 0

        monkeypatch.setattr(take, "_time_at", replace_log)
        monkeypatch.setattr(take, "_is_in_log", lambda _opened, _position: False)
        with pytest.raises(DivergedError, match="while the snapshot was taken"):
            take_snapshot(store._opened)
    assert list((tmp_path / "s" / "snapshots").iterdir()) == []


def test_what_cannot_be_read_is_unknown_and_what_was_pruned_meanwhile_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SessionStore.open(tmp_path / "s") as store:
        files = []
        for n in range(3):
            store.create({"n": n})
            files.append(take_snapshot(store._opened))
    read = verify_snapshot

    def fail(path: Path, *rest: Any) -> Any:
        if path == files[0].path:
            prune_snapshots(tmp_path / "s", keep=2)
        if path == files[1].path:
            raise translate(OSError(errno.EMFILE, "too many open files"), "cannot read a snapshot", path)
        return read(path, *rest)

    monkeypatch.setattr(take, "verify_snapshot", fail)
    judged = inspect_snapshots(tmp_path / "s", check=True)
    assert [(state.file.name, state.finding.level) for state in judged] == [
        (files[1].name, Level.UNKNOWN),
        (files[2].name, Level.OK),
    ]
    assert summarise(state.finding for state in judged).exit_code == 1


def test_progress_is_told_in_sessions(tmp_path: Path) -> None:
    told: list[int] = []
    with small_segments(tmp_path / "s") as store:
        for n in range(30):
            store.create({"n": n})
        take_snapshot(store._opened, progress=told.append)
        assert told[-1] == 30
        assert len(contents(store)) == 30


def test_killed_at_any_system_call_there_is_a_good_snapshot_or_none(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with SessionStore.open(path, backend="sqlite") as store:
        for n in range(30):
            store.create({"n": n})
    number = good = 0
    while killed(lambda: take_snapshot(path), number):
        states = inspect_snapshots(path, check=True)
        assert all(state.is_good for state in states)
        good += len(states)
        for state in states:
            state.file.path.unlink()
        number += 1
    assert number >= 8
    assert good >= 1  # the last step is only the sync of the directory
    assert [entry.suffix for entry in (path / "snapshots").iterdir()] == [".snap"]  # no temporary file left
