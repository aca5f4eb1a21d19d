"""A conversation: one link as a thread uses it, blocking, with a deadline for each step.

Owns waiting for the link's socket. What is said, and in which order, is for server and asker. Deadlines
are seconds of time.monotonic().
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final

from ..store.errors import WireError
from .link import Link
from .messages import Message

LOOK_S: Final = 0.05


class Conversation:
    """A link that one thread at a time speaks over."""

    def __init__(self, link: Link, is_over: Callable[[], bool] | None = None) -> None:
        """`is_over` is asked now and then, while this waits, whether to wait no longer."""
        self.link = link
        self.is_over = is_over
        self._waiting: deque[tuple[Message, bytes]] = deque()
        """Messages that were received and not taken; no more are read while there are any."""

    def send(self, message: Message, payload: bytes, deadline: float) -> None:
        """Return once the system has taken all of it. Raises WireError if the link broke, or too late."""
        self.link.send(message, payload)
        while self.link.has_unsent:
            self._wait(select.POLLOUT, deadline)
            self.link.flush()

    def take(self, deadline: float) -> tuple[Message, bytes]:
        """The next message and its payload. Raises WireError if the link broke, or too late."""
        while not self._waiting:
            if self.link.has_unsent:  # records of a handshake
                self._wait(select.POLLIN | select.POLLOUT, deadline)
                self.link.flush()
            else:
                self._wait(select.POLLIN, deadline)
            self._waiting.extend(self.link.receive())
        return self._waiting.popleft()

    def is_quiet(self) -> bool:
        """Did the peer neither say anything unasked nor hang up?"""
        poller = select.poll()
        poller.register(self.link.fileno(), select.POLLIN)
        return not self._waiting and not poller.poll(0)

    def wait_writable(self, deadline: float) -> None:
        """Return once a connection that is under way was decided. Raises WireError when it is too late."""
        self._wait(select.POLLOUT, deadline)

    def close(self) -> None:
        self.link.close()

    def _wait(self, events: int, deadline: float) -> None:
        poller = select.poll()
        poller.register(self.link.fileno(), events)
        while (left_s := deadline - monotonic()) > 0:
            if poller.poll((left_s if self.is_over is None else min(left_s, LOOK_S)) * 1000):
                return
            if self.is_over is not None and self.is_over():
                break
        raise WireError(f"{self.link.peer} did not answer in time", node=self.link.peer)
