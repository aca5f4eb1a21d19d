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
from typing import Any, TypeAlias

import xxhash

from .batch import Batch
from .commit import Evaluate, parse_durability
from .committing import check_version
from .errors import (
    Indeterminate,
    NotPrimaryError,
    PerdureError,
    SessionNotFoundError,
    StoreClosedError,
    UsageError,
    VersionConflictError,
)
from .event import Kind, Reason
from .event import pack_header as pack_event
from .fold import HASH_BYTES
from .hot import HOT_BYTES
from .ids import Position
from .keyring import Keyring, KeySource
from .many import ManySessions
from .opening import SWEEP_INTERVAL_MS, OpenOptions, open_store
from .ports import CommitGate, Forwarder
from .sealer import COMPRESS_MIN_BYTES, SealOptions
from .session import (
    ACCESSED,
    DEFAULT_TIMEOUT_MS,
    FORMAT,
    HEAD_LABELS_SHIFT,
    HEAD_MASK,
    HEADER_BYTES,
    TIMEOUT_OFFSET,
    VERSION_OFFSET,
    Priority,
    Session,
    check_timeout,
    encode_session,
    expiry_at,
    tags_of,
    unpack_record,
    with_stamps,
    with_window,
)
from .stage import Stage
from .sweeping import end_expired
from .tail_map import KEPT_MS, UNKNOWN_MS

SESSION_BYTES_MAX = 65_536
_PUT = int(Kind.PUT)
_UPDATED = int(Reason.UPDATED)
xxh3_64 = xxhash.xxh3_64_intdigest
Update: TypeAlias = tuple[str, Callable[[Session], Session], int | None, bytes]
"""An update that was asked for: id, function, expected version, operation id."""


class SessionStore(ManySessions):
    """The sessions of one store. Safe for threads; after a fork open it anew.

    Get one with `SessionStore.open(path)`, or `perdure.open(path)` where replicas must confirm.
    """

    # -- opening and closing ---------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        backend: str | None = None,
        durability: str = "os",
        interval_ms: int = 1000,
        max_session_size_bytes: int = SESSION_BYTES_MAX,
        write_timeout_ms: int = 5000,
        refresh_window_ms: int | None = None,
        sweep_interval_ms: int = SWEEP_INTERVAL_MS,
        hot_bytes: int = HOT_BYTES,
        create: bool = True,
        home_node: str = "",
        max_sessions: int | None = None,
        gate: CommitGate | None = None,
        forwarder: Forwarder | None = None,
        compression: str = "none",
        compress_min_bytes: int = COMPRESS_MIN_BYTES,
        keys: Keyring | str | os.PathLike[str] | None = None,
        hide_ids: bool | None = None,
        default_timeout_ms: int | None = DEFAULT_TIMEOUT_MS,
    ) -> SessionStore:
        """Open the store at `path`, making one if there is none (unless `create` is False).

        `backend` is "lmdb", "sqlite", "memory" (see docs/backends.md) or one that is installed; None takes
        what the store was made with (lmdb for a new one).
        `durability` is "os", "interval" (on disk at the latest `interval_ms` ms later) or "disk"; "cache",
        when a store is made, makes one that keeps no log (see docs/sessions.md).
        `home_node` is what new sessions get as theirs. With `max_sessions` the least recently used session is
        evicted for each new one beyond so many; processes that write one store give the same number.
        `refresh_window_ms` (0 to 60,000) is for the sessions that this handle creates and puts: how old
        their last access may be in the store while they are used; None is a tenth of their timeout, at
        most a minute. `default_timeout_ms` is for sessions that are created without a timeout, None for
        infinite. Every `sweep_interval_ms` (0: never) the primary removes what has expired.
        Up to `hot_bytes` of sessions that are read often stay in memory, checked (0: none).
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
            refresh_window_ms=refresh_window_ms,
            sweep_interval_ms=sweep_interval_ms,
            hot_bytes=hot_bytes,
            create=create,
            home_node=home_node,
            sessions_max=max_sessions,
            default_timeout_ms=default_timeout_ms,
            seal=SealOptions(compression, compress_min_bytes, source, hide_ids),
        )
        opened = open_store(Path(path), options)
        try:
            return cls(opened, options, gate, forwarder)
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
        unheard = self._events.close()
        failed = self._keeper.stop()
        if self._elsewhere is not None:
            self._elsewhere.close()
        if self._gate is not None:
            self._gate.close()
        with self._writer.threads:
            self._opened.close()
        if (error := failed or unheard) is not None:
            raise error

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
        home_node: str | None = None,
        durability: str | None = None,
    ) -> str:
        """Store a new session under a new random id of 32 hexadecimal characters; answers the id.

        `timeout_ms` is the idle timeout, None for infinite, and the store's default_timeout_ms if not given;
        `max_lifetime_ms` the absolute one; `home_node` is the store's if None. Raises MetadataError,
        SessionTooLargeError or UsageError (nothing was written), BusyError, StorageError, or Indeterminate.
        """
        if durability is not None:
            parse_durability(durability)
        now_ms = self._now_ms()
        if timeout_ms is DEFAULT_TIMEOUT_MS:
            timeout = self._default_lifetime
        else:
            timeout = with_window(check_timeout(timeout_ms), self._window_ms)
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
            tags=tags_of(tags) if tags else (),
            home_node=self._home_node if home_node is None else home_node,
        )
        take = self._ids.take
        id = take().hex()
        if len(value) > self._size_bytes_max:
            raise self._too_large(id, value)
        key, operation_id = id.encode(), take()
        if self._seals is not None:
            key = self._key_of(id)
            value = self._seals.seal(id, key, value)
        if self._evictor is not None:
            self._commit(_creation(key, value, operation_id), durability, operation_id)
            return id
        expiry_ms = expiry_at(now_ms, timeout, cap)
        try:
            position = self._writer.create(key, value, operation_id, now_ms, expiry_ms)
        except NotPrimaryError as error:
            self._carry_out(error, _creation(key, value, operation_id), durability, operation_id)
            return id
        if not (self._is_lazy and durability is None and self._is_still_ours()):
            try:
                self._finish(position, durability, operation_id)
            except Indeterminate as error:
                creation = _creation(key, value, operation_id)
                self._carry_out(error, creation, durability, operation_id, (None, position.position))
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
        home_node: str | None = None,
        if_version: int | None = None,
        durability: str | None = None,
    ) -> Session:
        """Store a session under an id of the caller's choice, new or in place of the old one.

        `ttl_ms` is an absolute lifetime from now, or an idle timeout with `sliding`; None is for ever, and
        not given it is the store's default_timeout_ms. `if_version` makes it conditional (0: only if there is
        none): VersionConflictError. Otherwise raises as create, and InvalidIdError.
        """
        key = self._key_of(id)
        ttl = self._default_timeout if ttl_ms is DEFAULT_TIMEOUT_MS else check_timeout(ttl_ms)
        lifetime = with_window(ttl, self._window_ms) if sliding else 0
        tagged = tags_of(tags) if tags else ()
        home = self._home_node if home_node is None else home_node
        value = encode_session(
            version=1,
            created_ms=0,
            accessed_ms=0,
            timeout_ms=0,
            cap_ms=0,
            priority=priority,
            group=group,
            tags=tagged,
            home_node=home,
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
            if old is None:
                end_expired(stage, key, now_ms)
            stored = encode_session(
                version=old.version + 1 if old else 1,
                created_ms=old.created_at if old else now_ms,
                accessed_ms=now_ms,
                timeout_ms=lifetime,
                cap_ms=0 if sliding or not ttl else now_ms + ttl,
                priority=priority,
                group=group,
                tags=tagged,
                home_node=home,
                metadata=metadata,
            )
            stage.put(key, self._sealed(id, key, stored, old_value), Reason.REPLACED, operation_id)
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
        asked = (id, function, if_version, operation_id)
        try:
            position, stored = self._writer.change(key, operation_id, self._updated, asked)
        except (SessionNotFoundError, VersionConflictError, NotPrimaryError) as error:
            return self._update_elsewhere(error, key, operation_id, asked, durability)
        if self._touches:
            self._touches.pop(key, None)
        changed = Session(id, stored if self._seals is None else self._seals.open(key, stored))
        if not (self._is_lazy and durability is None and self._is_still_ours()):
            try:
                self._finish(position, durability, operation_id)
            except Indeterminate as error:
                finished = (changed, position.position)
                return self._update_elsewhere(error, key, operation_id, asked, durability, finished)
        return changed

    def _update_elsewhere(
        self,
        error: PerdureError,
        key: bytes,
        operation_id: bytes,
        asked: Update,
        durability: str | None,
        finished: tuple[Session, Position] | None = None,
    ) -> Session:
        """What update() comes to after an error. Raises it, unless another node can carry the update out."""

        def evaluate(stage: Stage) -> Session:
            _, stored, _ = self._updated(key, stage.get(key), self._now_ms(), asked)
            stage.put(key, stored, Reason.UPDATED, operation_id)
            return Session(asked[0], stored if self._seals is None else self._seals.open(key, stored))

        updated: Session
        if isinstance(error, (NotPrimaryError, Indeterminate)):
            updated = self._carry_out(error, evaluate, durability, operation_id, finished)
        else:
            updated = self._raise_found(error, evaluate, durability, operation_id)
        return updated

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
        asked: Update,
    ) -> tuple[bytes, bytes, int]:
        """What update() comes to (see Writer.change). Runs the function."""
        id, function, if_version, operation_id = asked
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
        start = changed._start or changed.check()
        stored = with_stamps(changed._value, version + 1, created, now_ms)
        if len(stored) > self._size_bytes_max:
            raise self._too_large(id, stored)
        is_kept = (
            now_ms >= accessed
            and stored[:VERSION_OFFSET] == value[:VERSION_OFFSET]
            and stored[TIMEOUT_OFFSET:start] == value[TIMEOUT_OFFSET:start]
        )
        if self._seals is not None:
            stored = self._seals.seal(id, key, stored)
        event = pack_event(_PUT, _UPDATED, len(key), len(stored), operation_id) + key + stored
        return event, stored, KEPT_MS if is_kept else UNKNOWN_MS

    def touch(self, id: str, *, if_version: int | None = None, durability: str | None = None) -> None:
        """Extend a session's life as if it was used now.

        Raises SessionNotFoundError, VersionConflictError.
        """
        key = self._key_of(id)
        operation_id = self._ids.take()

        def evaluate(stage: Stage) -> None:
            now_ms = self._now_ms()
            old = self._outlined(id, stage.value(key), now_ms)
            check_version(id, old, if_version)
            if old is None:
                raise self._missing(id)
            self._touches.pop(key, None)
            stage.touch(key, ACCESSED.pack(now_ms), operation_id)

        self._change_one(key, self._touched, (id, if_version, operation_id), evaluate, durability)

    def delete(self, id: str, *, if_version: int | None = None, durability: str | None = None) -> bool:
        """Remove a session; says whether it was there."""
        key = self._key_of(id)
        operation_id = self._ids.take()

        def evaluate(stage: Stage) -> bool:
            old = self._outlined(id, stage.value(key), self._now_ms())
            check_version(id, old, if_version)
            if old is None:
                return False
            self._touches.pop(key, None)
            stage.remove(key, Kind.DELETE, Reason.DELETED, operation_id)
            return True

        return self._change_one(key, self._removed, (id, if_version, operation_id), evaluate, durability)

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
            self._ids.take,
            self._now_ms,
            self._size_bytes_max,
            self._apply_batch,
            durability,
            self._sealer,
            self._home_node,
            self._window_ms,
            self._default_timeout,
        )

    def _apply_batch(self, evaluate: Callable[[Stage], Any], durability: str | None, first: bytes) -> Any:
        return self._commit(evaluate, durability, first)

    # -- durability and fold ---------------------------------------------------------------------

    def flush(self) -> Position:
        """Make everything that was written durable on this node's disk; says up to where."""
        self._flush_touches()
        position = self.position()
        try:
            self._log.flush(position.lsn)
        except ValueError as error:  # the page was closed meanwhile
            raise StoreClosedError("the store was closed", path=self._opened.store) from error
        return position

    def fold(self) -> int:
        """Fold the visible tail into the state now; answers the LSN that the state then holds.

        Raises LockTimeoutError if another process folds for longer than the write timeout, StorageError,
        CorruptError, and DivergedError on a replica whose state is not what the frames were written on.
        """
        return self._keeper.fold_now()

    def stats(self) -> dict[str, Any]:
        """As SessionReader.stats, with what this handle's background work does.

        `background_error` is why it (fold, flush, sweep, seal) failed, None if it works;
        `refreshes_dropped` how many refreshes of get() could not be written.
        """
        error = self._keeper.last_error
        return {
            **super().stats(),
            "background_error": None if error is None else str(error),
            "refreshes_dropped": self._refreshes_dropped
            + (0 if self._elsewhere is None else self._elsewhere.refreshes.dropped),
            "refreshes_forwarded": 0 if self._elsewhere is None else self._elsewhere.refreshes.forwarded,
        }


def _creation(key: bytes, value: bytes, operation_id: bytes) -> Evaluate:
    """A creation as an operation. Apart, so that create() has no variables that a closure shares."""
    return lambda stage: stage.put(key, value, Reason.CREATED, operation_id)
