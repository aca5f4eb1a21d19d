"""The events of one open store: feeds, consumers and subscribers, and what closes with the store.

Owns where a feed begins. Nothing here runs, and no writer or reader looks here, before somebody asks for
events.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from .consumers import Consumer, ConsumerFile, drop_consumer, list_consumers
from .cursor import list_segments
from .errors import PerdureError, StoreClosedError, UsageError
from .event_reader import EventPlace, EventReader, committed_end
from .feed import AckPolicy, Feed, progress_of
from .ids import LSN_LIMIT, Position, StatePosition, parse_position
from .opening import Opened
from .session_event import OpenSession, open_plain, parse_kinds
from .subscribers import Callback, Subscribers, Subscription


class Events:
    """What one open store tells of its changes."""

    def __init__(
        self, opened: Opened, now_ms: Callable[[], int], open_session: OpenSession = open_plain
    ) -> None:
        self._opened = opened
        self._now_ms = now_ms
        self._open_session = open_session
        self._threads = threading.Lock()
        opened.log.thread_locks.append(self._threads)
        self._feeds: dict[int, Feed] = {}
        self._subscribers: Subscribers | None = None
        self._is_over = False

    def feed(
        self,
        from_lsn: int | Position | str | None,
        *,
        consumer: str | None,
        kinds: Iterable[str] | str | None,
        follow: bool,
        timeout_ms: int | None,
        ack_every_events: int,
        ack_interval_ms: int,
        auto_ack: bool,
    ) -> Feed:
        """See SessionReader.feed."""
        acks = AckPolicy(ack_every_events, ack_interval_ms, auto_ack)
        wanted = parse_kinds(kinds)
        asked = None if from_lsn is None else self._place(from_lsn)
        end, _, _ = committed_end(self._opened.log, self._opened.view)
        file = None if consumer is None else ConsumerFile(self._opened.store, consumer)
        reader: EventReader | None = None
        try:
            progress = file.read() if file is not None and asked is None else None
            place = asked or (progress.place if progress is not None else _behind(end))
            reader = EventReader(
                self._opened.log,
                self._opened.view,
                place,
                kinds=wanted,
                open_session=self._open_session,
                who=f"consumer {consumer!r}" if consumer else "the feed",
            )
            reader.check()
            if file is not None:
                file.write(progress_of(file.name, place, self._now_ms()))
            feed = Feed(
                reader,
                consumer=file,
                acks=acks,
                upto_lsn=None if follow else end.lsn,
                timeout_ms=timeout_ms,
                now_ms=self._now_ms,
                on_close=self._closed,
            )
        except BaseException:
            if reader is not None:
                reader.close()
            if file is not None:
                file.close()
            raise
        with self._threads:
            self._feeds[id(feed)] = feed
            self._opened.log.thread_locks.append(feed.threads)
            is_late = self._is_over
        if is_late:  # nobody else would close it, and its consumer would stay taken
            feed.close(is_store_closed=True)
            raise self._store_closed()
        return feed

    def on(self, kinds: Iterable[str] | str, callback: Callback) -> Subscription:
        """See SessionReader.on."""
        wanted = parse_kinds(kinds)
        with self._threads:
            if self._is_over:
                raise self._store_closed()
            if self._subscribers is None:
                log = self._opened.log
                self._subscribers = Subscribers(log, self._opened.view, self._open_session)
                log.thread_locks.append(self._subscribers.threads)
            subscribers = self._subscribers
        return subscribers.add(wanted, callback)

    def drain(self, timeout_ms: int) -> bool:
        """See SessionReader.drain_events."""
        return self._subscribers is None or self._subscribers.drain(timeout_ms)

    def consumers(self) -> list[Consumer]:
        """See SessionReader.consumers."""
        end, _, _ = committed_end(self._opened.log, self._opened.view)
        return list_consumers(self._opened.store, end.lsn)

    def drop_consumer(self, name: str) -> bool:
        """See SessionReader.drop_consumer."""
        return drop_consumer(self._opened.store, name)

    def stats(self) -> dict[str, Any]:
        """What subscribers did; see SessionReader.stats."""
        subscribers = self._subscribers
        return {
            "subscriber_errors": subscribers.errors if subscribers is not None else 0,
            "subscriber_last_error": (subscribers.last_error or None) if subscribers is not None else None,
        }

    def close(self) -> PerdureError | None:
        """End every feed and subscription; answers why the progress of a consumer could not be written."""
        failed: PerdureError | None = None
        with self._threads:
            self._is_over = True
        if self._subscribers is not None:
            self._subscribers.close()
        for feed in list(self._feeds.values()):
            try:
                feed.close(is_store_closed=True)
            except PerdureError as error:
                failed = error
        return failed

    def _store_closed(self) -> StoreClosedError:
        return StoreClosedError("the store was closed", path=self._opened.store)

    def _closed(self, feed: Feed) -> None:
        with self._threads:
            if self._feeds.pop(id(feed), None) is not None:
                self._opened.log.thread_locks.remove(feed.threads)

    def _place(self, from_lsn: int | Position | str) -> EventPlace:
        """Where a feed begins that was asked for by LSN (the first event) or position (done up to there)."""
        if isinstance(from_lsn, str):
            try:
                from_lsn = parse_position(from_lsn)
            except ValueError as error:
                raise UsageError(str(error)) from error
        if isinstance(from_lsn, tuple):
            position = Position(*from_lsn)
            if not 0 <= position.lsn < LSN_LIMIT:
                raise UsageError(f"{position} is no position")
            return EventPlace(position.lsn + 1, position if position.lsn else None)
        if type(from_lsn) is not int or not 0 <= from_lsn < LSN_LIMIT:
            raise UsageError(
                f"from_lsn is an LSN, a position or None, not {from_lsn!r}",
                hint="0 is the oldest event that the log holds, None what comes from now on.",
            )
        if from_lsn:
            return EventPlace(from_lsn)
        files = list_segments(self._opened.log.cursor.log)
        return EventPlace(files[0].first_lsn if files else 1)


def _behind(end: StatePosition) -> EventPlace:
    return EventPlace(end.lsn + 1, end.position if end.lsn else None)
