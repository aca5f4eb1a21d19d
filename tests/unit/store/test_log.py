"""The event log of one store: append, follow, roll, seal, settle, fence."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.store import log as store_log
from perdure.store import names
from perdure.store.control import ALONE, Config
from perdure.store.cursor import LogCursor, Run, list_segments
from perdure.store.errors import (
    CorruptError,
    FencedError,
    ForeignError,
    LockTimeoutError,
    NotPrimaryError,
    PoisonedError,
    PositionGoneError,
    PromiseRefusedError,
    StorageFullError,
)
from perdure.store.event import NO_OPERATION, Kind, Reason, encode_event
from perdure.store.frame import cluster_key
from perdure.store.identity import Identity, read_identity, write_identity
from perdure.store.ids import NOWHERE, Position
from perdure.store.keeper import seal_all
from perdure.store.log import SEGMENT_BYTES, EventLog
from perdure.store.page import Word
from perdure.store.placing import open_log
from perdure.store.promise import Promise

CLUSTER = bytes(range(16))
OpenLog = Callable[..., EventLog]


def payload(number: int, size: int = 20) -> bytes:
    key = f"key-{number:06d}".encode()
    return encode_event(Kind.PUT, Reason.CREATED, NO_OPERATION, key, bytes(48) + b"v" * size)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    write_identity(path, Identity(CLUSTER, "n1", 0, 0, "lmdb"))
    return path


@pytest.fixture
def open_one(store: Path) -> Iterator[OpenLog]:
    opened: list[EventLog] = []

    def open_it(boot: str = "boot-1", segment_bytes: int = SEGMENT_BYTES) -> EventLog:
        log = EventLog(
            store,
            read_identity(store),
            boot_id=boot,
            now_ms=lambda: 1000,
            lock_timeout_ms=300,
            segment_bytes=segment_bytes,
        )
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


def append(log: EventLog, numbers: range, size: int = 20) -> Position:
    position = log.cursor.at.position
    for number in numbers:
        log.lock()
        log.roll_if_due(1000)
        at = log.cursor.at
        digest = (at.digest + 1) % 2**64
        position = log.append(payload(number, size), 1, digest, at.session_count + 1, 1000).position
        log.unlock()
    return position


def reader(store: Path) -> LogCursor:
    log = names.log_path(store)
    return LogCursor(log, CLUSTER, cluster_key(CLUSTER))


def frames_of(store: Path) -> list[tuple[int, int]]:
    cursor = reader(store)
    cursor.open_segment(list_segments(names.log_path(store))[0])
    found = [(frame.first_lsn, frame.chain) for run in cursor.runs() for _, frame in run.frames]
    cursor.close()
    return found


def test_a_new_log_begins_with_an_epoch_start_and_its_config(store: Path, open_one: OpenLog) -> None:
    log = open_one()
    assert log.is_primary
    assert (log.cursor.at.epoch, log.cursor.at.lsn) == (1, 2)
    assert log.words[Word.FLUSHED] == 2
    assert log.config == ALONE


def test_frames_are_dense_chained_and_read_from_any_lsn(store: Path, open_one: OpenLog) -> None:
    log = open_one(segment_bytes=2000)
    end = append(log, range(100))
    assert end.lsn > 102, "each new segment begins with a CONFIG"
    assert len(list_segments(names.log_path(store))) > 3
    seal_all(log.cursor, lambda: log.flush(end.lsn))
    frames = frames_of(store)
    assert [lsn for lsn, _ in frames][1:] == list(range(3, end.lsn + 1))
    for lsn in (0, 2, 3, 17, 50, end.lsn - 1, end.lsn):
        cursor = reader(store)
        cursor.seek(lsn)
        rest = [frame.first_lsn for run in cursor.runs() for _, frame in run.frames]
        assert rest == [first for first, _ in frames if first > lsn]
        cursor.close()
    with pytest.raises(PositionGoneError):
        reader(store).seek(1)
    with pytest.raises(PositionGoneError):
        reader(store).seek(end.lsn + 1)


def test_a_second_handle_follows_every_frame(open_one: OpenLog) -> None:
    one, two = open_one(segment_bytes=3000), open_one(segment_bytes=3000)
    seen: list[int] = []

    def take(run: Run) -> None:
        seen.extend(frame.first_lsn for _, frame in run.frames)

    two.on_run = take
    start = two.cursor.at.lsn
    append(one, range(60))
    end = append(two, range(60, 61))
    assert seen == list(range(start + 1, start + 1 + len(seen)))
    assert end.lsn - seen[-1] in (1, 2), "two may have rolled, which costs a CONFIG"
    append(one, range(61, 62))
    assert one.cursor.at.lsn == end.lsn + 1


def test_a_half_written_frame_of_a_dead_writer_is_kept_aside_and_cut(store: Path, open_one: OpenLog) -> None:
    one, two = open_one(), open_one()
    append(one, range(3))
    one.lock()
    one.words[Word.DIRTY] = 1
    os.pwrite(one.cursor.descriptor, b"\xaa" * 50, one.cursor.offset)
    one.unlock()
    end = append(two, range(3, 4))
    assert end.lsn == 6
    assert two.settled is not None
    assert two.settled.cut_bytes == 50
    aside = list((store / names.ASIDE).iterdir())
    assert [file.read_bytes() for file in aside] == [b"\xaa" * 50]
    assert [lsn for lsn, _ in frames_of(store)] == [1, 3, 4, 5, 6]


def test_a_whole_frame_of_a_dead_writer_is_rolled_forward(store: Path, open_one: OpenLog) -> None:
    one, two = open_one(), open_one()
    append(one, range(3))
    words = [two.words[word] for word in (Word.END, Word.LAST_FRAME, Word.CHAIN, Word.APPENDED)]
    append(one, range(3, 4))
    for word, value in zip((Word.END, Word.LAST_FRAME, Word.CHAIN, Word.APPENDED), words, strict=True):
        two.words[word] = value
    two.words[Word.DIRTY] = 1
    end = append(two, range(4, 5))
    assert end.lsn == 7
    assert [lsn for lsn, _ in frames_of(store)] == [1, 3, 4, 5, 6, 7]


def test_another_boot_begins_a_new_epoch_only_by_promise(store: Path, open_one: OpenLog) -> None:
    one = open_one("boot-1")
    append(one, range(5))
    one.close()
    two = open_one("boot-2")
    assert two.lost_frames
    assert two.cursor.at.lsn == 7
    with pytest.raises(NotPrimaryError, match="power loss"):
        two.lock()
    two.lock_any()
    two.start_epoch(Promise(2, "n1"), two.config, "restarted")
    two.unlock()
    end = append(two, range(5, 6))
    assert end.epoch == 2
    assert len(list_segments(names.log_path(store))) == 2


@pytest.mark.parametrize("cut", [1, 40, 79, 80, 100])
def test_a_torn_tail_after_power_loss_is_cut_but_never_below_the_mark(
    store: Path, open_one: OpenLog, cut: int
) -> None:
    one = open_one("boot-1")
    end = append(one, range(5))
    one.close()
    segment = list_segments(names.log_path(store))[0].path
    os.truncate(segment, segment.stat().st_size - cut)
    two = open_one("boot-2")
    assert two.cursor.at.lsn == end.lsn - 1
    two.close()

    shutil.rmtree(store)
    write_identity(store, Identity(CLUSTER, "n1", 0, 0, "lmdb"))
    three = open_one("boot-1")
    end = append(three, range(5))
    three.flush(end.lsn)
    three.close()
    os.truncate(segment, segment.stat().st_size - cut)
    with pytest.raises(CorruptError) as caught:
        open_one("boot-2")
    assert caught.value.lsn == end.lsn
    assert caught.value.path == str(segment)
    with pytest.raises(CorruptError):
        open_one("boot-2")


@pytest.mark.parametrize("kept", [1, 40, 63])
def test_the_first_mark_torn_by_a_power_loss_counts_as_none_and_in_the_same_boot_as_damage(
    store: Path, open_one: OpenLog, kept: int
) -> None:
    one = open_one("boot-1")
    end = append(one, range(3))
    one.close()
    mark = store / names.LOG / names.MARK
    mark.write_bytes(mark.read_bytes()[:kept])
    with pytest.raises(CorruptError, match="mark is damaged"):
        open_one("boot-1")
    two = open_one("boot-2")
    assert two.cursor.at.lsn == end.lsn


def test_a_damaged_frame_with_valid_ones_behind_it_is_corrupt_in_the_same_boot(
    store: Path, open_one: OpenLog
) -> None:
    one = open_one()
    append(one, range(5))
    segment, offset = one.cursor.path, one.cursor.offset
    one.close()
    data = bytearray(segment.read_bytes())
    data[offset // 2] ^= 4
    segment.write_bytes(data)
    (store / names.LOG / names.MARK).unlink()
    page = store / names.CONTROL_PAGE
    words = bytearray(page.read_bytes())
    words[Word.LAST_FRAME * 8 : Word.LAST_FRAME * 8 + 8] = (161).to_bytes(8, "little")
    page.write_bytes(words)
    with pytest.raises(CorruptError, match="follows in the same boot"):
        open_one()
    assert list((store / names.ASIDE).iterdir()) == []


def test_a_log_that_ends_before_the_mark_is_corrupt(store: Path, open_one: OpenLog) -> None:
    one = open_one(segment_bytes=1000)
    end = append(one, range(40))
    one.flush(end.lsn)
    one.close()
    list_segments(names.log_path(store))[-1].path.unlink()
    with pytest.raises(CorruptError, match="mark"):
        open_one("boot-2")
    for file in list_segments(names.log_path(store)):
        file.path.unlink()
    with pytest.raises(CorruptError, match="the log is gone"):
        open_one("boot-3")


def test_a_missing_segment_in_the_middle_is_corrupt_for_whoever_reads_it(
    store: Path, open_one: OpenLog
) -> None:
    log = open_one(segment_bytes=1000)
    append(log, range(40))
    segments = list_segments(names.log_path(store))
    segments[1].path.rename(store / names.ASIDE / "gone")
    cursor = reader(store)
    cursor.open_segment(segments[0])
    last = [frame.last_lsn for run in cursor.runs() for _, frame in run.frames][-1]
    assert last == segments[1].first_lsn - 1
    cursor.close()


def test_swapped_and_foreign_segments_are_named(store: Path, tmp_path: Path, open_one: OpenLog) -> None:
    log = open_one(segment_bytes=1000)
    append(log, range(40))
    log.close()
    first, second, *_ = list_segments(names.log_path(store))
    data = first.path.read_bytes()
    first.path.write_bytes(second.path.read_bytes())
    with pytest.raises(CorruptError, match="name says otherwise"):
        reader(store).open_segment(first)
    first.path.write_bytes(data)
    cursor = LogCursor(names.log_path(store), b"x" * 16, 1)
    with pytest.raises(ForeignError, match="belongs to cluster"):
        cursor.open_segment(first)


def test_sealing_survives_a_crash_in_the_middle_of_the_footer(store: Path, open_one: OpenLog) -> None:
    log = open_one(segment_bytes=1000)
    end = append(log, range(40))
    before = frames_of(store)
    count = seal_all(log.cursor, lambda: log.flush(end.lsn))
    segments = list_segments(names.log_path(store))
    assert count == len(segments) - 1
    for file in segments[:-1]:
        os.truncate(file.path, file.path.stat().st_size - 7)
    assert frames_of(store) == before
    assert seal_all(log.cursor, lambda: log.flush(end.lsn)) == count
    assert seal_all(log.cursor, lambda: log.flush(end.lsn)) == 0
    cursor = reader(store)
    cursor.open_segment(segments[0])
    footer = cursor.footer()
    assert footer is not None
    assert footer.end.lsn == segments[1].first_lsn - 1
    cursor.close()


def test_half_a_footer_of_any_length_does_not_stop_a_reader(store: Path, open_one: OpenLog) -> None:
    log = open_one(segment_bytes=1000)
    end = append(log, range(20))
    before = frames_of(store)
    seal_all(log.cursor, lambda: log.flush(end.lsn))
    first = list_segments(names.log_path(store))[0].path
    cursor = reader(store)
    cursor.open_segment(list_segments(names.log_path(store))[0])
    footer = cursor.footer()
    cursor.close()
    assert footer is not None
    sealed = first.read_bytes()
    for size in range(footer.frames_end, len(sealed)):
        first.write_bytes(sealed[:size])
        assert frames_of(store) == before


@pytest.mark.parametrize("step", ["create_segment", "SegmentFile"])
def test_a_segment_whose_maker_died_before_the_page_named_it_is_gone_on_with_by_all(
    store: Path, open_one: OpenLog, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    one, two = open_one(), open_one()
    append(two, range(3))
    real = getattr(store_log, step)

    def die_behind(*arguments: object) -> None:
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(store_log, step, die_behind)
    one.lock()
    with pytest.raises(KeyboardInterrupt):
        one.change_config(Config(("n1",)))
    one.unlock()
    monkeypatch.undo()
    end = append(two, range(3, 6))
    assert append(one, range(6, 7)).lsn == end.lsn + 1
    for lsn in range(5, end.lsn + 2):
        reader(store).seek(lsn)
    seal_all(two.cursor, lambda: two.flush(end.lsn))
    assert frames_of(store)[-1][0] == end.lsn + 1
    assert [file.first_lsn for file in list_segments(names.log_path(store))] == [1, 6]


def test_a_promise_fences_local_writers_at_once(open_one: OpenLog) -> None:
    one, two = open_one(), open_one()
    append(one, range(2))
    two.lock_any()
    two.give_promise(Promise(2, "n2"))
    two.unlock()
    with pytest.raises(FencedError, match="epoch 2 was promised to n2"):
        one.lock()
    two.lock_any()
    with pytest.raises(PromiseRefusedError):
        two.give_promise(Promise(2, "n3"))
    with pytest.raises(PromiseRefusedError):
        two.give_promise(Promise(1, "n1"))
    two.unlock()


def test_a_held_lock_ends_in_a_clear_error_within_the_deadline(open_one: OpenLog) -> None:
    one, two = open_one(), open_one()
    one.lock()
    with pytest.raises(LockTimeoutError, match=str(os.getpid())):
        two.lock()
    one.unlock()
    append(two, range(1))


def test_a_failed_write_leaves_the_log_as_it_was(open_one: OpenLog, monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_one()
    end = append(log, range(3))
    real = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        real(descriptor, data[:30], offset)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageFullError):
        append(log, range(3, 4))
    log.unlock()
    monkeypatch.setattr(os, "pwrite", lambda d, data, o: real(d, data[: max(1, len(data) // 3)], o))
    assert append(log, range(3, 5)).lsn == end.lsn + 2


def test_a_failed_sync_is_final_for_every_handle(open_one: OpenLog, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = open_one(), open_one()
    end = append(one, range(3))
    calls: list[int] = []

    def fail(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(PoisonedError):
            one.flush(end.lsn)
    assert len(calls) == 1
    with pytest.raises(PoisonedError):
        one.flush(end.lsn)
    with pytest.raises(PoisonedError):
        two.lock()
    with pytest.raises(PoisonedError):
        two.flush(end.lsn)


def test_config_is_found_in_the_first_frame_of_the_tail_segment(open_one: OpenLog) -> None:
    log = open_one(segment_bytes=1000)
    log.lock()
    log.start_epoch(Promise(2, "n1"), Config(("n1", "n2"), 0), "voters")
    log.unlock()
    append(log, range(40))
    other = open_one(segment_bytes=1000)
    assert other.config == Config(("n1", "n2"), 0)
    assert other.cursor.at.epoch == 2


def test_nothing_is_read_before_the_first_frame() -> None:
    assert NOWHERE.position == Position(0, 0, 0)
