"""A handle that is behind while its node's log is cut: it reads what it has, and nothing is called damage."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest

from perdure.shipping import cut, open_node_log
from perdure.shipping.cut import cut_log, finish_cut
from perdure.shipping.receiver import Receiver
from perdure.shipping.replica_log import ReplicaLog
from perdure.store import CorruptError, Position, PositionGoneError, SessionStore, StaleReadError, names
from perdure.store.cursor import LogCursor, SegmentFile, list_segments
from perdure.store.files import remove_durably
from perdure.store.promise import Promise
from tests.support.machine import open_quietly
from tests.unit.shipping.logs import make_node, make_primary, opened, runs_of, write


class Died(Exception):
    """Who cuts the log ends here."""


def take(path: Path, source: Path, after_lsn: int) -> None:
    with opened(path) as node:
        log = ReplicaLog(node)
        log.accept_reign(Promise(1, "n1"))
        log.append(Promise(1, "n1"), [run.raw for run in runs_of(source, after_lsn)])


@pytest.fixture
def fork(tmp_path: Path) -> Position:
    """Where the log of the replica in tmp_path / "n2" is to be cut: at the end of its first segment."""
    end = write(make_primary(tmp_path / "n1"), 10)
    take(make_node(tmp_path / "n2", "n2"), tmp_path / "n1", 0)
    return end


def go_beyond(folder: Path, fork: Position) -> None:
    """Let the replica take frames that its primary will not have, in a segment of their own."""
    shutil.copytree(folder / "n1", folder / "other")
    write(folder / "other", 5, roll=True)
    take(folder / "n2", folder / "other", fork.lsn)
    assert len(list_segments(folder / "n2" / names.LOG)) == 2


def contents(store: SessionStore) -> dict[str, object]:
    return {session.id: session.metadata for session in store.sessions()}


def break_off_a_cut(path: Path, fork: Position) -> None:
    """The segments are gone, the control page speaks of them, and the plan stands."""

    def die(*_: object, **__: object) -> None:
        raise Died

    with pytest.MonkeyPatch.context() as patch, opened(path) as node:
        patch.setattr(cut, "renew_page", die)
        with pytest.raises(Died):
            cut_log(node, fork, node.log.promise)


def test_a_handle_that_is_behind_reads_on_while_the_log_is_cut(
    tmp_path: Path, fork: Position, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "n2"
    with open_quietly(path, create=False) as behind:
        before = contents(behind)
        go_beyond(tmp_path, fork)
        found: list[dict[str, object]] = []

        def remove_and_look(file: Path) -> None:
            remove_durably(file)
            found.append(contents(behind))

        monkeypatch.setattr(cut, "remove_durably", remove_and_look)
        with opened(path) as node:
            cut_log(node, fork, node.log.promise)
        assert found == [before, before]  # without the segment, and then without the plan
        assert behind.position() == fork
        assert contents(behind) == before


def test_behind_a_cut_that_nobody_completed_a_handle_reads_and_does_not_append(
    tmp_path: Path, fork: Position
) -> None:
    path = tmp_path / "n2"
    with open_quietly(path, create=False) as behind:
        before = contents(behind)
        go_beyond(tmp_path, fork)
        break_off_a_cut(path, fork)
        assert contents(behind) == before
        behind.fold()
        with pytest.raises(CorruptError, match="do not write on"):
            behind._log.lock_any()
        assert finish_cut(path)
        assert behind.position() == fork
        behind._log.lock_any()
        behind._log.unlock()
        assert contents(behind) == before


def test_what_is_being_cut_off_is_not_folded(tmp_path: Path, fork: Position) -> None:
    """By a handle that has read it: the state would be ahead of the log."""
    path = tmp_path / "n2"
    with open_quietly(path, create=False) as reader:
        before = contents(reader)
        reader.fold()
        go_beyond(tmp_path, fork)
        assert len(contents(reader)) == len(before) + 5
        break_off_a_cut(path, fork)
        assert reader.fold() == fork.lsn
        assert finish_cut(path)
        with pytest.raises(StaleReadError, match="LSN 18 was shown before"):
            contents(reader)
    with open_quietly(path, create=False) as anew:
        assert contents(anew) == before
        assert anew.position() == fork


def test_a_state_that_is_ahead_of_the_log_is_said_at_every_look_until_it_is_made_anew(
    tmp_path: Path, fork: Position, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looked for the plan just before it was there folds what is then cut off."""
    path = tmp_path / "n2"
    with open_quietly(path, create=False) as reader:
        before = contents(reader)
        go_beyond(tmp_path, fork)
        end = reader.position()
        break_off_a_cut(path, fork)
        with monkeypatch.context() as patch:
            patch.setattr("perdure.store.view.is_half_replaced", lambda _store: False)
            assert reader.fold() == end.lsn
        assert finish_cut(path)
        for _ in range(3):
            with pytest.raises(PositionGoneError):
                contents(reader)
    with open_quietly(path, create=False) as anew:
        assert contents(anew) == before


def test_a_receiver_finishes_a_cut_that_broke_off_before_it_accepts_a_reign(
    tmp_path: Path, fork: Position
) -> None:
    path = tmp_path / "n2"
    with closing(Receiver(open_node_log(path, []), "127.0.0.1", 0, b"")) as receiver:
        go_beyond(tmp_path, fork)
        break_off_a_cut(path, fork)
        receiver.node.log.page.bump()  # as the promise did of the promotion that was killed amid its cut
        assert receiver.accept_reign(Promise(1, "n1")) == fork
        assert not (path / names.CUT_PLAN).exists()


def test_a_segment_that_goes_between_its_listing_and_its_opening_is_missed_only_in_the_cut(
    tmp_path: Path, fork: Position, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "n2"
    with open_quietly(path, create=False) as behind:
        before = contents(behind)
        go_beyond(tmp_path, fork)
        removed: list[Path] = []

        def open_late(cursor: LogCursor, file: SegmentFile) -> None:
            if cursor is behind._log.cursor and file.first_lsn > fork.lsn:
                remove_durably(file.path)
                removed.append(file.path)
            open_segment(cursor, file)

        def remove_late(file: Path) -> None:
            if file.suffix == ".seg":
                with monkeypatch.context() as patch:
                    patch.setattr(LogCursor, "open_segment", open_late)
                    assert contents(behind) == before
                assert removed == [file]
                assert contents(behind) == before
            else:
                remove_durably(file)

        open_segment = LogCursor.open_segment
        monkeypatch.setattr(cut, "remove_durably", remove_late)
        with opened(path) as node:
            cut_log(node, fork, node.log.promise)
        assert removed
        assert contents(behind) == before
        assert behind.position() == fork


def test_frames_that_go_without_a_cut_are_missed(tmp_path: Path, fork: Position) -> None:
    with open_quietly(tmp_path / "n2", create=False) as behind:
        contents(behind)
        go_beyond(tmp_path, fork)
        list_segments(tmp_path / "n2" / names.LOG)[-1].path.unlink()
        with pytest.raises(CorruptError, match="do not write on"):
            contents(behind)
