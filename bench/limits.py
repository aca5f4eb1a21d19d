"""What the machine allows: the bare calls of each durability class, in the clothes of a system.

Owns those calls. No ids are agreed on, nothing is checked, nothing could be found again after a crash: a
write is the bytes in a log of one's own, a get is one look into LMDB and one decode. Measured in turn with
the systems, in the same loop, so that a ratio to it says what is left between a system and the hardware
with this interpreter.

| class | a write is |
|---|---|
| none | an entry of a dict |
| os, second | one `write` of the encoded session to a file |
| disk | that and `fdatasync`; of n clients: one `write` of n sessions and one `fdatasync` |
| two | `chain.py`: two hand-overs to a second process and back, without a sync |
| two-disks | the same with an `fdatasync` on each side |
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import lmdb
import msgspec

from .chain import BareChain
from .sharing import SharedSync
from .systems.embedded import EmbeddedRunning
from .systems.ports import Address, Client, Durability, Fields, RandomIds, Running

NAME = "limit"
_SETTINGS = {
    Durability.NONE: "dict; LMDB get + decode",
    Durability.OS: "bare write; LMDB get + decode",
    Durability.SECOND: "bare write; LMDB get + decode",
    Durability.DISK: "bare write + fdatasync; LMDB get + decode",
    Durability.TWO: "bare chain of processes, no sync",
    Durability.TWO_DISKS: "bare chain of processes, fdatasync on both sides",
}
_TOUCH_BYTES = 24
_MAP_BYTES = 1 << 34

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Fields).decode
_FIELDS: Fields = {"user_id": 12345, "name": "a person of some name", "csrf": "0" * 32, "cart": "x" * 90}
_RECORD = bytes(32) + _encode(_FIELDS)


class Limit:
    """The bare calls as a system. Each client has a log of its own; the LMDB environment is shared."""

    name = NAME
    settings: Mapping[Durability, str] = MappingProxyType(_SETTINGS)

    def why_not(self) -> str:
        return ""

    def version(self) -> str:
        return f"py-lmdb {lmdb.__version__}, msgspec {msgspec.__version__}"

    def start(self, folder: Path, durability: Durability) -> Running:
        address: Address = {"path": str(folder), "durability": durability.value, "together": 1}
        return EmbeddedRunning(folder, address, {"state": ("db/*",), "log": ("log-*",)})

    def connect(self, address: Address) -> Client:
        durability = Durability(address["durability"])
        if durability in (Durability.TWO, Durability.TWO_DISKS):
            return ChainClient(Path(str(address["path"])), has_sync=durability is Durability.TWO_DISKS)
        return BareClient(Path(str(address["path"])), durability, int(address["together"]))


class BareClient:
    """A log, and an LMDB environment for what is read."""

    def __init__(self, folder: Path, durability: Durability, together: int = 1) -> None:
        """`together` sessions are written at once by each write: as many as there are clients to share a
        sync."""
        self._log = os.open(folder / f"log-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._is_synced = durability is Durability.DISK
        self._together = together
        self._new = RandomIds()
        self._env = lmdb.open(
            str(folder / "db"), map_size=_MAP_BYTES, sync=False, metasync=False, readahead=False
        )
        self._dict: dict[str, bytes] | None = {} if durability is Durability.NONE else None

    def create(self, fields: Fields) -> str:
        id = self._new.take()
        self._write(id, _encode(fields))
        return id

    def get(self, id: str) -> Fields | None:
        with self._env.begin() as txn:
            value = txn.get(id.encode())
        return None if value is None else _decode(value)

    def update(self, id: str, changes: Fields) -> None:
        self._write(id, _encode({**(self.get(id) or {}), **changes}))

    def touch(self, id: str) -> None:
        self._write(id, bytes(_TOUCH_BYTES))

    def delete(self, id: str) -> None:
        self._write(id, b"")

    def create_many(self, many: list[Fields]) -> list[str]:
        """One write, and one sync where the class asks for it."""
        ids = [self._new.take() for _ in many]
        self._append(b"".join([id.encode() + _encode(fields) for id, fields in zip(ids, many, strict=True)]))
        return ids

    def fill(self, many: list[Fields]) -> list[str]:
        """Into LMDB, for gets and passes to find."""
        ids = [self._new.take() for _ in many]
        self._insert([(id.encode(), _encode(fields)) for id, fields in zip(ids, many, strict=True)])
        return ids

    def ids(self) -> Iterator[str]:
        with self._env.begin() as txn:
            for key in txn.cursor().iternext(values=False):
                yield key.decode()

    def create_due(self, many: list[Fields]) -> list[str]:
        """Where they are found again without looking for them: in order behind all others."""
        ids = [f"~{self._new.take()}" for _ in many]
        self._insert([(id.encode(), _encode(fields)) for id, fields in zip(ids, many, strict=True)])
        return ids

    def expire_due(self) -> int:
        count = 0
        with self._env.begin(write=True) as txn, txn.cursor() as cursor:
            while cursor.set_range(b"~"):
                cursor.delete()
                count += 1
        self._append(bytes(16 * count))
        return count

    def close(self) -> None:
        os.close(self._log)
        self._env.close()

    def _insert(self, pairs: list[tuple[bytes, bytes]]) -> None:
        with self._env.begin(write=True) as txn:
            for key, value in pairs:
                txn.put(key, value)

    def _write(self, id: str, value: bytes) -> None:
        if self._dict is not None:
            self._dict[id] = value
        else:
            self._append((id.encode() + value) * self._together)

    def _append(self, data: bytes) -> None:
        os.write(self._log, data)
        if self._is_synced:
            os.fdatasync(self._log)


class ChainClient(BareClient):
    """Writes go through a chain of processes, which it starts and ends."""

    def __init__(self, folder: Path, *, has_sync: bool) -> None:
        super().__init__(folder, Durability.OS)
        self._chain = BareChain(folder / f"chain-{os.getpid()}", has_sync=has_sync)

    def close(self) -> None:
        self._chain.close()
        super().close()

    def _append(self, data: bytes) -> None:
        self._chain.write()


def shared_sync(folder: Path) -> SharedSync:
    """A log for threads that share each sync of it; what it holds open ends with this process."""
    log = os.open(folder / "shared", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    return SharedSync(log, _RECORD)


def bare_calls(folder: Path) -> dict[str, Callable[[], object]]:
    """The single calls that limits are made of, each ready to be called again and again: what
    the table of limits shows. What they hold open ends with this process."""
    client = BareClient(folder, Durability.OS)
    id = client.fill([_FIELDS])[0]
    value, key = _encode(_FIELDS), id.encode()
    record = key + value
    log = os.open(folder / "raw", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def raw_get() -> None:
        with client._env.begin() as txn:
            txn.get(key)

    def commit() -> None:
        with client._env.begin(write=True) as txn:
            txn.put(key, value)

    def synced(data: bytes) -> None:
        os.write(log, data)
        os.fdatasync(log)

    again = os.open(folder / "overwritten", os.O_WRONLY | os.O_CREAT)
    os.write(again, record)
    os.fsync(again)

    def overwritten() -> None:
        os.pwrite(again, record, 0)
        os.fdatasync(again)

    return {
        "raw LMDB get": raw_get,
        "raw LMDB get + decode": partial(client.get, id),
        "LMDB commit of one put, no sync": commit,
        "MessagePack decode": partial(_decode, value),
        "MessagePack encode": partial(_encode, _FIELDS),
        "raw append write": partial(os.write, log, record),
        "raw write + fdatasync": partial(synced, record),
        "raw write in place + fdatasync": overwritten,
        "write of 8 + one fdatasync": partial(synced, record * 8),
        "write of 32 + one fdatasync": partial(synced, record * 32),
    }
