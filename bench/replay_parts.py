"""The parts of a replay: what the fold of a log into a new state cannot do without.

Owns them, for each event: LMDB's append of the record, the hashes of frame, id and session, and the sort by
id. Measured as the parts of a call are (see parts.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Final

import lmdb
import xxhash

from perdure.store import SessionStore
from perdure.store.backends import open_backend
from perdure.store.cursor import LogCursor
from perdure.store.fold import record_of, value_of
from perdure.store.ids import NOWHERE
from perdure.store.rebuild import replay

from .workloads import BATCH, SMALL_BYTES, sessions_of

CALL: Final = "replay, an event in frames of 100"
APPEND: Final = "LMDB's append in the order of the ids"
HASHES: Final = "hashes of frame, id and session"
SORT: Final = "the sort by id"
PARTS_OF_REPLAY: Final = (APPEND, HASHES, SORT)

_MAP_BYTES = 1 << 34
_hash = xxhash.xxh3_64_intdigest


class ReplayParts:
    """A log of so many creates, and the same sessions as bare records."""

    def __init__(self, folder: Path, events: int) -> None:
        self.events = events
        self._folder = folder
        self._number = 0
        self._store = SessionStore.open(folder / "log", sweep_interval_ms=0)
        fields = sessions_of(SMALL_BYTES, 5)
        for _ in range(events // BATCH):
            with self._store.batch() as batch:
                for one in islice(fields, BATCH):
                    batch.create(one)
        self._store.fold()
        choice = random.Random(4)
        with closing(self._store._opened.backend.scan()) as scan:
            value = value_of(*next(iter(scan)))
        self._pairs = [(b"%032x" % choice.getrandbits(128), value) for _ in range(events)]
        self._sorted = sorted((id, record_of(id, value)) for id, value in self._pairs)
        self._frame = value * BATCH

    def whole(self) -> None:
        log = self._store._log
        backend = open_backend("lmdb", self._new_place())
        cursor = LogCursor(log.cursor.log, log.identity.cluster_id, log.key)
        try:
            replay(backend, cursor, NOWHERE)
        finally:
            cursor.close()
            backend.close()

    def functions(self) -> dict[str, Callable[[], object]]:
        return {APPEND: self._append, HASHES: self._hash_all, SORT: lambda: sorted(self._pairs)}

    def close(self) -> None:
        self._store.close()

    def _append(self) -> None:
        environment = lmdb.open(
            str(self._new_place()), map_size=_MAP_BYTES, sync=False, metasync=False, writemap=True
        )
        with environment.begin(write=True) as txn, txn.cursor() as cursor:
            cursor.putmulti(self._sorted, append=True)
        environment.close()

    def _hash_all(self) -> None:
        for _ in range(self.events // BATCH):
            _hash(self._frame, 1)
        for id, value in self._pairs:
            _hash(value, _hash(id))

    def _new_place(self) -> Path:
        self._number += 1
        return self._folder / f"new-{self._number}"
