"""Replaying a log: however it is cut into transactions, the state comes out the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.store import SessionStore, rebuild
from perdure.store.backends import open_backend
from perdure.store.cursor import LogCursor
from perdure.store.errors import DivergedError
from perdure.store.fold import plan_deadlines, record_of
from perdure.store.frame import cluster_key
from perdure.store.identity import read_identity
from perdure.store.ids import NOWHERE, StatePosition
from perdure.store.rebuild import fill, replay
from perdure.store.session import encode_session

FOREVER_MS = 1 << 62


def write_log(store: Path) -> None:
    """A log of frames of one and of many, with every change that a store offers."""
    with SessionStore.open(store) as sessions:
        ids = [sessions.create({"number": number}) for number in range(40)]
        with sessions.batch() as batch:
            for number in range(40):
                batch.create({"number": number}, timeout_ms=1000 * (number + 1))
        for id in ids[::2]:
            sessions.update(id, lambda session: session.merge({"more": "x" * 100}))
        for id in ids[::5]:
            sessions.delete(id)
        for id in ids[1::5]:
            sessions.touch(id)
        for id in ids[2::5]:
            sessions.regenerate_id(id)
        ids[:] = [sessions.create({"again": number}) for number in range(10)]


def cursor_of(store: Path) -> LogCursor:
    cluster_id = read_identity(store).cluster_id
    return LogCursor(store / "log", cluster_id, cluster_key(cluster_id), is_writable=False)


def rebuilt(
    store: Path, place: Path, backend_name: str, chunk_bytes: int
) -> tuple[list[tuple[bytes, bytes]], set[bytes], list[StatePosition]]:
    """(records, keys with a deadline, where the state stood after each transaction)"""
    place.mkdir()
    backend, cursor = open_backend(backend_name, place), cursor_of(store)
    written: list[StatePosition] = []
    try:
        replayed = replay(backend, cursor, NOWHERE, chunk_bytes=chunk_bytes, on_written=written.append)
        assert replayed.end == written[-1] == cursor.at == backend.refresh()
        assert replayed.events == replayed.end.lsn
        scan = backend.scan()
        records = list(scan)
        scan.close()
        return records, {key for _, key in backend.due(FOREVER_MS, 1000)}, written
    finally:
        cursor.close()
        backend.close()


@pytest.mark.parametrize("backend_name", ["lmdb", "sqlite"])
def test_replay_when_cut_into_small_transactions_gives_the_state_of_one(
    tmp_path: Path, backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_log(tmp_path / "store")
    whole, armed, written = rebuilt(tmp_path / "store", tmp_path / "whole", backend_name, 1 << 30)
    assert len(written) == 1
    assert len(whole) == written[-1].session_count > 0
    assert {key for key, _ in whole} <= armed
    monkeypatch.setattr("perdure.store.rebuild.READ_BYTES", 4096)
    records, armed, steps = rebuilt(tmp_path / "store", tmp_path / "parts", backend_name, 1)
    assert len(steps) > 3
    assert records == whole
    assert {key for key, _ in records} <= armed


def test_replay_when_the_state_is_not_what_the_log_was_written_on_names_the_frame(tmp_path: Path) -> None:
    write_log(tmp_path / "store")
    cursor = cursor_of(tmp_path / "store")
    cursor.seek(20)
    wrong = StatePosition(*cursor.at[:3], cursor.at.digest ^ 1, cursor.at.session_count)
    place = tmp_path / "state"
    place.mkdir()
    backend = open_backend("lmdb", place)
    try:
        fill(backend, [], wrong)
        with pytest.raises(DivergedError) as raised:
            replay(backend, cursor, wrong)
        assert raised.value.lsn == 21
        assert backend.refresh() == wrong
    finally:
        cursor.close()
        backend.close()


@pytest.mark.parametrize("backend_name", ["lmdb", "sqlite", "memory"])
def test_a_filling_that_broke_off_among_sessions_that_never_expire_is_gone_on_with_without_a_deadline_less(
    tmp_path: Path, backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "FILL_RECORDS", 10)
    monkeypatch.setattr(rebuild, "ARM_AT_ONCE", 30)
    unarmed_max = rebuild.ARM_AT_ONCE + rebuild.FILL_RECORDS
    keys = [b"%05d" % number for number in range(400)]
    expiring = set(keys[::9])
    records = [
        (key, record_of(key, encode_session(1, 1, 1, 0, 1000 if key in expiring else 0, {}))) for key in keys
    ]

    def broken() -> Iterator[tuple[bytes, bytes]]:
        yield from records[:205]
        raise KeyboardInterrupt

    backend = open_backend(backend_name, tmp_path)
    try:
        with pytest.raises(KeyboardInterrupt):
            fill(backend, broken(), StatePosition(1, 400, 1, 1, 400))
        scan = backend.scan()
        done = len(list(scan))
        scan.close()
        assert done == 200
        left = [*plan_deadlines(records[max(0, done - unarmed_max) : done], {})]
        fill(backend, records[done:], StatePosition(1, 400, 1, 1, 400), unarmed=left)
        assert {key for _, key in backend.due(FOREVER_MS, 1000)} == expiring
    finally:
        backend.close()
