"""Subscribers: callbacks that a process has called for every committed event, by one thread.

Owns that thread, which runs only while somebody subscribes. It reads the log as a feed does, so the log
is its buffer: a slow callback delays the other ones of this process, and never a writer. No lock is held
while a callback runs; it may call the store.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from .errors import DivergedError, PerdureError, PositionGoneError, StoreClosedError, UsageError
from .event_reader import EventPlace, EventReader, committed_end
from .feed import POLL_S_MAX, POLL_S_MIN
from .log import EventLog
from .session_event import EVERYTHING, EventKind, OpenSession, SessionEvent
from .view import View

logger = logging.getLogger(__name__)

RETRY_S = 0.2
FEW_EVENTS = 64
"""Behind a reading of fewer the thread waits a moment: reading them one by one takes time from writers."""
CLOSE_S = 10.0
"""So long close() waits for a callback that is under way; its next use of the store is refused then."""
Callback = Callable[[SessionEvent], object]


class Subscription:
    """One callback; made by store.on()."""

    def __init__(
        self, kinds: frozenset[EventKind], callback: Callback, after_lsn: int, owner: Subscribers
    ) -> None:
        self.kinds = kinds
        self.callback = callback
        self.after_lsn = after_lsn
        self._owner = owner
        self.is_cancelled = False

    def cancel(self) -> None:
        """No further call begins; one that is under way in another thread goes on. Idempotent."""
        self.is_cancelled = True
        self._owner.forget(self)


class Subscribers:
    """The subscriptions of one open store."""

    def __init__(self, log: EventLog, view: View, open_session: OpenSession) -> None:
        self._log = log
        self._view = view
        self._open_session = open_session
        self.threads = threading.Lock()
        self._changed = threading.Condition(self.threads)
        self._subscriptions: tuple[Subscription, ...] = ()
        self._dispatcher: _Dispatcher | None = None
        self._is_over = False
        self.errors = 0
        """Failures of callbacks, and of reading for them."""
        self.last_error = ""

    def add(self, kinds: frozenset[EventKind], callback: Callback) -> Subscription:
        """Have `callback` called for every event of these kinds that is committed from now on.

        Raises StoreClosedError or ForkedError.
        """
        if not callable(callback):
            raise UsageError(f"a subscriber is something to call, not {callback!r}")
        end, _, _ = committed_end(self._log, self._view)
        subscription = Subscription(kinds, callback, end.lsn, self)
        with self._changed:
            if self._is_over:
                raise StoreClosedError("the store was closed", path=self._log.store)
            self._subscriptions += (subscription,)
            if self._dispatcher is None:
                place = EventPlace(end.lsn + 1, end.position if end.lsn else None)
                self._dispatcher = _Dispatcher(self, self._reader(place))
                self._dispatcher.start()
        return subscription

    def forget(self, subscription: Subscription) -> None:
        with self._changed:
            self._subscriptions = tuple(one for one in self._subscriptions if one is not subscription)
            if not self._subscriptions and self._dispatcher is not None:
                self._dispatcher.stopping.set()
                self._dispatcher = None
                self._changed.notify_all()

    def drain(self, timeout_ms: int) -> bool:
        """Wait until all that is committed by now was delivered; False when the time (ms) is up.

        Raises UsageError inside a callback, which it would wait for.
        """
        end, _, _ = committed_end(self._log, self._view)
        deadline_s = time.monotonic() + timeout_ms / 1000
        with self._changed:
            while (dispatcher := self._dispatcher) is not None and dispatcher.delivered_lsn < end.lsn:
                if dispatcher.is_this_thread:
                    raise UsageError(
                        "events are drained from inside a subscriber, which would wait for itself"
                    )
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(left_s)
        return True

    def close(self) -> None:
        """Cancel every subscription, and wait (up to CLOSE_S) for a callback that is under way elsewhere."""
        with self._changed:
            self._is_over = True
            for subscription in self._subscriptions:
                subscription.is_cancelled = True
            self._subscriptions = ()
            dispatcher, self._dispatcher = self._dispatcher, None
            self._changed.notify_all()
        if dispatcher is not None:
            dispatcher.stopping.set()
            if not dispatcher.is_this_thread:
                dispatcher.join(CLOSE_S)

    def note(self, error: BaseException, what: str) -> None:
        """Count a failure. Called by the dispatcher."""
        with self._changed:
            self.errors += 1
            self.last_error = f"{what}: {type(error).__name__}: {error}"
        logger.warning("%s", self.last_error)

    def now(self) -> EventPlace:
        """Behind all that is committed."""
        end, _, _ = committed_end(self._log, self._view)
        return EventPlace(end.lsn + 1, end.position if end.lsn else None)

    def deliver(self, event: SessionEvent) -> None:
        """Call every subscriber that asks for this event. Called by the dispatcher."""
        for subscription in self._subscriptions:
            if event.lsn <= subscription.after_lsn or event.kind not in subscription.kinds:
                continue
            if subscription.is_cancelled:
                continue
            try:
                subscription.callback(event)
            except BaseException as error:  # noqa: BLE001 - the others are called, whatever it is
                self.note(error, f"a subscriber failed at LSN {event.lsn}")

    def delivered(self) -> None:
        """Wake whoever drains. Called by the dispatcher."""
        with self._changed:
            self._changed.notify_all()

    def _reader(self, place: EventPlace) -> EventReader:
        return EventReader(
            self._log,
            self._view,
            place,
            kinds=EVERYTHING,
            open_session=self._open_session,
            who="a subscriber",
        )


class _Dispatcher(threading.Thread):
    """The thread that reads and calls."""

    def __init__(self, owner: Subscribers, reader: EventReader) -> None:
        super().__init__(name="perdure-events", daemon=True)
        self.stopping = threading.Event()
        self.delivered_lsn = reader.place.next_lsn - 1
        self._owner = owner
        self._reader = reader

    @property
    def is_this_thread(self) -> bool:
        return threading.current_thread() is self

    def run(self) -> None:
        delay_s = POLL_S_MIN
        try:
            while not self.stopping.wait(delay_s):
                try:
                    delay_s = POLL_S_MIN if self._step() else min(delay_s * 2, POLL_S_MAX)
                except StoreClosedError:
                    return
                except Exception as error:  # noqa: BLE001 - it is counted, and tried again
                    self._failed(error)
                    delay_s = RETRY_S
        finally:
            self._reader.close()

    def _step(self) -> bool:
        """Deliver what there is; says whether there was anything."""
        is_busy = False
        while not self.stopping.is_set() and self._reader.has_news():
            found = self._reader.read()
            if found is None:
                break
            is_busy = True
            for event in found:
                if self.stopping.is_set():
                    return True
                self._owner.deliver(event)
                self.delivered_lsn = event.lsn
            self._arrived(self._reader.place.next_lsn - 1)
            if len(found) < FEW_EVENTS:
                break  # there will be more to read at once in a moment
        return is_busy

    def _arrived(self, lsn: int) -> None:
        self.delivered_lsn = lsn
        self._owner.delivered()

    def _failed(self, error: Exception) -> None:
        """What was dropped or cut can't be delivered any more: go on with what comes from now on."""
        self._owner.note(error, "events could not be read for subscribers")
        if isinstance(error, (DivergedError, PositionGoneError)):
            try:
                self._reader.go_to(self._owner.now())
            except PerdureError:
                return
            self._arrived(self._reader.place.next_lsn - 1)
