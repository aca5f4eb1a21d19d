"""How costs grow with the length of the log, where the sessions stay as many.

Owns stores whose log has many updates of the same sessions, and these lines: an update, the start after a
kill of every process, and a replay of the whole log into a new state, an event.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, cast

from perdure.store import SessionStore
from perdure.store.backends import open_backend
from perdure.store.cursor import LogCursor
from perdure.store.ids import NOWHERE
from perdure.store.rebuild import replay

from .comparison import Plan
from .contestants import Served
from .restarts import AFTER_KILL, Reopened
from .rows import Row
from .scaling import in_turn, line_rows, may_hold
from .systems.perdure import PerdureClient
from .systems.ports import Durability, System
from .workloads import BATCH, SMALL_BYTES, changes_of, sessions_of
from .zipf import Even

FACTOR: Final = "events of the log"
SESSIONS: Final = 5_000
EVENTS: Final = (10_000, 100_000, 1_000_000)
_QUICK_EVENTS_MAX: Final = 100_000
_WRITTEN_PER_S: Final = 5_000
"""Fewer would be too slow for a run with a long log."""
_UPDATES: Final = 200
"""Of a slice: few, because they make the log longer."""


class Logged:
    """A store whose log has at least so many events, and which can be killed."""

    def __init__(self, system: System, folder: Path, events: int, limit_s: float) -> None:
        """Raises TimeoutError where they can't be written in time."""
        served = Served(system, folder, Durability.OS)
        with ExitStack() as stack:
            stack.callback(served.close)
            self._reopened = Reopened(served, min(SESSIONS, events), limit_s)
            stack.callback(self._reopened.close)
            self._ids = served.crew.file_of(SMALL_BYTES).read_text(encoding="ascii").split()
            self._folder = folder
            self._client = cast(PerdureClient, system.connect(served.running.address))
            stack.callback(self._client.close)
            _lengthen(self._client.store, self._ids, events, limit_s)
            self._stack = stack.pop_all()

    def update_us(self, number: int) -> float:
        update = self._client.update
        ids = Even(self._ids, number).take(_UPDATES)
        arguments = list(zip(ids, changes_of(number), strict=False))
        started = time.perf_counter()
        for id, changes in arguments:
            update(id, changes)
        return (time.perf_counter() - started) * 1e6 / _UPDATES

    def replay_us(self, _: int) -> float:
        """An event."""
        log = self._client.store._log
        with TemporaryDirectory(dir=self._folder) as folder, ExitStack() as stack:
            backend = open_backend("lmdb", Path(folder) / "state")
            stack.callback(backend.close)
            cursor = LogCursor(log.cursor.log, log.identity.cluster_id, log.key)
            stack.callback(cursor.close)
            started = time.perf_counter()
            events = replay(backend, cursor, NOWHERE).events
            return (time.perf_counter() - started) * 1e6 / events

    def leave(self) -> None:
        """No process has the store open afterwards, so that it can be killed. Idempotent."""
        self._client.close()

    def start_us(self, _: int) -> float:
        """After kill -9."""
        return self._reopened.round()[AFTER_KILL] * 1e6

    def close(self) -> None:
        self._stack.close()


def log_rows(
    system: System,
    plan: Plan,
    folder: Callable[[ExitStack], Path],
    skip: Callable[[str, str], None],
    only: str = "",
) -> Iterator[Row]:
    """Rows of each length; `skip` is told of those that can't be written in time. Else as scaling_rows."""
    if not may_hold(only, FACTOR):
        return
    with ExitStack() as stack:
        logged: dict[int, Logged] = {}
        for events in EVENTS:
            if plan.is_quick and events > _QUICK_EVENTS_MAX:
                continue
            limit_s = max(plan.reopen_fill_s, events / _WRITTEN_PER_S)
            try:
                logged[events] = Logged(system, folder(stack), events, limit_s)
            except Exception as error:  # noqa: BLE001  the other lengths are measured
                skip(f"{FACTOR}: {events:,}", str(error))
                continue
            stack.callback(logged[events].close)
        told = partial(_rows, system, plan)
        yield from told("update", {events: its.update_us for events, its in logged.items()})
        yield from told("replay, an event", {events: its.replay_us for events, its in logged.items()})
        for its in logged.values():
            its.leave()
        yield from told("start after kill -9", {events: its.start_us for events, its in logged.items()})


def _rows(system: System, plan: Plan, what: str, points: dict[int, Callable[[int], float]]) -> Iterator[Row]:
    yield from line_rows(system, f"{what} against {FACTOR}", in_turn(plan, points))


def _lengthen(store: SessionStore, ids: list[str], events: int, limit_s: float) -> None:
    """Update one session after the other, in batches, until the log has so many events."""
    end_s = time.monotonic() + limit_s
    fields = sessions_of(SMALL_BYTES, 1)
    at = 0
    while (left := events - store.position().lsn) > 0:
        with store.batch() as batch:
            for _ in range(min(BATCH, left)):
                batch.put(ids[at % len(ids)], next(fields), sliding=True)
                at += 1
        if time.monotonic() > end_s:
            raise TimeoutError(f"{events - left:,} events within {limit_s:.0f} s")
    store.fold()
