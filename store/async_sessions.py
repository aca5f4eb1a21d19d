"""AsyncSessionStore: the sessions of one store for asyncio, by the calls of a SessionStore.

Owns which call is made where: a read that nothing can hold up is made at once, in the event loop's thread;
all else in threads of the store's own. What a call means is SessionStore's, in whose docstrings it stands.

Invariant: every public method of SessionStore is here, with the same parameters.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, Final, TypeVar, cast

from .async_calls import CallPools, PatientReader, TrackedWriter, WouldWaitError, finished, in_own_thread
from .async_feed import AsyncFeed
from .batch import Batch
from .bulk import Bulk
from .commit import Writer
from .consumers import Consumer
from .errors import UsageError
from .hot import HOT_BYTES
from .ids import Position
from .keyring import Keyring
from .opening import SWEEP_INTERVAL_MS
from .outcome import Outcome
from .page import Word
from .ports import CommitGate, Forwarder
from .reading import REFRESHES_MAX
from .reseal import Progress as ResealProgress
from .reseal import Resealed
from .session import DEFAULT_TIMEOUT_MS, Priority, Session
from .session_event import SessionEvent
from .sessions import SESSION_BYTES_MAX, SessionStore
from .subscribers import Subscription

CHUNK: Final = 500
"""Ids or sessions that an iterator reads at a time."""
INLINE_FRAMES_MAX: Final = 256
"""A read that has more frames of other processes to follow is made in a thread."""
READS_IN_A_ROW_MAX: Final = 64
"""So many reads are made without a turn of the event loop between them."""
_APPENDED = int(Word.APPENDED)
_GENERATION = int(Word.GENERATION)
T = TypeVar("T")


class AsyncBatch:
    """A batch in an `async with` block: changes are gathered at once, and committed at its end."""

    def __init__(self, batch: Batch, pools: CallPools) -> None:
        self._batch = batch
        self._pools = pools

    async def __aenter__(self) -> Batch:
        return self._batch.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._batch.__exit__(kind, error, traceback)
            return
        await self._pools.write(lambda: self._batch.__exit__(None, None, None))


class AsyncSessionStore:
    """The sessions of one store, for asyncio. Safe for tasks, threads, several loops; after a fork open anew.

    Get one with `await AsyncSessionStore.open(path)`, or `await perdure.open_async(path)` where replicas
    must confirm; or give it an open SessionStore, which it owns from then on. Every method is SessionStore's
    of that name, and raises the same.

    A caller that is cancelled, or times out, before its write has begun has written nothing. Behind that
    the write goes on to its end, and the CancelledError is raised from an Indeterminate, whose operation id
    `outcome()` takes; `indeterminate_of(error)` finds it, below a TimeoutError, too.
    """

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self._pools = CallPools(store._opened.store)
        self._reads_in_a_row = 0
        self._closing: Future[None] | None = None
        store._writer = cast(Writer, TrackedWriter(store._writer))
        self._record_reader = PatientReader(store._view)
        store._read_record = self._record_reader
        self._refresh_at_once = store._refresh_at_once
        setattr(store, "_refresh_at_once", self._refresh_in_a_thread)  # noqa: B010 - a method, replaced here

    # -- opening and closing ---------------------------------------------------------------------

    @classmethod
    async def open(
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
        compress_min_bytes: int = 1024,
        keys: Keyring | str | os.PathLike[str] | None = None,
        hide_ids: bool | None = None,
        default_timeout_ms: int | None = DEFAULT_TIMEOUT_MS,
    ) -> AsyncSessionStore:
        """As SessionStore.open, in a thread."""
        opener = partial(
            SessionStore.open,
            path,
            backend=backend,
            durability=durability,
            interval_ms=interval_ms,
            max_session_size_bytes=max_session_size_bytes,
            write_timeout_ms=write_timeout_ms,
            refresh_window_ms=refresh_window_ms,
            sweep_interval_ms=sweep_interval_ms,
            hot_bytes=hot_bytes,
            create=create,
            home_node=home_node,
            max_sessions=max_sessions,
            gate=gate,
            forwarder=forwarder,
            compression=compression,
            compress_min_bytes=compress_min_bytes,
            keys=keys,
            hide_ids=hide_ids,
            default_timeout_ms=default_timeout_ms,
        )
        return await cls.opened_by(opener)

    @classmethod
    async def opened_by(cls, opener: Callable[[], SessionStore]) -> AsyncSessionStore:
        """Of the store that `opener` opens, which is called in a thread.

        Whoever is cancelled meanwhile leaves no store open.
        """
        opening = in_own_thread(opener, "perdure-async-open")
        try:
            await finished(opening)
        except asyncio.CancelledError:
            in_own_thread(lambda: opening.result().close(), "perdure-async-close")
            raise
        return cls(opening.result())

    async def aclose(self) -> None:
        """As SessionStore.close, when the calls that are under way have ended. New ones are refused.

        Whoever is cancelled meanwhile leaves it to go on. To call it again waits for the same end.
        """
        if self._pools.is_inherited:
            self._store.close()  # all of it belongs to the parent
            return
        if self._closing is None:
            self._pools.refuse()
            self._closing = in_own_thread(self._close, "perdure-async-close")
        await finished(self._closing)
        self._closing.result()

    def _close(self) -> None:
        self._pools.close()
        self._store.close()

    async def __aenter__(self) -> AsyncSessionStore:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    # -- reading ---------------------------------------------------------------------------------

    async def get(
        self,
        id: str,
        *,
        after: Position | tuple[int, int, int] | str | None = None,
        max_lag_ms: int | None = None,
        linearizable: bool = False,
    ) -> Session | None:
        """The session, or None if it is missing or expired. Refreshes its life."""
        if linearizable or after is not None or max_lag_ms is not None:
            return await self._pools.read(
                lambda: self._store.get(id, after=after, max_lag_ms=max_lag_ms, linearizable=linearizable)
            )
        return await self._read(self._store.get, id)

    async def peek(
        self,
        id: str,
        *,
        after: Position | tuple[int, int, int] | str | None = None,
        max_lag_ms: int | None = None,
        linearizable: bool = False,
    ) -> Session | None:
        """As get, without refreshing."""
        if linearizable or after is not None or max_lag_ms is not None:
            return await self._pools.read(
                lambda: self._store.peek(id, after=after, max_lag_ms=max_lag_ms, linearizable=linearizable)
            )
        return await self._read(self._store.peek, id)

    async def wait_for(
        self, token: Position | tuple[int, int, int] | str, timeout_ms: int | None = None
    ) -> Position:
        """Wait until reads of this handle show all up to a position; answers where they stand then."""
        return await self._pools.read(lambda: self._store.wait_for(token, timeout_ms))

    async def lag_ms(self) -> int | None:
        """How old what this handle reads may be at most, in ms, as far as heartbeats tell."""
        return await self._pools.read(self._store.lag_ms)

    async def exists(self, id: str) -> bool:
        """Is there such a session, not expired? Refreshes nothing."""
        return await self._read(self._store.exists, id)

    async def count(
        self,
        *,
        group: str | None = None,
        tag: str | None = None,
        home_node: str | None = None,
        priority: Priority | None = None,
    ) -> int:
        """How many sessions are stored, or have these labels."""
        return await self._pools.read(
            lambda: self._store.count(group=group, tag=tag, home_node=home_node, priority=priority)
        )

    def ids(
        self,
        prefix: str = "",
        after: str = "",
        *,
        group: str | None = None,
        tag: str | None = None,
        home_node: str | None = None,
        priority: Priority | None = None,
    ) -> AsyncIterator[str]:
        """The ids in key order, from above `after`, with this prefix and these labels. Read in chunks."""
        return self._chunks(
            self._store.ids(prefix, after, group=group, tag=tag, home_node=home_node, priority=priority)
        )

    def sessions(
        self,
        matches: Callable[[Session], bool] | None = None,
        *,
        prefix: str = "",
        after: str = "",
        group: str | None = None,
        tag: str | None = None,
        home_node: str | None = None,
        priority: Priority | None = None,
    ) -> AsyncIterator[Session]:
        """The sessions that `matches`, a plain function that is called in a thread, in key order."""
        asked = None if matches is None else _plain(matches)
        return self._chunks(
            self._store.sessions(
                asked,
                prefix=prefix,
                after=after,
                group=group,
                tag=tag,
                home_node=home_node,
                priority=priority,
            )
        )

    def groups(self) -> AsyncIterator[str]:
        """The groups that sessions are in, each once."""
        return self._chunks(self._store.groups())

    def tags(self) -> AsyncIterator[str]:
        """The tags that sessions have, each once."""
        return self._chunks(self._store.tags())

    def home_nodes(self) -> AsyncIterator[str]:
        """The home nodes that sessions have, each once."""
        return self._chunks(self._store.home_nodes())

    def orphans(self, members: Iterable[str], after: str = "") -> AsyncIterator[str]:
        """The ids of sessions whose home node is not among `members`."""
        return self._chunks(self._store.orphans(members, after))

    async def count_orphans(self, members: Iterable[str]) -> int:
        """How many sessions have a home node that is not among `members`."""
        return await self._pools.read(lambda: self._store.count_orphans(members))

    async def sample(self, count: int) -> list[Session]:
        """Up to `count` sessions (1 to 10,000) drawn at random, each equally likely, refreshing none."""
        return await self._pools.read(lambda: self._store.sample(count))

    async def position(self) -> Position:
        """Where this handle's view of the log stands."""
        return await self._pools.read(self._store.position)

    async def outcome(self, what: Position | tuple[int, int, int] | str) -> Outcome:
        """What became of a write that was Indeterminate, by its position or operation id.

        Waits for a write of this handle that goes on without its caller.
        """
        if isinstance(what, str):
            await self._pools.settle(what)
        return await self._pools.read(lambda: self._store.outcome(what))

    async def stats(self) -> dict[str, Any]:
        """Marks, counts and role of this store, as this process sees them."""
        return await self._pools.read(self._store.stats)

    # -- writing ---------------------------------------------------------------------------------

    async def create(
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
        """Store a new session under a new random id of 32 hexadecimal characters; answers the id."""
        return await self._pools.write(
            lambda: self._store.create(
                metadata,
                timeout_ms=timeout_ms,
                max_lifetime_ms=max_lifetime_ms,
                priority=priority,
                group=group,
                tags=tags,
                home_node=home_node,
                durability=durability,
            )
        )

    async def put(
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
        """Store a session under an id of the caller's choice, new or in place of the old one."""
        return await self._pools.write(
            lambda: self._store.put(
                id,
                metadata,
                ttl_ms,
                sliding=sliding,
                priority=priority,
                group=group,
                tags=tags,
                home_node=home_node,
                if_version=if_version,
                durability=durability,
            )
        )

    async def update(
        self,
        id: str,
        function: Callable[[Session], Session],
        *,
        if_version: int | None = None,
        durability: str | None = None,
    ) -> Session:
        """Read, change and store a session in one atomic step; answers the session as stored.

        `function` is a plain function: it runs once, under the write lock, in a thread, and must not take
        long. Raises UsageError for a coroutine function.
        """
        plain = _plain(function)
        return await self._pools.write(
            lambda: self._store.update(id, plain, if_version=if_version, durability=durability)
        )

    async def patch(
        self,
        id: str,
        changes: Mapping[str, Any],
        *,
        if_version: int | None = None,
        durability: str | None = None,
    ) -> Session:
        """Set these keys of a session's metadata, and leave the others; answers the session as stored."""
        return await self._pools.write(
            lambda: self._store.patch(id, changes, if_version=if_version, durability=durability)
        )

    async def touch(self, id: str, *, if_version: int | None = None, durability: str | None = None) -> None:
        """Extend a session's life as if it was used now."""
        await self._pools.write(lambda: self._store.touch(id, if_version=if_version, durability=durability))

    async def delete(self, id: str, *, if_version: int | None = None, durability: str | None = None) -> bool:
        """Remove a session; says whether it was there."""
        return await self._pools.write(
            lambda: self._store.delete(id, if_version=if_version, durability=durability)
        )

    async def regenerate_id(
        self, id: str, *, if_version: int | None = None, durability: str | None = None
    ) -> str:
        """Move a session to a new random id, as one atomic event; answers the new id."""
        return await self._pools.write(
            lambda: self._store.regenerate_id(id, if_version=if_version, durability=durability)
        )

    def batch(self, *, durability: str | None = None) -> AsyncBatch:
        """Several changes in one atomic commit: `async with store.batch() as batch: batch.create(...)`.

        The changes are gathered by plain calls; the block's end commits them.
        """
        return AsyncBatch(self._store.batch(durability=durability), self._pools)

    # -- many sessions at once -------------------------------------------------------------------

    async def delete_group(self, group: str, *, durability: str | None = None) -> Bulk:
        """Remove all sessions of a group; answers how many, and whether in one atomic commit."""
        return await self._pools.write(lambda: self._store.delete_group(group, durability=durability))

    async def touch_group(self, group: str, *, durability: str | None = None) -> Bulk:
        """Extend the life of all sessions of a group as if they were used now."""
        return await self._pools.write(lambda: self._store.touch_group(group, durability=durability))

    async def cleanup_orphans(self, members: Iterable[str], *, durability: str | None = None) -> int:
        """Remove the sessions whose home node is not among `members`; answers how many."""
        return await self._pools.write(lambda: self._store.cleanup_orphans(members, durability=durability))

    async def adopt_orphans(
        self, members: Iterable[str], home_node: str, *, durability: str | None = None
    ) -> int:
        """Give the sessions whose home node is not among `members` to `home_node`; answers how many."""
        return await self._pools.write(
            lambda: self._store.adopt_orphans(members, home_node, durability=durability)
        )

    async def cleanup_expired(self, limit: int | None = None) -> int:
        """Remove sessions that have expired, as logged events; answers how many."""
        return await self._pools.work(lambda: self._store.cleanup_expired(limit))

    async def reseal(self, progress: ResealProgress | None = None, *, recompress: bool = True) -> Resealed:
        """Store every session in the form that new ones get; `progress` is called in a thread."""
        return await self._pools.work(lambda: self._store.reseal(progress, recompress=recompress))

    async def stored_as(self, id: str) -> str:
        """The id under which log and state have a session."""
        return await self._pools.read(lambda: self._store.stored_as(id))

    # -- events ----------------------------------------------------------------------------------

    def feed(
        self,
        from_lsn: int | Position | str | None = None,
        *,
        consumer: str | None = None,
        kinds: Iterable[str] | str | None = None,
        follow: bool = True,
        timeout_ms: int | None = None,
        ack_every_events: int = 1,
        ack_interval_ms: int = 1000,
        auto_ack: bool = True,
    ) -> AsyncFeed:
        """Iterate over the committed events of all processes: `async for event in store.feed(...)`."""
        return AsyncFeed(
            self._store.feed(
                from_lsn,
                consumer=consumer,
                kinds=kinds,
                follow=follow,
                timeout_ms=timeout_ms,
                ack_every_events=ack_every_events,
                ack_interval_ms=ack_interval_ms,
                auto_ack=auto_ack,
            )
        )

    async def on(self, kind: Iterable[str] | str, callback: Callable[[SessionEvent], object]) -> Subscription:
        """Call `callback`, a plain function, in a thread for every event of this kind from now on."""
        return await self._pools.work(lambda: self._store.on(kind, callback))

    async def drain_events(self, timeout_ms: int = 10_000) -> bool:
        """Wait until subscribers were called for all that is committed by now; False if the time is up."""
        return await self._pools.work(lambda: self._store.drain_events(timeout_ms))

    async def consumers(self) -> list[Consumer]:
        """The consumers whose progress is kept here, by name, with their lag."""
        return await self._pools.read(self._store.consumers)

    async def drop_consumer(self, name: str) -> bool:
        """Forget a consumer, so that no log is kept for it; says whether there was one."""
        return await self._pools.work(lambda: self._store.drop_consumer(name))

    # -- durability and fold ---------------------------------------------------------------------

    async def flush(self) -> Position:
        """Make everything that was written durable on this node's disk; says up to where."""
        return await self._pools.work(self._store.flush)

    async def fold(self) -> int:
        """Fold the visible tail into the state now; answers the LSN that the state then holds."""
        return await self._pools.work(self._store.fold)

    # -- inside ----------------------------------------------------------------------------------

    def _refresh_in_a_thread(self, key: bytes, now_ms: int) -> None:
        """A refresh that may not wait is a write: the read that asks for it is made again in a thread."""
        if not self._record_reader.asking.may_wait:
            raise WouldWaitError
        self._refresh_at_once(key, now_ms)

    async def _read(self, read: Callable[[str], T], id: str) -> T:
        """Read at once if nothing can hold that up, else in a thread."""
        self._reads_in_a_row += 1
        if self._reads_in_a_row >= READS_IN_A_ROW_MAX:
            self._reads_in_a_row = 0
            await asyncio.sleep(0)
        if self._may_read_here():
            asking = self._record_reader.asking
            asking.may_wait = False
            try:
                return read(id)
            except WouldWaitError:
                pass
            finally:
                asking.may_wait = True
        return await self._pools.read(lambda: read(id))

    def _may_read_here(self) -> bool:
        """Is there no long way to follow, no role to look at, no refresh to write?

        Raises StoreClosedError or ForkedError.
        """
        if self._closing is not None:
            self._pools.check_usable()
        log, words = self._store._log, self._store._log.words
        return bool(
            words[_GENERATION] == log.generation
            and words[_APPENDED] - log.cursor.at.lsn <= INLINE_FRAMES_MAX
            and len(self._store._touches) < REFRESHES_MAX
        )

    async def _chunks(self, found: Iterator[T]) -> AsyncIterator[T]:
        while chunk := await self._pools.read(lambda: list(islice(found, CHUNK))):
            for one in chunk:
                yield one


def _plain(function: Callable[[Session], T]) -> Callable[[Session], T]:
    """A plain function, to be called in a thread. Raises UsageError for what answers a coroutine."""
    if inspect.iscoroutinefunction(function):
        raise _not_plain(function)

    def called(session: Session) -> T:
        result = function(session)
        if inspect.iscoroutine(result):
            result.close()
            raise _not_plain(function)
        return result

    return called


def _not_plain(function: object) -> UsageError:
    return UsageError(
        f"{getattr(function, '__name__', function)!r} is a coroutine function: a plain one is needed here",
        hint="It runs in a thread and must not wait; get what it needs before the call.",
    )
