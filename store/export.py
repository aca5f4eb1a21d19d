"""Export: the sessions of one store at one LSN, as JSON lines.

Owns what is written and in which order; the form of a line is lines'. The store is folded, and one image of
the state is written in key order: the export is the state at the image's LSN, whatever is written meanwhile.
Invariant: every session was checked against its hash, and all of them against the state's count and digest,
before the last line is written; an export without that line is not complete.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from .errors import CorruptError, UsageError
from .fold import HASH_BYTES, REBUILD_HINT, hash_of, value_of
from .ids import MASK64, Position
from .lines import FORMAT, End, Head, encode_line, priority_of, write_line
from .ports import Record, Scan
from .session import Session, expiry_of, stored_bytes
from .sessions import SessionStore

Progress = Callable[[int], object]
_PROGRESS_EVERY = 1000


class Sink(Protocol):
    """Where lines go: a binary file, or whatever takes bytes."""

    def write(self, data: bytes, /) -> object: ...


class ExportReport(msgspec.Struct, frozen=True):
    """What an export holds."""

    position: Position
    """It is the state at this position."""
    sessions: int
    expired: int
    """Left out, because they had expired and were not swept yet."""
    digest: int
    """Of the sessions that were written (see lines)."""


class Filter(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which sessions are exported; each part that is given must hold."""

    prefix: str = ""
    group: str = ""
    tag: str = ""
    home_node: str = ""
    priority: str = ""

    def check(self) -> int | None:
        """The number of the priority. Raises UsageError if there is no such one."""
        return priority_of(self.priority) if self.priority else None

    def takes(self, session: Session) -> bool:
        return (
            session.id.startswith(self.prefix)
            and (not self.group or session.group == self.group)
            and (not self.tag or self.tag in session.tags)
            and (not self.home_node or session.home_node == self.home_node)
            and (not self.priority or session.priority == self.check())
        )


def export_sessions(
    store: SessionStore,
    sink: Sink,
    *,
    only: Filter | None = None,
    matches: Callable[[Session], bool] | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Write the sessions of a store as JSON lines, those that `only` and `matches` take.

    `progress` is called with the number of sessions looked at. Others may read and write meanwhile; the image
    keeps old pages of the state from being used again until the export is done. Raises CorruptError if the
    state does not match its digest, UsageError for a bad filter, and what the sink raises: the lines
    written so far then lack the last one.
    """
    wanted = only if only is not None else Filter()
    wanted.check()
    scan = _image(store, "" if store._sealer.hides_ids else wanted.prefix)
    try:
        return _Export(store, sink, wanted, matches).run(scan, progress)
    finally:
        scan.close()


class _Export:
    """One export under way."""

    def __init__(
        self, store: SessionStore, sink: Sink, only: Filter, matches: Callable[[Session], bool] | None
    ) -> None:
        self._store = store
        self._sink = sink
        self._only = only
        self._matches = matches
        self._prefix = b"" if store._sealer.hides_ids else only.prefix.encode()
        """What the keys of the sessions begin with; hidden ids are looked at one by one."""
        self._sessions = self._expired = self._digest = 0

    def run(self, scan: Scan, progress: Progress | None) -> ExportReport:
        at = scan.position
        now_ms = self._store._now_ms()
        self._line(encode_line(self._head(scan, now_ms)))
        seen = hashes = 0
        for key, record in scan:
            if self._prefix and not key.startswith(self._prefix):
                if key > self._prefix:
                    break
                continue
            seen += 1
            hashes += int.from_bytes(record[:HASH_BYTES], "little")
            self._session(key, record, now_ms)
            if progress is not None and not seen % _PROGRESS_EVERY:
                progress(seen)
        if progress is not None:
            progress(seen)
        if not self._prefix and (seen != at.session_count or hashes & MASK64 != at.digest):
            raise CorruptError(
                f"the state holds {seen} sessions of digest {hashes & MASK64:016x}, and says "
                f"{at.session_count} of {at.digest:016x}",
                path=self._store._opened.state_path,
                lsn=at.lsn,
                hint=REBUILD_HINT,
            )
        self._line(encode_line(End(self._sessions, self._expired, f"{self._digest:016x}")))
        return ExportReport(at.position, self._sessions, self._expired, self._digest)

    def _head(self, scan: Scan, now_ms: int) -> Head:
        identity, at = self._store._opened.identity, scan.position
        return Head(
            format=FORMAT,
            cluster_id=identity.cluster_id.hex(),
            node=identity.node,
            epoch=at.epoch,
            lsn=at.lsn,
            exported_at=now_ms,
            sessions=at.session_count,
            filter=msgspec.to_builtins(self._only),
        )

    def _session(self, key: bytes, record: Record, now_ms: int) -> None:
        session = session_of(self._store, key, record)
        value = stored_bytes(session)
        if expiry_of(value) < now_ms:
            self._expired += 1
        elif self._only.takes(session) and (self._matches is None or self._matches(session)):
            self._sessions += 1
            self._digest = (self._digest + hash_of(session.id.encode(), value)) & MASK64
            self._line(write_line(session))

    def _line(self, text: bytes) -> None:
        self._sink.write(text + b"\n")


def session_of(store: SessionStore, key: bytes, record: Record) -> Session:
    """The session of a state's record, checked and opened. Raises CorruptError, KeyMissingError."""
    value = value_of(key, record)
    if value[1]:
        return Session(*store._sealer.open_with_id(key, value))
    try:
        return Session(key.decode(), value)
    except UnicodeDecodeError as error:
        raise CorruptError(f"a key of the state is no text: {key[:40]!r}", hint=REBUILD_HINT) from error


def _image(store: SessionStore, prefix: str) -> Scan:
    """One image of all that is visible now, from the first key that the prefix can have."""
    try:
        start = prefix.encode()
    except UnicodeEncodeError as error:
        raise UsageError("a prefix is valid Unicode") from error
    store.fold()
    with store._view.mutex:
        # A scan begins above a key: the greatest below the prefix is the prefix with its last byte one less.
        below = start[:-1] + bytes([start[-1] - 1]) + b"\xff" * 8 if start and start[-1] else b""
        return store._view.scan(below)
