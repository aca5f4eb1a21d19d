"""Reading committed session events from the log of an open store, in LSN order, without ever waiting.

Owns one place in the log, apart from the one at which the store itself stands. How far it may read is
what readers of the store see (view.visible): everything appended without sync_replicas, else what is
committed. So whoever handles an event finds the session at least as new in the store.

Invariant: what was read is one history. Whenever the log may have been changed behind its end (the
generation grew), the last frame that was read is looked up anew, by its chain.
"""

from __future__ import annotations

import os

import msgspec

from .cursor import READ_BYTES, LogCursor, Run, list_segments
from .errors import CorruptError, DivergedError, PositionGoneError, StoreMissingError
from .ids import Position, StatePosition
from .log import EventLog
from .page import Word
from .session_event import EVERYTHING, EventKind, OpenSession, SessionEvent, decode_session_events, open_plain
from .view import View

MISSES_MAX = 200
"""Looks at a log that lacks what it must hold, before that is called damage: a cut replaces its files."""
_PLACINGS_MAX = 3
_APPENDED = int(Word.APPENDED)
_COMMITTED = int(Word.COMMITTED)
_GENERATION = int(Word.GENERATION)
_UNPLACED = -1


class EventPlace(msgspec.Struct, frozen=True):
    """Where reading goes on: with the event of LSN `next_lsn`.

    `frame` is the frame of the event before it, by which the history is known; None if it is not.
    """

    next_lsn: int
    frame: Position | None = None


class EventReader:
    """Reads events from `place` on. Not for two threads at once.

    `place` is behind what was read last. `who` stands in errors for what reads here.
    """

    def __init__(
        self,
        log: EventLog,
        view: View,
        place: EventPlace,
        *,
        kinds: frozenset[EventKind] = EVERYTHING,
        open_session: OpenSession = open_plain,
        who: str = "the feed",
    ) -> None:
        self.place = place
        self.who = who
        self._log = log
        self._view = view
        self._kinds = kinds
        self._open_session = open_session
        self._generation = _UNPLACED
        self._misses = 0
        identity = log.identity
        self._cursor = LogCursor(
            log.cursor.log, identity.cluster_id, log.key, identity.shard, is_writable=False
        )

    def check_handle(self) -> None:
        """Raise StoreClosedError or ForkedError if the store's handle is no longer to be used."""
        self._log.words[_GENERATION]

    @property
    def is_inherited(self) -> bool:
        """Was the store opened in the parent of this process?"""
        return self._log.pid != os.getpid()

    def is_stale(self) -> bool:
        """May the log, where it was read, have been changed since?"""
        return bool(self._log.words[_GENERATION] != self._generation)

    def has_news(self) -> bool:
        """May there be something to read? For the price of two looks at the control page.

        Raises StoreClosedError or ForkedError.
        """
        words = self._log.words
        word = _COMMITTED if self._view.needs_commit else _APPENDED
        return bool(words[word] >= self.place.next_lsn or words[_GENERATION] != self._generation)

    def check(self) -> None:
        """Raise what read() would raise because of the place: PositionGoneError or DivergedError."""
        _, appended_lsn, generation = committed_end(self._log, self._view)
        self._enter(appended_lsn, generation)

    def read(self, upto_lsn: int | None = None) -> list[SessionEvent] | None:
        """The events of the next run of frames up to `upto_lsn` or the last committed one.

        Empty if there are none among them that are asked for; None if there is no frame to read now.
        Raises PositionGoneError if the log was dropped, DivergedError if what was read was cut off it,
        CorruptError, StorageError, StoreClosedError or ForkedError.
        """
        end, appended_lsn, generation = committed_end(self._log, self._view)
        if generation != self._generation:
            self._enter(appended_lsn, generation)
        last = end.lsn if upto_lsn is None else min(end.lsn, upto_lsn)
        if self.place.next_lsn > last:
            return None
        try:
            run = self._cursor.read(last, self._log.bytes_ahead(self._cursor, READ_BYTES))
        except (PositionGoneError, StoreMissingError):
            run = None  # retention dropped it, or a cut replaces it at this moment
        except CorruptError:
            if self._log.words[_GENERATION] == generation:
                raise
            run = None
        if run is None or self._log.words[_GENERATION] != generation:
            self._missed(last)
            return None
        self._misses = 0
        return self._decode(run)

    def go_to(self, place: EventPlace) -> None:
        """Read from `place` on."""
        self.place = place
        self._generation = _UNPLACED

    def close(self) -> None:
        self._cursor.close()

    def _decode(self, run: Run) -> list[SessionEvent]:
        found: list[SessionEvent] = []
        next_lsn, before = self.place.next_lsn, self.place.frame
        for offset, frame in run.frames:
            if frame.last_lsn < next_lsn:
                continue
            if frame.first_lsn < next_lsn and before is not None and before != frame.position:
                raise self._diverged(before, frame.position)
            events = run.events(offset, frame)
            found += decode_session_events(events, frame, next_lsn, self._kinds, self._open_session)
            next_lsn, before = frame.last_lsn + 1, frame.position
        self.place = EventPlace(next_lsn, before)
        return found

    def _enter(self, appended_lsn: int, generation: int) -> None:
        """Place the cursor before the frame of the next event, and see that what is before it fits."""
        wanted = self.place
        lsn = wanted.next_lsn - 1
        if max(lsn, wanted.frame.lsn if wanted.frame else 0) > appended_lsn:
            raise self._too_far(wanted, appended_lsn)
        for attempt in range(_PLACINGS_MAX):
            try:
                self._seek(lsn)
                break
            except StoreMissingError:  # retention dropped it between the listing and the opening
                if attempt == _PLACINGS_MAX - 1:
                    raise
        at, before = self._cursor.at.position, wanted.frame
        if before is not None and lsn:
            # The frame of the event before ends there, or (the event is not its last) goes on behind it: then
            # its end is compared when it is read.
            fits = at == before if before.lsn == lsn else at.lsn < lsn
            if not fits and self._log.words[_GENERATION] == generation:
                raise self._diverged(before, at)
        self._generation = generation

    def _seek(self, lsn: int) -> None:
        cursor = self._cursor
        files = list_segments(cursor.log)
        if not files and not lsn:
            return
        if not files or files[0].first_lsn > lsn + 1:
            raise self._gone(lsn + 1, files[0].first_lsn if files else 0)
        cursor.approach(lsn)
        cursor.is_sparse = True
        try:
            while cursor.at.lsn < lsn and cursor.read(lsn):
                pass
        finally:
            cursor.is_sparse = False

    def _missed(self, last_lsn: int) -> None:
        """What is committed could not be read: the log is being replaced, or was dropped, or is damaged."""
        self._generation = _UNPLACED
        oldest = next((file.first_lsn for file in list_segments(self._cursor.log)), 0)
        if oldest > self.place.next_lsn:
            raise self._gone(self.place.next_lsn, oldest)
        self._misses += 1
        if self._misses > MISSES_MAX:
            raise CorruptError(
                f"the log cannot be read from LSN {self.place.next_lsn} on, and {last_lsn} is committed",
                path=self._cursor.path,
                lsn=self.place.next_lsn,
                hint="See `perdure verify`.",
            )

    def _gone(self, lsn: int, oldest_lsn: int) -> PositionGoneError:
        oldest = f"it begins with LSN {oldest_lsn}" if oldest_lsn else "it is empty"
        return PositionGoneError(
            f"the log no longer holds LSN {lsn}, where {self.who} goes on; {oldest}",
            path=self._cursor.log,
            lsn=lsn,
            hint="Events were missed: read the sessions themselves anew, then go on with the oldest event "
            "that is left, by from_lsn=0.",
        )

    def _too_far(self, wanted: EventPlace, appended_lsn: int) -> PositionGoneError | DivergedError:
        if wanted.frame is not None:
            return DivergedError(
                f"{self.who} has read up to {wanted.frame}, the log ends at LSN {appended_lsn}",
                path=self._cursor.log,
                lsn=wanted.next_lsn,
                hint="What was read was cut off the log, or this node does not have it yet. If it was cut: "
                "undo what came of it, and go on by from_lsn=.",
            )
        return PositionGoneError(
            f"the log ends at LSN {appended_lsn}, and does not reach LSN {wanted.next_lsn} yet",
            path=self._cursor.log,
            lsn=wanted.next_lsn,
            hint="Either this node is behind, or what was read elsewhere was cut off the log.",
        )

    def _diverged(self, read: Position, found: Position) -> DivergedError:
        return DivergedError(
            f"{self.who} has read up to {read}, the log has {found} there",
            path=self._cursor.path,
            lsn=read.lsn,
            hint="What was read was cut off the log and replaced: undo what came of it, and go on by "
            "from_lsn=.",
        )


def committed_end(log: EventLog, view: View) -> tuple[StatePosition, int, int]:
    """(the last committed frame, the last LSN of the log, the generation for which that holds).

    Takes the mutex. Raises StoreClosedError or ForkedError, and what following the log raises.
    """
    log.words[_GENERATION]
    with view.mutex:
        view.catch_up()
        view.advance()
        return view.visible, log.cursor.at.lsn, log.generation
