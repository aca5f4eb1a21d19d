"""A fault of a log is recorded once the segment was read again, under the write lock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from perdure.shipping.cut import cut_log, finish_cut
from perdure.shipping.folder import run_folder
from perdure.shipping.rebuild import confirm_log_fault, read_log_fault
from perdure.store import CorruptError, Position
from perdure.store.cursor import list_segments
from perdure.store.promise import Promise
from tests.unit.shipping.logs import NOW_MS, end_of, lose_frames, make_primary, opened, runs_of, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A primary with two segments."""
    path = make_primary(tmp_path / "n1")
    write(path, 20)
    write(path, 5, roll=True)
    return path


def seen(path: Path, segment: int) -> CorruptError:
    """What a reader without the lock said of a segment."""
    return CorruptError("damaged", path=list_segments(path / "log")[segment].path)


def test_a_segment_whose_last_frames_are_missing_is_a_fault(path: Path) -> None:
    lose_frames(path)
    confirm_log_fault(path, seen(path, 0), NOW_MS)
    assert "frames are missing" in read_log_fault(path)


@pytest.mark.parametrize("segment", [0, 1])
def test_a_segment_that_is_whole_is_no_fault(path: Path, segment: int) -> None:
    confirm_log_fault(path, seen(path, segment), NOW_MS)
    assert read_log_fault(path) == ""


def test_a_torn_end_of_the_log_is_no_fault(path: Path) -> None:
    file = list_segments(path / "log")[1].path
    os.truncate(file, file.stat().st_size - 10)
    confirm_log_fault(path, seen(path, 1), NOW_MS)
    assert read_log_fault(path) == ""


def test_a_log_of_which_a_cut_was_left_half_done_is_at_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_primary(tmp_path / "n1", k=1)
    write(path, 10)
    end = write(path, 10)
    write(path, 5, roll=True)

    def die(_path: Path) -> None:
        raise KeyboardInterrupt

    with opened(path) as node:
        promise = node.log.promise
        to = find_positions(path)[5]
        assert 0 < to.lsn < end.lsn
        node.log.lock_any()
        node.log.give_promise(Promise(promise.epoch + 1, "n2"))
        node.log.unlock()
        monkeypatch.setattr("perdure.shipping.cut.remove_durably", die)
        with pytest.raises(KeyboardInterrupt):
            cut_log(node, to, node.log.promise, is_open=True)
        monkeypatch.undo()
    with pytest.raises(CorruptError):
        run_folder(path)
    assert read_log_fault(path) == ""
    assert finish_cut(path)
    assert end_of(path) == to


def find_positions(path: Path) -> list[Position]:
    return [frame.position for run in runs_of(path) for _, frame in run.frames]
