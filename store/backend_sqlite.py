"""The state in SQLite (the Backend port), for those who want to look at it. The only module that
imports apsw.

Owns the schema: one row a session with readable columns (times in ms since 1970, metadata as JSON, where
bytes are {"$base64": ...}) beside the exact record, which alone is ever read back; the armed deadlines;
the position. Whatever changes, changes with the position in one transaction.

WAL mode, so that readers and the folder do not wait for each other. synchronous=OFF: nothing is synced,
because the log can rebuild all of it, and a marker says when it has to (state.py). A connection for
folds, one for the read view, and one for each scan; none is used across a fork.
"""

from __future__ import annotations

import os
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any, Final, NoReturn

import apsw
import msgspec

from .errors import (
    CorruptError,
    FormatVersionError,
    LockTimeoutError,
    PerdureError,
    StorageError,
    StorageFullError,
    StoreClosedError,
    StoreReadOnlyError,
    UsageError,
)
from .files import FILE_MODE, translated
from .forks import is_at_rest, quiet_in_forks, raise_forked, watch_forks
from .ids import NOWHERE, StatePosition
from .ports import Change, Deadline, Labelled, Record
from .sealed import in_clear, is_sealed
from .session import Session

DATA_FILE: Final = "sessions.sqlite3"
WAL_FILE: Final = f"{DATA_FILE}-wal"
ENGINE: Final = "sqlite 3"
SCHEMA_VERSION: Final = 2
BUSY_TIMEOUT_MS: Final = 10_000
CACHE_KIB: Final = 16_384
WAL_BYTES_MAX: Final = 16 << 20
"""What a fold leaves behind above this is brought into the database at the next look, by who folded."""
WAL_WAIT_MS: Final = 250
"""For the views of others, which are given back within a tenth of a second; a scan may take longer."""
WAL_AGAIN_S: Final = 5.0
"""After a try in which somebody kept a view."""
SCAN_ROWS: Final = 64

_SCHEMA = f"""
CREATE TABLE sessions (
    key BLOB NOT NULL PRIMARY KEY,
    id TEXT GENERATED ALWAYS AS (CAST(key AS TEXT)) VIRTUAL,
    version INTEGER,
    created_at INTEGER,
    last_accessed INTEGER,
    timeout_ms INTEGER,
    expires_at INTEGER,
    priority INTEGER,
    home_node TEXT,
    session_group TEXT,
    tags TEXT,
    metadata TEXT,
    record BLOB NOT NULL
);
CREATE TABLE armed (
    deadline_ms INTEGER NOT NULL,
    key BLOB NOT NULL,
    PRIMARY KEY (deadline_ms, key)
) WITHOUT ROWID;
CREATE TABLE labels (
    term BLOB NOT NULL,
    key BLOB NOT NULL,
    PRIMARY KEY (term, key)
) WITHOUT ROWID;
CREATE TABLE position (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    epoch INTEGER NOT NULL,
    lsn INTEGER NOT NULL,
    chain TEXT NOT NULL,
    digest TEXT NOT NULL,
    session_count INTEGER NOT NULL
);
PRAGMA user_version = {SCHEMA_VERSION};
"""
_COLUMNS: Final = (
    "version",
    "created_at",
    "last_accessed",
    "timeout_ms",
    "expires_at",
    "priority",
    "home_node",
    "session_group",
    "tags",
    "metadata",
    "record",
)
_PUT = (
    f"INSERT INTO sessions (key, {', '.join(_COLUMNS)}) VALUES (?{',?' * len(_COLUMNS)}) ON CONFLICT (key)"
    f" DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS)}"
)
_DELETE = "DELETE FROM sessions WHERE key = ?"
_GET = "SELECT record FROM sessions WHERE key = ?"
_SCAN = "SELECT key, record FROM sessions WHERE key > ? ORDER BY key"
_SCAN_KEYS = "SELECT key FROM sessions WHERE key > ? ORDER BY key"
_ARM = "INSERT OR IGNORE INTO armed VALUES (?, ?)"
_DISARM = "DELETE FROM armed WHERE deadline_ms = ? AND key = ?"
_DUE = "SELECT deadline_ms, key FROM armed WHERE deadline_ms <= ? ORDER BY deadline_ms, key LIMIT ?"
_LABEL = "INSERT OR IGNORE INTO labels VALUES (?, ?)"
_UNLABEL = "DELETE FROM labels WHERE term = ? AND key = ?"
_FIND = "SELECT term, key FROM labels WHERE (term, key) > (?, ?) AND term <= ? ORDER BY term, key LIMIT ?"
_HAS_LABELS = "SELECT EXISTS (SELECT 1 FROM labels)"
_POSITION = "SELECT epoch, lsn, chain, digest, session_count FROM position"
_SET_POSITION = "REPLACE INTO position VALUES (1, ?, ?, ?, ?, ?)"
_UNREADABLE = (None,) * 10
_REBUILD = "`perdure repair DIR` makes it anew from snapshot and log."
_IOERR_SHMSIZE = apsw.SQLITE_IOERR_SHMSIZE
_DEADLINE_MAX = (1 << 63) - 1


class _Opening:
    """Held while connections are opened, so that no fork comes between."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        quiet_in_forks(self, self._lock, is_inner=True)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


_opening: Final = _Opening()


def translate_sqlite(error: Exception, path: Path) -> PerdureError:
    """The perdure error for one of the engine; raise it `from` the original."""
    text = f"the state cannot be used: {error}"
    if isinstance(error, apsw.FullError) or getattr(error, "extendedresult", 0) == _IOERR_SHMSIZE:
        return StorageFullError(
            text, path=path, hint="Free some space; the store goes on by itself once there is some."
        )
    if isinstance(error, (apsw.CorruptError, apsw.NotADBError, apsw.FormatError)):
        return CorruptError(f"the state is damaged: {error}", path=path, hint=_REBUILD)
    if isinstance(error, (apsw.BusyError, apsw.LockedError)):
        return LockTimeoutError(
            f"the state was locked for more than {BUSY_TIMEOUT_MS} ms",
            path=path,
            hint="See whether another process hangs, or a tool has it open in a transaction.",
        )
    if isinstance(error, (apsw.ReadOnlyError, apsw.PermissionsError, apsw.CantOpenError)):
        return StoreReadOnlyError(text, path=path, hint="Give this user the right to write there.")
    return StorageError(text, path=path)


class SqliteBackend:
    """The state in one SQLite database. A handle has two connections of its own."""

    engine_errors: tuple[type[Exception], ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data_path = path / DATA_FILE
        self._refuse: Callable[[], NoReturn] | None = None
        self._viewing = False
        self._is_wal_long = False
        self._shorten_again_s = 0.0
        self._writing = threading.Lock()
        """Held while `_writer` is at work; the view is used under its owner's mutex."""
        _create_file(self.data_path)
        with _opening, self._translated():
            self._writer = _connect(self.data_path)
            _prepare(self._writer, self.data_path)
            self._view = _connect(self.data_path)
            self._find = self._view.cursor()
            self.has_labels = False
            # The directory may be renamed while it is open (see switch.py): scans find it by this.
            self._directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            quiet_in_forks(self, self._writing, is_inner=True)
            watch_forks(self)

    def translate(self, error: Exception) -> PerdureError:
        """The perdure error for one of the engine; raise it `from` the original."""
        return translate_sqlite(error, self.data_path)

    def refresh(self) -> StatePosition:
        """Begin (or renew) the read view at the newest state; says where that stands."""
        self.release()
        with self._translated():
            if self._is_wal_long:
                self._shorten_wal()
            self._view.execute("BEGIN")
            self._viewing = True
            self.has_labels = bool(self._view.execute(_HAS_LABELS).get)
            return _read_position(self._view, self.data_path)

    def release(self) -> None:
        """End the read view, so that it pins nothing. The next get needs a refresh."""
        if self._viewing:
            self._viewing = False
            try:
                self._view.execute("ROLLBACK")
            except apsw.Error:
                pass  # a damaged file ends its transactions by itself; whatever comes next will say so

    def get(self, key: bytes) -> Record | None:
        """The record of a key in the read view."""
        if not self._viewing:
            self._raise_without_view(key)
        try:
            return self._find.execute(_GET, (key,)).get  # type: ignore[no-any-return]
        except apsw.Error as error:
            raise self.translate(error) from error

    def scan(self, after: bytes = b"") -> SqliteScan:
        """An image of the newest state, from the first key above `after`."""
        with self._translated():
            while True:
                place = self._place()
                try:
                    return SqliteScan(place / DATA_FILE, after)
                except apsw.Error:
                    if place == self._place():
                        raise  # else: it was renamed at this very moment

    def _place(self) -> Path:
        """Where the directory is now, whatever it was called when it was opened."""
        return Path(os.readlink(f"/proc/self/fd/{self._directory}"))

    def fold(
        self,
        changes: Sequence[Change],
        armed: Sequence[Deadline],
        disarmed: Sequence[Deadline],
        position: StatePosition,
        labelled: Sequence[Labelled] = (),
        unlabelled: Sequence[Labelled] = (),
    ) -> None:
        """One transaction: changes (in key order, no key twice), deadlines, index, position.

        What is both disarmed and armed stays armed.
        """
        with self._transaction() as writer:
            writer.executemany(_DISARM, disarmed)
            writer.executemany(_DELETE, ((key,) for key, record in changes if record is None))
            writer.executemany(_PUT, (row_of(key, record) for key, record in changes if record is not None))
            writer.executemany(_ARM, armed)
            writer.executemany(_UNLABEL, unlabelled)
            writer.executemany(_LABEL, labelled)
            _put_position(writer, position)
        self._is_wal_long = self._wal_bytes() > WAL_BYTES_MAX

    def due(self, until_ms: int, limit: int) -> list[Deadline]:
        """Up to `limit` of the earliest deadlines that are at or before `until_ms`, in order."""
        with self._translated(), self._writing:
            return list(self._writer.execute(_DUE, (min(until_ms, _DEADLINE_MAX), limit)))

    def find(self, above: Labelled, last_term: bytes, limit: int) -> list[Labelled]:
        """Up to `limit` pairs of the index in order, above `above`, with terms up to `last_term`."""
        if not self._viewing:
            self._raise_without_view(above[1])
        with self._translated():
            return list(self._find.execute(_FIND, (*above, last_term, limit)))

    def close(self) -> None:
        """Give up the view and the handle. Scans must be closed before."""
        if self._refuse is None:
            self.release()
            self._refuse = self._raise_closed
            with self._open_anyway():
                self._view.close()
                self._writer.close()
            os.close(self._directory)

    def _wal_bytes(self) -> int:
        try:
            return os.stat(WAL_FILE, dir_fd=self._directory).st_size
        except FileNotFoundError:
            return 0

    def _shorten_wal(self) -> None:
        """Let the WAL begin anew, unless somebody keeps a view. Never raises.

        SQLite does that by itself only at a moment without any view, of which there is none while each fold
        is followed by a new one.
        """
        if time.monotonic() < self._shorten_again_s or not self._writing.acquire(blocking=False):
            return
        try:
            self._writer.set_busy_timeout(WAL_WAIT_MS)
            is_busy, *_ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").get
        except apsw.Error:
            is_busy = 1  # of what that is reads and folds will tell
        finally:
            self._writer.set_busy_timeout(BUSY_TIMEOUT_MS)
            self._writing.release()
        self._is_wal_long = bool(is_busy)
        self._shorten_again_s = time.monotonic() + WAL_AGAIN_S if is_busy else 0.0

    @contextmanager
    def _transaction(self) -> Iterator[apsw.Connection]:
        with self._translated(), self._writing:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        if self._refuse:
            self._refuse()
        with self._open_anyway():
            yield

    @contextmanager
    def _open_anyway(self) -> Iterator[None]:
        try:
            yield
        except apsw.Error as error:
            raise self.translate(error) from error

    def _raise_without_view(self, key: bytes) -> NoReturn:
        if self._refuse:
            self._refuse()
        raise UsageError(f"no read view to get session {key!r} from: call refresh() first")

    def _raise_closed(self) -> NoReturn:
        raise StoreClosedError("the state was closed", path=self.path)

    def _raise_forked(self) -> NoReturn:
        raise_forked(self.path)

    def sever(self) -> object:
        self._viewing = False
        if self._refuse is None:
            self._refuse = self._raise_forked
            _close_inherited(self._view)
            _close_inherited(self._writer)
        return self._view, self._writer, self._find


class SqliteScan:
    """One image of the state, in key order (the Scan port). Keeps the WAL from being reset."""

    def __init__(self, data_path: Path, after: bytes) -> None:
        self._path = data_path
        self._after = after
        self._forked = False
        self._keys: Iterator[tuple[bytes]] | None = None
        self._reading = threading.Lock()
        with _opening:
            self._connection: apsw.Connection | None = _connect(data_path)
            self._connection.execute("BEGIN")
            self._position = _read_position(self._connection, data_path)
            quiet_in_forks(self, self._reading, is_inner=True)
            watch_forks(self)

    @property
    def position(self) -> StatePosition:
        return self._position

    def __iter__(self) -> Iterator[tuple[bytes, Record]]:
        rows: Iterator[tuple[bytes, Record]] | None = None
        while True:
            try:
                with self._reading:
                    connection = self._reader()  # raises if it was closed or forked since the last batch
                    rows = rows or connection.execute(_SCAN, (self._after,))
                    batch = list(islice(rows, SCAN_ROWS))
            except apsw.Error as error:
                raise translate_sqlite(error, self._path) from error
            if not batch:
                return
            yield from batch

    def next_keys(self, limit: int) -> list[bytes]:
        """The next up to `limit` keys, in order."""
        try:
            with self._reading:
                connection = self._reader()
                self._keys = self._keys or connection.execute(_SCAN_KEYS, (self._after,))
                return [key for (key,) in islice(self._keys, limit)]
        except apsw.Error as error:
            raise translate_sqlite(error, self._path) from error

    def _reader(self) -> apsw.Connection:
        if self._forked:
            raise_forked(self._path)
        if self._connection is None:
            raise StoreClosedError("the scan was closed", path=self._path)
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close(True)
            self._connection = None

    def sever(self) -> object:
        inherited, self._connection, self._forked = self._connection, None, True
        if inherited is not None:
            _close_inherited(inherited)
        return inherited


def _close_inherited(connection: apsw.Connection) -> None:
    """In a child: make SQLite forget what it believes this process has locked. The parent's locks stay."""
    if is_at_rest():
        try:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            connection.close(True)
        except apsw.Error:
            pass


def row_of(key: bytes, record: Record) -> tuple[Any, ...]:
    """The row of a session: its readable columns are NULL if the record is no stored session, its metadata
    also if it is sealed."""
    try:
        session = Session("", record[8:])
        columns = (
            session.version,
            session.created_at,
            session.last_accessed,
            session.timeout_ms,
            session.expires_at,
            int(session.priority),
            session.home_node,
            session.group,
            msgspec.json.encode(session.tags).decode(),
            msgspec.json.encode(readable(session.metadata)).decode(),
        )
    except (CorruptError, ValueError, OverflowError, RecursionError):
        return _row_of_other(key, record)
    return (key, *(_fitting(column) for column in columns), record)


def _row_of_other(key: bytes, record: Record) -> tuple[Any, ...]:
    """The row of a compressed session, of a sealed one (without metadata), or of what is none."""
    value = record[8:]
    try:
        clear = in_clear(value)
    except CorruptError:
        clear = value
    if clear == value:
        return (key, *_UNREADABLE, record)
    row = row_of(key, record[:8] + clear)
    return (*row[:-2], None if is_sealed(value) else row[-2], record)


def readable(value: Any) -> Any:
    """Metadata as JSON can say it: bytes as {"$base64": ...}, times as ISO 8601, keys as text."""
    if isinstance(value, Mapping):
        return {str(key): readable(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [readable(child) for child in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"$base64": b64encode(value).decode()}
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, msgspec.msgpack.Ext):
        return {"$extension": value.code, "$base64": b64encode(value.data).decode()}
    return value


def _fitting(column: Any) -> Any:
    """SQLite has 64-bit signed numbers: a larger one is shown rounded."""
    return float(column) if isinstance(column, int) and column > _DEADLINE_MAX else column


def _create_file(path: Path) -> None:
    """With this project's file mode; an existing file is left alone, as its locks must be."""
    with translated("cannot make a file", path):
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE))
        except FileExistsError:
            pass


def _connect(path: Path) -> apsw.Connection:
    connection = apsw.Connection(os.fspath(path), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    connection.execute(
        f"PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA cache_size = -{CACHE_KIB};"
        f" PRAGMA journal_size_limit = {WAL_BYTES_MAX}; PRAGMA trusted_schema = OFF"
    )
    return connection


def _prepare(connection: apsw.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").get
    if version == 0:
        with connection:
            connection.execute(_SCHEMA)
    elif version != SCHEMA_VERSION:
        raise FormatVersionError(
            f"the state has schema {version}, not {SCHEMA_VERSION}",
            path=path,
            hint=_REBUILD,
        )


def _read_position(connection: apsw.Connection, path: Path) -> StatePosition:
    row = connection.execute(_POSITION).fetchone()
    if row is None:
        return NOWHERE
    epoch, lsn, chain, digest, session_count = row
    try:
        return StatePosition(epoch, lsn, int(chain, 16), int(digest, 16), session_count)
    except (TypeError, ValueError) as error:
        raise CorruptError("the state's position is damaged", path=path) from error


def _put_position(connection: apsw.Connection, position: StatePosition) -> None:
    epoch, lsn, chain, digest, session_count = position
    connection.execute(_SET_POSITION, (epoch, lsn, f"{chain:016x}", f"{digest:016x}", session_count))
