"""Redis as a peer: servers of its own, redis-py with hiredis, over a Unix socket, one connection a client.

Owns the servers' configuration and the commands. No snapshots (`save ""`), no TCP but between two nodes. A
session is MessagePack under one key with its expiry. An update is one script, in one round trip: by cmsgpack
it finds the fields that change, and puts the new bytes in place of the old. All others stay as they are; a
value that Lua decodes and encodes loses null, empty maps and integers beyond 2^53, and was no faster. A batch
is one pipeline.

| class | setting |
|---|---|
| none | `appendonly no` |
| os | `appendonly yes`, `appendfsync no`: written to the kernel before the answer |
| second | `appendfsync everysec` |
| disk | `appendfsync always` |
| two | `appendfsync no` on both nodes, `WAIT 1` in the same round trip: in both kernels, on no disk |
| two-disks | `always` on both: a replica syncs before it writes to any connection, and so confirms |

Redis removes what has expired by samples, and stops while a tenth is left. The cleanup that is measured looks
at every key, by SCAN, which removes what it finds expired; the sampling is off between create_due and
expire_due.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from .embedded import allocated_bytes
from .ports import LIFETIME_MS, Address, Client, Durability, Fields, Pair, RandomIds, Running
from .processes import ServerProcess, free_port, socket_folder

_APPEND = {
    Durability.NONE: ("no", "no"),
    Durability.OS: ("yes", "no"),
    Durability.SECOND: ("yes", "everysec"),
    Durability.DISK: ("yes", "always"),
    Durability.TWO: ("yes", "no"),
    Durability.TWO_DISKS: ("yes", "always"),
}
_UPDATE = """
local stored = redis.call('GET', KEYS[1])
if not stored then return 0 end
local given, left = {}, 0
for at = 2, #ARGV, 2 do given[ARGV[at]], left = ARGV[at + 1], left + 1 end
local head, high, low = stored:byte(1, 3)
if head == 0xdf then return redis.error_reply('a session of more than 65,535 fields') end
local count, first = head - 0x80, 1
if head == 0xde then count, first = high * 256 + low, 3 end
local at = first
for _ = 1, count do
    local after, name = cmsgpack.unpack_limit(stored, 2, at)
    if after < 0 then after = #stored end
    local value = given[name]
    if value then
        local from = cmsgpack.unpack_one(stored, at)
        stored = stored:sub(1, from) .. value .. stored:sub(after + 1)
        after, given[name], left = from + #value, nil, left - 1
        if left == 0 then break end
    end
    at = after
end
if left > 0 then
    local parts = {'', stored:sub(first + 1)}
    for name, value in pairs(given) do parts[#parts + 1] = cmsgpack.pack(name) .. value end
    count = count + left
    parts[1] = count < 16 and string.char(0x80 + count)
        or string.char(0xde, math.floor(count / 256), count % 256)
    stored = table.concat(parts)
end
redis.call('SET', KEYS[1], stored, 'PX', ARGV[1])
return 1
"""
"""The lifetime in ms, then name and encoded value of each field that is set. Offsets of cmsgpack count from
0, and -1 is the end."""
_SCAN_KEYS = 1000
_WAIT_MS = 5_000

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Fields).decode


class Redis:
    """One server."""

    name = "redis"
    settings: Mapping[Durability, str] = {
        Durability.NONE: "appendonly no",
        Durability.OS: "appendfsync no",
        Durability.SECOND: "appendfsync everysec",
        Durability.DISK: "appendfsync always",
    }

    def why_not(self) -> str:
        if shutil.which("redis-server") is None:
            return "redis-server is not installed (Debian: redis-server)"
        missing = [name for name in ("redis", "hiredis") if find_spec(name) is None]
        return f"the Python package {missing[0]} is not installed" if missing else ""

    def version(self) -> str:
        said = subprocess.run(
            ["redis-server", "--version"], capture_output=True, text=True, check=True
        ).stdout
        server = next(word[2:] for word in said.split() if word.startswith("v="))
        client, parser = import_module("redis").__version__, import_module("hiredis").__version__
        return f"Redis {server}, redis-py {client}, hiredis {parser}"

    def start(self, folder: Path, durability: Durability) -> Running:
        node = _Node(folder, durability, port=0)
        try:
            node.start()
        except BaseException:
            node.close()
            raise
        return node

    def connect(self, address: Address) -> Client:
        return RedisClient(address)


class RedisPair(Redis):
    """A primary and its replica, which confirms each write."""

    name = "redis-wait"
    settings: Mapping[Durability, str] = {
        Durability.TWO: "WAIT 1, appendfsync no on both: two kernels, no disk",
        Durability.TWO_DISKS: "WAIT 1, appendfsync always on both",
    }

    def start(self, folder: Path, durability: Durability) -> Pair:
        return _RunningPair(folder, durability)


class _Node:
    """A server in a folder of its own."""

    def __init__(self, folder: Path, durability: Durability, port: int, *options: str) -> None:
        self._folder = folder
        self._sockets = socket_folder(folder)
        self._socket = str(Path(self._sockets.name if self._sockets else folder) / "redis.sock")
        appends, syncs = _APPEND[durability]
        words = ["--port", str(port), "--bind", "127.0.0.1", "--unixsocket", self._socket]
        words += ["--dir", str(folder), "--save", "", "--appendonly", appends, "--appendfsync", syncs]
        words += ["--enable-debug-command", "local", "--repl-diskless-sync-delay", "0", *options]
        self._process = ServerProcess(["redis-server", *words], folder / "redis.out")
        self.address: Address = {"socket": self._socket, "replicas": 0}

    @property
    def pids(self) -> tuple[int, ...]:
        return self._process.pids

    def start(self) -> None:
        self._process.start(self._answers)

    def disk_bytes(self) -> Mapping[str, int]:
        return {"log": allocated_bytes(self._folder, "appendonlydir/*")}

    def stop(self) -> None:
        self._process.stop()

    def kill(self) -> None:
        self._process.kill()

    def start_again(self) -> None:
        self.start()

    def close(self) -> None:
        self._process.abandon()
        if self._sockets is not None:
            self._sockets.cleanup()

    def ask(self, *words: str | int) -> Any:
        with import_module("redis").Redis(unix_socket_path=self._socket) as client:
            return client.execute_command(*words)

    def _answers(self) -> bool:
        """It answers, with all that it had loaded."""
        errors = import_module("redis.exceptions")
        try:
            return bool(self.ask("DBSIZE") >= 0)
        except (errors.ConnectionError, errors.BusyLoadingError):
            return False


class _RunningPair:
    def __init__(self, folder: Path, durability: Durability) -> None:
        (folder / "one").mkdir()
        (folder / "two").mkdir()
        port = free_port()
        self._one = _Node(folder / "one", durability, port)
        follows = ("--replicaof", "127.0.0.1", str(port))
        self._two = _Node(folder / "two", durability, free_port(), *follows)
        self.address: Address = {**self._one.address, "replicas": 1}
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> tuple[int, ...]:
        return self._one.pids + self._two.pids

    def disk_bytes(self) -> Mapping[str, int]:
        return self._one.disk_bytes()

    def stop(self) -> None:
        self._one.stop()
        self._two.stop()

    def kill(self) -> None:
        self._one.kill()

    def take_over(self) -> None:
        self._two.ask("REPLICAOF", "NO", "ONE")
        self.address = self._two.address

    def start_again(self) -> None:
        self._two.stop()
        self._start()

    def close(self) -> None:
        self._one.close()
        self._two.close()

    def _start(self) -> None:
        self._one.start()
        self._two.start()
        self._two._process.wait_until(lambda: self._one.ask("WAIT", 1, 100) == 1)


class RedisClient:
    """One connection; with `replicas` in its address each change waits for so many of them."""

    def __init__(self, address: Address) -> None:
        self._client = client = import_module("redis").Redis(
            unix_socket_path=str(address["socket"]), single_connection_client=True
        )
        self._replicas = int(address["replicas"])
        self._ids = RandomIds()
        self._update = client.script_load(_UPDATE)
        self._fetch = client.get
        if self._replicas:
            self._set, self._pexpire, self._unlink, self._evalsha = (
                self._confirmed(name) for name in ("set", "pexpire", "delete", "evalsha")
            )
        else:
            self._set, self._pexpire, self._unlink = client.set, client.pexpire, client.delete
            self._evalsha = client.evalsha

    def create(self, fields: Fields) -> str:
        id = self._ids.take()
        self._set(id, _encode(fields), px=LIFETIME_MS)
        return id

    def get(self, id: str) -> Fields | None:
        value = self._fetch(id)
        return None if value is None else _decode(value)

    def update(self, id: str, changes: Fields) -> None:
        words: list[str | bytes] = []
        for name, value in changes.items():
            words += name, _encode(value)
        self._evalsha(self._update, 1, id, LIFETIME_MS, *words)

    def touch(self, id: str) -> None:
        self._pexpire(id, LIFETIME_MS)

    def delete(self, id: str) -> None:
        self._unlink(id)

    def create_many(self, many: list[Fields]) -> list[str]:
        return self._set_all(many, LIFETIME_MS)

    def create_due(self, many: list[Fields]) -> list[str]:
        self._client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
        return self._set_all(many, 1)

    def expire_due(self) -> int:
        before = self._client.info("stats")["expired_keys"]
        for _ in self._scans():
            pass
        self._client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 1)
        return int(self._client.info("stats")["expired_keys"] - before)

    def ids(self) -> Iterator[str]:
        """By SCAN, batch by batch. KEYS takes half the time, in which nobody else is answered."""
        return chain.from_iterable(map(bytes.decode, keys) for keys in self._scans())

    def close(self) -> None:
        self._client.close()

    def _scans(self) -> Iterator[list[bytes]]:
        cursor = None
        while cursor != 0:
            cursor, keys = self._client.scan(cursor or 0, count=_SCAN_KEYS)
            yield keys

    def _set_all(self, many: list[Fields], lifetime_ms: int) -> list[str]:
        ids = [self._ids.take() for _ in many]
        pipeline = self._client.pipeline(transaction=False)
        for id, fields in zip(ids, many, strict=True):
            pipeline.set(id, _encode(fields), px=lifetime_ms)
        if self._replicas:
            pipeline.wait(self._replicas, _WAIT_MS)
        self._check(pipeline.execute())
        return ids

    def _confirmed(self, name: str) -> Any:
        """The command and WAIT in one round trip. It raises without the replicas."""

        def command(*words: Any, **options: Any) -> Any:
            pipeline = self._client.pipeline(transaction=False)
            getattr(pipeline, name)(*words, **options)
            pipeline.wait(self._replicas, _WAIT_MS)
            return self._check(pipeline.execute())[0]

        return command

    def _check(self, answers: list[Any]) -> list[Any]:
        if self._replicas and answers[-1] < self._replicas:
            raise OSError("a replica did not confirm")
        return answers
