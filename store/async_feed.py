"""The event feed for asyncio: a wrapper over the same Feed, with no second way of reading.

Owns how it waits: the event loop sleeps, and a thread reads for a moment when the control page has news.
Loaded only when it is asked for.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

from .feed import POLL_S_MAX, POLL_S_MIN, Feed
from .session_event import SessionEvent

LOOK_S = 1.0
"""What is due besides events (progress to be written or synced) is done this often while it waits."""


class AsyncFeed:
    """A feed for asyncio: `async for event in feed`, over the same code.

    The event loop waits, a thread reads for a moment; to cancel a wait loses no event. For one task at a
    time.
    """

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def __aiter__(self) -> AsyncFeed:
        return self

    async def __anext__(self) -> SessionEvent:
        event = await self.next_event(self.feed.timeout_ms)
        if event is None:
            raise StopAsyncIteration
        return event

    async def next_event(self, timeout_ms: int | None = None) -> SessionEvent | None:
        """As Feed.next_event. Cancelled, it has delivered nothing."""
        feed = self.feed
        deadline_s = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        delay_s, looked_s = POLL_S_MIN, 0.0
        while True:
            if feed.has_news() or time.monotonic() - looked_s >= LOOK_S:
                looked_s = time.monotonic()
                if (feed.is_ready or await asyncio.to_thread(feed.look)) and (
                    event := feed.poll()
                ) is not None:
                    return event
            if feed.is_at_end:
                return None
            left_s = POLL_S_MAX if deadline_s is None else deadline_s - time.monotonic()
            if left_s <= 0:
                return None
            await asyncio.sleep(min(delay_s, left_s))
            delay_s = min(delay_s * 2, POLL_S_MAX)

    async def ack(self, event: SessionEvent) -> None:
        """As Feed.ack."""
        await asyncio.to_thread(self.feed.ack, event)

    async def aclose(self) -> None:
        """As Feed.close."""
        await asyncio.to_thread(self.feed.close)

    async def __aenter__(self) -> AsyncFeed:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
