"""Where a store is entered when it is opened: not by reading all that its state holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.store import SessionStore
from perdure.store.fold import totals_after
from perdure.store.frame import Scan, decode_frame, scan_frames
from perdure.store.page import ControlPage, Word, read_boot_id
from tests.support.machine import open_quietly

SESSIONS = 300
FEW = 8
"""Frames that an opening may look at, however many there are."""


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many frames cursors have checked since the last call."""
    frames = 0

    def decode(*arguments: Any, **named: Any) -> Any:
        nonlocal frames
        frames += 1
        return decode_frame(*arguments, **named)

    def scan(*arguments: Any, lsn: int, **named: Any) -> Scan:
        nonlocal frames
        scanned = scan_frames(*arguments, lsn=lsn, **named)
        frames += scanned.lsn - lsn  # they are frames of one event
        return scanned

    def so_far() -> int:
        nonlocal frames
        count, frames = frames, 0
        return count

    monkeypatch.setattr("perdure.store.cursor.decode_frame", decode)
    monkeypatch.setattr("perdure.store.cursor.scan_frames", scan)
    return so_far


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with a frame for each of its sessions, stopped."""
    with perdure.open(tmp_path / "s") as store:
        for number in range(SESSIONS):
            store.put(f"s{number}", {"n": number})
    return tmp_path / "s"


def metadata_of(store: SessionStore, id: str) -> object:
    session = store.peek(id)
    return session and session.metadata


def opened(path: Path) -> None:
    """It opens, holds what it did, and takes another one."""
    with perdure.open(path) as store:
        assert metadata_of(store, "s7") == {"n": 7}
        at = store.stats()["appended_lsn"]
        store.put("more", {"at": at})
        assert store.stats()["appended_lsn"] == at + 1
        assert metadata_of(store, "more") == {"at": at}


def test_after_a_stop_the_log_is_not_read_again(path: Path, looked_at: Callable[[], int]) -> None:
    looked_at()
    perdure.open(path).close()
    assert 0 < looked_at() <= FEW
    opened(path)


@pytest.mark.parametrize("word", [Word.LAST_FRAME, Word.APPENDED, Word.CHAIN, Word.SEGMENT, Word.EPOCH])
def test_a_place_that_the_page_tells_wrongly_is_found_in_the_log(
    path: Path, word: Word, looked_at: Callable[[], int]
) -> None:
    page = ControlPage(path / "control", read_boot_id())
    page.words[word] -= 1
    page.close()
    looked_at()
    opened(path)
    assert looked_at() > SESSIONS


def test_a_fold_is_planned_over_the_state_that_it_looks_at_also_when_the_role_changes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_quietly(tmp_path / "s") as one, open_quietly(tmp_path / "s") as two:
        id = one.create({"n": 0})
        one.fold()
        assert two.peek(id)
        one.update(id, lambda session: session.merge({"n": 1}))
        one.fold()
        last = one.create({"n": 2})
        view = two._view
        catch_up = view.catch_up
        calls: list[int] = []

        def catch_up_and_be_overtaken() -> None:
            catch_up()
            if not calls:
                two._log.page.bump()
            calls.append(1)

        monkeypatch.setattr(view, "catch_up", catch_up_and_be_overtaken)
        with view.mutex:
            plan = view.fold_plan()
        assert plan is not None and len(calls) > 1
        assert view.state == view.backend.refresh() == one._view.state
        assert [key for key, _ in plan.changes] == [last.encode()]
        found = totals_after(view.backend.get, view.state.digest, view.state.session_count, plan.changes)
        assert found == (plan.position.digest, plan.position.session_count)
