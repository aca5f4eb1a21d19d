"""The page's example is what the code reads and writes, not only what it once printed."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

from perdure.store import names
from perdure.store.control import config_of, epoch_start_of
from perdure.store.cursor import LogCursor, list_segments
from perdure.store.event import Event, Kind
from perdure.store.fold import Fold
from perdure.store.lock import FileLock
from perdure.store.mark import MarkFile, read_marks
from perdure.store.sealing import seal_segment
from perdure.store.segment import SegmentHeader, encode_header, hash_file
from perdure.store.session import Session
from perdure.store.snapshot import SnapshotReader, verify_snapshot
from tests.format import worked_example as example


def write_log(directory: Path, data: bytes) -> Path:
    path = directory / names.segment_name(1, 1)
    path.write_bytes(data)
    return path


def test_segment_when_it_is_followed_gives_the_events_and_the_state_that_its_frames_promise(
    tmp_path: Path,
) -> None:
    write_log(tmp_path, example.example_segment())
    cursor = LogCursor(tmp_path, example.CLUSTER_ID, example.KEY)
    cursor.seek(0)
    fold = Fold(lambda key: None)
    seen: list[Event] = []
    for run in cursor.runs():
        for offset, frame in run.frames:
            events = run.events(offset, frame)
            fold.apply(events)
            seen += events
            assert (fold.digest, fold.session_count) == (frame.digest, frame.session_count)
    cursor.close()
    assert [event[0] for event in seen] == [Kind.EPOCH_START, Kind.CONFIG, Kind.PUT]
    start, config = epoch_start_of(seen), config_of(seen)
    assert start is not None
    assert start.node == example.NODE
    assert config is not None
    assert config.sync_replicas == 0
    record = fold.changes[example.SESSION_KEY]
    assert record is not None
    assert Session("s1", record[8:]).metadata == {"user": 7}


def test_segment_when_the_log_seals_it_gets_the_footer_of_the_page(tmp_path: Path) -> None:
    whole = example.example_segment()
    frames, places = example.example_frames()
    end = places[-1]
    unsealed = len(whole) - len(whole[whole.index(b"PDRFOOT1") :])
    assert unsealed == 160 + sum(map(len, frames))
    path = write_log(tmp_path, whole[:unsealed])
    following = SegmentHeader(example.CLUSTER_ID, 0, 1, "alpha", "alpha", 4, end, example.TIME_MS)
    (tmp_path / names.segment_name(4, 1)).write_bytes(encode_header(following))
    cursor = LogCursor(tmp_path, example.CLUSTER_ID, example.KEY)
    with closing(FileLock(tmp_path / names.WRITE_LOCK)) as write_lock:
        footer = seal_segment(cursor, list_segments(tmp_path)[0], write_lock)
    assert path.read_bytes() == whole
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert hash_file(descriptor, footer.frames_end) == footer.file_hash
    finally:
        os.close(descriptor)
    assert footer.end == end
    cursor.close()


def test_mark_when_it_is_written_twice_has_the_bytes_of_the_page(tmp_path: Path) -> None:
    path = tmp_path / names.MARK
    file = MarkFile(path, example.KEY)
    for place in example.example_frames()[1]:
        file.write(place.position, 0)
    file.sync()
    file.close()
    assert path.read_bytes() == example.example_mark()
    newest, _ = read_marks(path, example.KEY)
    assert newest is not None
    assert newest.position == example.example_position()


def test_snapshot_when_it_is_read_gives_the_session_and_the_position_of_the_log(tmp_path: Path) -> None:
    path = tmp_path / names.snapshot_name(3, 1)
    path.write_bytes(example.example_snapshot())
    assert verify_snapshot(path, example.CLUSTER_ID) == example.example_frames()[1][-1]
    with SnapshotReader(path) as reader:
        assert list(reader) == [(example.SESSION_KEY, example.stored_session())]
        assert reader.head == example.example_head()
