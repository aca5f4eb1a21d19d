"""How far this process sees: waiting for a position, and whether it is in this node's history at all.

Owns the answer to "does what I read here rest on that write": by LSN within one epoch, across epochs by where
the later one begins.
"""

from __future__ import annotations

import time
from typing import Final

from .errors import PositionLostError, StaleReadError, UsageError
from .ids import Position, parse_position
from .log import EventLog
from .view import View, is_lost

POLL_S_MIN: Final = 0.0001
POLL_S_MAX: Final = 0.002


def position_of(token: Position | tuple[int, int, int] | str) -> Position:
    """The position that a token is. Raises UsageError."""
    if isinstance(token, str):
        try:
            return parse_position(token)
        except ValueError as error:
            raise UsageError(str(error)) from error
    try:
        epoch, lsn, chain = token
    except (TypeError, ValueError) as error:
        raise UsageError(f"{token!r} is no position: (epoch, lsn, chain) or its text") from error
    return Position(epoch, lsn, chain)


def has_reached(log: EventLog, view: View, position: Position) -> bool:
    """Do readers of this process see everything up to `position`? Raises PositionLostError."""
    with view.mutex:
        view.catch_up()
        view.advance()
        visible = view.visible
    if visible.lsn >= position.lsn and visible.epoch == position.epoch:
        return True
    if visible.epoch > position.epoch and is_lost(log, position):
        raise PositionLostError(
            f"{position} is in no history any more: a later epoch began before it",
            node=log.identity.node,
            lsn=position.lsn,
            hint="What was written there is lost, or was never committed; outcome() says which.",
        )
    return visible.lsn >= position.lsn and visible.epoch >= position.epoch


def wait_until(log: EventLog, view: View, position: Position, deadline: float) -> None:
    """Return once readers of this process see everything up to `position`.

    `deadline` is seconds of time.monotonic(). Raises StaleReadError when it has passed, PositionLostError.
    """
    pause_s = POLL_S_MIN
    while not has_reached(log, view, position):
        if time.monotonic() >= deadline:
            raise StaleReadError(
                f"this node has reached LSN {view.visible.lsn} of epoch {view.visible.epoch}, not {position}",
                node=log.identity.node,
                lsn=position.lsn,
                hint="Wait longer, or read on the primary; `perdure status` shows how far the replicas are.",
            )
        time.sleep(pause_s)
        pause_s = min(POLL_S_MAX, pause_s * 1.5)
