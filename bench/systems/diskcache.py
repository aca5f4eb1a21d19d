"""diskcache as a peer: a cache in a folder, in the process that uses it.

Owns its settings and calls. Nothing is evicted or culled (`eviction_policy` none, `cull_limit` 0: the cleanup
is called), values are MessagePack as bytes, an update is a get and a set in one `transact()`, a batch is one
`transact()`. It keeps to its own SQLite settings (WAL, mapped reads) but `sqlite_synchronous`.

| class | setting |
|---|---|
| os | `sqlite_synchronous` 1, its default: a commit is in the WAL, in the kernel |
| disk | `sqlite_synchronous` 2: fdatasync of the WAL in each commit |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import msgspec

from .embedded import EmbeddedRunning
from .ports import LIFETIME_MS, Address, Client, Durability, Fields, RandomIds, Running

_SYNCHRONOUS = {Durability.OS: 1, Durability.DISK: 2}
_PARTS = {"state": ("cache.db", "??/**/*"), "log": ("cache.db-wal", "cache.db-shm")}
_SIZE_BYTES_MAX = 1 << 40
_LIFETIME_S = LIFETIME_MS / 1000

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Fields).decode


class DiskCache:
    name = "diskcache"
    settings: Mapping[Durability, str] = {
        Durability.OS: "sqlite_synchronous=1",
        Durability.DISK: "sqlite_synchronous=2",
    }

    def why_not(self) -> str:
        return "" if find_spec("diskcache") else "the Python package diskcache is not installed"

    def version(self) -> str:
        return f"diskcache {import_module('diskcache').__version__}"

    def start(self, folder: Path, durability: Durability) -> Running:
        address: Address = {"path": str(folder), "synchronous": _SYNCHRONOUS[durability]}
        DiskCacheClient(address).close()
        return EmbeddedRunning(folder, address, _PARTS)

    def connect(self, address: Address) -> Client:
        return DiskCacheClient(address)


class DiskCacheClient:
    def __init__(self, address: Address) -> None:
        self._cache = import_module("diskcache").Cache(
            str(address["path"]),
            eviction_policy="none",
            cull_limit=0,
            size_limit=_SIZE_BYTES_MAX,
            sqlite_synchronous=address["synchronous"],
        )
        self._ids = RandomIds()

    def create(self, fields: Fields) -> str:
        id = self._ids.take()
        self._cache.set(id, _encode(fields), expire=_LIFETIME_S, retry=True)
        return id

    def get(self, id: str) -> Fields | None:
        value = self._cache.get(id, retry=True)
        return None if value is None else _decode(value)

    def update(self, id: str, changes: Fields) -> None:
        with self._cache.transact(retry=True):
            value = self._cache.get(id)
            if value is not None:
                self._cache.set(id, _encode({**_decode(value), **changes}), expire=_LIFETIME_S)

    def touch(self, id: str) -> None:
        self._cache.touch(id, expire=_LIFETIME_S, retry=True)

    def delete(self, id: str) -> None:
        self._cache.delete(id, retry=True)

    def create_many(self, many: list[Fields]) -> list[str]:
        return self._set_all(many, _LIFETIME_S)

    def create_due(self, many: list[Fields]) -> list[str]:
        return self._set_all(many, 0.0)

    def expire_due(self) -> int:
        return int(self._cache.expire(retry=True))

    def ids(self) -> Iterator[str]:
        return iter(self._cache)

    def close(self) -> None:
        self._cache.close()

    def _set_all(self, many: list[Fields], lifetime_s: float) -> list[str]:
        ids = [self._ids.take() for _ in many]
        with self._cache.transact(retry=True):
            for id, fields in zip(ids, many, strict=True):
                self._cache.set(id, _encode(fields), expire=lifetime_s)
        return ids
