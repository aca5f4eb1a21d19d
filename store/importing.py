"""Import: sessions from JSON lines, or from any Python iterator, as logged events.

Owns how they get into a store: in batches, each one frame, each session exactly as it was, with the reason
IMPORTED. What is there already is left, replaced or refused, as the caller says; what is there to the byte
is left in any case. Invariant: an import that was broken off and is run again ends as one that was not,
because a session that it wrote is found to be there; nothing of a batch with a bad session in it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Final, Literal, TypeAlias, get_args

import msgspec

from .errors import (
    CorruptError,
    PerdureError,
    SessionTooLargeError,
    UsageError,
    VersionConflictError,
)
from .event import Reason
from .fold import hash_of
from .ids import MASK64
from .lines import LINE_BYTES_MAX, End, Head, read_frame, read_line, stored_of
from .session import (
    Session,
    expiry_of,
    split_lifetime,
    stored_bytes,
    unpack_header,
)
from .sessions import SessionStore
from .stage import Stage

BATCH_SESSIONS: Final = 1000
BATCH_BYTES: Final = 4 << 20
OnConflict: TypeAlias = Literal["skip", "replace", "fail"]
Progress = Callable[[int], object]
_FIELDS: Final = {
    "id": "",
    "version": 1,
    "created_at": None,
    "last_accessed": None,
    "timeout_ms": None,
    "refresh_window_ms": None,
    "max_expires_at": None,
    "priority": "normal",
    "home_node": "",
    "group": "",
    "tags": (),
    "metadata": {},
}
"""What a mapping may hold, and what a field is that it does not hold; times and timeout see _pair_of."""
_DERIVED: Final = frozenset({"expires_at"})


class ImportReport(msgspec.Struct, frozen=True):
    """What became of the sessions that were read."""

    read: int
    imported: int
    """New in the store."""
    replaced: int
    unchanged: int
    """Were there already, to the byte."""
    skipped: int
    """Were there already with another value, and were left."""
    expired: int
    """Had expired, and were not imported."""
    digest: int
    """Of all that were read (see lines)."""


def import_sessions(
    store: SessionStore,
    source: Iterable[Session | Mapping[str, Any]],
    *,
    on_conflict: OnConflict = "skip",
    progress: Progress | None = None,
) -> ImportReport:
    """Store the sessions that an iterator gives, exactly as they are: times, version and all.

    A mapping has the fields of Session.to_dict(), `id` at least; without `created_at` and `last_accessed` it
    is of now, without `timeout_ms` it has the default one. `on_conflict` says what becomes of a session that
    is there already: it stays (skip), gets the new value (replace), or VersionConflictError is raised
    (fail). `progress` is called with the number of sessions done. On return all of it is on disk.

    Raises UsageError and its kinds, naming the item's number, for what cannot be stored: its batch is not
    written, earlier ones are. What the iterator raises comes through. Errors of writing as create.
    """
    run = _Import(store, on_conflict, progress)
    number = 0
    for number, item in enumerate(source, 1):
        try:
            pair = _pair_of(item, store._now_ms(), store._default_timeout)
            run.check(*pair)
        except UsageError as error:
            error.message = f"item {number}: {error.message}"
            raise
        run.add(*pair)
    return run.end()


def import_lines(
    store: SessionStore,
    stream: BinaryIO,
    *,
    name: str = "",
    on_conflict: OnConflict = "skip",
    progress: Progress | None = None,
) -> ImportReport:
    """Import what export_sessions() wrote; `name` names the stream in errors.

    A stream that can be read twice is read to its end first: nothing is written unless every line, the count
    and the digest are right. Of one that cannot (a pipe) the batches before a bad line are written.
    `progress` is called with the bytes read in the pass that writes. Run again after it was broken off, it
    goes on where it was. Raises UsageError or CorruptError with file and line, and as import_sessions.
    """
    if stream.seekable():
        start = stream.tell()
        for _ in _Lines(stream, name).sessions(store._size_bytes_max):
            pass
        stream.seek(start)
    lines = _Lines(stream, name)
    run = _Import(store, on_conflict, None)
    for id, value in lines.sessions(store._size_bytes_max):
        run.add(id, value)
        if progress is not None and not run.waiting:
            progress(lines.size_bytes)
    if progress is not None:
        progress(lines.size_bytes)
    return run.end()


class _Lines:
    """The lines of an export, each checked, and all of them against the last one."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self._name = name or "input"
        self.number = 0
        self.size_bytes = 0

    def sessions(self, size_bytes_max: int) -> Iterator[tuple[str, bytes]]:
        """(id, stored session) of each line between head and end.

        Raises UsageError for a line that is none, CorruptError if the end is missing or says otherwise.
        """
        head = self._frame(self._next())
        if not isinstance(head, Head):
            raise self._bad("it is no export: the first line is not the head of one")
        sessions = digest = 0
        while True:
            text = self._next()
            if not text:
                raise self._cut("the export ends without its last line, so it is not complete")
            if text.startswith(b'{"perdure"'):
                break
            try:
                id, value = read_line(text)
                check_size(id, value, size_bytes_max)
            except UsageError as error:
                if not text.endswith(b"\n"):
                    raise self._cut("the export breaks off in the middle of a line") from error
                error.path, error.message = self._name, f"line {self.number}: {error.message}"
                raise
            sessions += 1
            digest = (digest + hash_of(id.encode(), value)) & MASK64
            yield id, value
        end = self._frame(text)
        if end is None and not text.endswith(b"\n"):
            raise self._cut("the export breaks off in the middle of a line")
        if not isinstance(end, End):
            raise self._bad("neither a session nor the end of the export")
        if (sessions, f"{digest:016x}") != (end.sessions, end.digest):
            raise self._cut(
                f"{sessions} sessions of digest {digest:016x} were read, "
                f"the last line says {end.sessions} of {end.digest}"
            )
        if self._next():
            raise self._bad("something follows the last line")

    def _next(self) -> bytes:
        text = self._stream.readline(LINE_BYTES_MAX + 1)
        self.number += 1
        self.size_bytes += len(text)
        if len(text) > LINE_BYTES_MAX:
            raise self._bad(f"a line has at most {LINE_BYTES_MAX} bytes")
        if text and not text.strip():
            raise self._bad("an empty line")
        return text

    def _frame(self, text: bytes) -> Head | End | None:
        try:
            return read_frame(text)
        except PerdureError as error:
            error.path = self._name
            raise

    def _bad(self, problem: str) -> UsageError:
        return UsageError(f"line {self.number}: {problem}", path=self._name)

    def _cut(self, problem: str) -> CorruptError:
        return CorruptError(f"line {self.number}: {problem}", path=self._name, hint="Export it anew.")


class _Import:
    """One import under way."""

    def __init__(self, store: SessionStore, on_conflict: str, progress: Progress | None) -> None:
        if on_conflict not in get_args(OnConflict):
            raise UsageError(f"on_conflict is one of {', '.join(get_args(OnConflict))}, not {on_conflict!r}")
        self._store = store
        self._on_conflict = on_conflict
        self._progress = progress
        self._batch: dict[str, bytes] = {}
        self._batch_bytes = 0
        self._counts = {"imported": 0, "replaced": 0, "unchanged": 0, "skipped": 0, "expired": 0}
        self._read = self._digest = 0

    @property
    def waiting(self) -> int:
        """How many sessions are read and not written yet."""
        return len(self._batch)

    def check(self, id: str, value: bytes) -> None:
        check_size(id, value, self._store._size_bytes_max)

    def add(self, id: str, value: bytes) -> None:
        if id in self._batch or len(self._batch) >= BATCH_SESSIONS or self._batch_bytes >= BATCH_BYTES:
            self._write()
        self._batch[id] = value
        self._batch_bytes += len(value) + len(id)
        self._read += 1
        self._digest = (self._digest + hash_of(id.encode(), value)) & MASK64

    def end(self) -> ImportReport:
        """Write what waits, and bring all of it to disk."""
        self._write()
        self._store.flush()
        return ImportReport(read=self._read, digest=self._digest, **self._counts)

    def _write(self) -> None:
        """The batch, as one frame."""
        if not self._batch:
            return
        operation_id = self._store._ids.take()
        done = self._store._commit(lambda stage: self._evaluate(stage, operation_id), None, operation_id)
        for outcome, count in done.items():
            self._counts[outcome] += count
        self._batch, self._batch_bytes = {}, 0
        if self._progress is not None:
            self._progress(self._read)

    def _evaluate(self, stage: Stage, operation_id: bytes) -> dict[str, int]:
        done = dict.fromkeys(self._counts, 0)
        now_ms = self._store._now_ms()
        for id, value in self._batch.items():
            outcome = self._outcome(stage, id, value, now_ms)
            done[outcome] += 1
            if outcome in ("imported", "replaced"):
                key = self._store._key_of(id)
                sealed = self._store._sealed(id, key, value, stage.value(key))
                stage.put(key, sealed, Reason.IMPORTED, operation_id)
        return done

    def _outcome(self, stage: Stage, id: str, value: bytes, now_ms: int) -> str:
        if expiry_of(value) < now_ms:
            return "expired"
        key = self._store._key_of(id)
        old = stage.value(key)
        if old is None or expiry_of(old) < now_ms:
            return "imported"
        if old[1]:
            old = self._store._sealer.open(key, old)
        if old == value:
            return "unchanged"
        if self._on_conflict == "fail":
            version = unpack_header(old)[6]
            raise VersionConflictError(
                f"session {id!r} is there already with another value; its batch was not written",
                expected=0,
                actual=version,
            )
        return "replaced" if self._on_conflict == "replace" else "skipped"


def check_size(id: str, value: bytes, size_bytes_max: int) -> None:
    """Raise SessionTooLargeError for a session that the store would not take."""
    if len(value) > size_bytes_max:
        raise SessionTooLargeError(
            f"session {id!r} takes {len(value)} bytes, the limit is {size_bytes_max}",
            hint="Raise max_session_size_bytes.",
        )


def _default_window(timeout_ms: object) -> int | None:
    return split_lifetime(timeout_ms)[1] if isinstance(timeout_ms, int) else None


def _pair_of(item: Session | Mapping[str, Any], now_ms: int, default_timeout_ms: int) -> tuple[str, bytes]:
    """(id, stored session): of now where no times are given, with the store's timeout where none is."""
    if isinstance(item, Session):
        item.check()
        return item.id, stored_bytes(item)
    if not isinstance(item, Mapping):
        raise UsageError(f"neither a Session nor a mapping, but {type(item).__name__}")
    unknown = [name for name in item if name not in _FIELDS and name not in _DERIVED]
    if unknown or "id" not in item:
        what = f"unknown field {unknown[0]!r}" if unknown else "no id"
        raise UsageError(f"{what}; a session has {', '.join(_FIELDS)}")
    fields = {name: item.get(name, default) for name, default in _FIELDS.items()}
    if "timeout_ms" not in item:
        fields["timeout_ms"] = default_timeout_ms or None
    for name in ("created_at", "last_accessed"):
        fields[name] = now_ms if fields[name] is None else fields[name]
    if fields["refresh_window_ms"] == _default_window(fields["timeout_ms"]):
        fields["refresh_window_ms"] = None  # as to_dict() gives it, where the session has none of its own
    return stored_of(fields)
