"""A post: one kind of process of a node, whether it runs, and when it may be started again.

Owns the pauses between starts, which grow while the process keeps dying. The process itself is whatever its
start gives.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

from ..store.errors import PerdureError

logger = logging.getLogger(__name__)

RESTART_S_MIN: Final = 0.1
RESTART_S_MAX: Final = 10.0
STEADY_S: Final = 10.0
"""A process that lived so long is started again after the shortest pause."""


class Running(Protocol):
    """A child that can be watched and ended."""

    @property
    def is_running(self) -> bool: ...

    def stop(self) -> int:
        """End it in order, by force when that takes too long; answers its exit code."""
        ...


class Post:
    """One kind of process of a node: whether it runs, and when it may be started again."""

    def __init__(
        self, name: str, start: Callable[[], Running], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self._start = start
        self._clock = clock
        self._child: Running | None = None
        self._pause_s = 0.0
        self._start_at_s = 0.0
        self._started_s = 0.0

    @property
    def is_running(self) -> bool:
        return self._child is not None and self._child.is_running

    def begin(self, child: Running | None = None) -> None:
        """Start it for the first time, or take over one that was. Raises what keeps it from starting."""
        self._started_s = self._clock()
        self._child = child or self._start()

    def tend(self, should_run: bool) -> None:
        """Start it if it should run and does not, after a pause that grows each time; end it if it should
        not."""
        now_s = self._clock()
        if self._child is not None and not self._child.is_running:
            self._ended(now_s)
        if not should_run:
            self.stop()
            return
        if self._child is None and now_s >= self._start_at_s:
            self._started_s = now_s
            try:
                self._child = self._start()
                logger.info("started: kind=%s", self.name)
            except (PerdureError, OSError) as error:
                logger.error("cannot start: kind=%s error=%s", self.name, error)
                self._wait_longer(now_s)

    def stop(self) -> None:
        """End it. Nothing happens if it does not run."""
        if self._child is not None:
            child, self._child = self._child, None
            logger.info("ended: kind=%s code=%d", self.name, child.stop())

    def _ended(self, now_s: float) -> None:
        child, self._child = self._child, None
        if now_s - self._started_s >= STEADY_S:
            self._pause_s = 0.0
        self._wait_longer(now_s)
        code = child.stop() if child is not None else 0
        logger.error("died: kind=%s code=%d again_in_s=%.1f", self.name, code, self._pause_s)

    def _wait_longer(self, now_s: float) -> None:
        self._pause_s = min(max(RESTART_S_MIN, self._pause_s * 2), RESTART_S_MAX)
        self._start_at_s = now_s + self._pause_s
