"""A replica gathers what a rejoin needs: frames from the fork up to L, and the records of the touched keys.

Owns the directory `rejoin/` while that goes on, and the order: its own log behind the fork is read in a
thread, the frames come meanwhile, then the records are asked for, list by list; then what the state becomes
is worked out in a thread. Nothing of log or state is touched. If the connection ends it is all begun anew,
because the primary's L is another one then.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from typing import Final

from ..store import names
from ..store.errors import DivergedError, PerdureError, WireError
from ..store.files import FILE_MODE, make_directory, translated, write_all
from ..store.ids import Position, StatePosition
from ..store.ports import Record
from .frames_in import split_frames
from .messages import FetchAsk, FetchReply, Message
from .messages_rejoin import (
    KEY_BYTES_AT_ONCE,
    KEYS_AT_ONCE,
    KeysAsk,
    KeysOffer,
    KeysReply,
    pack_keys,
    unpack_records,
)
from .nodelog import NodeLog
from .rejoin import EPOCH_LIMIT, FRAMES, Prepared, open_trusted, prepare, write_records
from .rejoin_plan import KEYS_LOG_BYTES_MAX
from .replacing import check_unplanned
from .touched import TooMuchError, events_of, renames_of, tied, touched_keys

FETCH_BYTES: Final = 1 << 20
KEY_BYTES_MAX: Final = 32 << 20
RECORD_BYTES_MAX: Final = 256 << 20


class Taking:
    """One try to take the touched keys."""

    def __init__(self, node: NodeLog, offer: KeysOffer) -> None:
        """Raises DivergedError if the offered fork is not in this node's log, StoreInUseError while another
        rejoin is half done, StorageError."""
        self.fork = Position(*offer.fork)
        self.at = StatePosition(*offer.at)
        self.prepared: Prepared | None = None
        self.primary = ""
        """Of the epoch that the fork is in."""
        self._node = node
        self._folder = node.store / names.REJOIN
        self._reached = self._find_fork()
        self._renames: list[tuple[bytes, bytes]] = []
        self._touched: set[bytes] | None = None
        self._keys: list[bytes] | None = None
        self._asked: list[bytes] = []
        self._records: list[tuple[bytes, Record | None]] = []
        self._record_bytes = 0
        self._is_asking = self._is_preparing = False
        self._failed: PerdureError | OSError | None = None
        check_unplanned(node.store, names.REJOIN_PLAN)
        with translated("cannot gather what a rejoin needs", self._folder):
            shutil.rmtree(self._folder, ignore_errors=True)
            make_directory(self._folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self._folder / FRAMES, flags, FILE_MODE)
        self._start(self._look)

    def poll(self) -> tuple[Message, bytes] | None:
        """What is to be asked now, if anything. `prepared` is set when all is done.

        Raises TooMuchError, DivergedError, CorruptError, StorageError: it does not come to anything.
        """
        if self._failed is not None:
            raise self._failed
        if self._is_asking or self._is_preparing:
            return None
        if self._reached.lsn < self.at.lsn:
            self._is_asking = True
            return FetchAsk(self._reached.position, FETCH_BYTES), b""
        if self._touched is None:
            return None
        if self._keys is None:
            self._keys = sorted(tied(self._touched, self._renames))
        if len(self._records) < len(self._keys):
            self._is_asking = True
            self._asked = self._next_keys(self._keys)
            return KeysAsk(len(self._asked)), pack_keys(self._asked)
        self._is_preparing = True
        self._start(self._prepare)
        return None

    def take_frames(self, reply: FetchReply, raw: bytes) -> None:
        """Raises WireError for what does not follow, StorageError."""
        if not self._is_asking or self._asked or not raw:
            raise WireError("no frames, or none that were asked for", lsn=self._reached.lsn + 1)
        log = self._node.log
        shard = self._node.identity.shard
        pieces = split_frames(raw, self._reached, key=log.key, shard=shard, epoch_max=EPOCH_LIMIT)
        end = pieces[-1].end
        if end.lsn > self.at.lsn or end.position != Position(*reply.end):
            raise WireError("more frames than were offered", lsn=end.lsn)
        if end.lsn == self.at.lsn and end != self.at:
            raise WireError(f"the frames end at {end.position}, offered was {self.at.position}", lsn=end.lsn)
        for events in events_of(raw, log.key):
            self._renames += renames_of(events)
        with translated("cannot gather what a rejoin needs", self._folder):
            write_all(self._descriptor, raw)
        self._reached = end
        self._is_asking = False

    def take_records(self, reply: KeysReply, payload: bytes) -> None:
        """Raises WireError for an answer to another question, TooMuchError."""
        if not self._asked or not 0 < reply.count <= len(self._asked):
            raise WireError(f"{reply.count} records, and {len(self._asked)} were asked for")
        records = unpack_records(payload, reply.count)
        self._records += zip(self._asked, records, strict=False)
        self._record_bytes += len(payload)
        if self._record_bytes > RECORD_BYTES_MAX:
            raise TooMuchError(
                f"more than {RECORD_BYTES_MAX} bytes of sessions were changed", lsn=self.fork.lsn
            )
        self._asked, self._is_asking = [], False

    def close(self) -> None:
        """Whatever was gathered stays until the next try, or the rejoin itself, removes it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _next_keys(self, keys: list[bytes]) -> list[bytes]:
        chosen: list[bytes] = []
        size = 0
        for key in keys[len(self._records) : len(self._records) + KEYS_AT_ONCE]:
            chosen.append(key)
            size += len(key)
            if size >= KEY_BYTES_AT_ONCE:
                break
        return chosen

    def _find_fork(self) -> StatePosition:
        cursor = self._node.cursor()
        try:
            cursor.seek(self.fork.lsn)
            self.primary = cursor.header.primary if cursor.header else ""
            at = cursor.at
        finally:
            cursor.close()
        if at.position != self.fork or not self.fork.lsn <= self.at.lsn:
            raise DivergedError(
                f"the primary has {self.fork}, this log {at.position} there",
                path=self._node.store,
                lsn=self.fork.lsn,
            )
        return at

    # -- in threads ------------------------------------------------------------------------------

    def _start(self, work: Callable[[], None]) -> None:
        threading.Thread(target=self._guarded, args=(work,), name="perdure-rejoin", daemon=True).start()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (PerdureError, OSError) as error:
            self._failed = error

    def _look(self) -> None:
        cursor = self._node.cursor(is_sparse=False)
        try:
            self._touched = touched_keys(
                cursor,
                self.fork.lsn,
                key_bytes_max=KEY_BYTES_MAX,
                log_bytes_max=KEYS_LOG_BYTES_MAX,
            )
        finally:
            cursor.close()

    def _prepare(self) -> None:
        node = self._node
        with translated("cannot gather what a rejoin needs", self._folder):
            os.fsync(self._descriptor)
        write_records(self._folder, self._records)
        backend = open_trusted(node.store, node.identity)
        if backend is None:
            raise DivergedError("the state is not to be trusted, and is made anew", path=node.store)
        try:
            prepared = prepare(node.store, node.identity, self.at, backend)
        finally:
            backend.close()
        self.prepared = prepared  # only now: who sees it begins to change the store
