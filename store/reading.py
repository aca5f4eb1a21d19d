"""Reading sessions: what an application sees of one store, from any process and without a lock.

Owns get and peek, the check of what they read, the refreshes that wait in memory, and what can be asked
of the store as a whole. What changes a session is in sessions.py.
"""

from __future__ import annotations

import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from random import randrange
from typing import Any

import xxhash

from . import labels
from .cache import what_can_be_lost
from .consumers import Consumer
from .errors import CorruptError, InvalidIdError, SessionNotFoundError, StaleReadError, UsageError
from .events import Events
from .feed import Feed
from .fold import HASH_BYTES, REBUILD_HINT, value_of
from .hot import SEEN_MASK, SEEN_SHIFT, HotSessions
from .ids import Position
from .listing import id_of, ids_of, list_chunks, list_terms
from .log import EventLog
from .opening import Opened, OpenOptions
from .outcome import Outcome, find_outcome
from .page import Word
from .ports import Record
from .sealed import KNOWN_FLAGS, outline
from .sealer import Sealer, are_ids_hidden
from .session import (
    FORMAT,
    HEAD_LABELS_SHIFT,
    HEAD_MASK,
    HEADER_BYTES,
    REFRESH_WINDOW_MS_MAX,
    WINDOWED,
    Priority,
    Session,
    expiry_of,
    split_lifetime,
    unpack_record,
)
from .session_event import SessionEvent
from .subscribers import Subscription
from .view import View

REFRESHES_MAX = 10_000
"""Coalesced refreshes that wait in memory; a get that meets so many writes them."""
COALESCED_MS = 1000
"""A refresh waits for less than this until it is written. One that a shorter window asks for, or that is to
save a session whose life is nearly over, is written at once."""
BEHIND_POLL_S = 0.005
SAMPLE_MAX = 10_000
_PLAIN = b"\0"
_APPENDED = int(Word.APPENDED)
_GENERATION = int(Word.GENERATION)
xxh3_64 = xxhash.xxh3_64_intdigest


class SessionReader(ABC):
    """The sessions of one store, to be read."""

    def __init__(self, opened: Opened, options: OpenOptions) -> None:
        self._opened = opened
        self._options = options
        self._log: EventLog = opened.log
        self._view: View = opened.view
        self._hot = opened.view.hot = HotSessions(options.hot_bytes)
        self._read_record: Callable[[bytes], Record | None] = opened.view.read
        self._now_ms = opened.log.now_ms
        self._durability = options.durability
        self._touches: dict[bytes, int] = {}
        """When sessions were last used, ms, of refreshes that are not written yet."""
        self._sealer = Sealer(options.seal, is_hidden=are_ids_hidden(opened.view))
        self._sealer.check_id_secret(opened.view)
        self._key_of = self._sealer.key_of
        self._events = Events(opened, opened.log.now_ms, self._sealer.open_event)
        if self._sealer.hides_ids:
            self._read = self._read_hidden  # type: ignore[method-assign]

    def get(
        self,
        id: str,
        *,
        after: Position | tuple[int, int, int] | str | None = None,
        max_lag_ms: int | None = None,
        linearizable: bool = False,
    ) -> Session | None:
        """The session, or None if it is missing or expired. Refreshes its life.

        The refresh is coalesced: it is written only once the deadline moves by more than the session's
        refresh window, with others, unless the window is too short for that. `last_accessed` is what was
        last written. A refresh that cannot be written is counted (stats), and not raised. Text that
        can be no id names no session: None; what is no text at all raises InvalidIdError.

        A node reads what it has. `after` waits until that is as far as a position (see wait_for),
        `max_lag_ms` until it is no older, `linearizable` until it has all that was acknowledged anywhere
        before the call; they raise StaleReadError and PositionLostError. One handle's reads never go
        backwards: where the node's state was made anew and is behind, they wait, and raise StaleReadError.
        """
        if linearizable or after is not None or max_lag_ms is not None:
            self._await_freshness(after, max_lag_ms, linearizable)
        return self._read(id, True)

    def peek(
        self,
        id: str,
        *,
        after: Position | tuple[int, int, int] | str | None = None,
        max_lag_ms: int | None = None,
        linearizable: bool = False,
    ) -> Session | None:
        """As get, without refreshing."""
        if linearizable or after is not None or max_lag_ms is not None:
            self._await_freshness(after, max_lag_ms, linearizable)
        return self._read(id, False)

    def _read(self, id: str, refreshes: bool) -> Session | None:  # noqa: PLR0912, PLR0915 - no calls: it is hot
        """The hot path of reading, in one plain function."""
        try:
            key = id.encode()
        except UnicodeEncodeError:
            return None
        except AttributeError as error:
            raise InvalidIdError(f"a session id is text, not {type(id).__name__}") from error
        view, log, hot = self._view, self._log, self._hot
        words = log.words
        state = view.state
        if (
            (key in hot.young or key in hot.old)
            and words[_APPENDED] == log.cursor.at[1]
            and words[_GENERATION] == log.generation
            and view.is_open
            and not view.pending_frames
            and key not in view.tail
            and (entry := hot.young.get(key) or hot.old.get(key))
        ):
            value, start, accessed, timeout, window, cap = entry
            now_ms = self._now_ms()
            if timeout or cap:
                idle = now_ms - accessed
                if idle > window:
                    left = timeout + window - idle
                    if left < 0 < timeout:
                        return None
                    if refreshes and timeout and not 0 < cap < now_ms:
                        self._used(key, now_ms, min(window, left))
                if 0 < cap < now_ms:
                    return None
            return Session(id, value, start)
        try:
            record = self._read_record(key) if key else None
        except StaleReadError as error:
            record = self._read_when_reached(key, error)
        if record is None:
            return None
        value = record[HASH_BYTES:]
        try:
            hashed, head, _, _, accessed, timeout, cap = unpack_record(record)
        except struct.error as error:
            raise self._damaged(id) from error
        if xxh3_64(value, xxh3_64(key)) != hashed:
            raise self._damaged(id)
        now_ms = self._now_ms()
        if head & HEAD_MASK != FORMAT:
            opened = self._opened_value(id, key, value, now_ms)
            if opened is None:
                return None
            value = opened
        window = 0
        if timeout:
            if timeout < WINDOWED:
                window = timeout // 10 if timeout < 600_000 else REFRESH_WINDOW_MS_MAX
            else:
                timeout, window = split_lifetime(timeout)
            idle = now_ms - accessed
            if idle > window:
                left = timeout + window - idle
                if left < 0 < timeout:
                    return None
                if refreshes and timeout and not 0 < cap < now_ms:
                    self._used(key, now_ms, min(window, left))
        if 0 < cap < now_ms:
            return None
        start = 0 if head >> HEAD_LABELS_SHIFT else HEADER_BYTES
        seen, slot, tag = hot.seen, hashed & SEEN_MASK, hashed >> SEEN_SHIFT
        if seen[slot] != tag:
            seen[slot] = tag
        elif head & HEAD_MASK == FORMAT:
            with view.mutex:
                if view.state is state and key not in view.tail:
                    hot.keep(key, (value, start, accessed, timeout, window, cap))
        return Session(id, value, start)

    def _read_when_reached(self, key: bytes, error: StaleReadError) -> Record | None:
        """The state was made anew and is behind what this handle has shown: wait for it, for a while."""
        deadline = time.monotonic() + self._options.write_timeout_ms / 1000
        while time.monotonic() < deadline:
            time.sleep(BEHIND_POLL_S)
            try:
                return self._read_record(key)
            except StaleReadError as again:
                error = again
        raise error

    def _opened_value(self, id: str, key: bytes, value: bytes, now_ms: int) -> bytes | None:
        """The plain form of a compressed or sealed session; None, which needs no key, if it has expired."""
        if value[0] != FORMAT or value[1] not in KNOWN_FLAGS:
            raise self._unknown_format(id)
        return self._sealer.open(key, value) if expiry_of(value) >= now_ms else None

    def _read_hidden(self, id: str, refreshes: bool) -> Session | None:
        """_read() where ids are hidden: by the key that stands for the id."""
        try:
            key = self._key_of(id)
        except InvalidIdError:
            if isinstance(id, str):
                return None
            raise
        found = SessionReader._read(self, key.decode(), refreshes)
        return None if found is None else Session(id, found._value, found._start)

    def _used(self, key: bytes, now_ms: int, patience_ms: int) -> None:
        """A session was used, and its last access in the store is older than its refresh window."""
        if patience_ms < COALESCED_MS:
            self._refresh_at_once(key, now_ms)
            return
        if len(self._touches) >= REFRESHES_MAX:
            self._make_room_for_refreshes()
        self._touches[key] = now_ms

    def exists(self, id: str) -> bool:
        """Is there such a session, not expired? Refreshes nothing."""
        return self._read(id, False) is not None

    def __contains__(self, id: str) -> bool:
        return self._read(id, False) is not None

    def __getitem__(self, id: str) -> Session:
        """As get, but raises SessionNotFoundError, which is a KeyError, for what is missing or expired."""
        session = self._read(id, True)
        if session is None:
            raise self._missing(id)
        return session

    def count(
        self,
        *,
        group: str | None = None,
        tag: str | None = None,
        home_node: str | None = None,
        priority: Priority | None = None,
    ) -> int:
        """How many sessions are stored, or have these labels; one that has expired counts until it is swept.

        Without labels the number is at hand; with them the matching part of the index is read. Raises
        UsageError for labels that no session can have.
        """
        terms = self._terms(group, tag, home_node, priority)
        if terms:
            return sum(1 for chunk in self._chunks(b"", b"", terms) for _ in chunk)
        view = self._view
        with view.mutex:
            view.catch_up()
            view.advance()
            view.refresh()
            view.check_floor()
            return view.visible.session_count

    def ids(
        self,
        prefix: str = "",
        after: str = "",
        *,
        group: str | None = None,
        tag: str | None = None,
        home_node: str | None = None,
        priority: Priority | None = None,
    ) -> Iterator[str]:
        """The ids in key order, from above `after`, those that begin with `prefix` and have these labels.

        Labels are looked up in the index. Reads in chunks: what is changed meanwhile may be seen or not.
        Where ids are hidden, the order is that of their hashes. Raises CorruptError if the state is damaged,
        UsageError for text that is not valid Unicode, or for a prefix where ids are hidden.
        """
        return chain.from_iterable(self._id_chunks(prefix, after, group, tag, home_node, priority))

    def _id_chunks(
        self,
        prefix: str,
        after: str,
        group: str | None,
        tag: str | None,
        home_node: str | None,
        priority: Priority | None,
    ) -> Iterator[Iterable[str]]:
        try:
            start, last = prefix.encode(), after.encode()
        except UnicodeEncodeError as error:
            raise UsageError("prefix and after are valid Unicode") from error
        if self._sealer.hides_ids:
            last = self._sealer.start_after(prefix, after)
        terms = self._terms(group, tag, home_node, priority)
        for chunk in self._chunks(start, last, terms):
            yield self._ids_of(chunk)

    def _ids_of(self, keys: Iterable[bytes]) -> Iterable[str]:
        """The ids of keys: where they are hidden, each session is opened for its own."""
        return self._hidden_ids_of(keys) if self._sealer.hides_ids else ids_of(keys)

    def _hidden_ids_of(self, keys: Iterable[bytes]) -> Iterator[str]:
        for key in keys:
            record = self._read_record(key)
            if record is not None:
                yield self._sealer.open_with_id(key, value_of(key, record))[0]

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
    ) -> Iterator[Session]:
        """The sessions that `matches` (all without it), in key order, refreshing none of them.

        As ids(): with these labels, from above `after`, those whose id begins with `prefix`, and a chunk at
        a time. What has expired is left out. What `matches` raises comes through.
        """
        for id in self.ids(prefix, after, group=group, tag=tag, home_node=home_node, priority=priority):
            session = self._read(id, False)
            if session is not None and (matches is None or matches(session)):
                yield session

    def groups(self) -> Iterator[str]:
        """The groups that sessions are in, each once."""
        return self._labels(labels.GROUP)

    def tags(self) -> Iterator[str]:
        """The tags that sessions have, each once."""
        return self._labels(labels.TAG)

    def home_nodes(self) -> Iterator[str]:
        """The home nodes that sessions have, each once."""
        return self._labels(labels.HOME_NODE)

    def orphans(self, members: Iterable[str], after: str = "") -> Iterator[str]:
        """The ids of sessions whose home node is not among `members`, in order within each such node.

        A session without a home node is no orphan. Raises UsageError if there are no members.
        """
        try:
            last = self._sealer.start_after("", after) if self._sealer.hides_ids else after.encode()
        except UnicodeEncodeError as error:
            raise UsageError("after is valid Unicode") from error
        for term in self._orphaned(members):
            for chunk in self._chunks(b"", last, [term]):
                yield from self._ids_of(chunk)

    def count_orphans(self, members: Iterable[str]) -> int:
        """How many sessions have a home node that is not among `members`."""
        return sum(1 for _ in self.orphans(members))

    def _orphaned(self, members: Iterable[str]) -> list[bytes]:
        """The terms of home nodes that are no member."""
        known = {self._term(labels.HOME_NODE, member, "a member") for member in labels.members_of(members)}
        if not known:
            raise UsageError(
                "without members every session would be an orphan", hint="Name the nodes that there are."
            )
        return [
            term for term in list_terms(self._view, *labels.kind_range(labels.HOME_NODE)) if term not in known
        ]

    def _labels(self, kind: bytes) -> Iterator[str]:
        """The labels of one kind, as a session that has each says it: a term may be a hash."""
        for term in list_terms(self._view, *labels.kind_range(kind)):
            for key in chain.from_iterable(self._chunks(b"", b"", [term])):
                session = self._labelled(key)
                texts = () if session is None else _labels_of(session, kind)
                found = [text for text in texts if text and self._term(kind, text) == term]
                if found:
                    yield found[0]
                    break

    def _labelled(self, key: bytes) -> Session | None:
        """The session of a key, expired or not, for its labels: without its metadata if it is sealed."""
        record = self._read_record(key)
        if record is None:
            return None
        value = value_of(key, record)
        if value[1:2] != _PLAIN:
            value = self._sealer.open(key, value) if self._sealer.hides_ids else outline(value)
        return Session(id_of(key), value)

    def _term(self, kind: bytes, label: str, what: str = "a label") -> bytes:
        labels.checked_term(kind, label, what)
        return labels.checked_term(kind, self._sealer.label(kind, label), what)

    def _terms(
        self, group: str | None, tag: str | None, home_node: str | None, priority: Priority | None
    ) -> list[bytes]:
        """The terms asked for; that of the normal priority is none of the index."""
        asked = (
            (labels.GROUP, group, "a group"),
            (labels.TAG, tag, "a tag"),
            (labels.HOME_NODE, home_node, "a home node"),
        )
        terms = [self._term(kind, label, what) for kind, label, what in asked if label is not None]
        if priority is not None:
            terms.append(labels.priority_term(priority))
        return terms

    def _chunks(self, prefix: bytes, after: bytes, terms: list[bytes]) -> Iterator[Iterable[bytes]]:
        return list_chunks(self._view, self._read_record, prefix, after, terms)

    def sample(self, count: int) -> list[Session]:
        """Up to `count` sessions (1 to 10,000) drawn at random, each equally likely, refreshing none.

        Reads all ids, and holds as many as it draws (reservoir sampling: Vitter, algorithm R). Raises
        UsageError.
        """
        _check_sample(count)
        drawn: list[Session] = []
        for seen, session in enumerate(self.sessions()):
            if len(drawn) < count:
                drawn.append(session)
            elif (place := randrange(seen + 1)) < count:
                drawn[place] = session
        return drawn

    def stored_as(self, id: str) -> str:
        """What an id stands as in log and state: itself or, where ids are hidden, its hash.

        Events that carry no session (touched, renamed, deleted, expired) name a hidden id so. Raises
        InvalidIdError, KeyMissingError.
        """
        return self._key_of(id).decode()

    def position(self) -> Position:
        """Where this handle's view of the log stands."""
        with self._view.mutex:
            self._view.catch_up()
            self._view.advance()
        return self._view.visible.position

    def outcome(self, what: Position | tuple[int, int, int] | str) -> Outcome:
        """What became of a write that was Indeterminate, by its position or operation id."""
        return find_outcome(self._log, self._view, what)

    def stats(self) -> dict[str, Any]:
        """Marks, counts and role of this store, as this process sees them."""
        words, log = self._log.words, self._log
        with self._view.mutex:
            self._view.catch_up()
        return {
            "node": log.identity.node,
            "cluster_id": log.identity.cluster_id.hex(),
            "backend": log.identity.backend,
            "is_primary": log.is_primary,
            "epoch": log.cursor.at.epoch,
            "voters": list(log.config.voters),
            "sync_replicas": log.config.sync_replicas,
            "appended_lsn": words[Word.APPENDED],
            "flushed_lsn": words[Word.FLUSHED],
            "committed_lsn": words[Word.COMMITTED] if log.config.sync_replicas else words[Word.APPENDED],
            "folded_lsn": self._view.folded_lsn(),
            "sessions": self.count(),
            "digest": f"{log.cursor.at.digest:016x}",
            "durability": "cache" if log.identity.is_cache else self._durability.name.lower(),
            "can_be_lost": what_can_be_lost(
                self._durability,
                is_cache=log.identity.is_cache,
                interval_ms=self._options.interval_ms,
                sync_replicas=log.config.sync_replicas,
            ),
            **self._events.stats(),
        }

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
    ) -> Feed:
        """Iterate over the committed events of all processes, in LSN order; `async for` works, too.

        `from_lsn` is the LSN of the first event (0: the oldest that the log holds), or the position (or its
        text) up to which all is done; None goes on where `consumer` is, and without one begins now. The
        progress of a `consumer` is kept in the store's directory; with `from_lsn` it is moved there. `kinds`
        are those of EventKind, None for all. Without `follow` the feed ends with what is committed now; with
        `timeout_ms` iteration ends after so long without an event.

        Asking for an event acknowledges the one before it, unless `auto_ack` is False. What is acknowledged
        is written every `ack_every_events` and whenever the feed waits, and survives power loss at the latest
        about `ack_interval_ms` later (0: synced each time). Raises UsageError, BusyError if another feed
        reads as `consumer`, PositionGoneError if the log does not hold `from_lsn`, DivergedError if it has
        another history there, CorruptError or StorageError.
        """
        return self._events.feed(
            from_lsn,
            consumer=consumer,
            kinds=kinds,
            follow=follow,
            timeout_ms=timeout_ms,
            ack_every_events=ack_every_events,
            ack_interval_ms=ack_interval_ms,
            auto_ack=auto_ack,
        )

    def on(self, kind: Iterable[str] | str, callback: Callable[[SessionEvent], object]) -> Subscription:
        """Call `callback` for every event of this kind (or kinds; "*": all) that is committed from now on.

        Events of all processes, in LSN order, in one thread of this process; what a callback raises is
        counted in stats(), and stops nothing. `cancel()` of what is answered ends it. Raises UsageError.
        """
        return self._events.on(kind, callback)

    def drain_events(self, timeout_ms: int = 10_000) -> bool:
        """Wait until subscribers were called for all that is committed by now; False if the time is up."""
        return self._events.drain(timeout_ms)

    def consumers(self) -> list[Consumer]:
        """The consumers whose progress is kept here, by name, with their lag."""
        return self._events.consumers()

    def drop_consumer(self, name: str) -> bool:
        """Forget a consumer, so that no log is kept for it; says whether there was one.

        Raises UsageError for a bad name, BusyError if a feed reads under it.
        """
        return self._events.drop_consumer(name)

    @abstractmethod
    def _await_freshness(
        self, after: Position | tuple[int, int, int] | str | None, max_lag_ms: int | None, linearizable: bool
    ) -> None:
        """Called before a read that asks for more than what is here. Raises StaleReadError."""

    @abstractmethod
    def _refresh_at_once(self, key: bytes, now_ms: int) -> None:
        """Called when a refresh may not wait. Never raises: as below."""

    @abstractmethod
    def _make_room_for_refreshes(self) -> None:
        """Called when too many refreshes wait. Never raises: a reader is not refused for that."""

    def _missing(self, id: str) -> SessionNotFoundError:
        return SessionNotFoundError(f"no session {id!r}, or it has expired")

    def _damaged(self, id: str) -> CorruptError:
        return CorruptError(
            f"the state's record of session {id!r} does not match its hash",
            path=self._opened.state_path,
            hint=REBUILD_HINT,
        )

    def _unknown_format(self, id: str) -> CorruptError:
        return CorruptError(
            f"the stored session {id!r} has a format that this version does not know",
            path=self._opened.state_path,
            hint="A newer perdure wrote it: read it with that one.",
        )


def _check_sample(count: object) -> None:
    if not isinstance(count, int) or not 0 < count <= SAMPLE_MAX:
        raise UsageError(f"a sample takes 1 to {SAMPLE_MAX} sessions, not {count!r}")


def _labels_of(session: Session, kind: bytes) -> tuple[str, ...]:
    if kind == labels.TAG:
        return session.tags
    return (session.group if kind == labels.GROUP else session.home_node,)
