"""SessionStore: the sessions of one store, as applications use them.

Owns the public calls and what each means as events; how they become durable is commit's, what is seen
is view's, opening and background work are opening's and keeper's.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping
from operator import methodcaller
from pathlib import Path
from types import TracebackType
from typing import Any

import xxhash

from .batch import Batch
from .commit import Durability, Writer, parse_durability
from .errors import (
    Indeterminate,
    PerdureError,
    SessionNotFoundError,
    SessionTooLargeError,
    StoreClosedError,
    UsageError,
    VersionConflictError,
)
from .event import Kind, Reason
from .fold import HASH_BYTES
from .ids import Position, StatePosition
from .keeper import Keeper
from .keyring import Keyring, KeySource
from .opening import Opened, OpenOptions, open_store
from .page import Word
from .ports import CommitGate
from .reading import SessionReader
from .reseal import Progress as ResealProgress
from .reseal import Resealed, reseal
from .sealed import KNOWN_FLAGS, outline
from .sealer import COMPRESS_MIN_BYTES, SealOptions
from .session import (
    ACCESSED,
    DEFAULT_TIMEOUT_MS,
    FORMAT,
    HEAD_LABELS_SHIFT,
    HEAD_MASK,
    HEADER_BYTES,
    TIMEOUT_OFFSET,
    Priority,
    Session,
    check_timeout,
    encode_session,
    expiry_at,
    expiry_of,
    unpack_record,
    with_stamps,
)
from .stage import Stage
from .tail_map import KEPT_MS, UNKNOWN_MS

SESSION_BYTES_MAX = 65_536
_GENERATION = int(Word.GENERATION)
_ID_POOL_BYTES = 4096
xxh3_64 = xxhash.xxh3_64_intdigest


class _Ids:
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


class SessionStore(SessionReader):
    """The sessions of one store. Safe for threads; after a fork open it anew.

    Get one with `SessionStore.open(path)`, or `perdure.open(path)` where replicas must confirm.
    """

    def __init__(self, opened: Opened, options: OpenOptions, gate: CommitGate | None) -> None:
        super().__init__(opened, options)
        self._is_lazy = options.durability is Durability.OS and gate is None
        self._size_bytes_max = options.session_bytes_max
        self._seals = self._sealer if self._sealer.changes else None
        """None where values are stored as they are."""
        self._ids = _Ids()
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
        self._gate = gate
        self._is_closed = False
        self._keeper.start(self._writer)

    # -- opening and closing ---------------------------------------------------------------------

    @classmethod
    def open(  # noqa: PLR0913 - one argument for each option
        cls,
        path: str | os.PathLike[str],
        *,
        backend: str | None = None,
        durability: str = "os",
        interval_ms: int = 1000,
        max_session_size_bytes: int = SESSION_BYTES_MAX,
        write_timeout_ms: int = 5000,
        create: bool = True,
        gate: CommitGate | None = None,
        compression: str = "none",
        compress_min_bytes: int = COMPRESS_MIN_BYTES,
        keys: Keyring | str | os.PathLike[str] | None = None,
        hide_ids: bool | None = None,
    ) -> SessionStore:
        """Open the store at `path`, making one if there is none (unless `create` is False).

        `backend` is "lmdb" or "sqlite"; None takes what the store was made with (lmdb for a new one).
        `durability` is "os", "interval" (on disk at the latest `interval_ms` ms later) or "disk".
        With `compression` "zstd" metadata of at least `compress_min_bytes` are compressed where that makes
        them smaller. With `keys` (the path of a key file, or a Keyring) values are encrypted; `hide_ids`
        then also hides ids and labels (None: as the store has it).
        Raises StorageError, FormatError, KeyMissingError or UsageError; nothing is changed then.
        """
        source = None if keys is None else KeySource(keys)
        options = OpenOptions(
            backend=backend,
            durability=parse_durability(durability),
            interval_ms=interval_ms,
            session_bytes_max=max_session_size_bytes,
            write_timeout_ms=write_timeout_ms,
            create=create,
            seal=SealOptions(compression, compress_min_bytes, source, hide_ids),
        )
        opened = open_store(Path(path), options)
        try:
            return cls(opened, options, gate)
        except BaseException:
            opened.close()
            raise

    def close(self) -> None:
        """Flush what the durability asks for, fold, and give everything back. Idempotent.

        Waits for calls of other threads that are under way. Raises, when all is given back, what the flush
        raises that durability "interval" has promised.
        """
        if self._is_closed:
            return
        self._writer.refuse_reentry()
        self._is_closed = True
        if self._log.pid != os.getpid():
            return  # in a child: all of it belongs to the parent
        failed = self._keeper.stop()
        if self._gate is not None:
            self._gate.close()
        with self._writer.threads:
            self._opened.close()
        if failed is not None:
            raise failed

    def __enter__(self) -> SessionStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- writing ---------------------------------------------------------------------------------

    def create(
        self,
        metadata: Mapping[str, Any] | None = None,
        *,
        timeout_ms: int | None = DEFAULT_TIMEOUT_MS,
        max_lifetime_ms: int | None = None,
        priority: Priority = Priority.NORMAL,
        group: str = "",
        tags: Iterable[str] = (),
        durability: str | None = None,
    ) -> str:
        """Store a new session under a new random id of 32 hexadecimal characters; answers the id.

        `timeout_ms` is the idle timeout, None for infinite; `max_lifetime_ms` the absolute one. Raises
        MetadataError, SessionTooLargeError or UsageError (nothing was written), BusyError, StorageError,
        or Indeterminate.
        """
        if durability is not None:
            parse_durability(durability)
        now_ms = self._now_ms()
        timeout = timeout_ms if timeout_ms is DEFAULT_TIMEOUT_MS else check_timeout(timeout_ms)
        cap = 0 if max_lifetime_ms is None else now_ms + check_timeout(max_lifetime_ms)
        value = encode_session(
            1,
            now_ms,
            now_ms,
            timeout,
            cap,
            metadata if metadata is not None else {},
            priority,
            group=group,
            tags=tuple(tags) if tags else (),
        )
        take = self._ids.take
        id = take().hex()
        if len(value) > self._size_bytes_max:
            raise self._too_large(id, value)
        operation_id = take()
        expiry_ms = expiry_at(now_ms, timeout, cap)
        key = id.encode()
        if self._seals is not None:
            key = self._key_of(id)
            value = self._seals.seal(id, key, value)
        position = self._writer.create(key, value, operation_id, now_ms, expiry_ms)
        if not (self._is_lazy and durability is None and self._is_still_ours()):
            self._finish(position, durability, operation_id)
        return id

    def put(
        self,
        id: str,
        metadata: Mapping[str, Any],
        ttl_ms: int | None = DEFAULT_TIMEOUT_MS,
        *,
        sliding: bool = False,
        priority: Priority = Priority.NORMAL,
        group: str = "",
        tags: Iterable[str] = (),
        if_version: int | None = None,
        durability: str | None = None,
    ) -> Session:
        """Store a session under an id of the caller's choice, new or in place of the old one.

        `ttl_ms` is an absolute lifetime from now, or an idle timeout with `sliding`; None is for ever.
        `if_version` makes it conditional (0: only if there is none): VersionConflictError. Otherwise
        raises as create, and InvalidIdError.
        """
        key = self._key_of(id)
        ttl = check_timeout(ttl_ms)
        tagged = tuple(tags)
        value = encode_session(
            version=1,
            created_ms=0,
            accessed_ms=0,
            timeout_ms=0,
            cap_ms=0,
            priority=priority,
            group=group,
            tags=tagged,
            metadata=metadata,
        )
        if len(value) > self._size_bytes_max:
            raise self._too_large(id, value)
        operation_id = self._ids.take()

        def evaluate(stage: Stage) -> Session:
            now_ms = self._now_ms()
            old_value = stage.value(key)
            old = self._outlined(id, old_value, now_ms)
            check_version(id, old, if_version)
            stored = encode_session(
                version=old.version + 1 if old else 1,
                created_ms=old.created_at if old else now_ms,
                accessed_ms=now_ms,
                timeout_ms=ttl if sliding else 0,
                cap_ms=0 if sliding or not ttl else now_ms + ttl,
                priority=priority,
                group=group,
                tags=tagged,
                metadata=metadata,
            )
            sealed = stored
            if self._seals is not None:
                sealed = self._seals.seal(id, key, stored)
            elif old_value is not None and old_value[1]:
                self._sealer.refuse_plain(id, old_value)
            stage.put(key, sealed, Reason.REPLACED, operation_id)
            return Session(id, stored)

        session: Session = self._commit(evaluate, durability, operation_id)
        return session

    def update(
        self,
        id: str,
        function: Callable[[Session], Session],
        *,
        if_version: int | None = None,
        durability: str | None = None,
    ) -> Session:
        """Read, change and store a session in one atomic step; answers the session as stored.

        `function` gets the session and returns it changed, by `session.merge({...})` or
        `session.replace(...)`; it runs once, under the write lock, in this thread. What it raises comes
        through, and the session stays as it was. Raises SessionNotFoundError, VersionConflictError,
        and as create.
        """
        if durability is not None:
            parse_durability(durability)
        key = self._key_of(id)
        operation_id = self._ids.take()
        try:
            position, stored = self._writer.change(
                key, operation_id, self._updated, (id, function, if_version)
            )
        except (SessionNotFoundError, VersionConflictError):
            self._writer.wait_visible()
            raise
        if self._touches:
            self._touches.pop(key, None)
        if not (self._is_lazy and durability is None and self._is_still_ours()):
            self._finish(position, durability, operation_id)
        return Session(id, stored if self._seals is None else self._seals.open(key, stored))

    def patch(
        self,
        id: str,
        changes: Mapping[str, Any],
        *,
        if_version: int | None = None,
        durability: str | None = None,
    ) -> Session:
        """Set these keys of a session's metadata, and leave the others; answers the session as stored.

        Raises as update, and MetadataError.
        """
        merge = methodcaller("merge", changes)
        return self.update(id, merge, if_version=if_version, durability=durability)

    def _updated(
        self,
        key: bytes,
        record: bytes | None,
        now_ms: int,
        asked: tuple[str, Callable[[Session], Session], int | None],
    ) -> tuple[bytes, int]:
        """What update() stores in place of `record`, and what is left to arm. Runs the function."""
        id, function, if_version = asked
        old = None
        value = b""
        version = created = accessed = 0
        if record is not None:
            value = record[HASH_BYTES:]
            try:
                hashed, head, version, created, accessed, timeout, cap = unpack_record(record)
            except struct.error as error:
                raise self._damaged(id) from error
            if xxh3_64(value, xxh3_64(key)) != hashed:
                raise self._damaged(id)
            if head & HEAD_MASK != FORMAT:
                value = self._opened_value(id, key, value, now_ms) or b""
            if expiry_at(accessed, timeout, cap) >= now_ms:
                old = Session(id, value, 0 if head >> HEAD_LABELS_SHIFT else HEADER_BYTES)
        if if_version is not None:
            check_version(id, old, if_version)
        if old is None:
            raise self._missing(id)
        changed = function(old)
        if type(changed) is not Session or changed._id != id:
            raise UsageError(
                f"the update function returned {type(changed).__name__}, not the session changed",
                hint="Return session.merge({...}) or session.replace(...).",
            )
        if not changed._start:
            changed.check()
        stored = with_stamps(changed._value, version + 1, created, now_ms)
        if len(stored) > self._size_bytes_max:
            raise self._too_large(id, stored)
        is_later = (
            now_ms >= accessed and stored[TIMEOUT_OFFSET:HEADER_BYTES] == value[TIMEOUT_OFFSET:HEADER_BYTES]
        )
        if self._seals is not None:
            stored = self._seals.seal(id, key, stored)
        return stored, KEPT_MS if is_later else UNKNOWN_MS

    def touch(self, id: str, *, if_version: int | None = None, durability: str | None = None) -> None:
        """Extend a session's life as if it was used now.

        Raises SessionNotFoundError, VersionConflictError.
        """
        key = self._key_of(id)
        operation_id = self._ids.take()

        def evaluate(stage: Stage) -> None:
            now_ms = self._now_ms()
            old = self._live(stage, id, key, now_ms)
            check_version(id, old, if_version)
            if old is None:
                raise self._missing(id)
            self._touches.pop(key, None)
            stage.touch(key, ACCESSED.pack(now_ms), operation_id)

        self._commit(evaluate, durability, operation_id)

    def delete(self, id: str, *, if_version: int | None = None, durability: str | None = None) -> bool:
        """Remove a session; says whether it was there."""
        key = self._key_of(id)
        operation_id = self._ids.take()

        def evaluate(stage: Stage) -> bool:
            old = self._live(stage, id, key, self._now_ms())
            check_version(id, old, if_version)
            if old is None:
                return False
            self._touches.pop(key, None)
            stage.remove(key, Kind.DELETE, Reason.DELETED, operation_id)
            return True

        was_there: bool = self._commit(evaluate, durability, operation_id)
        return was_there

    def regenerate_id(self, id: str, *, if_version: int | None = None, durability: str | None = None) -> str:
        """Move a session to a new random id, as one atomic event; answers the new id.

        Raises SessionNotFoundError, VersionConflictError.
        """
        key = self._key_of(id)
        new_id = self._ids.take().hex()
        new_key = self._key_of(new_id)
        operation_id = self._ids.take()

        def evaluate(stage: Stage) -> str:
            value = stage.value(key)
            old = self._outlined(id, value, self._now_ms())
            check_version(id, old, if_version)
            if old is None or value is None:
                raise self._missing(id)
            moved = self._sealer.moved(key, value, new_id, new_key) if value[1] else None
            self._touches.pop(key, None)
            stage.rename(key, new_key, operation_id)
            if moved is not None:
                stage.put(new_key, moved, Reason.RENAMED, operation_id)
            return new_id

        renamed: str = self._commit(evaluate, durability, operation_id)
        return renamed

    def batch(self, *, durability: str | None = None) -> Batch:
        """Several changes in one atomic commit: `with store.batch() as batch: ...`.

        Nothing is written before the block ends, nothing at all if it raises.
        """
        return Batch(
            self._ids.take, self._now_ms, self._size_bytes_max, self._apply_batch, durability, self._sealer
        )

    def _apply_batch(self, evaluate: Callable[[Stage], Any], durability: str | None, first: bytes) -> Any:
        return self._commit(evaluate, durability, first)

    def cleanup_expired(self, limit: int = 10_000) -> int:
        """Remove sessions that have expired, as logged events; answers how many (at most `limit`)."""
        return self._keeper.sweep(limit)

    def reseal(self, progress: ResealProgress | None = None, *, recompress: bool = True) -> Resealed:
        """Store every session as new ones are: sealed under the active key, compressed as the options say.

        Without `recompress` each stays compressed or uncompressed.

        Nothing else of a session changes, and one that is changed meanwhile is left to a later pass; passes
        go on until one finds nothing to do. May be broken off at any time, and called again.
        `progress` is told (sessions looked at, sessions there are). Raises KeyMissingError, after all others
        are done, if there are sessions that cannot be opened; NotPrimaryError, and as a write does.
        """
        return reseal(
            self._view, self._sealer, self._commit_all, self._now_ms, progress, recompress=recompress
        )

    def _commit_all(self, evaluate: Callable[[Stage], int]) -> int:
        changed: int = self._commit(evaluate, None, self._ids.take())
        return changed

    # -- durability and fold ---------------------------------------------------------------------

    def flush(self) -> Position:
        """Make everything that was written durable on this node's disk; says up to where."""
        self._flush_touches()
        position = self.position()
        self._log.flush(position.lsn)
        return position

    def fold(self) -> int:
        """Fold the visible tail into the state now; answers the LSN that the state then holds."""
        return self._keeper.fold_now()

    def stats(self) -> dict[str, Any]:
        """As SessionReader.stats, and why background work (fold, flush, seal) failed, None if it works."""
        error = self._keeper.last_error
        return {**super().stats(), "background_error": None if error is None else str(error)}

    # -- inside ----------------------------------------------------------------------------------

    def _commit(self, evaluate: Callable[[Stage], Any], durability: str | None, operation_id: bytes) -> Any:
        if durability is not None:
            parse_durability(durability)
        try:
            result, position = self._writer.commit(evaluate, operation_id)
        except (SessionNotFoundError, VersionConflictError):
            self._writer.wait_visible()  # it may rest on what is not committed yet
            raise
        if position is not None:
            self._finish(position, durability, operation_id)
        else:
            self._writer.wait_visible()
        return result

    def _is_still_ours(self) -> bool:
        """Did nothing change since the append that an acknowledgement depends on?"""
        log = self._log
        try:
            return bool(log.words[_GENERATION] == log.generation)
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

    def _live(self, stage: Stage, id: str, key: bytes, now_ms: int) -> Session | None:
        return self._outlined(id, stage.value(key), now_ms)

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
            self._touches.clear()

    def _flush_touches(self) -> None:
        """Write the coalesced refreshes, as one frame."""
        touches, self._touches = self._touches, {}
        if not touches or not self._log.is_primary:
            return
        operation_id = self._ids.take()

        def evaluate(stage: Stage) -> None:
            for key, accessed_ms in list(touches.items()):  # a reader may still add to it
                value = stage.value(key)
                if value is not None and ACCESSED.unpack_from(value, 24)[0] < accessed_ms:
                    stage.touch(key, ACCESSED.pack(accessed_ms), operation_id)

        try:
            self._writer.commit(evaluate)
        except PerdureError:
            self._touches = {**touches, **self._touches}
            raise


def check_version(id: str, old: Session | None, expected: int | None) -> None:
    """Raise VersionConflictError unless the session has the expected version (0: is not there)."""
    actual = old.version if old else 0
    if expected is not None and expected != actual:
        raise VersionConflictError(
            f"session {id!r} has version {actual}, expected {expected}",
            expected=expected,
            actual=actual or None,
        )
