"""What is SQLite's own: readable columns, its files and errors."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apsw
import pytest

from perdure.store import backend_sqlite
from perdure.store.backend_sqlite import DATA_FILE, WAL_FILE, SqliteBackend
from perdure.store.errors import CorruptError, FormatVersionError, LockTimeoutError, StorageError
from perdure.store.fold import record_of
from perdure.store.ids import NOWHERE
from perdure.store.session import encode_session
from tests.contract.children import at


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    directory.mkdir()
    return directory


def rows(place: Path, sql: str) -> list[Any]:
    connection = apsw.Connection(str(place / DATA_FILE))
    try:
        return list(connection.execute(sql))
    finally:
        connection.close()


def test_a_session_s_fields_can_be_read_with_sql(place: Path) -> None:
    metadata = {
        "name": "Ada",
        "cart": [1, 2.5, None, {"sku": "ä"}],
        "token": b"\x00\xff",
        "seen": datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC),
    }
    value = encode_session(
        version=7,
        created_ms=1_700_000_000_000,
        accessed_ms=1_700_000_001_000,
        timeout_ms=60_000,
        cap_ms=0,
        priority=1,
        home_node="n1",
        group="shop",
        tags=("a", "b"),
        metadata=metadata,
    )
    record = record_of(b"id-\xc3\xa4", value)
    backend = SqliteBackend(place)
    backend.fold([(b"id-\xc3\xa4", record)], [], [], at(1))
    backend.refresh()
    assert backend.get(b"id-\xc3\xa4") == record
    backend.close()
    times = rows(place, "SELECT created_at, last_accessed, timeout_ms, expires_at FROM sessions")
    assert times == [(1_700_000_000_000, 1_700_000_001_000, 60_000, 1_700_000_061_000)]
    assert rows(place, "SELECT id, version, priority, home_node, session_group, tags FROM sessions") == [
        ("id-ä", 7, 1, "n1", "shop", '["a","b"]')
    ]
    shown = json.loads(rows(place, "SELECT metadata FROM sessions")[0][0])
    assert shown["name"] == "Ada"
    assert shown["cart"] == [1, 2.5, None, {"sku": "ä"}]
    assert shown["token"] == {"$base64": "AP8="}
    assert datetime.fromisoformat(shown["seen"]) == metadata["seen"]


@pytest.mark.parametrize("value", [b"", b"short", b"\xff" * 60, b"\x01" + b"\0" * 47 + b"\xc1"])
def test_a_record_that_is_no_session_is_kept_exactly_without_columns(place: Path, value: bytes) -> None:
    backend = SqliteBackend(place)
    backend.fold([(b"a", b"12345678" + value)], [], [], at(1))
    backend.refresh()
    assert backend.get(b"a") == b"12345678" + value
    backend.close()
    assert rows(place, "SELECT version, metadata FROM sessions") == [(None, None)]


def test_numbers_beyond_64_bits_signed_are_shown_rounded(place: Path) -> None:
    value = encode_session(
        version=1, created_ms=2**64 - 1, accessed_ms=0, timeout_ms=0, cap_ms=0, metadata={"n": 2**64 - 1}
    )
    backend = SqliteBackend(place)
    backend.fold([(b"a", record_of(b"a", value))], [], [], at(1))
    backend.close()
    assert rows(place, "SELECT created_at, metadata FROM sessions") == [
        (float(2**64), '{"n":18446744073709551615}')
    ]


def test_the_file_belongs_to_its_owner_alone(place: Path) -> None:
    SqliteBackend(place).close()
    assert os.stat(place / DATA_FILE).st_mode & 0o777 == 0o600


def test_a_file_that_is_no_database_is_refused(place: Path) -> None:
    (place / DATA_FILE).write_bytes(b"no database" * 1000)
    with pytest.raises(CorruptError) as caught:
        SqliteBackend(place)
    assert caught.value.path == str(place / DATA_FILE)


def test_a_schema_of_a_newer_version_is_refused(place: Path) -> None:
    SqliteBackend(place).close()
    rows(place, "PRAGMA user_version = 9")
    with pytest.raises(FormatVersionError, match="schema 9"):
        SqliteBackend(place)


def test_a_damaged_position_is_named(place: Path) -> None:
    backend = SqliteBackend(place)
    backend.fold([], [], [], at(1))
    backend.close()
    rows(place, "UPDATE position SET chain = 'no number'")
    with pytest.raises(CorruptError, match="position"):
        SqliteBackend(place).refresh()


def test_damaged_pages_are_an_error_and_not_wrong_data(place: Path) -> None:
    backend = SqliteBackend(place)
    backend.fold([(b"%04d" % number, b"r" * 300) for number in range(2000)], [], [], at(1))
    backend.close()
    with (place / DATA_FILE).open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for offset in range(8192, size, 4096):
            file.seek(offset)
            file.write(b"\xee" * 64)
    damaged = SqliteBackend(place)
    with pytest.raises(CorruptError):
        read_all(damaged)
    damaged.close()


def read_all(backend: SqliteBackend) -> None:
    backend.refresh()
    scan = backend.scan()
    try:
        list(scan)
    finally:
        scan.close()


def test_a_database_locked_by_another_tool_is_said_and_nothing_is_lost(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.store.backend_sqlite.BUSY_TIMEOUT_MS", 20)
    backend = SqliteBackend(place)
    other = apsw.Connection(str(place / DATA_FILE))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LockTimeoutError):
        backend.fold([(b"a", b"record-a")], [], [], at(1))
    other.execute("ROLLBACK")
    other.close()
    assert backend.refresh() == NOWHERE
    backend.fold([(b"a", b"record-a")], [], [], at(1))
    assert backend.refresh() == at(1)
    backend.close()


def test_sessions_of_1_kb_take_no_page_of_their_own_beside_the_row_s(place: Path) -> None:
    backend = SqliteBackend(place)
    keys = [b"%04d" % number for number in range(1_000)]
    backend.fold([(key, record_of(key, bytes(1_000))) for key in keys], [], [], at(1))
    backend.close()
    assert (place / DATA_FILE).stat().st_size < 1_600 * len(keys)


def test_a_session_that_is_folded_again_stays_one_row(place: Path) -> None:
    backend = SqliteBackend(place)
    for lsn in (1, 2):
        backend.fold([(b"a", record_at(b"a", lsn)), (b"b", record_at(b"b", lsn))], [], [], at(lsn))
    backend.close()
    assert rows(place, "SELECT key, record FROM sessions ORDER BY key") == [
        (b"a", record_at(b"a", 2)),
        (b"b", record_at(b"b", 2)),
    ]


def test_a_missing_directory_is_named(place: Path) -> None:
    with pytest.raises(StorageError) as caught:
        SqliteBackend(place / "not there")
    assert "not there" in str(caught.value)


LIMIT_BYTES = 1 << 20


def record_at(key: bytes, lsn: int) -> bytes:
    """Another one at each LSN: SQLite leaves a page alone whose bytes stay as they are."""
    return record_of(key, bytes((lsn,)) * 2_000)


def fold_much(backend: SqliteBackend, lsn: int) -> None:
    """More than LIMIT_BYTES, and then a view of it, as a store has one after each fold."""
    changes = [(key, record_at(key, lsn)) for key in (b"%04d" % number for number in range(1_000))]
    backend.fold(changes, [], [], at(lsn))
    backend.refresh()


def test_the_wal_does_not_grow_with_the_folds(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_sqlite, "WAL_BYTES_MAX", LIMIT_BYTES)
    backend = SqliteBackend(place)
    for lsn in range(1, 6):
        fold_much(backend, lsn)
        assert (place / WAL_FILE).stat().st_size <= LIMIT_BYTES
        assert backend.get(b"0999") == record_at(b"0999", lsn)
    backend.close()


def test_a_view_of_another_process_lets_the_wal_grow_only_until_it_is_given_back(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_sqlite, "WAL_BYTES_MAX", LIMIT_BYTES)
    monkeypatch.setattr(backend_sqlite, "WAL_WAIT_MS", 1)
    monkeypatch.setattr(backend_sqlite, "WAL_AGAIN_S", 0.0)
    backend, other = SqliteBackend(place), SqliteBackend(place)
    fold_much(backend, 1)
    other.refresh()
    before = other.get(b"0000")
    backend.fold([(b"0000", None)], [], [], at(2))
    fold_much(backend, 3)
    assert (place / WAL_FILE).stat().st_size > LIMIT_BYTES
    assert other.get(b"0000") == before
    other.release()
    assert backend.refresh() == at(3)
    assert (place / WAL_FILE).stat().st_size <= LIMIT_BYTES
    assert other.refresh() == at(3)
    other.close()
    backend.close()


class WithoutRoom:
    """A connection that finds no room to bring the WAL into the database."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self.tries = 0

    def execute(self, sql: str, *arguments: Any) -> Any:
        if "wal_checkpoint" in sql:
            self.tries += 1
            raise apsw.FullError("database or disk is full")
        return self._connection.execute(sql, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def test_a_full_disk_that_keeps_the_wal_long_stops_no_reader_and_is_tried_again_later(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_sqlite, "WAL_BYTES_MAX", LIMIT_BYTES)
    monkeypatch.setattr(backend_sqlite, "WAL_AGAIN_S", 3600.0)
    backend = SqliteBackend(place)
    writer = backend._writer
    full = WithoutRoom(writer)
    monkeypatch.setattr(backend, "_writer", full)
    fold_much(backend, 1)
    fold_much(backend, 2)
    assert full.tries == 1
    assert backend.get(b"0999") == record_at(b"0999", 2)
    monkeypatch.setattr(backend, "_writer", writer)
    monkeypatch.setattr(backend, "_shorten_again_s", 0.0)
    assert backend.refresh() == at(2)
    assert (place / WAL_FILE).stat().st_size <= LIMIT_BYTES
    backend.close()
