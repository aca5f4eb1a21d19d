"""The view: what a reader sees is the state plus the tail of the log that is not folded yet.

Owns the tail map of one process: for each key that the frames behind the state changed, its newest
record, or None. With sync_replicas >= 1 frames that are not committed yet are kept apart: writers build
on them, readers do not see them.

Invariant: the tail map covers every visible frame above the read view's position, so that view plus
map is the fold of the log up to the last visible frame. Not for two threads at once: `mutex` is held
by whoever calls.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import msgspec

from .cursor import READ_BYTES, Run, list_segments
from .errors import CorruptError, DivergedError, PerdureError, PositionGoneError, StaleReadError
from .event import Event, Kind, Reason
from .fold import HASH_BYTES, plan_deadlines, record_of, touched, unreadable
from .follow import is_half_replaced
from .hot import HotSessions
from .ids import NOWHERE, Position, StatePosition
from .labels import (
    LABELS_AT,
    LABELS_END,
    NO_LABELS,
    plan_labels,
    plan_used,
    terms_of_record,
)
from .log import EventLog
from .page import Word
from .placing import place
from .ports import Backend, Change, Deadline, Labelled, Record, Scan
from .rejoining import is_rejoining, wait_until_rejoined
from .session import NEVER_MS, expiry_of
from .tail_map import KEPT_MS, NEW_MS, UNKNOWN_MS, Entry, arm_after, follow_frames

_APPENDED = int(Word.APPENDED)
_SEGMENT = int(Word.SEGMENT)
_END = int(Word.END)
_COMMITTED = int(Word.COMMITTED)
_GENERATION = int(Word.GENERATION)
_PUT = int(Kind.PUT)
_TOUCH = int(Kind.TOUCH)
_RENAME = int(Kind.RENAME)
_CONTROL = int(Kind.EPOCH_START)
_CREATED = int(Reason.CREATED)


class FoldPlan(NamedTuple):
    """What a fold writes: the arguments of Backend.fold, in their order."""

    changes: list[Change]
    armed: list[Deadline]
    disarmed: Sequence[Deadline]
    position: StatePosition
    labelled: list[Labelled]
    unlabelled: list[Labelled]


class Pending(msgspec.Struct, frozen=True):
    """A frame that is appended and not committed, with what it changes."""

    end: StatePosition
    segment_lsn: int
    offset: int
    entries: dict[bytes, Entry]


class View:
    """What one process sees of one store."""

    def __init__(
        self, log: EventLog, backend: Backend, make_own: Callable[[], Backend] | None = None
    ) -> None:
        """`make_own` makes the back end anew, for a state that no other process shares (see own_state)."""
        self.log = log
        self.backend = backend
        self.make_own = make_own
        self.mutex = log.mutex
        self.tail: dict[bytes, Entry] = {}
        self.pending: dict[bytes, Entry] = {}
        self.pending_frames: deque[Pending] = deque()
        self.state: StatePosition = NOWHERE
        self.visible: StatePosition = NOWHERE
        """Where readers are: the state plus the tail map."""
        self.visible_place = (0, 0)
        """(first LSN of the segment, offset) behind the last visible frame."""
        self.hot = HotSessions(0)
        self.is_open = False
        """Is the read view begun, and as far as readers may be shown?"""
        self.is_mended = False
        """The state may hold something else than it did, where it stands, once the read view is renewed."""
        self.floor: StatePosition | None = None
        """Readers were here before the log was cut or the state made anew: they are not shown less."""
        self.needs_commit: bool
        """sync_replicas >= 1: frames wait for the commit LSN before they are visible."""
        self.needs_commit = False
        self.fold_threads = threading.Lock()
        """Held by the thread that folds; while one does, a state of this handle alone stays open."""
        log.thread_locks.append(self.fold_threads)
        log.on_run = self.take_run
        log.take_plain = self.take_plain
        log.on_control = self.took_control
        log.on_reset = self.begin_again

    # -- reading ---------------------------------------------------------------------------------

    def read(self, key: bytes, held: AbstractContextManager[object] | None = None) -> Record | None:
        """The record that readers see, None if there is none. Takes the mutex, unless it is `held`."""
        # not acquire() and release(): a signal's exception between them would leave it held
        with held or self.mutex:
            log = self.log
            words = log.words
            if words[_APPENDED] > log.cursor.at[1] or words[_GENERATION] != log.generation:
                self.catch_up()
            if self.pending_frames:
                self.advance()
            if not self.is_open:
                self.refresh()
                self.check_floor()
            found = self.tail.get(key)
            if found is not None:
                return found[1]
            try:
                return self.backend.get(key)
            except self.backend.engine_errors as error:
                raise unreadable(error) from error

    def check_floor(self) -> None:
        """Raise StaleReadError where readers would go backwards: the state was made anew, and is behind."""
        floor = self.floor
        if floor is None:
            return
        if not is_beyond(self.visible.position, floor.position, self.log):
            raise StaleReadError(
                f"this node's state was made anew and has reached LSN {self.visible.lsn}; "
                f"LSN {floor.lsn} was shown before",
                node=self.log.identity.node,
                lsn=floor.lsn,
                hint="Try again: it follows the primary.",
            )
        self.floor, self.is_open = None, True

    def newest(self, key: bytes) -> Record | None:
        """The record that writers build on: uncommitted frames included. Takes the mutex."""
        with self.mutex:
            if not self.is_open:
                self.refresh()
            found = (self.pending and self.pending.get(key)) or self.tail.get(key)
            if found:
                return found[1]
            try:
                return self.backend.get(key)
            except self.backend.engine_errors as error:
                raise unreadable(error) from error

    def newest_of(self, keys: Iterable[bytes]) -> list[Record | None]:
        """As newest(), of many keys at once."""
        with self.mutex:
            if not self.is_open:
                self.refresh()
            changed = {**self.tail, **self.pending} if self.pending else self.tail
            find, get = changed.get, self.backend.get
            try:
                return [found[1] if (found := find(key)) else get(key) for key in keys]
            except self.backend.engine_errors as error:
                raise unreadable(error) from error

    def catch_up(self) -> None:
        """Follow the log to the page's last frame."""
        log = self.log
        if log.words[_GENERATION] != log.generation:
            log.refresh_role()
            self.follow_config()
        log.follow()

    def follow_config(self) -> None:
        """Do frames wait for the commit LSN? As the newest CONFIG says, from its own frame on."""
        needs = self.log.config.sync_replicas > 0
        if needs != self.needs_commit:
            self.needs_commit = needs
            while not needs and self.pending_frames:
                self._show_first()
            self.pending.clear()

    def recheck(self) -> None:
        """A call broke off under the write lock: if its frame stands and was not taken, begin anew."""
        with self.mutex:
            end = self.pending_frames[-1].end if self.pending_frames else self.visible
            if end.lsn < self.log.cursor.at.lsn:
                self.log.take_anew()

    def advance(self) -> None:
        """Make frames visible that were committed meanwhile."""
        words = self.log.words
        committed = words[_COMMITTED]
        # In this order: a cut raises the generation before the commit LSN passes what stood there before.
        if words[_GENERATION] != self.log.generation:
            return
        frames = self.pending_frames
        while frames and frames[0].end.lsn <= committed:
            self._show_first()
        if not frames:
            self.pending.clear()

    def refresh(self) -> None:
        """Renew the read view and drop from the tail map what it holds already."""
        self._renew()
        if self.log.cursor.at.lsn < self.state.lsn:
            self.log.follow()

    def _renew(self) -> None:
        """Begin a read view, which may be ahead of what was followed: frames up to it are then skipped."""
        state = self.backend.refresh()
        self.is_open = self.floor is None
        if self.is_mended:
            self.is_mended = False
            self.hot.clear()
            self.state = self.state._replace()  # a thread that has read, and would keep it, sees another one
        if state.lsn == self.state.lsn:
            return
        log = self.log
        if log.generation != log.words[_GENERATION] and log.generation >= 0:
            self.release()
            self.catch_up()  # the log may be another one, too: what was followed does not fit this state
            self._renew()
            return
        lsn = state.lsn
        while self.pending_frames and self.pending_frames[0].end.lsn <= lsn:
            self._show_first()
        tail = self.tail
        if self.visible.lsn < lsn:
            self.hot.clear()  # what changed in between was not seen
        else:
            self.hot.forget(tail)
        self.state = state
        if self.visible.lsn <= lsn:
            self.tail = {}
        else:
            self.tail = {key: entry for key, entry in tail.items() if entry[0] > lsn}
        if self.visible.lsn < lsn:
            self.visible = state

    def release(self) -> None:
        """End the read view, so that it pins no pages of the state."""
        if self.is_open:
            self.is_open = False
            self.backend.release()

    def move_to(self, backend: Backend, make_own: Callable[[], Backend] | None = None) -> None:
        """Another state stands in the store: what is seen is made from it, at the next look at the log.

        `make_own` as in the constructor. The caller holds the mutex. What still scans the old one goes on.
        """
        self.log.take_anew()  # first: if this breaks off, the next look begins anew
        old = self.backend
        self.backend, self.make_own = backend, make_own
        self.is_open = False
        try:
            self.reset()
        finally:
            old.close()

    def begin_again(self) -> None:
        """The log was cut or made anew: forget the tail, and read on from the state."""
        try:
            place(self.log, self.reset(), is_shared=self.make_own is None)
        except (DivergedError, PositionGoneError):
            if self.make_own is None:
                if not is_rejoining(self.log.store):
                    self.log.take_anew()  # or the next look would take the place for a good one
                    raise
                wait_until_rejoined(self.log.store, self.log.lock_timeout_ms)
                place(self.log, self.reset())
                return
            old, self.backend = self.backend, self.make_own()
            old.close()
            place(self.log, self.reset(), is_shared=False)

    def reset(self) -> StatePosition:
        """Forget the tail: the log was cut or made anew. Says from where to follow it again."""
        self.hot.clear()
        self.tail.clear()
        self.pending.clear()
        self.pending_frames.clear()
        self.release()
        shown = self.visible
        self.state = self.visible = self.backend.refresh()
        if shown.lsn > self.visible.lsn and (self.floor is None or self.floor.lsn < shown.lsn):
            self.floor = shown
        self.visible_place = (0, 0)
        self.is_open = self.floor is None
        self.follow_config()
        return self.state

    def scan(self, after: bytes = b"") -> Scan:
        """An image of the state, from the first key above `after`. The caller holds the mutex."""
        while True:
            generation = self.log.generation
            try:
                return self.backend.scan(after)
            except PerdureError:
                self.catch_up()  # another state was put in place of this one, and its files may be gone
                if self.log.generation == generation:
                    raise

    # -- taking frames ---------------------------------------------------------------------------

    def take_plain(self, upto_lsn: int) -> bool:
        """Take the plain frames that follow straight into the tail map; says whether there were any.

        They were taken if so, as take_run() would have: for all else, and while frames wait for the commit
        LSN, the log has to be read.
        """
        if self.needs_commit or self.log.config.sync_replicas:
            return False
        if not self.is_open:
            self._renew()
        log, state_lsn = self.log, self.state.lsn
        cursor, header = log.cursor, log.cursor.header
        if header is None:
            return False
        words = log.words
        bytes_left = words[_END] - cursor.offset if words[_SEGMENT] == header.first_lsn else READ_BYTES
        frame, offset = follow_frames(
            cursor.peek(min(bytes_left, READ_BYTES)),
            self.tail,
            key=cursor.key,
            shard=cursor.shard,
            epoch=header.epoch,
            lsn=cursor.at.lsn,
            chain=cursor.at.chain,
            upto_lsn=upto_lsn,
            folded_lsn=state_lsn,
        )
        if frame is None:
            return False
        cursor.pass_frames(offset, frame)
        if cursor.at.lsn > state_lsn:
            self.visible = cursor.at
            self.visible_place = (header.first_lsn, cursor.offset)
        return True

    def take_run(self, run: Run) -> None:
        """Apply frames that were read from the log; those that the read view holds already are skipped."""
        if not self.is_open:
            self._renew()
        self.follow_config()
        state_lsn = self.state.lsn
        cursor = self.log.cursor
        segment = cursor.header.first_lsn if cursor.header else 0
        last_offset, last = run.frames[-1]
        base = cursor.offset - (last_offset + last.size_bytes)
        for offset, frame in run.frames:
            if frame.last_lsn > state_lsn:
                entries = self._entries(run.events(offset, frame), frame.last_lsn)
                self._add(frame.state_position, segment, base + offset + frame.size_bytes, entries)

    def took_control(self) -> None:
        """A frame that changes no session was appended by this process."""
        self.follow_config()
        self.took({})

    def took(self, entries: dict[bytes, Entry]) -> None:
        """Apply a frame that this process has just appended."""
        cursor = self.log.cursor
        segment = cursor.header.first_lsn if cursor.header else 0
        self._add(cursor.at, segment, cursor.offset, entries)

    def took_one(self, key: bytes, record: Record | None, arm_ms: int, end: StatePosition) -> None:
        """As took, for the record of one key and what it asks to arm. Takes the mutex."""
        with self.mutex:
            if arm_ms <= 0 and record is not None:
                found = (self.pending and self.pending.get(key)) or self.tail.get(key)
                arm_ms = arm_after(found, arm_ms) if found else arm_ms
            entry = (end[1], record, arm_ms)
            if self.needs_commit:
                self.took({key: entry})
            else:
                self.tail[key] = entry
                self.visible = end

    def _add(self, end: StatePosition, segment_lsn: int, offset: int, entries: dict[bytes, Entry]) -> None:
        if self.needs_commit:
            # In this order: if a signal's exception comes between, recheck() finds a frame that is not taken.
            self.pending.update(entries)
            self.pending_frames.append(Pending(end, segment_lsn, offset, entries))
        else:
            self.tail.update(entries)
            self.visible = end
            self.visible_place = (segment_lsn, offset)

    def _show_first(self) -> None:
        """Make the first pending frame visible. To do that again, after an interruption, changes nothing."""
        self._show(self.pending_frames[0])
        self.pending_frames.popleft()

    def _show(self, frame: Pending) -> None:
        pending = self.pending
        for key, entry in frame.entries.items():
            self.tail[key] = entry
            if pending.get(key) is entry:
                del pending[key]
        self.visible = frame.end
        self.visible_place = (frame.segment_lsn, frame.offset)

    def _entries(self, events: list[Event], lsn: int) -> dict[bytes, Entry]:
        changed: dict[bytes, Entry] = {}
        for kind, reason, _operation_id, key, value in events:
            if kind == _PUT:
                old = changed.get(key) or self._entry(key)
                arm_ms = arm_after(old, NEW_MS if reason == _CREATED else UNKNOWN_MS)
                changed[key] = (lsn, record_of(key, value), arm_ms)
            elif kind >= _CONTROL:
                continue
            elif kind == _TOUCH:
                old = changed.get(key) or self._entry(key)
                record = old[1] if old else self.backend.get(key)
                new = record_of(key, touched(key, record, value))
                changed[key] = (lsn, new, arm_after(old, UNKNOWN_MS))
            elif kind == _RENAME:
                old = changed.get(key) or self._entry(key)
                record = old[1] if old else self.backend.get(key)
                if record is None:
                    raise CorruptError(f"a rename of session {key!r}, which is not there", lsn=lsn)
                changed[key] = (lsn, None, UNKNOWN_MS)
                changed[value] = (lsn, record_of(value, record[HASH_BYTES:]), UNKNOWN_MS)
            else:
                changed[key] = (lsn, None, UNKNOWN_MS)
        return changed

    def _entry(self, key: bytes) -> Entry | None:
        return self.pending.get(key) or self.tail.get(key)

    # -- folding ---------------------------------------------------------------------------------

    def fold_plan(self, due: Sequence[Deadline] = ()) -> FoldPlan | None:
        """What a fold of the whole visible tail would write; None if there is nothing to fold.

        `due` is disarmed in the same fold, and each session of it that the state holds afterwards is armed
        anew at its expiry. The caller holds the fold lock and the mutex.
        """
        self.catch_up()
        self.advance()
        self.release()
        self.refresh()
        if self.visible.lsn <= self.state.lsn and not due:
            return None
        if is_half_replaced(self.log.store):
            return None  # what was followed may be what is taken off the log at this moment
        changes: list[Change] = []
        armed: list[Deadline] = []
        asked: list[Change] = []
        others: list[bytes] = []
        tail = self.tail
        for key in sorted(tail):
            _, record, arm_ms = tail[key]
            changes.append((key, record))
            if arm_ms and record is not None:
                if arm_ms > 0:
                    armed.append((arm_ms, key))
                else:
                    asked.append((key, record))
                if record[LABELS_AT:LABELS_END] != NO_LABELS:
                    others.append(key)
        if asked:
            armed += plan_deadlines(asked, self._base_expiries(asked))
        # The index: looked up is only what can have been in it.
        if self.backend.has_labels:
            labelled, unlabelled = self._plan_labels(
                [key for key, entry in tail.items() if entry[2] != KEPT_MS]
            )
        else:
            labelled, unlabelled = self._plan_labels(others)
        if due:
            armed += self._to_rearm(due)
        return FoldPlan(changes, armed, due, self.visible, labelled, unlabelled)

    def _to_rearm(self, due: Sequence[Deadline]) -> Iterator[Deadline]:
        """The deadlines of what the fold of the tail leaves in the state, of sessions that were due."""
        find, get = self.tail.get, self.backend.get
        for key in dict.fromkeys([key for _, key in due]):
            found = find(key)
            record = found[1] if found else get(key)
            if record is not None and (expiry := expiry_of(record, HASH_BYTES)) != NEVER_MS:
                yield expiry, key

    def _plan_labels(self, keys: list[bytes]) -> tuple[list[Labelled], list[Labelled]]:
        if not keys:
            return [], []
        tail, backend = self.tail, self.backend
        base: dict[bytes, tuple[bytes, ...]] = {}
        new: list[Change] = []
        for key in keys:
            _, record, arm_ms = tail[key]
            # A deadline: it was created, and its labels are those of then. NEW_MS is no proof that the state
            # does not have it: another process may have folded its creation before it was changed.
            old = backend.get(key) if backend.has_labels and arm_ms <= 0 else None
            if old is None:
                new.append((key, record))
            elif terms := terms_of_record(old):
                base[key] = terms
        labelled, unlabelled = plan_labels(((key, tail[key][1]) for key in keys), base)
        return labelled + plan_used(backend, new), unlabelled

    def _base_expiries(self, asked: Iterable[Change]) -> dict[bytes, int]:
        """When the state's sessions of these keys expire, ms, but for those that are new to it (NEW_MS).

        The read view is at what the fold builds on.
        """
        tail, get = self.tail, self.backend.get
        base: dict[bytes, int] = {}
        for key, _ in asked:
            if tail[key][2] == UNKNOWN_MS:
                old = get(key)
                if old is not None:
                    base[key] = expiry_of(old, HASH_BYTES)
        return base

    def folded(self, position: StatePosition) -> None:
        """The fold up to `position` is in the state: publish it, and drop it from the tail map."""
        if self.make_own is None and position.lsn > self.state.lsn:
            self._publish(position)
        self.release()
        self.refresh()

    def _publish(self, position: StatePosition) -> None:
        words = self.log.words
        words[Word.FOLDED_SEGMENT], words[Word.FOLDED_OFFSET] = 0, 0
        words[Word.FOLDED] = position.lsn
        cursor = self.log.cursor
        if not self.needs_commit and cursor.header is not None and cursor.at.lsn == position.lsn:
            self.visible_place = (cursor.header.first_lsn, cursor.offset)
        words[Word.FOLDED_SEGMENT], words[Word.FOLDED_OFFSET] = self.visible_place

    def folded_lsn(self) -> int:
        """The LSN that the state holds: the one that all processes share, or this handle's own."""
        return self.log.words[Word.FOLDED] if self.make_own is None else self.state.lsn


def is_lost(log: EventLog, position: Position) -> bool:
    """Does this node's history go on without `position`?

    One primary an epoch, so logs that have frames of an epoch agree on them; what an epoch held beyond the
    place where a later one begins is in no history any more.
    """
    files = list_segments(log.cursor.log)
    return any(file.epoch > position.epoch and file.first_lsn <= position.lsn for file in files)


def is_beyond(visible: Position, position: Position, log: EventLog) -> bool:
    """Are readers at `visible` at or behind `position`, or is that in no history any more?"""
    if visible.epoch == position.epoch:
        return visible.lsn >= position.lsn
    return visible.epoch > position.epoch and (visible.lsn >= position.lsn or is_lost(log, position))
