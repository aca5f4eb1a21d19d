"""The event feed: an iterator over committed session events that can be left and resumed at any LSN.

Owns the waiting, what is acknowledged, and when that is written. Reading is event_reader's, the file
of a consumer consumers'. Invariant: the progress of a consumer never passes an event that was delivered
and not acknowledged, so each event comes at least once, and again only if it was not acknowledged.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from .consumers import ConsumerFile, Progress
from .errors import StoreClosedError, UsageError
from .event_reader import EventPlace, EventReader
from .session_event import SessionEvent

if TYPE_CHECKING:
    from .async_feed import AsyncFeed

POLL_S_MIN = 0.0005
POLL_S_MAX = 0.01
"""A feed that waits looks at the control page this often: it needs no writer to wake it."""


class AckPolicy:
    """When acknowledgements of a consumer are written: what they cost, and what may come again."""

    def __init__(self, every_events: int, interval_ms: int, is_automatic: bool) -> None:
        """Raises UsageError."""
        _check_limit("ack_every_events", every_events, 1)
        _check_limit("ack_interval_ms", interval_ms, 0)
        self.every_events = every_events
        self.interval_ms = interval_ms
        self.is_automatic = is_automatic


class Feed:
    """Committed session events in the order of their LSNs; made by store.feed().

    Iterate over it, with `for` or `async for`; it is safe for threads, each event goes to one of them.
    Once its time is up, or it reached the end that was asked for, iteration ends; iterating again goes on
    behind the last event. Close it, or use it as a context manager.
    """

    def __init__(
        self,
        reader: EventReader,
        *,
        consumer: ConsumerFile | None = None,
        acks: AckPolicy,
        upto_lsn: int | None = None,
        timeout_ms: int | None = None,
        now_ms: Callable[[], int],
        on_close: Callable[[Feed], None],
    ) -> None:
        self._reader = reader
        self._consumer = consumer
        self._acks = acks
        self._upto_lsn = upto_lsn
        self.timeout_ms = timeout_ms
        """After so long without an event iteration ends; None for never."""
        self._now_ms = now_ms
        self._on_close = on_close
        self.threads = threading.Lock()
        """Held while one thread reads or acknowledges."""
        self._closing = threading.Event()
        self._is_store_closed = False
        self._ready: deque[SessionEvent] = deque()
        """Events that were read and not delivered."""
        self._is_reading = False
        """Also if Ctrl-C broke a reading off: it is then begun anew, or what it had read would be missed."""
        self._last_lsn = reader.place.next_lsn - 1
        """Of the last event delivered."""
        self._delivered = reader.place
        """Behind it, and behind what nobody asked for."""
        self._acked = reader.place
        """Behind the last event acknowledged, likewise."""
        self._written = reader.place
        self._unwritten_events = 0
        self._synced_s = time.monotonic()

    # -- iterating -------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[SessionEvent]:
        return self

    def __next__(self) -> SessionEvent:
        event = self.next_event(self.timeout_ms)
        if event is None:
            raise StopIteration
        return event

    def __aiter__(self) -> AsyncFeed:
        from .async_feed import AsyncFeed  # noqa: PLC0415 - asyncio takes a fifth of the time of `import perdure`

        return AsyncFeed(self)

    def next_event(self, timeout_ms: int | None = None) -> SessionEvent | None:
        """The next event; None if none came within `timeout_ms` (None: wait for ever), or at the end.

        Asking for it acknowledges the one before. Raises PositionGoneError, DivergedError, CorruptError,
        StorageError, and StoreClosedError if the feed or its store is closed, ForkedError in a child.
        """
        deadline_s = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        delay_s = POLL_S_MIN
        while True:
            event = self.poll()
            if event is not None or self.is_at_end:
                return event
            left_s = POLL_S_MAX if deadline_s is None else deadline_s - time.monotonic()
            if left_s <= 0:
                return None
            self._closing.wait(min(delay_s, left_s))
            delay_s = min(delay_s * 2, POLL_S_MAX)

    def poll(self) -> SessionEvent | None:
        """The next event if there is one now. Acknowledges the one before; raises as next_event."""
        with self.threads:
            if not self._look():
                return None
            event = self._ready.popleft()
            self._last_lsn = event.lsn
            self._delivered = EventPlace(event.lsn + 1, event.position)
            return event

    def look(self) -> bool:
        """As poll(), but the event is only read, and not delivered yet; says whether there is one."""
        with self.threads:
            return self._look()

    def has_news(self) -> bool:
        """May poll() find something? Looks at nothing but the control page."""
        self._check_open()
        return bool(self._ready) or self._reader.has_news()

    @property
    def is_ready(self) -> bool:
        """Was the next event read from the log already?"""
        return bool(self._ready)

    @property
    def is_at_end(self) -> bool:
        """Was everything delivered that a feed with follow=False has to give?"""
        upto_lsn = self._upto_lsn
        return upto_lsn is not None and not self._ready and self._reader.place.next_lsn > upto_lsn

    @property
    def next_lsn(self) -> int:
        """Reading on from here, as from_lsn, gives what was not delivered yet."""
        return self._delivered.next_lsn

    # -- acknowledging ---------------------------------------------------------------------------

    def ack(self, event: SessionEvent) -> None:
        """Acknowledge this event and all before it.

        Needed for the last one before the feed is left, and for each with auto_ack=False. Raises
        UsageError for a feed without a consumer, or an event that it did not deliver; StorageError.
        """
        with self.threads:
            self._check_open()
            if self._consumer is None:
                raise UsageError(
                    "a feed without a consumer has no progress to keep",
                    hint="Open it with consumer=NAME, or keep event.lsn with what you do.",
                )
            if event.lsn >= self._delivered.next_lsn:
                raise UsageError(f"the event of LSN {event.lsn} was not delivered by this feed")
            if event.lsn >= self._acked.next_lsn:
                self._ack_up_to(EventPlace(event.lsn + 1, event.position))

    def _ack_up_to(self, place: EventPlace) -> None:
        self._acked = place
        self._unwritten_events += 1
        if self._unwritten_events >= self._acks.every_events:
            self._write_progress()

    @property
    def _is_all_acked(self) -> bool:
        return self._acked.next_lsn > self._last_lsn

    def _write_progress(self) -> None:
        """Note what is acknowledged, if that is more than is noted."""
        consumer, place = self._consumer, self._acked
        if consumer is None or place is self._written:
            return
        consumer.write(progress_of(consumer.name, place, self._now_ms()))
        self._written = place
        self._unwritten_events = 0
        if not self._acks.interval_ms:
            consumer.sync()

    def _sync_if_due(self) -> None:
        now_s = time.monotonic()
        if self._consumer is not None and (now_s - self._synced_s) * 1000 >= self._acks.interval_ms:
            self._consumer.sync()
            self._synced_s = now_s

    # -- reading ---------------------------------------------------------------------------------

    def _look(self) -> bool:
        """Acknowledge what was delivered, and read on if nothing is ready; says whether something is."""
        self._check_open()
        if self._acks.is_automatic and not self._is_all_acked:
            self._ack_up_to(self._delivered)
        if self._is_reading or (self._ready and self._reader.is_stale()):
            self._ready.clear()  # the log may have been cut: look again at what it holds
            self._reader.go_to(self._delivered)
        while not self._ready:
            if not self._read_on():
                self._rest()
                return False
        return True

    def _read_on(self) -> bool:
        """Read one run, all before it being delivered; says whether there was one."""
        reader = self._reader
        if not reader.has_news():
            return False
        self._is_reading = True
        found = reader.read(self._upto_lsn)
        self._ready.extend(found or ())
        self._is_reading = False
        if found is None:
            return False
        if self._consumer is not None:
            self._sync_if_due()
        if not found:
            self._passed()
        return True

    def _passed(self) -> None:
        """What was read and not asked for counts as done, or its log would be kept for nothing."""
        is_all_acked = self._is_all_acked
        self._delivered = self._reader.place
        if is_all_acked:
            self._acked = self._delivered

    def _rest(self) -> None:
        """Nothing to do: write what waits to be written."""
        self._passed()
        if self._consumer is not None:
            self._write_progress()
            self._sync_if_due()

    # -- closing ---------------------------------------------------------------------------------

    def close(self, *, is_store_closed: bool = False) -> None:
        """Write and sync what was acknowledged, and let others read under the consumer's name. Idempotent.

        The last event delivered is acknowledged only if ack() was called for it. A thread that waits in
        next_event() gets StoreClosedError. Raises StorageError, when all is given back.
        """
        self._is_store_closed = self._is_store_closed or is_store_closed
        self._closing.set()
        with self.threads:
            consumer, self._consumer = self._consumer, None
            self._reader.close()
            self._on_close(self)
            if consumer is None:
                return
            try:
                if self._reader.is_inherited:
                    return  # in a child: the progress is the parent's to keep
                if self._acked is not self._written:
                    consumer.write(progress_of(consumer.name, self._acked, self._now_ms()))
                consumer.sync()
            finally:
                consumer.close()

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise StoreClosedError("the store was closed" if self._is_store_closed else "the feed was closed")
        self._reader.check_handle()


def progress_of(consumer: str, place: EventPlace, now_ms: int) -> Progress:
    """What is kept of a consumer that goes on at `place`."""
    epoch, lsn, chain = place.frame or (0, 0, 0)
    return Progress(consumer, place.next_lsn - 1, epoch, lsn, chain, now_ms)


def _check_limit(name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise UsageError(f"{name} is a whole number from {least} on, not {value!r}")
