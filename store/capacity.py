"""The capacity limit: which sessions make room for a new one, the least recently used first.

Owns the pairs of the kind USED in the index (see labels): one a session, at or before its last use, which a
use does not move. Whoever looks for sessions to evict meets those at the head of that order, and moves the
pairs that have been overtaken. The order is that of the uses that were written: refreshes that wait in the
memory of another process do not count yet.

Invariant: what is evicted is decided under the write lock, from the session as it is then. An eviction is a
logged DELETE in the frame of the change that needed the room.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import Any

from .commit import Evaluate
from .errors import BacklogError
from .event import Kind, Reason
from .fold import HASH_BYTES
from .keeper import Keeper
from .labels import USED, USED_BEGUN, USED_COMPLETE, used_pair, used_term
from .ports import Backend, Labelled
from .session import ACCESSED_OFFSET, unpack_lifetime
from .stage import Stage
from .view import View

EVICT_AT_ONCE = 256
"""A store that holds more than its limit shrinks by so many sessions with each one that is created."""
LOOK_AT = 4096
"""Pairs that one search looks at. The order is exact unless more sessions than that were used since they
were last looked at."""
FIND_AT_ONCE = 512
BUILD_AT_ONCE = 4096
_ACCESSED_AT = HASH_BYTES + ACCESSED_OFFSET


class NothingToEvict(BacklogError):
    """Nobody is known to evict: look for some, outside of the write lock, and try again."""


class Evictor:
    """Keeps one store at or below `sessions_max` sessions."""

    def __init__(
        self,
        keeper: Keeper,
        view: View,
        touches: Callable[[], Mapping[bytes, int]],
        flush_touches: Callable[[], None],
        sessions_max: int,
    ) -> None:
        self._keeper = keeper
        self._view = view
        self._touches = touches
        self._flush_touches = flush_touches
        self._sessions_max = sessions_max
        self._pool: deque[tuple[int, bytes]] = deque()
        """(last used, ms; key): who goes next."""
        self._wanted = 0
        """How many had to go at once when there were too few."""
        self._searching = threading.Lock()
        view.log.thread_locks.append(self._searching)

    def bounded(self, evaluate: Evaluate, operation_id: bytes) -> Evaluate:
        """`evaluate`, and what has to go for the sessions that it adds. Raises NothingToEvict."""

        def evaluate_and_evict(stage: Stage) -> Any:
            before = stage.session_count
            result = evaluate(stage)
            if stage.session_count > before:
                excess = stage.session_count - self._sessions_max
                self._evict(stage, excess, min(excess, stage.session_count - before), operation_id)
            return result

        return evaluate_and_evict

    def _evict(self, stage: Stage, excess: int, due: int, operation_id: bytes) -> None:
        """Evict `due` sessions, and of what is in excess besides as many as are known."""
        pool, touches = self._pool, self._touches()
        wanted = min(excess, max(due, EVICT_AT_ONCE))
        gone = 0
        while gone < wanted:
            if not pool:
                if gone and gone >= due and excess > EVICT_AT_ONCE:
                    return  # it shrinks, as it should
                self._wanted = max(self._wanted, wanted)
                raise NothingToEvict(
                    f"the store holds its {self._sessions_max} sessions, and none of them can be evicted yet",
                    hint="Nothing was written. A batch takes at most max_sessions new ones.",
                )
            accessed_ms, key = pool.popleft()
            record = stage.get(key)
            if record is None or key in touches or key in stage.entries:
                continue
            if unpack_lifetime(record, _ACCESSED_AT)[0] <= accessed_ms:
                stage.remove(key, Kind.DELETE, Reason.EVICTED, operation_id)
                gone += 1

    def search(self) -> bool:
        """Look for sessions to evict; says whether there are any. Not under the write lock."""
        with self._searching:
            wanted, self._wanted = max(self._wanted, EVICT_AT_ONCE), 0
            if len(self._pool) >= wanted or (self._pool and wanted == EVICT_AT_ONCE):
                return True  # another thread was here first
            self._flush_touches()
            self._keeper.fold_now()
            if not self._has_order():
                self._build_order()
            found: list[tuple[int, bytes]] = []
            above: Labelled | None = (USED, b"\xff")
            looked = 0
            while above is not None and looked < LOOK_AT + wanted and _count_below(found, above) < wanted:
                above = self._keeper.under_fold_lock(partial(self._look, above, found))
                looked += FIND_AT_ONCE
            # What was not looked at was last used after the time at which the search stands.
            sure = sorted(set(found))
            if above is not None:
                sure = sure[: _count_below(sure, above)] or sure
            self._pool = deque(sure[:wanted])
            return bool(self._pool)

    def _look(self, above: Labelled, found: list[tuple[int, bytes]]) -> Labelled | None:
        """Look at the next pairs; answers the last of them, None if there are no more."""
        view, touches = self._view, self._touches()
        labelled: list[Labelled] = []
        unlabelled: list[Labelled] = []
        with view.mutex:
            view.catch_up()  # another state may stand in place of the one that was open
            view.release()
            view.refresh()
            pairs = view.backend.find(above, USED + b"\xff", FIND_AT_ONCE)
            for pair in pairs:
                key = pair[1]
                record = view.backend.get(key)
                if record is None:
                    unlabelled.append(pair)
                    continue
                moved = used_pair(key, record)
                if moved > pair:
                    unlabelled.append(pair)
                    labelled.append(moved)
                if key not in touches:
                    found.append((unpack_lifetime(record, _ACCESSED_AT)[0], key))
            if unlabelled:
                view.backend.fold([], [], [], view.state, sorted(labelled), unlabelled)
        return pairs[-1] if len(pairs) == FIND_AT_ONCE else None

    # -- the order -------------------------------------------------------------------------------

    def _has_order(self) -> bool:
        view = self._view
        with view.mutex:
            view.release()
            view.refresh()
            return USED_COMPLETE in view.backend.find((USED, b""), USED, 2)

    def _build_order(self) -> None:
        """Give each session its pair. A crash, or a switch of the state, leaves it begun, to be redone."""
        self._add([USED_BEGUN])
        with self._view.mutex:
            scan = self._view.scan()
            built = self._view.backend
        try:
            records = iter(scan)
            while batch := list(islice(records, BUILD_AT_ONCE)):
                self._add(sorted(used_pair(key, record) for key, record in batch))
        finally:
            scan.close()
        self._add([USED_COMPLETE], only_in=built)

    def _add(self, pairs: list[Labelled], only_in: Backend | None = None) -> None:
        view = self._view

        def add() -> None:
            with view.mutex:
                view.catch_up()  # another state may stand in place of the one that was open
                if only_in is None or view.backend is only_in:
                    view.release()
                    view.refresh()
                    view.backend.fold([], [], [], view.state, pairs)

        self._keeper.under_fold_lock(add)


def _count_below(found: list[tuple[int, bytes]], above: Labelled) -> int:
    """How many were last used before the time at which a search stands."""
    return sum(1 for accessed_ms, key in found if used_term(accessed_ms) < above[0])
