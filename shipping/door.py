"""The door of a loop that listens: it stays shut for a moment where the system gives no connection.

Owns when the listener is looked at again. Whoever waits there keeps it ready: a loop that looked again at
once would fail, and log, without end, and have no time for the connections whose ends free what is lacking.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Final

from .nodelog import monotonic_ms

logger = logging.getLogger(__name__)

SHUT_MS: Final = 100
NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""What accept() says where descriptors or memory are used up: whoever connects must wait."""


class Door:
    """One listener in one selector."""

    def __init__(self, watch: Callable[[], object], unwatch: Callable[[], object]) -> None:
        """`watch` and `unwatch` put the listener into the selector, which is done now, and take it out."""
        self._watch = watch
        self._unwatch = unwatch
        self._shut_ms: int | None = None
        """When it was shut."""
        self._said = ""
        watch()

    def shut(self, why: str) -> None:
        """No connection can be taken: leave the listener alone for SHUT_MS. Said once, until one is taken."""
        self._leave()
        self._shut_ms = monotonic_ms()
        if why != self._said:
            self._said = why
            logger.warning("%s; tried again every %d ms", why, SHUT_MS)

    def took(self) -> None:
        """A connection was taken."""
        self._said = ""

    def tick(self, at_ms: int) -> None:
        """Open it if that is due. `at_ms` is monotonic."""
        if self._shut_ms is not None and at_ms - self._shut_ms >= SHUT_MS:
            self._shut_ms = None
            self._watch()

    def close(self) -> None:
        """Take the listener out of the selector."""
        self._leave()
        self._shut_ms = None

    def _leave(self) -> None:
        if self._shut_ms is None:
            self._unwatch()
