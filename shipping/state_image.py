"""The primary's state at one position, for a replica that takes some keys of it.

Owns the thread that opens the state and reads from it, so that shipping to others never waits. What it
answers is all of one image: a read view of the back end, which stays as it is while others fold. It pins
old pages of the state; who asks has IDLE_MS for each question.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from pathlib import Path
from typing import Final

from ..store.errors import PerdureError, PositionGoneError
from ..store.fold import unreadable, value_of
from ..store.ids import StatePosition
from ..store.opening import Opened, OpenOptions, open_store
from ..store.ports import Backend, Record
from .messages_rejoin import RECORD_BYTES_AT_ONCE
from .nodelog import monotonic_ms

logger = logging.getLogger(__name__)

IDLE_MS: Final = 30_000
FOLD_WAIT_S: Final = 0.02
FOLD_LOCK_MS: Final = 5_000


class StateImage:
    """One image. Ask for one list of keys at a time; `answer` has it when it is there."""

    def __init__(self, store: Path, fork_lsn: int) -> None:
        """The image stands at `fork_lsn` or further."""
        self._store = store
        self._fork_lsn = fork_lsn
        self._changed = threading.Condition()
        self._asked: deque[list[bytes]] = deque()
        self._answers: deque[list[Record | None]] = deque()
        self._is_closed = False
        self._at: StatePosition | None = None
        self._error: PerdureError | None = None
        self._thread = threading.Thread(target=self._run, name="perdure-image", daemon=True)
        self._thread.start()

    def at(self) -> StatePosition | None:
        """Where the image stands; None while it is being opened. Raises what kept it from being opened."""
        if self._error is not None:
            raise self._error
        return self._at

    def ask(self, keys: list[bytes]) -> None:
        with self._changed:
            self._asked.append(keys)
            self._changed.notify()

    def answer(self) -> list[Record | None] | None:
        """The records of the first keys that were asked for, as many as go into one reply; None: not yet.

        Raises CorruptError for a damaged state, or what else ended the image.
        """
        with self._changed:
            if self._answers:
                return self._answers.popleft()
        if self._error is not None:
            raise self._error
        return None

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _run(self) -> None:
        try:
            opened = open_store(self._store, OpenOptions(create=False))
            try:
                self._serve(opened)
            finally:
                opened.close()
        except PerdureError as error:
            self._error = error
        except Exception as error:
            self._error = unreadable(error)
            logger.exception("an image of the state ended")

    def _serve(self, opened: Opened) -> None:
        backend = opened.backend
        self._at = self._refreshed(opened)
        while (keys := self._next()) is not None:
            found = self._records(backend, keys)
            with self._changed:
                self._answers.append(found)
        backend.release()
        self._error = PositionGoneError("the state's image is no longer kept: nothing was asked of it")

    def _refreshed(self, opened: Opened) -> StatePosition:
        """Begin the read view, once the state is as far as the fork: perhaps nobody else folds."""
        backend = opened.backend
        until_ms = monotonic_ms() + IDLE_MS
        while (at := backend.refresh()).lsn < self._fork_lsn:
            backend.release()
            _fold(opened)
            if monotonic_ms() > until_ms or self._is_closed:
                raise PositionGoneError(
                    f"the state stands at LSN {at.lsn}, before the fork at {self._fork_lsn}", lsn=at.lsn
                )
            time.sleep(FOLD_WAIT_S)
        return at

    def _next(self) -> list[bytes] | None:
        until_ms = monotonic_ms() + IDLE_MS
        with self._changed:
            while not self._asked and not self._is_closed:
                left_ms = until_ms - monotonic_ms()
                if left_ms <= 0:
                    return None
                self._changed.wait(left_ms / 1000)
            return None if self._is_closed else self._asked.popleft()

    def _records(self, backend: Backend, keys: list[bytes]) -> list[Record | None]:
        found: list[Record | None] = []
        size = 0
        for key in keys:
            try:
                record = backend.get(key)
            except backend.engine_errors as error:
                raise unreadable(error) from error
            if record is not None:
                value_of(key, record)
                size += len(record)
            found.append(record)
            if size >= RECORD_BYTES_AT_ONCE:
                break
        return found


def _fold(opened: Opened) -> None:
    view, lock = opened.view, opened.fold_lock()
    try:
        with view.fold_threads:
            lock.acquire(FOLD_LOCK_MS, "a process that folds")
            with view.mutex:
                plan = view.fold_plan()
                if plan is not None:
                    opened.backend.fold(*plan)
                    view.folded(plan.position)
    finally:
        lock.close()
