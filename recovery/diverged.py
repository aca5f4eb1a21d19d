"""What a rejoin exported: looked at, and brought back where somebody wants it.

Owns the reading of `diverged/` and the rule for what of it is submitted again. A change is an ordinary write
of the store as it is now, with the reason `reconciled`: the last thing that the old history did to a
session, if the new one has not touched its content since. Nothing in `diverged/` is changed or removed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import msgspec

from ..store import names
from ..store.ahead import bytes_of
from ..store.cursor import EVERYTHING, list_segments
from ..store.errors import CorruptError, PerdureError, StoreMissingError, UsageError
from ..store.event import Event, Kind, Reason, decode_events
from ..store.files import translated
from ..store.fold import touched
from ..store.identity import read_identity
from ..store.session import expiry_of
from ..store.sessions import SessionStore
from ..store.stage import Stage
from .logtool import dump_segments
from .scan import SegmentScan
from .source import Source, open_source

CHANGES_AT_ONCE: Final = 256
"""So many are submitted in one frame."""
_FOLDER: Final = re.compile(r"([0-9]{20})-([0-9a-f]{8})(\.[0-9]+)?\Z")
_UNKNOWN: Final = b"unknown"
"""Stands for a value that the exported segments do not have. Told by identity."""


class DivergedTail(msgspec.Struct, frozen=True):
    """One export."""

    name: str
    path: Path
    fork_lsn: int
    """What stands behind this LSN is of the other history."""
    epoch: int
    """In which the old history ended."""
    segments: int
    size_bytes: int
    events: int
    """Behind the fork, control events left out."""
    sessions: int
    """That these changed."""
    first_ms: int
    last_ms: int
    problem: str
    """Why not all of it could be read, empty if it could."""


class Change(msgspec.Struct, frozen=True):
    """What the old history did to one session behind the fork, all in all."""

    key: bytes
    lsn: int
    """Of the last event."""
    time_ms: int
    what: str
    """`put`, `delete` or `expire`; `unknown` if the value is in none of the exported segments."""
    value: bytes = b""


class Applied(msgspec.Struct, frozen=True):
    """What became of one change."""

    id: str
    lsn: int
    what: str
    outcome: str
    """`applied` or `skipped`; of a dry run, what it would be."""
    why: str


def list_diverged(store: str | os.PathLike[str]) -> list[DivergedTail]:
    """The exports of a node, oldest history first. Reads all of them.

    Raises StoreMissingError if there is no store, StorageError.
    """
    path = Path(store)
    read_identity(path)
    folder = path / names.DIVERGED
    with translated("cannot list what was exported", folder):
        found = sorted(name for name in os.listdir(folder) if _FOLDER.match(name))
    return [_look(folder / name) for name in found]


def diverged_events(
    store: str | os.PathLike[str], name: str, *, key: str | None = None
) -> Iterator[dict[str, Any]]:
    """The events behind the fork of one export, as `dump` gives them. Raises StoreMissingError."""
    path = _folder_of(Path(store), name)
    fork_lsn = _fork_of(name)[0]
    wanted = None if key is None else key.encode()
    for event in dump_segments(list_segments(path), from_lsn=fork_lsn + 1, key=wanted):
        if event.get("kind") not in ("epoch_start", "config"):
            yield event


def changes_in(
    store: str | os.PathLike[str], name: str, *, from_lsn: int = 1, to_lsn: int = EVERYTHING
) -> list[Change]:
    """What an export's history did to each session behind the fork, within a range of LSNs, in LSN order."""
    path = _folder_of(Path(store), name)
    first = max(from_lsn, _fork_of(name)[0] + 1)
    values: dict[bytes, bytes | None] = {}
    changes: dict[bytes, Change] = {}
    for lsn, time_ms, event in _events(path):
        if lsn > to_lsn:
            break
        for key, what in _replay(values, event):
            if lsn >= first:
                value = values[key]
                is_unknown = what == "put" and value is _UNKNOWN
                shown = "unknown" if is_unknown else what
                changes[key] = Change(key, lsn, time_ms, shown, value or b"" if shown == "put" else b"")
    return sorted(changes.values(), key=lambda change: change.lsn)


def apply_diverged(
    store: SessionStore,
    name: str,
    *,
    ids: Collection[str] | None = None,
    from_lsn: int = 1,
    to_lsn: int = EVERYTHING,
    force: bool = False,
    dry_run: bool = False,
    progress: Callable[[int], object] | None = None,
) -> list[Applied]:
    """Submit changes of an export again, those of the sessions `ids` (None: all) in a range of LSNs.

    A session whose content the store's history changed since the fork is left alone unless `force`; where
    the log no longer says, too. Raises UsageError for an id that is not in the export, StoreMissingError,
    CorruptError (without `force`) if that log is damaged behind the fork, and as any write of the store.
    """
    directory = store._opened.store
    changes = changes_in(directory, name, from_lsn=from_lsn, to_lsn=to_lsn)
    if ids is not None:
        keys = {store._key_of(id) for id in ids}
        missing = keys - {change.key for change in changes}
        if missing:
            raise UsageError(f"session {min(missing).decode(errors='replace')!r} was not changed there")
        changes = [change for change in changes if change.key in keys]
    done: list[Applied] = []
    with ExitStack() as stack:
        since = None
        if not force:
            since = stack.enter_context(closing(_Since(open_source(directory), _fork_of(name)[0])))
            since.read_on()  # most of it, so that each batch has little left to read
        submission = _Submission(store, since, dry_run)
        for start in range(0, len(changes), CHANGES_AT_ONCE):
            done += submission.run(changes[start : start + CHANGES_AT_ONCE])
            if progress is not None:
                progress(len(done))
    return done


class _Since:
    """The sessions whose content the store's own log changed behind an LSN."""

    def __init__(self, source: Source, lsn: int) -> None:
        files = source.segments()
        self._source = source
        self.keys: set[bytes] = set()
        self.is_known = not files or files[0].first_lsn <= lsn + 1
        """False if the log begins later."""
        self._cursor = source.cursor()
        if files:
            self._cursor.seek(max(lsn, files[0].first_lsn - 1))

    def read_on(self) -> None:
        """Up to where the log ends now. Raises CorruptError at damage."""
        for run in self._cursor.runs():
            for offset, frame in run.frames:
                self._gather(run.events(offset, frame))
        if self._cursor.damage is not None:
            raise self._cursor.damage
        following = [file for file in self._source.segments() if file.first_lsn > self._cursor.at.lsn + 1]
        if following:
            raise CorruptError(
                f"the log cannot be read on behind LSN {self._cursor.at.lsn}, and goes on",
                path=self._cursor.path,
                lsn=self._cursor.at.lsn + 1,
                hint="See `perdure verify`.",
            )

    def _gather(self, events: list[Event]) -> None:
        for kind, _, _, key, value in events:
            if kind == Kind.RENAME:
                self.keys |= {key, value}
            elif kind < Kind.EPOCH_START and kind != Kind.TOUCH:
                self.keys.add(key)

    def close(self) -> None:
        self._cursor.close()


class _Submission:
    """How changes become writes."""

    def __init__(self, store: SessionStore, since: _Since | None, dry_run: bool) -> None:
        """`since` is None if it does not matter what was changed since."""
        self._store = store
        self._since = since
        self._dry_run = dry_run

    def run(self, changes: list[Change]) -> list[Applied]:
        """One frame."""
        # In this order: what changes a session from here on differs from `seen`, what came before is read.
        seen = {change.key: self._store._view.read(change.key) for change in changes}
        if self._since is not None:
            self._since.read_on()
        if self._dry_run:
            now_ms = self._store._now_ms()
            return [self._say(change, self._why_not(change, seen[change.key], now_ms)) for change in changes]
        operation_id = self._store._ids.take()

        def evaluate(stage: Stage) -> list[Applied]:
            done: list[Applied] = []
            now_ms = self._store._now_ms()
            for change in changes:
                why = self._why_not(change, stage.get(change.key), now_ms)
                if not why and self._since is not None and stage.get(change.key) != seen[change.key]:
                    why = "it is being changed at this moment"
                if not why:
                    self._submit(stage, change, operation_id)
                done.append(self._say(change, why))
            return done

        found: list[Applied] = self._store._commit(evaluate, None, operation_id)
        return found

    def _submit(self, stage: Stage, change: Change, operation_id: bytes) -> None:
        if change.what == "put":
            stage.put(change.key, change.value, Reason.RECONCILED, operation_id)
        else:
            stage.remove(change.key, Kind.DELETE, Reason.RECONCILED, operation_id)

    def _why_not(self, change: Change, record: bytes | None, now_ms: int) -> str:
        """Why a change is left alone, empty if it is not."""
        if change.what == "unknown":
            return "its content is in none of the exported segments"
        if change.what == "expire":
            return "it had expired"
        if change.what == "put" and expiry_of(change.value) < now_ms:
            return "it has expired since"
        if change.what == "put" and record is not None and record[8:] == change.value:
            return "it is so already"
        if change.what == "delete" and record is None:
            return "it is gone already"
        if self._since is None:
            return ""
        if change.key in self._since.keys:
            return "it was changed since"
        if not self._since.is_known:
            return "the log no longer says whether it was changed since"
        return ""

    def _say(self, change: Change, why: str) -> Applied:
        id = change.key.decode("utf-8", "backslashreplace")
        return Applied(id, change.lsn, change.what, "skipped" if why else "applied", why)


def _look(path: Path) -> DivergedTail:
    fork_lsn, epoch = _fork_of(path.name)
    files = list_segments(path)
    keys: set[bytes] = set()
    events = first_ms = last_ms = 0
    problem = ""
    try:
        for lsn, time_ms, (kind, _, _, key, value) in _events(path):
            if lsn <= fork_lsn:
                continue
            events += 1
            first_ms, last_ms = first_ms or time_ms, time_ms
            keys |= {key, value} if kind == Kind.RENAME else {key}
    except PerdureError as error:
        problem = str(error)
    size = sum(bytes_of(file.path) for file in files)
    return DivergedTail(
        path.name, path, fork_lsn, epoch, len(files), size, events, len(keys), first_ms, last_ms, problem
    )


def _folder_of(store: Path, name: str) -> Path:
    path = store / names.DIVERGED / name
    if not _FOLDER.match(name) or not path.is_dir():
        raise StoreMissingError(
            f"there is no export {name!r}", path=path, hint="`perdure diverged list DIR` shows what there is."
        )
    return path


def _fork_of(name: str) -> tuple[int, int]:
    """(LSN of the fork, epoch) of an export's name."""
    found = _FOLDER.match(name)
    return (int(found[1]) - 1, int(found[2], 16)) if found else (0, 0)


def _events(path: Path) -> Iterator[tuple[int, int, Event]]:
    """(LSN, time, event) of an export's segments, control events left out. Raises CorruptError at damage."""
    for file in list_segments(path):
        with SegmentScan(file.path) as scan:
            for _offset, frame, payload in scan.frames():
                for number, event in enumerate(decode_events(payload, frame.event_count)):
                    if event[0] < Kind.EPOCH_START:
                        yield frame.first_lsn + number, frame.time_ms, event
            if scan.problem is not None:
                raise scan.problem


def _replay(values: dict[bytes, bytes | None], event: Event) -> list[tuple[bytes, str]]:
    """Apply an event to what is known of the sessions; answers (key, what was done) of those it changed."""
    kind, _reason, _operation_id, key, value = event
    old = values.get(key, _UNKNOWN)
    if kind == Kind.PUT:
        values[key] = value
        return [(key, "put")]
    if kind == Kind.TOUCH:
        if old is None or old is _UNKNOWN:
            values[key] = _UNKNOWN
        else:
            values[key] = touched(key, bytes(8) + old, value)
        return [(key, "put")]
    values[key] = None
    if kind == Kind.RENAME:
        values[value] = _UNKNOWN if old is None else old
        return [(key, "delete"), (value, "put")]
    return [(key, "expire" if kind == Kind.EXPIRE else "delete")]
