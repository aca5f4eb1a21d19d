"""Reading sessions: what an application sees of one store, from any process and without a lock.

Owns get and peek, the check of what they read, the refreshes that wait in memory, and what can be asked
of the store as a whole. What changes a session is in sessions.py.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from random import randrange
from typing import Any

import xxhash

from .errors import CorruptError, InvalidIdError, SessionNotFoundError, UsageError
from .fold import HASH_BYTES, REBUILD_HINT, unreadable
from .ids import Position
from .log import EventLog
from .opening import Opened, OpenOptions
from .outcome import Outcome, find_outcome
from .page import Word
from .ports import Record
from .session import (
    FORMAT,
    HEAD_LABELS_SHIFT,
    HEAD_MASK,
    HEADER_BYTES,
    REFRESH_WINDOW_MS_MAX,
    Session,
    unpack_record,
)
from .view import View

REFRESHES_MAX = 10_000
"""Coalesced refreshes that wait in memory; a get that meets so many writes them."""
SAMPLE_MAX = 10_000
_SCAN_CHUNK = 1000
xxh3_64 = xxhash.xxh3_64_intdigest


class SessionReader(ABC):
    """The sessions of one store, to be read."""

    def __init__(self, opened: Opened, options: OpenOptions) -> None:
        self._opened = opened
        self._options = options
        self._log: EventLog = opened.log
        self._view: View = opened.view
        self._read_record: Callable[[bytes], Record | None] = opened.view.read
        self._now_ms = options.clock.now_ms
        self._durability = options.durability
        self._touches: dict[bytes, int] = {}
        """When sessions were last used, ms, of refreshes that are not written yet."""

    def get(self, id: str) -> Session | None:
        """The session, or None if it is missing or expired. Refreshes its life.

        The refresh is coalesced: it is written only once the deadline moves by more than a tenth of the
        timeout (at most a minute), with other changes. `last_accessed` is what was last written. Text that
        can be no id names no session: None; what is no text at all raises InvalidIdError.
        """
        return self._read(id, True)

    def peek(self, id: str) -> Session | None:
        """As get, without refreshing."""
        return self._read(id, False)

    def _read(self, id: str, refreshes: bool) -> Session | None:
        """The hot path of reading, in one plain function."""
        try:
            key = id.encode()
        except UnicodeEncodeError:
            return None
        except AttributeError as error:
            raise InvalidIdError(f"a session id is text, not {type(id).__name__}") from error
        record = self._read_record(key) if key else None
        if record is None:
            return None
        value = record[HASH_BYTES:]
        try:
            hashed, head, _, _, accessed, timeout, cap = unpack_record(record)
        except struct.error as error:
            raise self._damaged(id) from error
        if xxh3_64(value, xxh3_64(key)) != hashed:
            raise self._damaged(id)
        if head & HEAD_MASK != FORMAT:
            raise self._unknown_format(id)
        now_ms = self._now_ms()
        if timeout:
            window = timeout // 10 if timeout < 600_000 else REFRESH_WINDOW_MS_MAX
            idle = now_ms - accessed
            if idle > window:
                if idle > timeout + window:
                    return None
                if refreshes and not 0 < cap < now_ms:
                    if len(self._touches) >= REFRESHES_MAX:
                        self._make_room_for_refreshes()
                    self._touches[key] = now_ms
        if 0 < cap < now_ms:
            return None
        return Session(id, value, 0 if head >> HEAD_LABELS_SHIFT else HEADER_BYTES)

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

    def count(self) -> int:
        """How many sessions are stored; one that has expired counts until it is swept."""
        view = self._view
        with view.mutex:
            view.catch_up()
            view.advance()
            view.refresh()
            return view.visible.session_count

    def ids(self, prefix: str = "", after: str = "") -> Iterator[str]:
        """The ids in key order, from above `after`, those that begin with `prefix`.

        Reads in chunks: what is changed meanwhile may be seen or not. Raises CorruptError if the state is
        damaged, UsageError for text that is not valid Unicode.
        """
        try:
            start, last = prefix.encode(), after.encode()
        except UnicodeEncodeError as error:
            raise UsageError("prefix and after are valid Unicode") from error
        while True:
            chunk = self._view.keys(start, last, _SCAN_CHUNK)
            yield from map(_id_of, chunk)
            if len(chunk) < _SCAN_CHUNK:
                return
            last = chunk[-1]

    def sessions(
        self, matches: Callable[[Session], bool] | None = None, *, prefix: str = "", after: str = ""
    ) -> Iterator[Session]:
        """The sessions that `matches` (all without it), in key order, refreshing none of them.

        As ids(): from above `after`, those whose id begins with `prefix`, and a chunk at a time. What has
        expired is left out. What `matches` raises comes through.
        """
        for id in self.ids(prefix, after):
            session = self._read(id, False)
            if session is not None and (matches is None or matches(session)):
                yield session

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
            "folded_lsn": words[Word.FOLDED],
            "sessions": self.count(),
            "digest": f"{log.cursor.at.digest:016x}",
            "durability": self._durability.name.lower(),
        }

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


def _id_of(key: bytes) -> str:
    """The id that a key of the state is; keys carry no hash of their own."""
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise unreadable(error) from error
