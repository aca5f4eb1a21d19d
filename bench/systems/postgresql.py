"""PostgreSQL as a peer: servers of its own, psycopg 3 (its C implementation), over a Unix socket.

Owns the clusters' configuration and the statements. A table with the columns that sessions need; the
fields are JSONB, so that an update is one statement that merges them in the server; psycopg prepares every
statement at its first use; JSON is encoded and decoded by msgspec. A batch is one INSERT of a
JSON list, as fast as COPY and twice as fast as a pipeline of INSERTs. Settings beside those of the class:
1 GB of shared buffers, `max_wal_size` 4 GB; autovacuum and all else as they come.

| class | setting |
|---|---|
| none | an UNLOGGED table, which is emptied after a crash |
| os | `fsync=off`: the WAL is written to the kernel before the answer (no setting for a real use) |
| second | `synchronous_commit=off`: flushed within 0.6 s, and lost with a server killed before |
| disk | `synchronous_commit=on` |
| two | a standby, `remote_write`: on this disk, and in the kernel of the standby |
| two-disks | a standby, `on`: on both disks; or `remote_apply`: visible on the standby, too |

No server listens on TCP, and none asks for a password: its sockets are for this user only. PostgreSQL refuses
to run as root: for root it runs in a user namespace, in which the same user has another number.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from .embedded import allocated_bytes
from .ports import LIFETIME_MS, Address, Client, Durability, Fields, Pair, RandomIds, Running
from .processes import ServerProcess, run_once, socket_folder

_ON_DEBIAN = Path("/usr/lib/postgresql")
_AS_NOBODY = ("unshare", "--user", "--map-user=65534", "--map-group=65534")
_OPTIONS = {
    Durability.NONE: ("synchronous_commit=off",),
    Durability.OS: ("fsync=off",),
    Durability.SECOND: ("synchronous_commit=off",),
    Durability.DISK: ("synchronous_commit=on",),
    Durability.TWO: ("synchronous_commit=remote_write",),
    Durability.TWO_DISKS: ("synchronous_commit=on",),
}
_COMMON = ("listen_addresses=", "unix_socket_permissions=0700", "shared_buffers=1GB", "max_wal_size=4GB")
_TABLE = """
CREATE {kind} TABLE sessions (
    id text PRIMARY KEY, created bigint NOT NULL, accessed bigint NOT NULL, expires bigint NOT NULL,
    data jsonb NOT NULL
);
CREATE INDEX ON sessions (expires);
"""
_CREATE = "INSERT INTO sessions VALUES (%s, %s, %s, %s, %s)"
_CREATE_MANY = """
INSERT INTO sessions SELECT id, %s, %s, %s, data FROM jsonb_to_recordset(%s) AS given (id text, data jsonb)
"""
_GET = "SELECT data FROM sessions WHERE id = %s AND expires > %s"
_UPDATE = """
UPDATE sessions SET data = data || %s, accessed = %s, expires = %s WHERE id = %s AND expires > %s
"""
_TOUCH = "UPDATE sessions SET accessed = %s, expires = %s WHERE id = %s AND expires > %s"


class PostgreSql:
    """One server."""

    name = "postgresql"
    settings: Mapping[Durability, str] = {
        Durability.NONE: "unlogged table",
        Durability.OS: "fsync=off",
        Durability.SECOND: "synchronous_commit=off",
        Durability.DISK: "synchronous_commit=on",
    }

    def why_not(self) -> str:
        if _programs() is None:
            return "PostgreSQL's server is not installed (Debian: postgresql-15)"
        if find_spec("psycopg") is None:
            return "the Python package psycopg is not installed"
        if os.geteuid() == 0 and _runs([*_AS_NOBODY, "true"]):
            return "PostgreSQL refuses to run as root, and no user namespace is to be had"
        return ""

    def version(self) -> str:
        programs = _programs()
        server = run_once([str(programs / "postgres"), "--version"]).split()[2] if programs else ""
        psycopg = import_module("psycopg")
        return f"PostgreSQL {server}, psycopg {psycopg.__version__} ({psycopg.pq.__impl__})"

    def start(self, folder: Path, durability: Durability) -> Running:
        node = _Node(folder, _OPTIONS[durability])
        try:
            node.make()
            node.start()
            node.ask(_TABLE.format(kind="UNLOGGED" if durability is Durability.NONE else ""))
        except BaseException:
            node.close()
            raise
        return node

    def connect(self, address: Address) -> Client:
        return PostgreSqlClient(address)


class PostgreSqlPair(PostgreSql):
    """A primary and a standby that confirms each commit."""

    name = "postgresql-standby"
    settings: Mapping[Durability, str] = {
        Durability.TWO: "one standby, remote_write",
        Durability.TWO_DISKS: "one standby, synchronous_commit=on",
    }
    _applies = False

    def start(self, folder: Path, durability: Durability) -> Pair:
        options = ("synchronous_commit=remote_apply",) if self._applies else _OPTIONS[durability]
        return _RunningPair(folder, options)


class PostgreSqlApplying(PostgreSqlPair):
    """As the pair, and what was committed can be read on the standby."""

    name = "postgresql-standby-apply"
    settings: Mapping[Durability, str] = {Durability.TWO_DISKS: "one standby, remote_apply"}
    _applies = True


class _Node:
    """A cluster in a folder, and its server."""

    def __init__(self, folder: Path, options: tuple[str, ...]) -> None:
        self._programs = _programs() or Path()
        self._as_nobody = _AS_NOBODY if os.geteuid() == 0 else ()
        self._data = folder / "data"
        self._short = socket_folder(folder)
        self._sockets = self._short.name if self._short else str(folder)
        words = [word for option in (*_COMMON, *options) for word in ("-c", option)]
        self._process = ServerProcess(
            [
                str(self._programs / "postgres"),
                *("-D", str(self._data), "-k", self._sockets),
                *words,
            ],
            folder / "postgres.out",
            before=self._as_nobody,
            end_by=signal.SIGINT,
            abandon_by=signal.SIGQUIT,
        )
        self.address: Address = {"host": self._sockets}

    @property
    def pids(self) -> tuple[int, ...]:
        return self._process.pids

    def make(self) -> None:
        """A new cluster."""
        words = ["-A", "trust", "-U", "bench", "-E", "UTF8", "--locale=C", "--no-sync"]
        self._run("initdb", "-D", str(self._data), *words)

    def copy(self, primary: _Node) -> None:
        """A standby of a primary that runs."""
        source = f"host={primary._sockets} user=bench"
        self._run("pg_basebackup", "-D", str(self._data), "-d", source, "-R", "-X", "stream", "-c", "fast")

    def start(self) -> None:
        self._process.start(self._answers)

    def disk_bytes(self) -> Mapping[str, int]:
        return {
            "state": int(self.ask("SELECT pg_total_relation_size('sessions')")[0][0]),
            "log": allocated_bytes(self._data, "pg_wal/**/*"),
        }

    def stop(self) -> None:
        self._process.stop()

    def kill(self) -> None:
        self._process.kill()

    def start_again(self) -> None:
        self.start()

    def close(self) -> None:
        self._process.abandon()
        self._give_back_shared_memory()
        if self._short is not None:
            self._short.cleanup()

    def ask(self, statement: str) -> list[Any]:
        """The rows of a statement that has some."""
        with import_module("psycopg").connect(**_login(self.address), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def wait_until_follows(self, standby: _Node) -> None:
        """Until the standby confirms commits of this primary."""
        self.ask("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.ask("SELECT pg_reload_conf()")
        states = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'"
        standby._process.wait_until(lambda: bool(self.ask(states)))

    def _give_back_shared_memory(self) -> None:
        """A server that was killed leaves a few bytes of System V shared memory, named in its file."""
        with contextlib.suppress(OSError, IndexError):
            _, segment = (self._data / "postmaster.pid").read_text("ascii").splitlines()[6].split()
            _runs(["ipcrm", "--shmem-id", segment])

    def _run(self, program: str, *words: str) -> None:
        run_once([*self._as_nobody, str(self._programs / program), *words])

    def _answers(self) -> bool:
        try:
            return bool(self.ask("SELECT 1"))
        except import_module("psycopg").OperationalError:
            return False


class _RunningPair:
    def __init__(self, folder: Path, options: tuple[str, ...]) -> None:
        (folder / "one").mkdir()
        (folder / "two").mkdir()
        self._one, self._two = _Node(folder / "one", options), _Node(folder / "two", options)
        self.address: Address = self._one.address
        try:
            self._one.make()
            self._one.start()
            self._one.ask(_TABLE.format(kind=""))
            self._two.copy(self._one)
            self._two.start()
            self._one.wait_until_follows(self._two)
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
        self._two.ask("SELECT pg_promote()")
        self.address = self._two.address

    def start_again(self) -> None:
        self._two.stop()
        self._one.start()
        self._two.start()
        self._one.wait_until_follows(self._two)

    def close(self) -> None:
        self._one.close()
        self._two.close()


class PostgreSqlClient:
    """One connection; each statement alone is a transaction."""

    def __init__(self, address: Address) -> None:
        psycopg, json = import_module("psycopg"), import_module("psycopg.types.json")
        self._connection = psycopg.connect(**_login(address), autocommit=True, prepare_threshold=0)
        json.set_json_dumps(msgspec.json.Encoder().encode, self._connection)
        json.set_json_loads(msgspec.json.Decoder(Fields).decode, self._connection)
        self._json = json.Jsonb
        self._execute = self._connection.cursor().execute
        scalars = import_module("psycopg.rows").scalar_row
        self._execute_for_ids = self._connection.cursor(row_factory=scalars).execute
        self._ids = RandomIds()

    def create(self, fields: Fields) -> str:
        id, now_ms = self._ids.take(), _now_ms()
        self._execute(_CREATE, (id, now_ms, now_ms, now_ms + LIFETIME_MS, self._json(fields)))
        return id

    def get(self, id: str) -> Fields | None:
        row = self._execute(_GET, (id, _now_ms())).fetchone()
        return None if row is None else row[0]

    def update(self, id: str, changes: Fields) -> None:
        now_ms = _now_ms()
        self._execute(_UPDATE, (self._json(changes), now_ms, now_ms + LIFETIME_MS, id, now_ms))

    def touch(self, id: str) -> None:
        now_ms = _now_ms()
        self._execute(_TOUCH, (now_ms, now_ms + LIFETIME_MS, id, now_ms))

    def delete(self, id: str) -> None:
        self._execute("DELETE FROM sessions WHERE id = %s", (id,))

    def create_many(self, many: list[Fields]) -> list[str]:
        return self._insert(many, LIFETIME_MS)

    def create_due(self, many: list[Fields]) -> list[str]:
        return self._insert(many, 0)

    def expire_due(self) -> int:
        return int(self._execute("DELETE FROM sessions WHERE expires <= %s", (_now_ms(),)).rowcount)

    def ids(self) -> Iterator[str]:
        return iter(self._execute_for_ids("SELECT id FROM sessions").fetchall())

    def close(self) -> None:
        self._connection.close()

    def _insert(self, many: list[Fields], lifetime_ms: int) -> list[str]:
        now_ms = _now_ms()
        ids = [self._ids.take() for _ in many]
        given = self._json([{"id": id, "data": fields} for id, fields in zip(ids, many, strict=True)])
        self._execute(_CREATE_MANY, (now_ms, now_ms, now_ms + lifetime_ms, given))
        return ids


def _login(address: Address) -> dict[str, str]:
    return {"host": str(address["host"]), "user": "bench", "dbname": "postgres"}


def _programs() -> Path | None:
    """Where PostgreSQL's programs are: on the PATH, else the newest of Debian's."""
    found = shutil.which("postgres")
    if found is not None:
        return Path(found).resolve().parent
    versions = sorted(
        (path for path in _ON_DEBIAN.glob("*/bin") if (path / "postgres").is_file()),
        key=lambda path: int(path.parent.name) if path.parent.name.isdigit() else 0,
    )
    return versions[-1] if versions else None


def _runs(command: list[str]) -> int:
    return subprocess.run(command, capture_output=True, check=False).returncode


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
