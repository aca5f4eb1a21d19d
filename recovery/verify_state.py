"""Verifying the state: is it the fold of the log, session by session?

Owns the comparison. What the state should be is folded anew from snapshot and log, up to where the state
stands, into a scratch directory; the state itself is read as an image (see image). Both come in key
order and are walked side by side: hidden, extra, different and damaged records are told apart. Memory
stays bounded whatever the number of sessions.

The index of labels is held against the sessions' own labels. Deadlines (the index by which sessions are
swept) are not compared: a session's own bytes say when it expires, and every read checks that.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ..store import names
from ..store.backends import DEFAULT_BACKEND, open_backend, shares_state
from ..store.errors import (
    CorruptError,
    DivergedError,
    PerdureError,
    PositionGoneError,
)
from ..store.files import translated
from ..store.fold import HASH_BYTES, hash_of
from ..store.ids import MASK64, NOWHERE, StatePosition
from ..store.ports import Backend, Record
from ..store.rebuild import load_snapshot, replay
from ..store.snapshot import SnapshotReader, list_snapshots
from ..store.state import inspect_state
from .findings import Finding, Level, finding_of
from .image import ImageError, ImageReader, copy_state
from .source import Source
from .take import judge_snapshot
from .verify_end import LogFacts

NAMED_MAX = 100
"""So many sessions of a kind are named; the rest are counted."""
FOLD_LOCK_S = 5.0
_REBUILD = "`perdure repair DIR` makes the state anew from snapshot and log, while the store is in use."


class _CannotTellError(Exception):
    """The comparison cannot go on; `finding` says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


def check_state(source: Source, facts: LogFacts, scratch: str | os.PathLike[str] | None) -> Iterator[Finding]:
    """All findings about the state. Raises StorageError if the scratch directory cannot be used."""
    identity = source.identity
    state = names.state_path(source.store)
    path = str(state)
    place = state / identity.backend
    if not shares_state(identity.backend):
        says = "each process keeps one in its memory, made from snapshot and log; there is no file to compare"
        yield Finding(Level.NOTICE, "state-in-memory", says, str(source.store))
        if facts.end.lsn:
            with _scratch(scratch) as name:
                yield from _Comparison(source, facts, place, Path(name)).make()
        return
    if not place.is_dir():
        says = "there is none; the next opening makes it from snapshot and log"
        yield Finding(Level.NOTICE, "state-missing", says, path)
        return
    try:
        verdict = inspect_state(
            source.store, identity.backend, identity.cluster_id, source.boot_id, in_use=facts.is_in_use
        )
    except PerdureError as error:
        yield finding_of(error, Level.UNKNOWN, "state-unreadable")
        return
    if not verdict.is_trusted:
        says = f"not compared, because nothing rests on it: {verdict.reason}"
        hint = "The next opening makes it again from snapshot and log."
        yield Finding(Level.UNKNOWN, "state-untrusted", says, path, hint=hint)
        return
    with _scratch(scratch) as name:
        yield from _Comparison(source, facts, place, Path(name)).run()


def _scratch(scratch: str | os.PathLike[str] | None) -> tempfile.TemporaryDirectory[str]:
    with translated("cannot use the scratch directory", Path(scratch) if scratch else None):
        return tempfile.TemporaryDirectory(prefix="perdure-verify-", dir=scratch)


class _Comparison:
    """State and log, side by side."""

    def __init__(self, source: Source, facts: LogFacts, place: Path, scratch: Path) -> None:
        self.source = source
        self.facts = facts
        self.place = place
        self.path = str(place)
        self.scratch = scratch

    def run(self) -> Iterator[Finding]:
        found = list(self._compare("image"))
        suspicious = any(finding.level is not Level.OK for finding in found)
        if suspicious and self.facts.is_in_use:
            # The copy may have been made in the middle of a fold: once more, with folding held up.
            found = self._compare_locked()
        yield from found

    def make(self) -> Iterator[Finding]:
        """Instead of a comparison: does what each opening does, to the end of the log, come out right?

        In files, so that memory stays bounded here, too.
        """
        end = self.facts.end
        try:
            self._fold(end, self.scratch / "made", DEFAULT_BACKEND).close()
        except _CannotTellError as error:
            yield error.finding
        else:
            says = f"{end.session_count} sessions come out of snapshot and log up to LSN {end.lsn}"
            yield Finding(Level.OK, "state", says, str(self.source.log), lsn=end.lsn)

    def _compare_locked(self) -> list[Finding]:
        descriptor = -1
        try:
            descriptor = os.open(self.source.store / names.FOLD_LOCK, os.O_RDONLY | os.O_CLOEXEC)
            deadline = time.monotonic() + FOLD_LOCK_S
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        says = "it is in use, and was being folded all the time; it could not be copied"
                        return [Finding(Level.UNKNOWN, "state-busy", says, self.path)]
                    time.sleep(0.002)
            copy = copy_state(self.place, self.scratch / "locked")
        except OSError as error:
            return [Finding(Level.UNKNOWN, "state-busy", f"it is in use, no lock: {error}", self.path)]
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return list(self._compare_copy(copy))

    def _compare(self, name: str) -> Iterator[Finding]:
        yield from self._compare_copy(copy_state(self.place, self.scratch / name))

    def _compare_copy(self, copy: Path) -> Iterator[Finding]:
        expected: Backend | None = None
        tally = _Tally(self)
        try:
            with ImageReader(self.source.identity.backend, copy) as image:
                position = tally.position = image.position
                try:
                    expected = self._fold(
                        position, copy.with_name(copy.name + "-expected"), self.source.identity.backend
                    )
                except _CannotTellError as error:
                    yield error.finding
                yield from self._walk(expected, image, tally)
                if image.index_error:
                    yield self._corrupt("state-index", image.index_error, position.lsn)
            yield from tally.sum_up(self.path, has_expected=expected is not None)
        except ImageError as error:
            level = Level.CORRUPT if error.is_damage else Level.UNKNOWN
            yield Finding(level, "state-unreadable", error.message, self.path, hint=_REBUILD)
        finally:
            if expected is not None:
                expected.close()

    # -- what it should be -----------------------------------------------------------------------

    def _fold(self, position: StatePosition, folder: Path, backend_name: str) -> Backend:
        """A back end with the fold of the log up to `position`. Raises _CannotTellError."""
        expected = open_backend(backend_name, folder)
        cursor = self.source.cursor()
        try:
            base = self._load_base(expected, position)
            if position != base:
                replayed = replay(expected, cursor, base, upto_lsn=position.lsn)
                if replayed.end != position:
                    raise self._elsewhere(position, replayed.end, cursor.damage)
            return expected
        except DivergedError as error:
            expected.close()
            says = f"snapshot and log do not come out: {error.message}"
            raise _CannotTellError(
                self._corrupt("replay-diverged", says, error.lsn or position.lsn)
            ) from error
        except (CorruptError, PositionGoneError) as error:
            expected.close()
            raise _CannotTellError(
                self._unknown(f"the log cannot be folded: {error}", position.lsn)
            ) from error
        except BaseException:
            expected.close()
            raise
        finally:
            cursor.close()

    def _load_base(self, expected: Backend, position: StatePosition) -> StatePosition:
        """Begin from the oldest good snapshot that the log reaches: the most of the log is folded then."""
        oldest = self.facts.oldest_lsn
        if oldest == 1:
            return NOWHERE
        for file in list_snapshots(self.source.snapshots):
            if file.lsn > position.lsn or file.lsn + 1 < oldest:
                continue
            judged = judge_snapshot(self.source, file)
            if judged.is_good and judged.head is not None:
                with SnapshotReader(file.path, self.source.identity.cluster_id) as snapshot:
                    load_snapshot(expected, judged.head.at, snapshot)
                return judged.head.at
        says = f"the log begins with LSN {oldest}, and no good snapshot up to LSN {position.lsn} reaches it"
        raise _CannotTellError(self._unknown(says, position.lsn))

    def _elsewhere(
        self, position: StatePosition, end: StatePosition, damage: CorruptError | None
    ) -> _CannotTellError:
        if damage is not None:
            return _CannotTellError(self._unknown(f"the log is damaged before it: {damage}", position.lsn))
        if end.lsn < position.lsn and self.facts.is_whole:
            says = (
                f"it stands at LSN {position.lsn}, where the log has no frame end; up to it comes {end.lsn}"
            )
            return _CannotTellError(self._corrupt("state-ahead", says, position.lsn))
        says = f"it stands at {_text(position)}, the log comes to {_text(end)}"
        return _CannotTellError(self._corrupt("state-diverged", says, position.lsn))

    # -- side by side ----------------------------------------------------------------------------

    def _walk(self, expected: Backend | None, image: ImageReader, tally: _Tally) -> Iterator[Finding]:
        """Each record by itself, and against the one that should be there if that is known."""
        scan = expected.scan() if expected is not None else None
        try:
            wanted: Iterator[tuple[bytes, Record]] = iter(scan) if scan is not None else iter(())
            should = next(wanted, None)
            previous = b""
            for key, record in image:
                hashed = hash_of(key, record[HASH_BYTES:])
                tally.count(hashed)
                if record[:HASH_BYTES] != hashed.to_bytes(HASH_BYTES, "little"):
                    yield from tally.add("record-damaged", key, "does not match its hash")
                if key <= previous:
                    yield from tally.add("session-misplaced", key, "stands out of order")
                previous = max(previous, key)
                if scan is None:
                    continue
                while should is not None and should[0] < key:
                    yield from tally.add("session-missing", should[0], "is in the log, not in the state")
                    should = next(wanted, None)
                if should is None or should[0] != key:
                    yield from tally.add("session-extra", key, "is in the state, not in the log")
                    continue
                if record != should[1]:
                    yield from tally.add("session-differs", key, "is not what the log says")
                should = next(wanted, None)
            while should is not None:
                yield from tally.add("session-missing", should[0], "is in the log, not in the state")
                should = next(wanted, None)
        finally:
            if scan is not None:
                scan.close()

    def _corrupt(self, kind: str, says: str, lsn: int) -> Finding:
        return Finding(Level.CORRUPT, kind, says, self.path, lsn=lsn, hint=_REBUILD)

    def _unknown(self, says: str, lsn: int) -> Finding:
        return Finding(Level.UNKNOWN, "replay-impossible", says, self.path, lsn=lsn)


class _Tally:
    """Counts and sums the records; names the first differences of each kind, and counts the rest."""

    def __init__(self, comparison: _Comparison) -> None:
        self.position = NOWHERE
        self._comparison = comparison
        self._counts: dict[str, int] = {}
        self._records = 0
        self._digest = 0

    def count(self, hashed: int) -> None:
        self._records += 1
        self._digest = (self._digest + hashed) & MASK64

    def add(self, kind: str, key: bytes, what: str) -> Iterator[Finding]:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if self._counts[kind] <= NAMED_MAX:
            id = key.decode("utf-8", "backslashreplace")
            yield self._comparison._corrupt(kind, f"session {id!r} {what}", self.position.lsn)

    def sum_up(self, path: str, *, has_expected: bool) -> Iterator[Finding]:
        """What is left to say once every record was seen."""
        at = self.position
        for kind, count in self._counts.items():
            if count > NAMED_MAX:
                yield self._comparison._corrupt(kind, f"{count - NAMED_MAX} more such sessions", at.lsn)
        if (self._records, self._digest) != (at.session_count, at.digest):
            says = (
                f"it holds {self._records} sessions with digest {self._digest:016x}, its position says "
                f"{at.session_count} with {at.digest:016x}"
            )
            yield self._comparison._corrupt("state-digest", says, at.lsn)
        elif not self._counts and has_expected:
            says = f"{at.session_count} sessions are the fold of the log up to LSN {at.lsn}"
            yield Finding(Level.OK, "state", says, path, lsn=at.lsn)
        elif not self._counts:
            says = f"{at.session_count} sessions add up to the digest at LSN {at.lsn}"
            yield Finding(Level.OK, "state-digest", says, path, lsn=at.lsn)


def _text(position: StatePosition) -> str:
    return f"{position.position} with {position.session_count} sessions, digest {position.digest:016x}"
