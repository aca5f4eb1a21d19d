"""The primary's side of forwarding on the wire: what other nodes ask for their clients.

Owns the handlers of messages_forward, and which submissions of an operation may still be carried out: one
that is given up, because its sender asks what became of it, never is. The work is the store's (forwarded.py).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from time import monotonic
from typing import Final

from ..store import ForwardedWrites, SessionStore, UsageError, WireError
from ..store.forwarding import encode_records
from ..store.ids import Position
from ..store.ports import Sought
from .messages import Message
from .messages_forward import (
    ForwardAsk,
    ForwardReply,
    OutcomeAsk,
    OutcomeReply,
    PositionAsk,
    PositionReply,
    RefreshAsk,
    RefreshReply,
    SweepAsk,
    SweepReply,
)
from .server import Handler

GIVEN_UP_MAX: Final = 65_536
"""So many operations that were given up are remembered; older submissions have long lost their connection."""


class Submissions:
    """Which submissions are at work, and which were given up."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._at_work: set[bytes] = set()
        self._given_up: OrderedDict[bytes, int] = OrderedDict()

    @contextmanager
    def working(self, operation_id: bytes, attempt: int) -> Generator[None, None, None]:
        """Work on a submission. Raises WireError if it was given up, or another one is at work."""
        with self._changed:
            if attempt <= self._given_up.get(operation_id, 0):
                raise WireError("this submission was given up by who sent it")
            if operation_id in self._at_work:
                raise WireError("an earlier submission of the same operation is at work")
            self._at_work.add(operation_id)
        try:
            yield
        finally:
            with self._changed:
                self._at_work.discard(operation_id)
                self._changed.notify_all()

    def give_up(self, operation_id: bytes, attempt: int, timeout_ms: int) -> None:
        """From now on no submission up to `attempt` begins; waits for the one that is at work.

        Raises WireError when that takes too long.
        """
        deadline = monotonic() + timeout_ms / 1000
        with self._changed:
            self._given_up[operation_id] = max(attempt, self._given_up.pop(operation_id, 0))
            while len(self._given_up) > GIVEN_UP_MAX:
                self._given_up.popitem(last=False)
            while operation_id in self._at_work:
                left_s = deadline - monotonic()
                if left_s <= 0 or not self._changed.wait(left_s):
                    raise WireError("a submission of the operation is still at work")


class ForwardService:
    """Handlers over an open store, which stays its owner's. It must have no forwarder of its own."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self._writes = ForwardedWrites(store)
        self._submissions = Submissions()

    def handlers(self) -> dict[type, Handler]:
        return {
            PositionAsk: self._position,
            ForwardAsk: self._forward,
            OutcomeAsk: self._outcome,
            RefreshAsk: self._refresh,
            SweepAsk: self._sweep,
        }

    def _position(self, asked: PositionAsk, _payload: bytes) -> tuple[Message, bytes]:
        log = self._store._log
        if asked.is_confirmed:
            position = self._writes.confirmed_position()
        else:
            position = self._store.position()
            if log.is_primary:
                position = self._writes.position()
        return PositionReply(log.identity.node, log.is_primary, wire_position(position)), b""

    def _forward(self, asked: ForwardAsk, payload: bytes) -> tuple[Message, bytes]:
        if len(asked.operation_id) != 16:
            raise UsageError("an operation id is 16 bytes")
        with self._submissions.working(asked.operation_id, asked.attempt):
            done = self._writes.submit(payload, asked.operation_id, asked.epoch, is_durable=asked.is_durable)
        if done.conflicts is None:
            return ForwardReply(wire_position(done.position)), b""
        records = encode_records(list(done.conflicts.items()))
        return ForwardReply(wire_position(done.position), is_conflict=True, is_whole=done.is_whole), records

    def _outcome(self, asked: OutcomeAsk, _payload: bytes) -> tuple[Message, bytes]:
        self._submissions.give_up(asked.operation_id, asked.attempt, asked.timeout_ms)
        position = None if asked.position is None else Position(*asked.position)
        sought = Sought(asked.operation_id, Position(*asked.base), asked.attempt, position)
        return OutcomeReply(self._writes.outcome(sought).value), b""

    def _refresh(self, _asked: RefreshAsk, payload: bytes) -> tuple[Message, bytes]:
        return RefreshReply(self._writes.refresh(payload)), b""

    def _sweep(self, asked: SweepAsk, _payload: bytes) -> tuple[Message, bytes]:
        expired, position = self._writes.sweep(asked.limit)
        return SweepReply(expired, wire_position(position)), b""


def wire_position(position: Position) -> tuple[int, int, int]:
    return position.epoch, position.lsn, position.chain
