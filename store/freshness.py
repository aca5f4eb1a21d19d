"""Freshness: what a read asks of this node before it reads here.

Owns three questions: is this node as far as a position (a token), is what it shows no older than so many ms,
and does it show all that was acknowledged before the call (linearizable). Each waits as long as it may, and
says StaleReadError then; none of them changes anything.
"""

from __future__ import annotations

import time
from typing import Final

from .commit import Writer
from .elsewhere import Elsewhere
from .errors import StaleReadError, UsageError
from .ids import Position
from .page import Word
from .ports import CommitGate
from .progress import position_of, wait_until

LAG_MS_MAX: Final = 86_400_000
HEARTBEATS_MS: Final = 250
"""A replica that is connected hears from the primary within that time: a bounded read waits so long."""
POLL_S: Final = 0.002
HEAR_MS: Final = 200
ASK_MS: Final = 1_000
_HEARD_MS: Final = int(Word.HEARD_MS)
_HEARD_LSN: Final = int(Word.HEARD_LSN)


class Freshness:
    """The questions of one handle's reads."""

    def __init__(self, writer: Writer, gate: CommitGate | None, elsewhere: Elsewhere | None) -> None:
        self._writer = writer
        self._log = writer.log
        self._view = writer.view
        self._timeout_ms = writer.write_timeout_ms
        self._gate = gate
        self._elsewhere = elsewhere

    def wait_for(self, token: Position | tuple[int, int, int] | str, timeout_ms: int | None) -> Position:
        """Wait until readers here see all up to a position; answers where they stand then.

        Raises StaleReadError past `timeout_ms` (None: the store's write_timeout_ms), PositionLostError if the
        position is in no history any more, UsageError if it is none.
        """
        limit_ms = self._timeout_ms if timeout_ms is None else timeout_ms
        wait_until(self._log, self._view, position_of(token), time.monotonic() + limit_ms / 1000)
        return self._view.visible.position

    def bound_lag(self, max_lag_ms: int) -> None:
        """Return once what readers see here is no older than `max_lag_ms`. Raises StaleReadError."""
        if not 0 <= max_lag_ms <= LAG_MS_MAX:
            raise UsageError(f"max_lag_ms is a whole number from 0 to {LAG_MS_MAX}, not {max_lag_ms!r}")
        deadline = time.monotonic() + max(max_lag_ms, HEARTBEATS_MS) / 1000
        while (lag_ms := self.lag_ms()) is None or lag_ms > max_lag_ms:
            if time.monotonic() >= deadline:
                raise StaleReadError(
                    "this node has not heard from the primary"
                    if lag_ms is None
                    else f"what this node shows is up to {lag_ms} ms old",
                    node=self._log.identity.node,
                    hint=f"At most {max_lag_ms} ms were asked for. Read on the primary, or allow more.",
                )
            time.sleep(POLL_S)

    def lag_ms(self) -> int | None:
        """How old what readers see here may be at most, ms; None if that is not known.

        On a replica: since the last heartbeat whose commit LSN readers here have reached; the time that it
        was on its way is not known and not counted. On the primary: since sync_replicas have last confirmed
        that it is one; 0 where none do.
        """
        view, log = self._view, self._log
        with view.mutex:
            view.catch_up()
            view.advance()
            visible_lsn, needs_commit = view.visible.lsn, view.needs_commit
        if log.is_primary:
            if not needs_commit:
                return 0
            return None if self._gate is None else self._gate.confirmed_age_ms()
        heard_ms = log.words[_HEARD_MS]
        if not heard_ms or log.words[_HEARD_LSN] > visible_lsn:
            return None
        return max(0, time.monotonic_ns() // 1_000_000 - int(heard_ms))

    def reach_newest(self) -> None:
        """Return once readers here see all that was acknowledged before the call. Raises StaleReadError.

        On the primary sync_replicas confirm that it still is one; a replica asks it to. Without sync_replicas
        the primary's own word is all there is: one that was replaced, and has not heard of it, is believed.
        """
        deadline = time.monotonic() + self._timeout_ms / 1000
        while True:
            left_ms = max(1, int((deadline - time.monotonic()) * 1000))
            if self._is_primary():
                if self._is_confirmed(min(left_ms, HEAR_MS)):
                    return
                self._writer.hear_of_others()
            elif self._elsewhere is not None and self._elsewhere.is_reachable():
                try:  # a while only: this node may become the primary meanwhile
                    position = self._elsewhere.position(is_confirmed=True, timeout_ms=min(left_ms, ASK_MS))
                except StaleReadError:
                    if time.monotonic() >= deadline:
                        raise
                    continue
                wait_until(self._log, self._view, position, deadline)
                return
            else:
                raise StaleReadError(
                    "this node is not the primary, and this handle has no way to it",
                    node=self._log.identity.node,
                    hint="Open it with perdure.open(), where the other nodes are configured.",
                )
            if time.monotonic() >= deadline:
                raise StaleReadError(
                    f"{self._log.config.sync_replicas} replica(s) did not confirm that this is the primary",
                    node=self._log.identity.node,
                    hint="It may have been replaced; `perdure status` shows who is primary.",
                )

    def _is_primary(self) -> bool:
        with self._view.mutex:
            self._view.catch_up()
        return self._log.is_primary

    def _is_confirmed(self, timeout_ms: int) -> bool:
        """Is this node still the primary, after replicas confirmed it, and by its own promise?"""
        if not self._view.needs_commit:
            return True
        if self._gate is None or not self._gate.confirm(timeout_ms):
            return False
        return self._is_primary()
