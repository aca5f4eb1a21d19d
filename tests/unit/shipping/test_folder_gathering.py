"""A folder lets a few events gather, but not for long, and never when there are many."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.shipping import folder as folder_module
from perdure.shipping.folder import GATHER_EVENTS, GATHER_MS, Folder
from perdure.shipping.replica_log import ReplicaLog
from perdure.store import Position
from perdure.store.promise import Promise
from tests.unit.shipping.logs import make_node, make_primary, opened, runs_of, write

REIGN = Promise(1, "n1")


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ms = 1_000
        monkeypatch.setattr(folder_module, "monotonic_ms", lambda: self.now_ms)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def replica(tmp_path: Path) -> tuple[Path, Position]:
    """A replica that has a few more frames than a folder waits for, and where its log ends."""
    primary = make_primary(tmp_path / "n1", k=1)
    end = write(primary, GATHER_EVENTS + 8)
    path = make_node(tmp_path / "n2", "n2")
    with opened(path) as node:
        log = ReplicaLog(node)
        log.accept_reign(REIGN)
        log.append(REIGN, [run.raw for run in runs_of(primary)])
    return path, end


@pytest.fixture
def folder(replica: tuple[Path, Position], clock: Clock) -> Iterator[Folder]:
    commit(replica[0], 3)  # behind what begins the epoch
    made = Folder(replica[0])
    while made.step():
        pass
    yield made
    made.close()


def commit(path: Path, lsn: int) -> None:
    with opened(path) as node:
        ReplicaLog(node).commit(lsn)


def test_a_few_events_wait_for_more_until_their_time_is_up(
    replica: tuple[Path, Position], folder: Folder, clock: Clock
) -> None:
    commit(replica[0], folder._at.lsn + 3)
    assert not folder._is_due()
    clock.now_ms += GATHER_MS - 1
    assert not folder._is_due()
    clock.now_ms += 1
    assert folder._is_due()
    before = folder._at.lsn
    assert folder.step()
    assert folder._at.lsn == before + 3


def test_the_next_events_wait_anew(replica: tuple[Path, Position], folder: Folder, clock: Clock) -> None:
    for _ in range(2):
        commit(replica[0], folder._at.lsn + 1)
        assert not folder._is_due()
        clock.now_ms += GATHER_MS
        assert folder._is_due()
        assert folder.step()
    assert folder._is_due(), "nothing waits: what else there is to do may be done"


def test_many_events_are_folded_at_once(replica: tuple[Path, Position], folder: Folder) -> None:
    path, end = replica
    assert end.lsn - folder._at.lsn >= GATHER_EVENTS
    commit(path, end.lsn)
    assert folder._is_due()
