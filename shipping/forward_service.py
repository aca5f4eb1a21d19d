"""The primary's side of forwarding: what other nodes ask for their clients, done on this node's own store.

Owns the handlers of messages_forward. The store is a handle like any application's.
"""

from __future__ import annotations

from ..store import SessionStore
from .messages import Message
from .messages_forward import PositionAsk, PositionReply
from .server import Handler


class ForwardService:
    """Handlers over an open store, which stays its owner's."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store

    def handlers(self) -> dict[type, Handler]:
        return {PositionAsk: self._position}

    def _position(self, _asked: PositionAsk, _payload: bytes) -> tuple[Message, bytes]:
        known = self._store.stats()
        position = self._store.position()
        at = (position.epoch, position.lsn, position.chain)
        return PositionReply(known["node"], known["is_primary"], at), b""
