"""SQLite as a peer: plain SQL through apsw, one table, in the process that uses it.

Owns the table and the statements. WAL, a page cache of 64 MB, mapped reads; apsw keeps the prepared
statements. Sessions are MessagePack in a BLOB; an update is SELECT and UPDATE in one immediate transaction,
which was faster than one UPDATE with `json_patch` or with a function of ours. The table has rowids: without
them a row is an entry of an index, and one of more than a quarter of a page spills into a page of its own.

| class | setting |
|---|---|
| os | `synchronous=NORMAL`: a commit is in the WAL, in the kernel; only a checkpoint syncs |
| disk | `synchronous=FULL`: fdatasync of the WAL in each commit |
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import apsw
import msgspec

from .embedded import EmbeddedRunning
from .ports import LIFETIME_MS, Address, Client, Durability, Fields, RandomIds, Running

_SYNCHRONOUS = {Durability.OS: "NORMAL", Durability.DISK: "FULL"}
_PARTS = {"state": ("sessions.db",), "log": ("sessions.db-wal", "sessions.db-shm")}
_BUSY_MS = 30_000
_TABLE = """
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY, created INTEGER NOT NULL, accessed INTEGER NOT NULL, expires INTEGER NOT NULL,
    data BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS sessions_expires ON sessions (expires);
"""
_CREATE = "INSERT INTO sessions VALUES (?, ?, ?, ?, ?)"
_GET = "SELECT data FROM sessions WHERE id = ? AND expires > ?"
_UPDATE = "UPDATE sessions SET data = ?, accessed = ?, expires = ? WHERE id = ?"
_TOUCH = "UPDATE sessions SET accessed = ?, expires = ? WHERE id = ? AND expires > ?"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Fields).decode


class Sqlite:
    name = "sqlite"
    settings: Mapping[Durability, str] = {
        Durability.OS: "WAL, synchronous=NORMAL",
        Durability.DISK: "WAL, synchronous=FULL",
    }

    def why_not(self) -> str:
        return ""

    def version(self) -> str:
        return f"SQLite {apsw.sqlite_lib_version()}, apsw {apsw.apsw_version()}"

    def start(self, folder: Path, durability: Durability) -> Running:
        address: Address = {
            "path": str(folder / "sessions.db"),
            "synchronous": _SYNCHRONOUS[durability],
        }
        client = SqliteClient(address)
        client.connection.execute(_TABLE)
        client.close()
        return EmbeddedRunning(folder, address, _PARTS)

    def connect(self, address: Address) -> Client:
        return SqliteClient(address)


class SqliteClient:
    """A connection; each statement alone is a transaction."""

    def __init__(self, address: Address) -> None:
        self._ids = RandomIds()
        self.connection = connection = apsw.Connection(str(address["path"]))
        connection.set_busy_timeout(_BUSY_MS)
        for pragma in (
            "journal_mode=WAL",
            f"synchronous={address['synchronous']}",
            "cache_size=-65536",
            f"mmap_size={1 << 30}",
            "temp_store=MEMORY",
        ):
            connection.execute(f"PRAGMA {pragma}")
        self._execute = connection.execute

    def create(self, fields: Fields) -> str:
        id, now_ms = self._ids.take(), _now_ms()
        self._execute(_CREATE, (id, now_ms, now_ms, now_ms + LIFETIME_MS, _encode(fields)))
        return id

    def get(self, id: str) -> Fields | None:
        row = self._execute(_GET, (id, _now_ms())).fetchone()
        return None if row is None else _decode(row[0])

    def update(self, id: str, changes: Fields) -> None:
        now_ms = _now_ms()
        self._execute("BEGIN IMMEDIATE")
        try:
            row = self._execute(_GET, (id, now_ms)).fetchone()
            if row is not None:
                changed = _encode({**_decode(row[0]), **changes})
                self._execute(_UPDATE, (changed, now_ms, now_ms + LIFETIME_MS, id))
        except BaseException:
            self._execute("ROLLBACK")
            raise
        self._execute("COMMIT")

    def touch(self, id: str) -> None:
        now_ms = _now_ms()
        self._execute(_TOUCH, (now_ms, now_ms + LIFETIME_MS, id, now_ms))

    def delete(self, id: str) -> None:
        self._execute("DELETE FROM sessions WHERE id = ?", (id,))

    def create_many(self, many: list[Fields]) -> list[str]:
        return self._insert(many, LIFETIME_MS)

    def create_due(self, many: list[Fields]) -> list[str]:
        return self._insert(many, 0)

    def expire_due(self) -> int:
        self._execute("DELETE FROM sessions WHERE expires <= ?", (_now_ms(),))
        return int(self.connection.changes())

    def ids(self) -> Iterator[str]:
        for (id,) in self._execute("SELECT id FROM sessions"):
            yield id

    def close(self) -> None:
        self.connection.close()

    def _insert(self, many: list[Fields], lifetime_ms: int) -> list[str]:
        now_ms = _now_ms()
        ids = [self._ids.take() for _ in many]
        self._execute("BEGIN IMMEDIATE")
        try:
            self.connection.executemany(
                _CREATE,
                [
                    (id, now_ms, now_ms, now_ms + lifetime_ms, _encode(fields))
                    for id, fields in zip(ids, many, strict=True)
                ],
            )
        except BaseException:
            self._execute("ROLLBACK")
            raise
        self._execute("COMMIT")
        return ids


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
