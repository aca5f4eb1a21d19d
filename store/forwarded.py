"""Forwarded writes: what the primary does for the clients of other nodes, on its own handle of the store.

Owns the primary's part of a forwarded call: certify under the write lock and append by the usual write path;
say what became of a write; tell how far readers stand. Invariant: it answers only as the primary, and where
frames wait for replicas only once its own EPOCH_START is committed, because before that it does not know
all that is.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .errors import NotPrimaryError
from .forwarding import Conflict, apply_change, decode_change, decode_touches
from .ids import Position
from .outcome import Outcome, find_forwarded
from .ports import Sought, Submitted
from .stage import Stage

if TYPE_CHECKING:
    from .sessions import SessionStore


class ForwardedWrites:
    """The writes of other nodes' clients on one open store."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self._log = store._log
        self._view = store._view

    def submit(self, data: bytes, operation_id: bytes, epoch: int, *, is_durable: bool) -> Submitted:
        """Certify and append a change, in this epoch only; as durable as the store asks, and more.

        Raises NotPrimaryError, CorruptError for bytes that are no change, and as a write does.
        """
        store = self._store
        change, events = decode_change(data)

        def evaluate(stage: Stage) -> None:
            if self._log.cursor.at.epoch != epoch:
                raise NotPrimaryError(
                    f"this node is the primary of epoch {self._log.cursor.at.epoch}, not of {epoch}",
                    node=self._log.identity.node,
                )
            apply_change(stage, change, events)

        try:
            _, position = store._append(evaluate, operation_id)
        except Conflict as conflict:
            return Submitted(self.position(), dict(conflict.records), conflict.is_whole)
        if position is None:
            store._writer.wait_visible()
            return Submitted(self.position())
        store._finish(position, "disk" if is_durable else None, operation_id)
        return Submitted(position.position)

    def outcome(self, sought: Sought) -> Outcome:
        """What became of a write. Raises NotPrimaryError if this node cannot know."""
        self.position()
        return find_forwarded(self._log, self._view, sought)

    def refresh(self, data: bytes) -> int:
        """Write refreshes of sessions; answers how many were taken. Raises as a write does."""
        touches = decode_touches(data)
        self._store._writer.commit(partial(self._store._refresh, touches))
        return len(touches)

    def sweep(self, limit: int) -> tuple[int, Position]:
        """Expire what is due, at most `limit` (0: all). Raises as a write does."""
        if not self._log.is_primary:
            self.position()
        expired = self._store.cleanup_expired(limit or None)
        return expired, self.position()

    def confirmed_position(self) -> Position:
        """As position(), after sync_replicas have confirmed that this node is the primary.

        Raises StaleReadError, NotPrimaryError.
        """
        self.position()
        self._store._freshness.reach_newest()
        return self.position()

    def position(self) -> Position:
        """Where readers of this primary stand. Raises NotPrimaryError."""
        view, log = self._view, self._log
        with view.mutex:
            view.catch_up()
            view.advance()
            visible, epoch = view.visible.position, log.cursor.at.epoch
        if not log.is_primary:
            raise log.not_primary()
        if visible.epoch != epoch:
            raise NotPrimaryError(
                f"the primary of epoch {epoch} has not committed its beginning yet", node=log.identity.node
            )
        return visible
