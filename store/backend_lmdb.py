"""The state in LMDB (the Backend port).

Owns what the environment holds: the databases `sessions` (id -> record), `long` (see long_ids.py),
`deadlines` (first deadline, transaction, number -> run, see deadlines.py), `labels` (term, NUL, id ->
nothing) and `long labels` (hash of such a key -> that key, where it is too long for one), and the position
record in the unnamed one. Whatever changes, changes with the position in one transaction.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Final, NoReturn, Protocol, TypeVar

from .blocks import Work
from .deadlines import RUN_SPAN_MS, pack_run, runs_of, unpack_run
from .engine_lmdb import (
    OUTGROWN,
    Cursor,
    EngineError,
    Environment,
    Txn,
    join_environment,
    leave_environment,
    translate_lmdb,
)
from .errors import PerdureError, StoreClosedError, UsageError
from .forks import raise_forked, watch_forks
from .ids import NOWHERE, StatePosition
from .long_ids import (
    ENGINE_KEY_BYTES_MAX,
    engine_key,
    pack_long,
)
from .ports import Change, Deadline, Labelled, Record
from .scan_lmdb import (
    LmdbScan,
    find_labelled,
    get_long,
    has_labels,
    label_key,
    put_position,
    read_position,
)

DUE_SPARE: Final = 4096
NO_WORK: Final = Work(0, 0, 0, 0)

_RUN_KEY = struct.Struct(">QQI")
_FIRST = struct.Struct(">Q")
_HASH_BYTES: Final = 32
T = TypeVar("T")


class ReadRecord(Protocol):
    """The record of a key in the read view."""

    def __call__(self, key: bytes) -> Record | None: ...


class LmdbBackend:
    """The state in one LMDB environment.

    `get` is set by refresh(): the engine's own function while no id is longer than 511 bytes. So take
    it from the back end anew after each refresh. It raises the engine's own errors, which
    `engine_errors` names and `translate` turns into perdure's.

    `map_bytes` is the size of the memory map at first, and `mapped` whether the file is written through
    it; engine_lmdb.py has the defaults. All handles of a process share what the first one opened with,
    and all processes must agree on `mapped`.
    """

    engine_errors: tuple[type[Exception], ...] = (EngineError,)
    get: ReadRecord

    def __init__(self, path: Path, *, map_bytes: int | None = None, mapped: bool | None = None) -> None:
        self.path = path
        self._shared = join_environment(path, map_bytes=map_bytes, mapped=mapped)
        self._sessions = self._shared.sessions
        self._begin: Callable[..., Txn] = self._shared.begin_read
        self._refuse: Callable[..., NoReturn] | None = None
        self._txn: Txn | None = None
        self._txn_id = -1
        self._position = NOWHERE
        self._long_count = 0
        self.has_labels = False
        self.get = self._get_without_view
        watch_forks(self)

    def translate(self, error: Exception) -> PerdureError:
        """The perdure error for one of `engine_errors`; raise it `from` the original."""
        return translate_lmdb(error, self._shared.data_path)

    def refresh(self) -> StatePosition:
        """Begin (or renew) the read view at the newest state; says where that stands."""
        txn = self._txn
        try:
            if txn is not None:
                txn.abort()
            else:
                self._shared.readers.add(self)
            self._txn = txn = self._begin(self._sessions)
            txn_id = txn.id()
            if txn_id != self._txn_id:
                self._position, self._long_count = read_position(txn, self._shared)
                self.has_labels = has_labels(txn, self._shared)
                self._txn_id = txn_id
        except OUTGROWN:
            self.release()
            self._shared.grow()
            return self.refresh()
        except EngineError as error:
            self.release()
            raise self.translate(error) from error
        self.get = self._get_any if self._long_count else txn.get
        return self._position

    def release(self) -> None:
        """End the read view, so that it pins nothing. The next get needs a refresh."""
        if self._txn is not None:
            self._txn.abort()
            self._txn = None
            self.get = self._get_without_view
        self._shared.readers.discard(self)

    def _get_any(self, key: bytes) -> Record | None:
        txn = self._txn
        if txn is None:
            return self._get_without_view(key)
        return txn.get(key) if len(key) <= ENGINE_KEY_BYTES_MAX else get_long(txn, self._shared, key)

    def _get_without_view(self, key: bytes) -> Record | None:
        if self._refuse:
            self._refuse()
        raise UsageError(f"no read view to get session {key!r} from: call refresh() first")

    def scan(self, after: bytes = b"") -> LmdbScan:
        """An image of the newest state, from the first key above `after`."""
        return self._read(lambda: LmdbScan(self._shared, after))

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

        What is both disarmed and armed stays armed. The read view stays where it is, except when the
        memory map has to grow, which renews it.
        """
        puts, others = _split(changes)
        runs = list(runs_of(armed))
        work = self._work_of(puts, others, runs, len(disarmed) + len(unlabelled), labelled)

        def apply(txn: Txn) -> None:
            if disarmed:
                _disarm(txn.cursor(self._shared.deadlines), disarmed)
            if puts:
                self._put_sessions(txn, puts)
            if others:
                self._apply_others(txn, others)
            _put_runs(txn, self._shared, runs)
            if labelled or unlabelled:
                self._index(txn, labelled, unlabelled)
            put_position(txn, self._shared, position)

        self._write(apply, work)

    def _put_sessions(self, txn: Txn, puts: Sequence[Change]) -> None:
        """Appended where all are behind what is there: a rebuild takes a third of the time."""
        cursor = txn.cursor(self._sessions)
        appends = not cursor.last() or cursor.key() < puts[0][0]
        done = cursor.putmulti(puts, append=appends)[1]  # type: ignore[arg-type]
        if done != len(puts):
            raise UsageError("the changes to fold are not in key order", path=self.path)

    def _index(self, txn: Txn, labelled: Sequence[Labelled], unlabelled: Sequence[Labelled]) -> None:
        for pair in unlabelled:
            stored = label_key(pair)
            if len(stored) <= ENGINE_KEY_BYTES_MAX:
                txn.delete(stored, b"", self._shared.labels)
            else:
                txn.delete(_hash_of(stored), b"", self._shared.long_labels)
        for pair in labelled:
            stored = label_key(pair)
            if len(stored) <= ENGINE_KEY_BYTES_MAX:
                txn.put(stored, b"", db=self._shared.labels)
            else:
                txn.put(_hash_of(stored), stored, db=self._shared.long_labels)

    def _apply_others(self, txn: Txn, others: Sequence[Change]) -> None:
        """Removals, and what is to be put under long ids."""
        delete, sessions, long = txn.delete, self._sessions, self._shared.long
        for key, record in others:
            if len(key) <= ENGINE_KEY_BYTES_MAX:
                delete(key, b"", sessions)
            elif record is None:
                delete(engine_key(key), b"", long)
            else:
                txn.put(engine_key(key), pack_long(key, record), db=long)

    def _write(self, apply: Callable[[Txn], None], work: Work) -> None:
        if self._refuse:
            self._refuse()
        viewing = self._txn is not None
        try:
            self._shared.write(apply, work, self.release)
        finally:
            if viewing and self._txn is None:
                self.refresh()

    def due(self, until_ms: int, limit: int) -> list[Deadline]:
        """Up to `limit` of the earliest deadlines that are at or before `until_ms`, in order."""
        return self._read(lambda: self._due(until_ms, limit))

    def _due(self, until_ms: int, limit: int) -> list[Deadline]:
        with self._shared.env.begin(self._shared.deadlines, buffers=True) as txn:
            return _earliest(txn.cursor(), until_ms, limit)

    def _read(self, read: Callable[[], T]) -> T:
        """`read` in a transaction of its own; once more if another process had made the map larger."""
        if self._refuse:
            self._refuse()
        try:
            return read()
        except OUTGROWN:
            viewing = self._txn is not None
            self.release()
            self._shared.grow()
            if viewing:
                self.refresh()
            return self._read(read)
        except EngineError as error:
            raise self.translate(error) from error

    def find(self, above: Labelled, last_term: bytes, limit: int) -> list[Labelled]:
        """Up to `limit` pairs of the index in order, above `above`, with terms up to `last_term`."""
        txn = self._txn
        if txn is None:
            self._get_without_view(above[1])
            return []
        try:
            return find_labelled(txn, self._shared, above, last_term, limit)
        except EngineError as error:
            raise self.translate(error) from error

    def _work_of(
        self,
        puts: Sequence[Change],
        others: Sequence[Change],
        runs: Sequence[tuple[int, bytes]],
        removed: int,
        labelled: Sequence[Labelled],
    ) -> Work:
        """What a transaction is about to do; where no blocks are allocated ahead, nobody asks."""
        if not self._shared.mapped:
            return NO_WORK
        put = [len(key) + len(record or b"") for key, record in puts]
        sizes = [2 * len(key) + len(record or b"") for key, record in others]
        sizes += [len(run) + _RUN_KEY.size for _, run in runs]
        sizes += [len(term) + len(key) + _HASH_BYTES + 1 for term, key in labelled]
        largest = max(max(put, default=0), max(sizes, default=0))
        writes = len(puts) + len(others) + len(runs) + len(labelled) + 1
        return Work(writes, len(others) + removed, sum(put) + sum(sizes), largest)

    def close(self) -> None:
        """Give up the view and the handle. Scans must be closed before."""
        if self._refuse is None:
            self.release()
            self._refuse = self._begin = self._raise_closed
            leave_environment(self._shared)

    def _raise_closed(self, *_: object) -> NoReturn:
        self._shared.readers.discard(self)
        raise StoreClosedError("the state was closed", path=self.path)

    def _raise_forked(self, *_: object) -> NoReturn:
        raise_forked(self.path)

    def sever(self) -> object:
        inherited, self._txn = self._txn, None
        if self._refuse is None:
            self._refuse = self._begin = self._raise_forked
            self.get = self._get_without_view
        return inherited


def _split(changes: Sequence[Change]) -> tuple[Sequence[Change], Sequence[Change]]:
    """Those that one putmulti() writes, and the others. In most folds there are none of the others."""
    others = [its for its in changes if its[1] is None or len(its[0]) > ENGINE_KEY_BYTES_MAX]
    if not others:
        return changes, ()
    puts = [its for its in changes if its[1] is not None and len(its[0]) <= ENGINE_KEY_BYTES_MAX]
    return puts, others


def _hash_of(stored: bytes) -> bytes:
    return blake2b(stored, digest_size=_HASH_BYTES).digest()


def _put_runs(txn: Txn, shared: Environment, runs: Sequence[tuple[int, bytes]]) -> None:
    """A write transaction's id is never given again: no run replaces another.

    Appended where all are behind what is there, as they are while all sessions live equally long: pages are
    filled then, and otherwise left half empty.
    """
    if not runs:
        return
    txn_id, cursor = txn.id(), txn.cursor(shared.deadlines)
    pairs = [(_RUN_KEY.pack(first, txn_id, number), run) for number, (first, run) in enumerate(runs)]
    appends = not cursor.last() or cursor.key() < pairs[0][0]
    if cursor.putmulti(pairs, append=appends)[1] != len(pairs):
        raise UsageError("the deadlines to arm are not in order", path=shared.data_path)


def _earliest(cursor: Cursor, until_ms: int, limit: int) -> list[Deadline]:
    found: list[Deadline] = []
    enough = limit
    for key, run in cursor:
        if _FIRST.unpack_from(key)[0] > until_ms:
            break
        found += unpack_run(run, until_ms)
        if len(found) >= enough:
            found = _first_of(found, limit)
            until_ms = min(until_ms, found[-1][0]) if len(found) == limit else until_ms
            enough = limit + DUE_SPARE
    return _first_of(found, limit)


def _first_of(found: list[Deadline], limit: int) -> list[Deadline]:
    return sorted(dict.fromkeys(found))[:limit]


def _disarm(cursor: Cursor, disarmed: Sequence[Deadline]) -> None:
    """Take entries out of their runs; one lies in a run that begins at most RUN_SPAN_MS before it."""
    wanted = set(disarmed)
    deadlines = sorted({deadline for deadline, _ in disarmed})
    found = cursor.set_range(_FIRST.pack(max(0, deadlines[0] - RUN_SPAN_MS)))
    while found:
        first = _FIRST.unpack_from(cursor.key())[0]
        index = bisect_left(deadlines, first)
        if index == len(deadlines):
            return
        if deadlines[index] > first + RUN_SPAN_MS:
            found = cursor.set_range(_FIRST.pack(deadlines[index] - RUN_SPAN_MS))
            continue
        entries = unpack_run(cursor.value())
        kept = [entry for entry in entries if entry not in wanted]
        if kept:
            if len(kept) < len(entries):
                cursor.put(cursor.key(), pack_run(kept))
            found = cursor.next()
        else:
            cursor.delete()
            found = bool(cursor.key())
