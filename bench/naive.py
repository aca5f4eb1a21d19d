"""The naive way to keep sessions: one log write and one LMDB transaction a change, nothing shared.

The peer of the store's own figures: the bare calls that an application would make for the same
durability against the death of a process, with no checks, chains or processes to agree with.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import msgspec

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[str, Any]).decode
_HEAD = struct.Struct("<IIQ")
_STAMP = struct.Struct("<QQ")


class NaiveStore:
    """A log file and an LMDB environment, written one change at a time."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True)
        self._log = os.open(path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._env = lmdb.open(
            str(path / "db"), map_size=1 << 34, max_dbs=3, sync=False, metasync=False, readahead=False
        )
        self._sessions = self._env.open_db(b"sessions")
        self._deadlines = self._env.open_db(b"deadlines")
        self._meta = self._env.open_db(b"meta")
        self._number = 0

    def create(self, metadata: dict[str, Any]) -> str:
        id = os.urandom(16).hex()
        key = id.encode()
        now = time.time_ns() // 1_000_000
        value = _STAMP.pack(now, now + 3_600_000) + _encode(metadata)
        self._append(key, value)
        with self._env.begin(write=True) as txn:
            txn.get(key, db=self._sessions)
            txn.get(b"position", db=self._meta)
            txn.put(key, value, db=self._sessions)
            txn.put(_STAMP.pack(now + 3_600_000, self._number), key, db=self._deadlines)
            txn.put(b"position", _STAMP.pack(self._number, 0), db=self._meta)
        return id

    def update(self, id: str, changes: dict[str, Any]) -> None:
        key = id.encode()
        with self._env.begin(write=True) as txn:
            old = txn.get(key, db=self._sessions)
            txn.get(b"position", db=self._meta)
            now = time.time_ns() // 1_000_000
            before = {} if old is None else _decode(old[16:])
            value = _STAMP.pack(now, now + 3_600_000) + _encode({**before, **changes})
            self._append(key, value)
            txn.put(key, value, db=self._sessions)
            txn.put(b"position", _STAMP.pack(self._number, 0), db=self._meta)

    def touch(self, id: str) -> None:
        key = id.encode()
        with self._env.begin(write=True) as txn:
            old = txn.get(key, db=self._sessions) or b""
            txn.get(b"position", db=self._meta)
            now = time.time_ns() // 1_000_000
            value = _STAMP.pack(now, now + 3_600_000) + old[16:]
            self._append(key, value[:16])
            txn.put(key, value, db=self._sessions)
            txn.put(b"position", _STAMP.pack(self._number, 0), db=self._meta)

    def delete(self, id: str) -> None:
        key = id.encode()
        with self._env.begin(write=True) as txn:
            txn.get(b"position", db=self._meta)
            self._append(key, b"")
            txn.delete(key, db=self._sessions)
            txn.put(b"position", _STAMP.pack(self._number, 0), db=self._meta)

    def ids(self) -> Iterator[str]:
        with self._env.begin(self._sessions) as txn:
            for key in txn.cursor().iternext(values=False):
                yield key.decode()

    def batch(self, many: list[dict[str, Any]]) -> None:
        now = time.time_ns() // 1_000_000
        pairs = []
        for metadata in many:
            value = _STAMP.pack(now, now + 3_600_000) + _encode(metadata)
            pairs.append((os.urandom(16).hex().encode(), value))
        data = b"".join(_HEAD.pack(len(value), zlib.crc32(value), 0) + key + value for key, value in pairs)
        os.write(self._log, data)
        with self._env.begin(write=True) as txn:
            for key, value in pairs:
                self._number += 1
                txn.get(key, db=self._sessions)
                txn.put(key, value, db=self._sessions)
                txn.put(_STAMP.pack(now + 3_600_000, self._number), key, db=self._deadlines)
            txn.put(b"position", _STAMP.pack(self._number, 0), db=self._meta)

    def get(self, id: str) -> dict[str, Any] | None:
        with self._env.begin() as txn:
            value = txn.get(id.encode(), db=self._sessions)
        if value is None or _STAMP.unpack_from(value)[1] < time.time_ns() // 1_000_000:
            return None
        return _decode(value[16:])

    def close(self) -> None:
        os.close(self._log)
        self._env.close()

    def _append(self, key: bytes, value: bytes) -> None:
        self._number += 1
        os.write(self._log, _HEAD.pack(len(value), zlib.crc32(value), self._number) + key + value)
