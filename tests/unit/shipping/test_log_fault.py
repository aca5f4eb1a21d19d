"""A fault of a log is recorded once the segment was read again, under the write lock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from perdure.shipping.rebuild import confirm_log_fault, read_log_fault
from perdure.store import CorruptError
from perdure.store.cursor import list_segments
from tests.unit.shipping.logs import NOW_MS, lose_frames, make_primary, write


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
