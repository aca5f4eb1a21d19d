"""A state that is built beside the one in use: gone on with where it broke off."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

import perdure
from perdure.recovery import build_state
from perdure.recovery.build_state import StateBuild
from perdure.recovery.take import take_snapshot
from perdure.store import SessionStore, rebuild
from perdure.store.ports import Record
from perdure.store.snapshot import SnapshotReader, list_snapshots

SESSIONS = 400
EVERY = 9
"""One in so many sessions expires."""
FOREVER_MS = 1 << 60


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SessionStore]:
    """One with a snapshot of all its sessions."""
    with perdure.open(tmp_path / "s") as opened:
        for number in range(SESSIONS):
            opened.put(f"s{number:03}", {}, ttl_ms=None if number % EVERY else 60_000)
        take_snapshot(opened._opened)
        yield opened


@pytest.mark.parametrize("backend", ["lmdb", "sqlite"])
@pytest.mark.parametrize("broken_at", [(5, 15), (45, 55), (205, 215), (205, 399), (399, 399)])
def test_what_broke_off_is_gone_on_with_without_a_deadline_less(
    store: SessionStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    broken_at: tuple[int, ...],
) -> None:
    for module in (rebuild, build_state):
        monkeypatch.setattr(module, "FILL_RECORDS", 10)
    monkeypatch.setattr(rebuild, "ARM_AT_ONCE", 30)
    monkeypatch.setattr(build_state, "UNARMED_MAX", 40)
    (snapshot,) = list_snapshots(tmp_path / "s" / "snapshots")
    read = SnapshotReader.records

    def fill(end: int) -> StateBuild:
        def records(reader: SnapshotReader) -> Iterator[tuple[bytes, Record]]:
            yield from islice(read(reader), end)
            if end < SESSIONS:
                raise KeyboardInterrupt

        monkeypatch.setattr(SnapshotReader, "records", records)
        build = StateBuild(store._opened.log, tmp_path / "built", backend, lambda *_: None)
        try:
            build.fill(snapshot.path)
        except BaseException:
            build.close()
            raise
        return build

    for end in broken_at:
        with pytest.raises(KeyboardInterrupt):
            fill(end)
    build = fill(SESSIONS)
    try:
        assert build.position.session_count == SESSIONS
        due = build.backend.due(FOREVER_MS, 1000)
        assert {key for _, key in due} == {b"s%03d" % number for number in range(0, SESSIONS, EVERY)}
    finally:
        build.close()
