"""Space allocated ahead of the frames: taken by whose writes wait for the disk, never mistaken for damage."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from perdure.store import names
from perdure.store.ahead import STEP_BYTES, bytes_of, cut_ahead, end_of_bytes
from perdure.store.control import ALONE
from perdure.store.cursor import LogCursor, list_segments
from perdure.store.errors import CorruptError, PoisonedError, StorageFullError
from perdure.store.event import NO_OPERATION, Kind, Reason, encode_event
from perdure.store.frame import cluster_key
from perdure.store.identity import Identity, read_identity, write_identity
from perdure.store.keeper import seal_all
from perdure.store.log import SEGMENT_BYTES, EventLog
from perdure.store.page import Word
from perdure.store.placing import open_log
from perdure.store.promise import Promise, give_promise
from perdure.store.sealing import create_segment, footer_up_to
from perdure.store.segment import FOOTER_MAGIC, HEADER_BYTES, SegmentHeader, encode_footer, read_footer
from perdure.store.tail import TailVerdict

CLUSTER = bytes(range(16))
PAGE = 4096
OpenLog = Callable[..., EventLog]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    write_identity(path, Identity(CLUSTER, "n1", 0, 0, "lmdb"))
    return path


@pytest.fixture
def open_one(store: Path) -> Iterator[OpenLog]:
    opened: list[EventLog] = []

    def open_it(boot: str = "boot-1", *, synced: bool = True, segment_bytes: int = SEGMENT_BYTES) -> EventLog:
        log = EventLog(
            store,
            read_identity(store),
            boot_id=boot,
            now_ms=lambda: 1000,
            lock_timeout_ms=300,
            segment_bytes=segment_bytes,
        )
        log.is_synced = synced
        opened.append(log)
        log.write_lock.acquire(1000)
        try:
            open_log(log, None)
            if log.cursor.at.lsn == 0:
                log.start_epoch(Promise(1, "n1"), ALONE, "created")
        finally:
            log.unlock()
        return log

    yield open_it
    for log in opened:
        log.close()


def append(log: EventLog, count: int, size: int = 20) -> None:
    """Frames of one event."""
    for _ in range(count):
        log.lock()
        try:
            log.roll_if_due(1000)
            at = log.cursor.at
            key = f"key-{at.lsn:06d}".encode()
            payload = encode_event(Kind.PUT, Reason.CREATED, NO_OPERATION, key, bytes(48) + b"v" * size)
            log.append(payload, 1, at.lsn + 7, 0, 1000)
        finally:
            log.unlock()


def die(log: EventLog) -> None:
    """As kill -9: its locks are free, and nothing was given back."""
    log.is_synced = False
    log.close()


def tail(store: Path) -> Path:
    return list_segments(store / "log")[-1].path


def size(store: Path) -> int:
    return tail(store).stat().st_size


def put(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def reader(store: Path) -> LogCursor:
    cursor = LogCursor(store / "log", CLUSTER, cluster_key(CLUSTER))
    cursor.open_segment(list_segments(store / "log")[-1])
    return cursor


def aside(store: Path) -> list[Path]:
    folder = store / names.ASIDE
    return sorted(folder.iterdir()) if folder.exists() else []


# -- the end of a file's bytes ---------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [0, 1, 4095, 4096, 4097, STEP_BYTES, 3 * STEP_BYTES + 5])
def test_the_end_of_the_bytes_is_found_before_any_number_of_zeros(tmp_path: Path, zeros: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\0\0ab\0c" + bytes(zeros))
    with path.open("r+b") as file:
        assert [end_of_bytes(file.fileno(), start) for start in (0, 3, 5, 6)] == [6, 6, 6, 6]
        assert end_of_bytes(file.fileno(), 7 + zeros) == 7 + zeros
        assert not cut_ahead(file.fileno(), 5)
        assert cut_ahead(file.fileno(), 6) is (zeros > 0)
    assert (bytes_of(path), path.stat().st_size) == (6, 6)


# -- taking and giving back ------------------------------------------------------------------------------


def test_a_log_that_is_synced_has_space_ahead_and_any_other_grows_frame_by_frame(
    store: Path, open_one: OpenLog
) -> None:
    other = open_one(synced=False)
    append(other, 3)
    assert size(store) == other.cursor.offset
    log = open_one()
    append(log, 3)
    begun = size(store)
    assert STEP_BYTES <= begun <= STEP_BYTES + log.cursor.offset
    append(other, 3)
    append(log, 3)
    assert size(store) == begun
    append(log, 1, begun)
    assert size(store) == log.cursor.offset
    append(log, 1)
    assert size(store) > log.cursor.offset
    assert [frame.first_lsn for run in reader(store).runs() for _, frame in run.frames] == [1, *range(3, 17)]
    assert log.cursor.at.lsn == other.words[Word.APPENDED] == 16


def test_a_log_with_replicas_has_space_ahead_by_its_config(store: Path, open_one: OpenLog) -> None:
    log = open_one(synced=False)
    append(log, 1)
    assert size(store) == log.cursor.offset
    log.config = msgspec.structs.replace(log.config, sync_replicas=1)
    append(log, 1)
    assert size(store) > log.cursor.offset


def test_who_took_space_gives_it_back_at_the_end_and_another_takes_it_anew(
    store: Path, open_one: OpenLog
) -> None:
    log, other = open_one(), open_one()
    append(log, 2)
    append(other, 2)
    log.lock_any()
    log.unlock()
    log.close()
    assert size(store) == other.words[Word.END]
    append(other, 1)
    assert size(store) > other.cursor.offset
    third = open_one(synced=False)  # who opens the store has the page say that the file has to be asked
    assert third.words[Word.ALLOCATED] == 0
    other.close()
    assert size(store) == third.cursor.offset


def test_space_is_kept_while_another_process_holds_the_write_lock_or_is_not_followed(
    store: Path, open_one: OpenLog
) -> None:
    first, second, holder = open_one(), open_one(), open_one(synced=False)
    append(first, 1)
    append(second, STEP_BYTES // 4000, 4000)
    before = size(store)
    assert before > second.cursor.offset
    first.close()  # it has not followed the other one's frames
    assert size(store) == before
    holder.lock()
    second.close()
    holder.unlock()
    assert size(store) == before
    append(holder, 1)


@pytest.mark.parametrize("refusal", [errno.ENOSPC, errno.EOPNOTSUPP, errno.EINVAL])
def test_refused_space_is_no_failure_of_the_write_and_not_asked_for_with_every_frame(
    store: Path, open_one: OpenLog, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    asked: list[tuple[int, int]] = []

    def refuse(descriptor: int, offset: int, size: int) -> None:
        asked.append((offset, size))
        os.ftruncate(descriptor, offset + size // 2)  # some of it was there
        raise OSError(refusal, os.strerror(refusal))

    log = open_one()
    log.words[Word.ALLOCATED] = 0
    cut_ahead(log.cursor.descriptor, log.cursor.offset)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    append(log, 5)
    assert len(asked) == 1
    assert size(store) == log.cursor.offset
    append(log, 12, STEP_BYTES // 10)
    assert len(asked) == 2
    assert log.cursor.at.lsn == 19


def test_a_write_that_fails_in_the_space_leaves_the_log_as_it_was(
    store: Path, open_one: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_one()
    append(log, 2)
    before, real = log.cursor.at, os.pwrite

    def half(descriptor: int, data: bytes, offset: int) -> int:
        real(descriptor, data[:50], offset)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", half)
    with pytest.raises(StorageFullError):
        append(log, 1)
    monkeypatch.undo()
    assert (log.cursor.at, size(store)) == (before, log.cursor.offset)
    append(log, 1)
    assert size(store) > log.cursor.offset
    assert open_one(synced=False).cursor.at == log.cursor.at


def test_a_segment_that_another_one_follows_ends_behind_its_last_frame_and_is_sealed_there(
    store: Path, open_one: OpenLog
) -> None:
    log = open_one(segment_bytes=20_000)
    append(log, 300)
    files = list_segments(store / "log")
    assert len(files) == 3
    ends = {file.path: file.path.stat().st_size for file in files[:-1]}
    for path in ends:
        assert bytes_of(path) > path.stat().st_size - PAGE
        assert path.stat().st_size <= 20_000 + 200
    assert seal_all(log.cursor, lambda: log.flush(log.cursor.at.lsn)) == len(files) - 1
    for path, end in ends.items():
        assert path.read_bytes()[end:].startswith(FOOTER_MAGIC)


def test_a_segment_whose_end_cannot_be_synced_poisons_the_store_before_another_follows(
    store: Path, open_one: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_one()
    append(log, 1)
    log.must_roll = True

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(PoisonedError):
        append(log, 1)
    monkeypatch.undo()
    assert len(list_segments(store / "log")) == 1
    assert log.words[Word.POISON]


def test_a_tail_that_is_sealed_keeps_its_footer_when_another_follows(store: Path, open_one: OpenLog) -> None:
    log = open_one()
    append(log, 3)
    log.close()
    file = list_segments(store / "log")[-1]
    cursor = LogCursor(store / "log", CLUSTER, cluster_key(CLUSTER))
    footer = footer_up_to(cursor, file, 5)
    put(file.path, footer.frames_end, encode_footer(footer))
    again = open_one()
    append(again, 1)
    with file.path.open("rb") as sealed:
        assert read_footer(sealed.fileno(), path="") == footer
    assert len(list_segments(store / "log")) == 2


# -- what stands behind the end --------------------------------------------------------------------------


@pytest.mark.parametrize("boot", ["boot-1", "boot-2"])
def test_zeros_behind_the_last_frame_are_nothing(store: Path, open_one: OpenLog, boot: str) -> None:
    log = open_one()
    append(log, 5)
    end = log.cursor.at
    log.flush(end.lsn)
    die(log)
    assert size(store) > STEP_BYTES
    again = open_one(boot)
    assert again.settled is not None
    assert (again.settled.judgement.verdict, again.settled.cut_bytes) == (TailVerdict.CLEAN, 0)
    assert (again.cursor.at, aside(store)) == (end, [])


@pytest.mark.parametrize("boot", ["boot-1", "boot-2"])
@pytest.mark.parametrize("kept", [1, 40, 79, 80, 100])
def test_a_part_of_a_frame_before_zeros_is_kept_aside_without_them(
    store: Path, open_one: OpenLog, boot: str, kept: int
) -> None:
    log = open_one()
    append(log, 5)
    end, before = log.cursor.offset, log.cursor.at
    log.flush(before.lsn)
    append(log, 1)
    frame = os.pread(log.cursor.descriptor, log.cursor.offset - end, end)
    put(tail(store), end, frame[:kept].ljust(len(frame), b"\0"))
    log.words[Word.APPENDED] = before.lsn
    log.words[Word.DIRTY] = 1
    die(log)
    again = open_one(boot)
    assert again.settled is not None
    assert again.settled.judgement.verdict is TailVerdict.TORN
    assert again.cursor.at == before
    assert size(store) == again.cursor.offset
    (torn,) = aside(store)
    assert torn.read_bytes() == frame[:kept].rstrip(b"\0")
    assert again.settled.cut_bytes == torn.stat().st_size


@pytest.mark.parametrize("gap", [20, 3 * PAGE, STEP_BYTES + PAGE])
def test_zeros_that_a_valid_frame_follows_are_judged_as_any_other_damage(
    store: Path, open_one: OpenLog, gap: int
) -> None:
    log = open_one()
    append(log, 3)
    log.flush(log.cursor.at.lsn)
    before, start = log.cursor.at, log.cursor.offset
    append(log, 1, gap)
    end = log.cursor.offset
    append(log, 2)
    put(tail(store), start, bytes(end - start))
    cursor = reader(store)
    with pytest.raises(CorruptError):
        list(cursor.runs(limit_bytes=PAGE))
    assert cursor.offset == start
    last = log.cursor.offset
    log.words[Word.LAST_FRAME] = HEADER_BYTES + 1  # the log is read from its start
    die(log)
    with pytest.raises(CorruptError):
        open_one()
    again = open_one("boot-2")  # pages that were not synced reach the disk in any order
    assert again.cursor.at == before
    (torn,) = aside(store)
    assert torn.stat().st_size == last - start


@pytest.mark.parametrize("boot", ["boot-1", "boot-2"])
def test_zeros_in_place_of_what_the_mark_covers_are_corrupt(
    store: Path, open_one: OpenLog, boot: str
) -> None:
    log = open_one()
    append(log, 3)
    start = log.cursor.offset
    append(log, 2)
    log.flush(log.cursor.at.lsn)
    put(tail(store), start, bytes(log.cursor.offset - start))
    die(log)
    with pytest.raises(CorruptError, match="mark"):
        open_one(boot)
    assert aside(store) == []


def test_a_superseded_segment_without_a_frame_goes_whatever_space_it_has(
    store: Path, open_one: OpenLog
) -> None:
    log = open_one()
    append(log, 3)
    at = log.cursor.at
    log.close()
    for epoch in (2, 3):
        header = SegmentHeader(CLUSTER, 0, epoch, "n1", "n1", at.lsn + 1, at, 1000)
        path = create_segment(store / "log", header)
        os.truncate(path, HEADER_BYTES + (PAGE if epoch == 2 else 0))
    give_promise(store, Promise(3, "n1"))
    open_one("boot-2")
    assert [file.epoch for file in list_segments(store / "log")] == [1, 3]


# -- reading on ------------------------------------------------------------------------------------------


def test_a_reader_takes_zeros_for_nothing_yet_and_goes_on_when_frames_come(
    store: Path, open_one: OpenLog
) -> None:
    log = open_one()
    append(log, 2)
    cursor = reader(store)
    sparse = reader(store)
    sparse.is_sparse = True
    for one in (cursor, sparse):
        assert len(list(one.runs())) == 1
        assert one.read() is None
    append(log, 1)
    for one in (cursor, sparse):
        run = one.read(limit_bytes=PAGE)
        assert run is not None
        assert run.frames[0][1].first_lsn == log.cursor.at.lsn
        assert one.read() is None


@pytest.mark.parametrize("written", [1, 8, 60, 80, 81, 120])
def test_a_reader_takes_a_frame_that_is_being_written_for_nothing_yet(
    store: Path, open_one: OpenLog, written: int
) -> None:
    log = open_one()
    append(log, 2)
    start = log.cursor.offset
    append(log, 1)
    frame = os.pread(log.cursor.descriptor, log.cursor.offset - start, start)
    put(tail(store), start, frame[:written].ljust(len(frame), b"\0"))
    cursor = reader(store)
    assert len(list(cursor.runs())) == 1
    assert cursor.at.lsn == log.cursor.at.lsn - 1
    put(tail(store), start, frame)
    assert cursor.read() is not None


def test_a_reader_names_a_whole_last_frame_that_is_damaged(store: Path, open_one: OpenLog) -> None:
    log = open_one()
    append(log, 2)
    start = log.cursor.offset
    append(log, 1)
    put(tail(store), start + 100, b"\xff")
    cursor = reader(store)
    assert cursor.read() is not None
    with pytest.raises(CorruptError) as caught:
        cursor.read()
    assert caught.value.offset == start


def test_a_reader_that_saw_space_ahead_and_then_frames_far_behind_it_looks_again(
    store: Path, open_one: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_one()
    append(log, 2)
    cursor = reader(store)
    assert cursor.read() is not None
    real, seen = os.pread, [False]

    def late(descriptor: int, size: int, offset: int) -> bytes:
        data = real(descriptor, size, offset)
        if descriptor == cursor.descriptor and not seen[0]:
            seen[0] = True
            append(log, 100, 100)
        return data

    monkeypatch.setattr(os, "pread", late)
    run = cursor.read(limit_bytes=PAGE)
    assert run is not None
    assert run.frames[0][1].first_lsn == 5
