"""Reading the state in LMDB: the position record, long ids, scans, and the index of labels.

Owns what a read transaction is asked; backend_lmdb.py says what is kept where.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Callable, Iterator
from itertools import islice
from operator import itemgetter
from typing import Final

from .engine_lmdb import (
    Cursor,
    EngineError,
    Environment,
    Txn,
    leave_environment,
    stay_in_environment,
    translate_lmdb,
)
from .errors import CorruptError, StoreClosedError
from .forks import raise_forked, watch_forks
from .ids import NOWHERE, StatePosition
from .long_ids import (
    BEHIND_ALL_HASHES,
    ENGINE_KEY_BYTES_MAX,
    PREFIX_BYTES,
    engine_key,
    unpack_long,
)
from .ports import Labelled, Record

SCAN_RECORDS: Final = 64
LONG_GROUP_MAX: Final = 4096

_POSITION = struct.Struct("<QQQQQQ")
_POSITION_KEY: Final = b"position"
_KEY = itemgetter(0)


class LmdbScan:
    """One image of the state, in key order (the Scan port). Pins the pages of its time until closed."""

    def __init__(self, shared: Environment, after: bytes) -> None:
        self._shared = shared
        self._after = after
        self._forked = False
        self._keys: Iterator[bytes] | None = None
        shared.readers.add(self)
        try:
            self._txn: Txn | None = shared.begin_read(shared.sessions)
            self._position, self._long_count = read_position(self._txn, shared)
        except EngineError:
            shared.readers.discard(self)
            raise
        stay_in_environment(shared)
        watch_forks(self)

    @property
    def position(self) -> StatePosition:
        return self._position

    def __iter__(self) -> Iterator[tuple[bytes, Record]]:
        short = self._batches(self._short)
        return heapq.merge(short, self._batches(self._long), key=_KEY) if self._long_count else short

    def next_keys(self, limit: int) -> list[bytes]:
        """The next up to `limit` keys, in order."""
        txn = self._reader()
        try:
            if self._keys is None:
                self._keys = self._short_keys(txn)
                if self._long_count:
                    self._keys = heapq.merge(self._keys, map(_KEY, self._long(txn)))
            return list(islice(self._keys, limit))
        except EngineError as error:
            raise translate_lmdb(error, self._shared.data_path) from error

    def _batches(
        self, pairs_of: Callable[[Txn], Iterator[tuple[bytes, Record]]]
    ) -> Iterator[tuple[bytes, Record]]:
        pairs: Iterator[tuple[bytes, Record]] | None = None
        while True:
            txn = self._reader()  # raises if it was closed or forked since the last batch
            try:
                pairs = pairs or pairs_of(txn)
                batch = list(islice(pairs, SCAN_RECORDS))
            except EngineError as error:
                raise translate_lmdb(error, self._shared.data_path) from error
            if not batch:
                return
            yield from batch

    def _short(self, txn: Txn) -> Iterator[tuple[bytes, Record]]:
        cursor = self._first_short(txn)
        return iter(()) if cursor is None else cursor.iternext()

    def _short_keys(self, txn: Txn) -> Iterator[bytes]:
        cursor = self._first_short(txn)
        return iter(()) if cursor is None else cursor.iternext(values=False)

    def _first_short(self, txn: Txn) -> Cursor | None:
        """At the first of the ids that are keys of the engine; None if there is none."""
        cursor = txn.cursor()
        after = self._after[:ENGINE_KEY_BYTES_MAX]
        found = cursor.set_range(after) if after else cursor.first()
        if found and cursor.key() <= self._after:
            found = cursor.next()
        return cursor if found else None

    def _long(self, txn: Txn) -> Iterator[tuple[bytes, Record]]:
        """Ids with one prefix lie together, in the order of their hashes: put in order here."""
        cursor = txn.cursor(self._shared.long)
        start = self._after[:PREFIX_BYTES]
        found = cursor.set_range(start) if start else cursor.first()
        while found:
            prefix, after = cursor.key()[:PREFIX_BYTES], self._after
            while keys := heapq.nsmallest(LONG_GROUP_MAX, _keys_of_group(cursor, prefix, after)):
                for key in keys:
                    yield key, get_long(txn, self._shared, key) or b""
                after = keys[-1]
            found = cursor.set_range(prefix + BEHIND_ALL_HASHES)

    def _reader(self) -> Txn:
        if self._forked:
            raise_forked(self._shared.data_path)
        if self._txn is None:
            raise StoreClosedError("the scan was closed", path=self._shared.data_path)
        return self._txn

    def close(self) -> None:
        if self._txn is not None:
            self._txn.abort()
            self._txn = None
            self._shared.readers.discard(self)
            leave_environment(self._shared)

    def sever(self) -> object:
        inherited, self._txn, self._forked = (self._txn, self._keys), None, True
        return inherited


def read_position(txn: Txn, shared: Environment) -> tuple[StatePosition, int]:
    """The position, and how many long ids there are."""
    record = txn.get(_POSITION_KEY, None, shared.unnamed)
    if record is None:
        return NOWHERE, txn.stat(shared.long)["entries"]
    if len(record) != _POSITION.size:
        raise CorruptError("the state's position record is damaged", path=shared.data_path)
    epoch, lsn, chain, digest, session_count, long_count = _POSITION.unpack(record)
    return StatePosition(epoch, lsn, chain, digest, session_count), long_count


def put_position(txn: Txn, shared: Environment, position: StatePosition) -> None:
    long_count = txn.stat(shared.long)["entries"]
    txn.put(_POSITION_KEY, _POSITION.pack(*position, long_count), db=shared.unnamed)


def has_labels(txn: Txn, shared: Environment) -> bool:
    return any(txn.stat(database)["entries"] for database in (shared.labels, shared.long_labels))


def find_labelled(
    txn: Txn, shared: Environment, above: Labelled, last_term: bytes, limit: int
) -> list[Labelled]:
    """As Backend.find. Pairs that are too long for a key of the engine are few, and all looked at."""
    cursor = txn.cursor(shared.labels)
    start = label_key(above)[:ENGINE_KEY_BYTES_MAX]
    found: list[Labelled] = []
    if cursor.set_range(start):
        for stored in cursor.iternext(values=False):
            term, _, key = stored.partition(b"\0")
            if term > last_term or len(found) >= limit:
                break
            if (term, key) > above:
                found.append((term, key))
    if txn.stat(shared.long_labels)["entries"]:
        for _, stored in txn.cursor(shared.long_labels):
            term, _, key = stored.partition(b"\0")
            if above < (term, key) and term <= last_term:
                found.append((term, key))
        found.sort()
    return found[:limit]


def label_key(pair: Labelled) -> bytes:
    """What a pair is stored under, or would be were it not too long: terms hold no NUL."""
    return pair[0] + b"\0" + pair[1]


def get_long(txn: Txn, shared: Environment, key: bytes) -> Record | None:
    stored_under = engine_key(key)
    value = txn.get(stored_under, None, shared.long)
    return None if value is None else unpack_long(value, stored_under)[1]


def _keys_of_group(cursor: Cursor, prefix: bytes, after: bytes) -> Iterator[bytes]:
    found = cursor.set_range(prefix)
    while found and cursor.key().startswith(prefix):
        key = unpack_long(cursor.value(), cursor.key())[0]
        if key > after:
            yield key
        found = cursor.next()
