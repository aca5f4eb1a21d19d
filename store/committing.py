"""Committing: how a public call becomes a frame, and when it may answer.

Owns the handle's writer, keeper, evictor and random ids, what a call waits for before it answers, and the
refreshes that wait in memory. What the calls are is in sessions.py and many.py.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections import ChainMap
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import xxhash

from .capacity import Evictor, NothingToEvict
from .commit import Durability, Evaluate, StoredT, Writer, parse_durability
from .elsewhere import Elsewhere
from .errors import (
    Indeterminate,
    NotPrimaryError,
    PerdureError,
    SessionNotFoundError,
    SessionTooLargeError,
    StoreClosedError,
    VersionConflictError,
)
from .event import Kind, Reason, encode_event
from .fold import HASH_BYTES
from .freshness import Freshness
from .ids import Position, StatePosition
from .keeper import Keeper
from .opening import Opened, OpenOptions
from .page import Word
from .ports import CommitGate, Forwarder, Record
from .reading import REFRESHES_MAX, SessionReader
from .sealed import KNOWN_FLAGS, outline
from .session import (
    ACCESSED,
    ACCESSED_OFFSET,
    FORMAT,
    HEAD_MASK,
    Session,
    check_timeout,
    expiry_at,
    expiry_of,
    unpack_record,
    with_accessed,
    with_window,
)
from .stage import Stage
from .tail_map import UNKNOWN_MS

EVICT_TRIES = 8
"""Beside others that evict, too, what was found may be gone when it is needed."""
_GENERATION = int(Word.GENERATION)
_ID_POOL_BYTES = 4096
xxh3_64 = xxhash.xxh3_64_intdigest


Marked: TypeAlias = tuple[str, int | None, bytes]
"""A touch or removal that was asked for: id, expected version, operation id."""


class _NothingThere(Exception):
    """A removal found no session. Never leaves the store."""


class RandomIds:
    """Random ids from a pool, so that each does not cost a system call. Safe for threads: pop is atomic."""

    def __init__(self) -> None:
        self._pool: list[bytes] = []

    def take(self) -> bytes:
        """16 random bytes, never given before."""
        try:
            return self._pool.pop()
        except IndexError:
            random = os.urandom(_ID_POOL_BYTES)
            fresh = [random[at : at + 16] for at in range(16, _ID_POOL_BYTES, 16)]
            self._pool = fresh
            return random[:16]


class CommittingStore(SessionReader):
    """A handle that writes."""

    def __init__(
        self,
        opened: Opened,
        options: OpenOptions,
        gate: CommitGate | None,
        forwarder: Forwarder | None = None,
    ) -> None:
        super().__init__(opened, options)
        self._is_lazy = options.durability <= Durability.OS and gate is None
        self._size_bytes_max = options.session_bytes_max
        self._seals = self._sealer if self._sealer.changes else None
        """None where values are stored as they are."""
        self._window_ms = options.refresh_window_ms
        self._default_timeout = check_timeout(options.default_timeout_ms)
        self._default_lifetime = with_window(self._default_timeout, self._window_ms)
        self._ids = RandomIds()
        self._keeper = Keeper(opened, options, self._flush_touches)
        self._writer = Writer(
            opened.log,
            opened.view,
            gate=gate,
            write_timeout_ms=options.write_timeout_ms,
            after_append=self._keeper.after_append,
            make_room=self._keeper.make_room,
        )
        if self._sealer.keys is not None:
            self._keeper.refresh_keys = self._sealer.refresh
        self._home_node = options.home_node
        self._in_flight: dict[int, dict[bytes, int]] = {}
        """Refreshes that are being written, by the id of what holds them."""
        self._evictor: Evictor | None = None
        if options.sessions_max is not None:
            self._evictor = Evictor(
                self._keeper, self._view, self._unwritten, self._flush_touches, options.sessions_max
            )
        self._gate = gate
        self._elsewhere: Elsewhere | None = None
        if forwarder is not None:
            self._elsewhere = Elsewhere(self._writer, forwarder, options.durability)
            self._writer.find_newer = self._elsewhere.newer_primary
        self._freshness = Freshness(self._writer, gate, self._elsewhere)
        self._is_closed = False
        self._refreshes_dropped = 0
        self._keeper.start(self._writer)

    def _commit(self, evaluate: Callable[[Stage], Any], durability: str | None, operation_id: bytes) -> Any:
        if durability is not None:
            parse_durability(durability)
        try:
            if self._evictor is None:
                result, position = self._writer.commit(evaluate, operation_id)
            else:
                result, position = self._commit_bounded(self._evictor, evaluate, operation_id)
            if position is None:
                self._writer.wait_visible()
                return result
        except (SessionNotFoundError, VersionConflictError) as error:
            return self._raise_found(error, evaluate, durability, operation_id)
        except (NotPrimaryError, Indeterminate) as error:
            return self._carry_out(error, evaluate, durability, operation_id)
        try:
            self._finish(position, durability, operation_id)
        except Indeterminate as error:
            return self._carry_out(error, evaluate, durability, operation_id, (result, position.position))
        return result

    def _change_one(
        self,
        key: bytes,
        change: Callable[[bytes, Record | None, int, Marked], tuple[bytes, StoredT, int]],
        asked: Marked,
        evaluate: Evaluate,
        durability: str | None,
    ) -> bool:
        """Touch or remove one session in a frame of its own; says whether it was written.

        `evaluate` is the same change, for the queue of those that wait and for where this node may not write.
        """
        if durability is not None:
            parse_durability(durability)
        operation_id = asked[2]
        if self._writer.is_busy:  # others write: together in one frame
            return self._commit(evaluate, durability, operation_id) is not False
        try:
            position, _ = self._writer.change(key, operation_id, change, asked)
        except _NothingThere:
            self._writer.wait_visible()
            return False
        except (SessionNotFoundError, VersionConflictError) as error:
            self._raise_found(error, evaluate, durability, operation_id)
            return True
        except NotPrimaryError as error:
            return self._carry_out(error, evaluate, durability, operation_id) is not False
        if self._touches:
            self._touches.pop(key, None)
        if not (self._is_lazy and durability is None and self._is_still_ours()):
            try:
                self._finish(position, durability, operation_id)
            except Indeterminate as error:
                self._carry_out(error, evaluate, durability, operation_id, (True, position.position))
        return True

    def _touched(
        self, key: bytes, record: Record | None, now_ms: int, asked: Marked
    ) -> tuple[bytes, bytes, int]:
        """What touch() comes to (see Writer.change)."""
        id, if_version, operation_id = asked
        version = self._version_of(id, key, record, now_ms)
        check_actual(id, version, if_version)
        if record is None or not version:
            raise self._missing(id)
        accessed = ACCESSED.pack(now_ms)
        event = encode_event(Kind.TOUCH, Reason.TOUCHED, operation_id, key, accessed)
        return event, with_accessed(record[HASH_BYTES:], accessed), UNKNOWN_MS

    def _removed(
        self, key: bytes, record: Record | None, now_ms: int, asked: Marked
    ) -> tuple[bytes, None, int]:
        """What delete() comes to (see Writer.change)."""
        id, if_version, operation_id = asked
        version = self._version_of(id, key, record, now_ms)
        check_actual(id, version, if_version)
        if not version:
            raise _NothingThere
        return encode_event(Kind.DELETE, Reason.DELETED, operation_id, key, b""), None, UNKNOWN_MS

    def _version_of(self, id: str, key: bytes, record: Record | None, now_ms: int) -> int:
        """The version of the session in a record, 0 if there is none or it has expired."""
        if record is None:
            return 0
        value = record[HASH_BYTES:]
        try:
            hashed, head, version, _, accessed, timeout, cap = unpack_record(record)
        except struct.error as error:
            raise self._damaged(id) from error
        if xxh3_64(value, xxh3_64(key)) != hashed:
            raise self._damaged(id)
        if head & HEAD_MASK != FORMAT and (value[0] != FORMAT or value[1] not in KNOWN_FLAGS):
            raise self._unknown_format(id)
        return int(version) if expiry_at(accessed, timeout, cap) >= now_ms else 0

    def _raise_found(
        self, found: PerdureError, evaluate: Evaluate, durability: str | None, operation_id: bytes
    ) -> Any:
        """Raise what a change found, once what it rests on is committed."""
        try:
            self._writer.wait_visible()
        except (NotPrimaryError, Indeterminate) as error:
            return self._carry_out(error, evaluate, durability, operation_id)
        raise found

    def _carry_out(
        self,
        error: PerdureError,
        evaluate: Evaluate,
        durability: str | None,
        operation_id: bytes,
        finished: tuple[Any, Position] | None = None,
    ) -> Any:
        """The result of a change that this node cannot (or could not) make by itself. Raises `error` if no
        other one can either."""
        if self._elsewhere is None:
            raise error
        level = None if durability is None else parse_durability(durability)
        return self._elsewhere.carry_out(evaluate, level, operation_id, error, finished=finished)

    def _await_freshness(
        self, after: Position | tuple[int, int, int] | str | None, max_lag_ms: int | None, linearizable: bool
    ) -> None:
        if after is not None:
            self._freshness.wait_for(after, None)
        if max_lag_ms is not None:
            self._freshness.bound_lag(max_lag_ms)
        if linearizable:
            self._freshness.reach_newest()

    def wait_for(
        self, token: Position | tuple[int, int, int] | str, timeout_ms: int | None = None
    ) -> Position:
        """Wait until reads of this handle show all up to a position; answers where they stand then.

        The token is what `position()` of any handle on any node gave, also as its text: after a write it
        covers that write. Raises StaleReadError past `timeout_ms` (None: the store's write_timeout_ms),
        PositionLostError if that history was lost, UsageError.
        """
        return self._freshness.wait_for(token, timeout_ms)

    def lag_ms(self) -> int | None:
        """How old what this handle reads may be at most, in ms, as far as heartbeats tell; None: unknown.

        On the primary 0, or with sync_replicas the time since they confirmed that it is the primary.
        """
        return self._freshness.lag_ms()

    def _append(self, evaluate: Evaluate, operation_id: bytes) -> tuple[Any, StatePosition | None]:
        """Evaluate and append on this node, which must be the primary; durable is for whoever calls."""
        if self._evictor is None:
            return self._writer.commit(evaluate, operation_id)
        return self._commit_bounded(self._evictor, evaluate, operation_id)

    def _commit_bounded(
        self, evictor: Evictor, evaluate: Evaluate, operation_id: bytes
    ) -> tuple[Any, StatePosition | None]:
        """As Writer.commit, with evictions for the sessions that are added."""
        evaluate = evictor.bounded(evaluate, operation_id)
        for _ in range(EVICT_TRIES):
            try:
                return self._writer.commit(evaluate, operation_id)
            except NothingToEvict:
                if not evictor.search():
                    self._writer.wait_visible()
        return self._writer.commit(evaluate, operation_id)

    def _is_still_ours(self) -> bool:
        """Did nothing change since the append that an acknowledgement depends on, and is nothing more asked
        for?"""
        log = self._log
        try:
            return bool(log.words[_GENERATION] == log.generation and not log.config.degraded_from)
        except (StoreClosedError, ValueError):
            return False  # another thread closed the store meanwhile

    def _finish(self, position: StatePosition, durability: str | None, operation_id: bytes) -> None:
        level = self._durability
        if durability is not None:
            level = max(level, parse_durability(durability))
        try:
            self._writer.finish(position, level, operation_id)
        except Indeterminate as error:
            error.operation_id = operation_id.hex()
            raise

    def _sealed(self, id: str, key: bytes, value: bytes, old: bytes | None) -> bytes:
        """What is stored for a plain value in place of `old`. Raises KeyMissingError."""
        if self._seals is not None:
            return self._seals.seal(id, key, value)
        if old is not None and old[1]:
            self._sealer.refuse_plain(id, old)
        return value

    def _outlined(self, id: str, value: bytes | None, now_ms: int) -> Session | None:
        """The session that a stored value is, if it has not expired; of a sealed one without its metadata."""
        if value is None or expiry_of(value) < now_ms:
            return None
        if value[1]:
            if value[1] not in KNOWN_FLAGS:
                raise self._unknown_format(id)
            value = outline(value)
        session = Session(id, value)
        session.check()
        return session

    def _too_large(self, id: str, value: bytes) -> SessionTooLargeError:
        return SessionTooLargeError(
            f"session {id!r} takes {len(value)} bytes, the limit is {self._size_bytes_max}",
            hint="Keep large data elsewhere, or raise max_session_size_bytes.",
        )

    def _make_room_for_refreshes(self) -> None:
        """Write what waits; a reader is never refused because that cannot be done."""
        try:
            self._flush_touches()
        except PerdureError as error:
            self._keeper.last_error = error
            self._refreshes_dropped += len(self._touches)
            self._touches.clear()

    def _refresh_at_once(self, key: bytes, now_ms: int) -> None:
        """Write one refresh; what cannot be written now waits for the others' next turn."""
        if not self._log.is_primary:
            self._refresh_elsewhere({key: now_ms})
            return
        try:
            self._writer.commit(partial(self._refresh, {key: now_ms}))
        except PerdureError:  # also inside an update function, where nothing else may be written
            if len(self._touches) < REFRESHES_MAX:
                self._touches[key] = now_ms
            else:
                self._refreshes_dropped += 1

    def _refresh(self, touches: Mapping[bytes, int], stage: Stage) -> None:
        """Put refreshes on the stage, of sessions that had not expired when they were used."""
        operation_id = self._ids.take()
        for key, accessed_ms in touches.items():
            value = stage.value(key)
            if value is None:
                continue
            written_ms: int = ACCESSED.unpack_from(value, ACCESSED_OFFSET)[0]
            if written_ms < accessed_ms <= expiry_of(value):
                stage.touch(key, ACCESSED.pack(accessed_ms), operation_id)

    def _refresh_elsewhere(self, touches: dict[bytes, int]) -> None:
        """Have refreshes written by the primary; what cannot be is counted."""
        if self._elsewhere is not None and self._elsewhere.is_reachable():
            self._elsewhere.refreshes.send(touches)
        else:
            self._refreshes_dropped += len(touches)

    def _flush_touches(self) -> None:
        """Write the coalesced refreshes, as one frame. A node that is not primary sends them to it."""
        taken: dict[bytes, int] = {}
        self._in_flight[id(taken)] = taken
        try:
            self._write_touches(taken)
        finally:
            del self._in_flight[id(taken)]

    def _unwritten(self) -> Mapping[bytes, int]:
        """Refreshes that wait, and those that are being written: who evicts passes these sessions over."""
        in_flight = list(self._in_flight.values())
        return ChainMap(self._touches, *in_flight) if in_flight else self._touches

    def _write_touches(self, taken: dict[bytes, int]) -> None:
        """Write what waits, and hold it in `taken` meanwhile."""
        waiting = self._touches
        with contextlib.suppress(KeyError):  # readers go on adding to it, and writers take out of it
            while waiting and len(taken) < REFRESHES_MAX:
                key, accessed_ms = waiting.popitem()
                taken[key] = accessed_ms
        if not taken:
            return
        if not self._log.is_primary:
            self._refresh_elsewhere(taken)
            return
        try:
            self._writer.commit(partial(self._refresh, taken))
        except PerdureError:
            for key, accessed_ms in taken.items():
                waiting.setdefault(key, accessed_ms)
            raise


def check_version(id: str, old: Session | None, expected: int | None) -> None:
    """Raise VersionConflictError unless the session has the expected version (0: is not there)."""
    check_actual(id, old.version if old else 0, expected)


def check_actual(id: str, actual: int, expected: int | None) -> None:
    """As check_version, of the version that the session has, 0 if it is not there."""
    if expected is not None and expected != actual:
        raise VersionConflictError(
            f"session {id!r} has version {actual}, expected {expected}",
            expected=expected,
            actual=actual or None,
        )
