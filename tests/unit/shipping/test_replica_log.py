"""A replica's log: only frames that follow get in, segment by segment, durable before they are answered."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import strategies as st

from perdure.shipping import serve_receiver
from perdure.shipping.frames_in import split_frames
from perdure.shipping.replica_log import ReplicaLog
from perdure.store import (
    FencedError,
    PoisonedError,
    PromiseRefusedError,
    StorageFullError,
    WireError,
)
from perdure.store.cursor import LogCursor, Run, list_segments
from perdure.store.event import Kind, Reason, encode_event
from perdure.store.frame import cluster_key
from perdure.store.ids import NOWHERE, Position
from perdure.store.keeper import seal_all
from perdure.store.log import EventLog
from perdure.store.page import Word
from perdure.store.promise import Promise, decide_reign, read_promise
from perdure.store.sealing import footer_up_to
from perdure.store.segment import (
    HEADER_BYTES,
    SegmentHeader,
    encode_footer,
    encode_header,
    hash_file,
    read_header,
)
from tests.support.fuzz import fuzz
from tests.unit.shipping.logs import (
    CLUSTER,
    NOW_MS,
    begin_epoch,
    end_of,
    make_node,
    make_primary,
    opened,
    runs_of,
    write,
)

KEY = cluster_key(CLUSTER)
REIGN = Promise(1, "n1")


def read_header_of(path: Path) -> SegmentHeader:
    with path.open("rb") as file:
        return read_header(file.fileno(), path=str(path))


@pytest.fixture
def primary(tmp_path: Path) -> Path:
    path = make_primary(tmp_path / "n1", k=1)
    write(path, 5)
    write(path, 5, roll=True)
    return path


@pytest.fixture
def replica(tmp_path: Path) -> Path:
    return make_node(tmp_path / "n2", "n2")


def test_what_is_appended_is_the_primarys_log_segment_by_segment(primary: Path, replica: Path) -> None:
    with opened(replica) as node:
        log = ReplicaLog(node)
        assert log.accept_reign(REIGN) == NOWHERE.position
        end = log.append(REIGN, [run.raw for run in runs_of(primary)])
        assert end == end_of(primary)
        assert node.log.words[Word.FLUSHED] == end.lsn
        assert node.log.config.sync_replicas == 1
    ours = [(file.first_lsn, file.epoch) for file in list_segments(replica / "log")]
    assert ours == [(file.first_lsn, file.epoch) for file in list_segments(primary / "log")]


def test_what_one_primary_said_is_committed_says_nothing_of_the_next_ones_frames(
    tmp_path: Path, primary: Path, replica: Path
) -> None:
    other = make_node(tmp_path / "n3", "n3")
    for path in (replica, other):
        with opened(path) as node:
            log = ReplicaLog(node)
            log.accept_reign(REIGN)
            log.append(REIGN, [run.raw for run in runs_of(primary)])
    end = end_of(replica)
    begin_epoch(other, "n3", 2, k=1)  # at the price of what n1 had committed beyond
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        assert log.commit(end.lsn + 100) == end.lsn
        reign = Promise(2, "n3")
        log.give_promise(reign)
        log.accept_reign(reign)
        assert log.append(reign, [run.raw for run in runs_of(other, end.lsn)]).lsn > end.lsn
        assert log.commit(0) == end.lsn
        assert log.commit(end.lsn + 1) == end.lsn + 1


def test_what_this_node_has_begun_itself_meanwhile_is_not_committed_by_its_old_primary(
    primary: Path, replica: Path
) -> None:
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        end = log.append(REIGN, [run.raw for run in runs_of(primary)])
        begin_epoch(replica, "n2", 2, k=1)  # by another process of the node
        assert node.log.words[Word.FLUSHED] > end.lsn
        assert log.commit(end.lsn + 100) == end.lsn


def test_a_run_that_spans_segments_is_cut_where_they_begin(primary: Path, replica: Path) -> None:
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        log.append(REIGN, [b"".join(run.raw for run in runs_of(primary))])
    assert len(list_segments(replica / "log")) == 2


def test_an_epoch_rolls_behind_a_segment_whose_first_frame_was_lost_with_the_power(
    primary: Path, replica: Path
) -> None:
    first, rest = runs_of(primary)[0], runs_of(primary)[1:]
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        log.append(REIGN, [first.data[: first.frames[-1][0] + first.frames[-1][1].size_bytes]])
        node.log.lock_any()
        node.log.begin_segment(2, "n2", NOW_MS)  # and no EPOCH_START: it was not synced
        node.log.unlock()
    with opened(replica) as node:
        log, reign = ReplicaLog(node), Promise(3, "n1")
        log.accept_reign(reign)
        assert log.append(reign, [run.raw for run in rest]) == end_of(primary)
    assert [file.path.name for file in list_segments(replica / "log")] == [
        file.path.name for file in list_segments(primary / "log")
    ]


@pytest.mark.parametrize("is_sealed", [False, True])
def test_an_epoch_goes_on_behind_a_segment_whose_first_frame_was_lost_with_the_power(
    primary: Path, replica: Path, is_sealed: bool
) -> None:
    runs = runs_of(primary)
    first, rest = runs[0], runs[1:]
    half = first.frames[3][0]
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        end = log.append(REIGN, [first.data[:half]])
        if is_sealed:
            file = list_segments(replica / "log")[-1]
            cursor = node.cursor()
            footer = footer_up_to(cursor, file, end.lsn)
            os.truncate(file.path, footer.frames_end)
            with open(file.path, "ab") as segment:
                segment.write(encode_footer(footer))
            cursor.close()
        node.log.lock_any()
        node.log.begin_segment(2, "n2", NOW_MS)  # and no EPOCH_START: it was not synced
        node.log.unlock()
    with opened(replica) as node, opened(replica) as other:
        other.log.look_anew()
        log, reign = ReplicaLog(node), Promise(3, "n1")
        assert log.accept_reign(reign) == end
        log.append(reign, [first.data[half : first.frames[-1][0] + first.frames[-1][1].size_bytes]])
        end = log.append(reign, [run.raw for run in rest])
        assert end == end_of(primary)
        assert other.end_on_disk() == end
    assert [file.path.name for file in list_segments(replica / "log")] == [
        file.path.name for file in list_segments(primary / "log")
    ]


def test_a_receiver_that_dies_amid_leaving_an_empty_segment_leaves_no_process_on_the_removed_file(
    primary: Path, replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = runs_of(primary)[0]
    half = first.frames[3][0]
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        end = log.append(REIGN, [first.data[:half]])
        node.log.lock_any()
        node.log.begin_segment(2, "n2", NOW_MS)
        node.log.unlock()
    reign = Promise(3, "n1")
    behind = first.data[half : first.frames[-1][0] + first.frames[-1][1].size_bytes]
    with opened(replica) as other:
        with opened(replica) as node, monkeypatch.context() as patched:
            log = ReplicaLog(node)
            log.accept_reign(reign)
            assert other.end_on_disk() == end  # and has the empty segment open
            patched.setattr(type(node.log.page), "bump", _die)
            with pytest.raises(KeyboardInterrupt):
                log.append(reign, [behind])
        serve_receiver(replica, "127.0.0.1", 0, should_stop=lambda: True)
        with opened(replica) as node:
            log = ReplicaLog(node)
            log.accept_reign(reign)
            new_end = log.append(reign, [behind])
            assert other.end_on_disk() == new_end != end


def test_a_segment_that_goes_on_while_its_footer_is_made_keeps_the_frames_that_came_behind(
    primary: Path, replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, behind = half_of(runs_of(primary)[0])
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        log.append(REIGN, [before])
        node.log.lock_any()
        node.log.begin_segment(2, "n2", NOW_MS)  # and no EPOCH_START
        node.log.unlock()
    reign = Promise(3, "n1")
    ends: list[Position] = []
    with opened(replica) as node, opened(replica) as other:
        log = ReplicaLog(node)
        log.accept_reign(reign)

        def hash_late(descriptor: int, size: int) -> int:
            ends.append(log.append(reign, [behind]))
            return hash_file(descriptor, size)

        monkeypatch.setattr("perdure.store.sealing.hash_file", hash_late)
        seal_all(other.log.cursor, lambda: other.log.flush(other.log.cursor.at.lsn))
    assert len(list_segments(replica / "log")) == 1
    assert ends == [end_of(replica)] == [runs_of(primary)[0].frames[-1][1].position]


def _die(*_: object) -> None:
    raise KeyboardInterrupt


def half_of(run: Run) -> tuple[bytes, bytes]:
    """The first three frames of a run, and the rest."""
    half = run.frames[3][0]
    return run.data[:half], run.data[half : run.frames[-1][0] + run.frames[-1][1].size_bytes]


def leave_two_empty(replica: Path, frames: bytes, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A crash between making the segment of epoch 3 and removing that of epoch 2, which has no frame."""
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        log.append(REIGN, [frames])
        node.log.lock_any()
        node.log.begin_segment(2, "n2", NOW_MS)
        with monkeypatch.context() as patched:
            patched.setattr("perdure.store.log.remove_durably", _die)
            with pytest.raises(KeyboardInterrupt):
                node.log.begin_segment(3, "n3", NOW_MS)
        node.log.unlock()
    empty = [file.path for file in list_segments(replica / "log")][-2:]
    assert [path.stat().st_size for path in empty] == [HEADER_BYTES, HEADER_BYTES]
    return empty


def test_of_two_segments_without_a_frame_that_begin_at_one_lsn_the_later_epoch_s_stays(
    primary: Path, replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, behind = half_of(runs_of(primary)[0])
    older, newer = leave_two_empty(replica, before, monkeypatch)
    with opened(replica) as node:
        assert node.log.cursor.path == newer
        assert not older.exists()
        log = ReplicaLog(node)
        log.accept_reign(Promise(4, "n1"))
        end = log.append(Promise(4, "n1"), [behind])
    assert len(list_segments(replica / "log")) == 1
    assert end_of(replica) == end


def test_a_reader_of_either_of_two_segments_without_a_frame_ends_in_the_one_that_counts(
    primary: Path, replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _behind = half_of(runs_of(primary)[0])
    files = leave_two_empty(replica, before, monkeypatch)
    with opened(replica) as node:
        key = node.log.key
    older, newer = files
    older.write_bytes(encode_header(msgspec.structs.replace(read_header_of(newer), epoch=2, primary="n2")))
    cursor = LogCursor(replica / "log", CLUSTER, key)
    for begins_in in files:
        cursor.open_segment(next(file for file in list_segments(replica / "log") if file.path == begins_in))
        assert cursor.read() is None
        assert cursor.path == newer
    newer.unlink()
    assert cursor.read() is None
    assert cursor.path == older
    cursor.close()


def test_what_a_segment_holds_that_another_took_the_place_of_is_not_removed(
    primary: Path, replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _behind = half_of(runs_of(primary)[0])
    older, newer = leave_two_empty(replica, before, monkeypatch)
    with older.open("ab") as file:
        file.write(b"what is this?")
    with opened(replica) as node:
        assert node.log.cursor.path == newer
    assert older.read_bytes().endswith(b"what is this?")


def test_leaving_an_empty_segment_leaves_those_whose_place_it_took(
    primary: Path, replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, behind = half_of(runs_of(primary)[0])
    with monkeypatch.context() as patched:
        patched.setattr("perdure.store.settle.leave_superseded", lambda *_: None)
        leave_two_empty(replica, before, monkeypatch)
        with opened(replica) as node:
            log = ReplicaLog(node)
            log.accept_reign(Promise(4, "n1"))
            log.append(Promise(4, "n1"), [behind])
    assert [file.epoch for file in list_segments(replica / "log")] == [1]


@pytest.mark.parametrize("lost", ["first", "middle", "chain", "cut", "doubled"])
def test_frames_that_do_not_follow_are_refused_and_nothing_is_written(
    primary: Path, replica: Path, lost: str
) -> None:
    run = runs_of(primary)[0]
    frames = [run.data[offset : offset + frame.size_bytes] for offset, frame in run.frames]
    bad = {
        "first": frames[1:],
        "middle": frames[:2] + frames[3:],
        "chain": [frames[0], frames[1][:-1] + b"\xff"],
        "cut": [frames[0], frames[1][:-1]],
        "doubled": [frames[0], frames[0]],
    }[lost]
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        with pytest.raises(WireError):
            log.append(REIGN, [b"".join(bad)])
        assert node.log.cursor.at.lsn == 0


def test_frames_of_a_higher_epoch_than_the_reign_are_refused(primary: Path, replica: Path) -> None:
    begin_epoch(primary, "n1", 5)
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        with pytest.raises(WireError, match="epoch 5"):
            log.append(REIGN, [run.raw for run in runs_of(primary)])


@fuzz(200, data=st.binary(max_size=400))
def test_hostile_frames_give_wire_error_and_nothing_else(data: bytes) -> None:
    try:
        split_frames(data, NOWHERE, key=KEY, shard=0, epoch_max=1)
    except WireError:
        return
    assert data == b""


def test_every_flipped_byte_and_every_truncation_of_a_run_is_refused(primary: Path) -> None:
    run = runs_of(primary)[0]
    raw = run.data[: run.frames[2][0]]
    assert is_taken(raw)
    for at in range(len(raw)):
        assert not is_taken(raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :])
    ends = {0, *(offset for offset, _ in run.frames)}
    for size in range(len(raw)):
        assert is_taken(raw[:size]) is (size in ends)


@pytest.mark.parametrize("count", [1, 2], ids=["alone", "in a run"])
def test_frames_of_another_shard_are_refused(primary: Path, count: int) -> None:
    run = runs_of(primary)[0]
    raw = run.data[: run.frames[count][0]]
    split_frames(raw, NOWHERE, key=KEY, shard=0, epoch_max=1)
    with pytest.raises(WireError, match="shard 0 out of place"):
        split_frames(raw, NOWHERE, key=KEY, shard=1, epoch_max=1)


def is_taken(raw: bytes) -> bool:
    try:
        split_frames(raw, NOWHERE, key=KEY, shard=0, epoch_max=1)
    except WireError:
        return False
    return True


# -- promises --------------------------------------------------------------------------------------


def test_a_higher_reign_is_promised_before_its_first_frame(primary: Path, replica: Path) -> None:
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        assert read_promise(replica) == msgspec.structs.replace(REIGN, has_begun=True)
        log.accept_reign(Promise(3, "n3"))
        assert read_promise(replica) == Promise(3, "n3", has_begun=True)
        with pytest.raises(FencedError, match="epoch 3 is promised to n3"):
            log.accept_reign(REIGN)
        with pytest.raises(FencedError):
            log.accept_reign(Promise(3, "n1"))


def test_a_node_that_promised_an_epoch_to_who_did_not_win_it_follows_who_did(
    primary: Path, replica: Path
) -> None:
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.give_promise(Promise(3, "n3"))
        log.accept_reign(Promise(3, "n1"))
        assert read_promise(replica) == Promise(3, "n1", has_begun=True)
        with pytest.raises(PromiseRefusedError):
            log.give_promise(Promise(3, "n3"))
        with pytest.raises(FencedError):
            log.accept_reign(Promise(3, "n2"))


@pytest.mark.parametrize("held", [Promise(3, "n3", alone=True), Promise(3, "n3", has_begun=True)])
def test_an_epoch_that_another_node_may_have_begun_is_not_taken_from_a_second_one(
    replica: Path, held: Promise
) -> None:
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.give_promise(held)
        with pytest.raises(FencedError):
            log.accept_reign(Promise(3, "n1"))
        assert read_promise(replica) == held


@pytest.mark.parametrize(("primary_of_it", "may"), [("", True), ("n1", True), ("n3", False)])
def test_a_node_follows_nobody_but_who_began_the_epoch_in_its_log(primary_of_it: str, may: bool) -> None:
    assert decide_reign(Promise(3, "n2"), Promise(3, "n1"), primary_of_it) is may
    assert not decide_reign(Promise(3, "n2", has_begun=True), Promise(3, "n1"), primary_of_it)


def test_a_primary_alone_does_not_take_a_promise_that_another_candidate_has(replica: Path) -> None:
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.give_promise(Promise(3, "n3"))
        with pytest.raises(FencedError):
            log.accept_reign(Promise(3, "n1", alone=True))


def test_an_epoch_that_stands_in_the_log_is_taken_from_no_second_primary(primary: Path) -> None:
    with opened(primary) as node:
        log = ReplicaLog(node)
        held = node.log.promise
        with pytest.raises(FencedError):
            log.accept_reign(Promise(held.epoch, "n9"))
        assert node.log.promise == held


def test_frames_of_a_reign_that_is_over_are_refused_though_it_began_here(
    primary: Path, replica: Path
) -> None:
    runs = [run.raw for run in runs_of(primary)]
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        end = log.append(REIGN, runs[:1])
        assert log.give_promise(Promise(2, "n3")) == end
        with pytest.raises(FencedError):
            log.append(REIGN, runs[1:])
        assert node.log.cursor.at.position == end


def test_a_promise_by_another_process_of_the_node_counts_here_too(primary: Path, replica: Path) -> None:
    with opened(replica) as node, opened(replica) as other:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        ReplicaLog(other).give_promise(Promise(2, "n2"))
        with pytest.raises(FencedError):
            log.append(REIGN, [run.raw for run in runs_of(primary)])
        with pytest.raises(PromiseRefusedError):
            log.give_promise(Promise(2, "n3"))


def test_the_commit_lsn_is_published_only_as_far_as_the_log_is_on_disk(primary: Path, replica: Path) -> None:
    runs = [run.raw for run in runs_of(primary)]
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        assert log.commit(9) == 0
        first = log.append(REIGN, runs[:1])
        assert log.commit(9) == min(9, first.lsn)
        assert log.commit(3) == min(9, first.lsn)
        log.append(REIGN, runs[1:])
        assert log.commit(0) == 9


# -- crashes and full disks ------------------------------------------------------------------------


def test_a_segment_that_was_made_before_a_crash_is_taken_up(primary: Path, replica: Path) -> None:
    runs = runs_of(primary)
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        log.append(REIGN, [runs[0].raw])
        node.log.lock_any()
        node.log.begin_segment(1, "n1", 0)  # and here the process dies
        node.log.unlock()
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        assert log.append(REIGN, [runs[1].raw]) == end_of(primary)
    assert len(list_segments(replica / "log")) == 2


def test_an_empty_segment_of_an_epoch_that_never_came_is_removed(primary: Path, replica: Path) -> None:
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        log.append(REIGN, [run.raw for run in runs_of(primary)])
        node.log.lock_any()
        node.log.begin_segment(1, "n1", 0)
        node.log.unlock()
    begin_epoch(primary, "n1", 2)
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.accept_reign(Promise(2, "n1"))
        log.append(Promise(2, "n1"), [run.raw for run in runs_of(primary, end_of(replica).lsn)])
    ours = [(file.first_lsn, file.epoch) for file in list_segments(replica / "log")]
    assert ours == [(file.first_lsn, file.epoch) for file in list_segments(primary / "log")]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_full_disk_keeps_what_got_in_and_goes_on_later(
    primary: Path, replica: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    whole = EventLog.append_run

    def append_run(self: EventLog, run: object) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise StorageFullError("no space left")
        whole(self, run)  # type: ignore[arg-type]

    monkeypatch.setattr(EventLog, "append_run", append_run)
    batch = [b"".join(run.raw for run in runs_of(primary))]
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        with pytest.raises(StorageFullError):
            log.append(REIGN, batch)
        assert node.log.words[Word.FLUSHED] == node.log.cursor.at.lsn
        assert log.append(REIGN, batch) == end_of(primary)
        assert batch == []


def test_a_failed_sync_is_never_acknowledged_and_is_final_until_the_log_was_copied(
    primary: Path, replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = [run.raw for run in runs_of(primary)]
    with opened(replica) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", failing_sync)
            with pytest.raises(PoisonedError):
                log.append(REIGN, batch[:1])
        with pytest.raises(PoisonedError):
            log.append(REIGN, batch[1:])
        assert node.log.words[Word.FLUSHED] == 0
    before = {file.path: os.stat(file.path).st_ino for file in list_segments(replica / "log")}
    with opened(replica) as node:
        assert {path: os.stat(path).st_ino for path in before} != before
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        left = [run.raw for run in runs_of(primary, node.log.cursor.at.lsn)]
        assert log.append(REIGN, left) == end_of(primary)


def failing_sync(_descriptor: int) -> None:
    raise OSError(errno.EIO, "the disk is gone")


def test_a_handle_far_behind_skips_ahead_and_still_flushes_every_segment(primary: Path) -> None:
    with opened(primary) as behind:
        before = behind.log.cursor.at.lsn
        for _ in range(3):
            append_unsynced(primary, 600)
        end = end_of(primary)
        behind.skip_ahead()
        assert end.lsn - 1 <= behind.log.cursor.at.lsn <= end.lsn
        segments = len(list_segments(primary / "log"))
        assert len(behind.log.cursor.retired) == segments - 2 >= 3
        assert before < behind.end_on_disk().lsn == end.lsn
        assert behind.log.cursor.retired == []
        assert behind.log.is_primary


def append_unsynced(path: Path, count: int) -> None:
    with opened(path) as node:
        log = node.log
        log.lock()
        assert log.cursor.header is not None
        log.begin_segment(1, "n1", NOW_MS)
        log.append_control(None, log.config, NOW_MS)
        payload = encode_event(Kind.DELETE, Reason.DELETED, bytes(16), b"nobody", b"")
        for _ in range(count):
            log.append(payload, 1, log.cursor.at.digest, log.cursor.at.session_count, NOW_MS)
        log.unlock()


def test_time_that_is_heard_is_taken_while_the_reign_lasts_and_no_longer(
    primary: Path, replica: Path
) -> None:
    hour_ms = 3_600_000
    with opened(replica) as node, opened(replica) as other:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        log.append(REIGN, [run.raw for run in runs_of(primary)])
        began_ms = node.log.now_ms()
        log.hear_time(REIGN, began_ms + hour_ms)
        assert node.log.now_ms() >= began_ms + hour_ms
        log.hear_time(REIGN, NOW_MS)  # before the last frame of the log
        assert node.log.now_ms() >= node.log.cursor.time_ms
        log.hear_time(REIGN, began_ms)
        assert node.log.now_ms() < began_ms + hour_ms
        ReplicaLog(other).give_promise(Promise(2, "n2"))  # as another process of this node does
        log.hear_time(REIGN, began_ms + 9 * hour_ms)
        assert node.log.now_ms() < began_ms + hour_ms
        node.end_on_disk()  # it takes notice of the promise
        log.hear_time(REIGN, began_ms + 9 * hour_ms)
        assert node.log.now_ms() < began_ms + hour_ms
