"""Giving a replica the keys that its state has from behind a fork: the primary's side.

Owns one such exchange: an image of the state, at a position that is on this node's disk, and the log from
the fork up to there. Nothing is remembered between two tries: the position is another one then.
"""

from __future__ import annotations

from collections import deque

from ..store.cursor import LogCursor
from ..store.errors import PositionGoneError, WireError
from ..store.ids import Position, StatePosition
from .messages import FetchAsk, FetchReply, Message
from .messages_rejoin import KeysAsk, KeysOffer, KeysReply, pack_records, unpack_keys
from .nodelog import NodeLog
from .state_image import StateImage

FRAMES_BYTES_MAX = 1 << 20


class KeysSender:
    """One replica that takes keys."""

    def __init__(self, node: NodeLog, fork: Position) -> None:
        self._fork = fork
        self._image = StateImage(node.store, fork.lsn)
        self._cursor: LogCursor = node.cursor()
        self._at: StatePosition | None = None
        self._answers: deque[tuple[Message, bytes]] = deque()

    def next_message(self, flushed_lsn: int) -> tuple[Message, bytes] | None:
        """What is to be sent now. `flushed_lsn` is on this node's disk. Raises as StateImage."""
        if self._at is None:
            at = self._image.at()
            if at is None or at.lsn > flushed_lsn:
                return None
            self._at = at
            return KeysOffer(self._fork, at), b""
        if self._answers:
            return self._answers.popleft()
        records = self._image.answer()
        return None if records is None else (KeysReply(len(records)), pack_records(records))

    def frames(self, ask: FetchAsk) -> None:
        """The replica asks for the log. Raises PositionGoneError if it is not there (any more)."""
        at, after, cursor = self._at, Position(*ask.after), self._cursor
        if at is None or not self._fork.lsn <= after.lsn <= at.lsn:
            raise WireError(f"frames behind {after} are asked for, and were not offered")
        if cursor.descriptor < 0 or cursor.at.position != after:
            cursor.seek(after.lsn)
        if cursor.at.position != after:
            raise PositionGoneError(f"{after} is not in this log", lsn=after.lsn)
        run = cursor.read(at.lsn, max(4096, min(ask.limit_bytes, FRAMES_BYTES_MAX)))
        if run is None:
            self._answers.append((FetchReply(0, after), b""))
        else:
            self._answers.append((FetchReply(len(run.raw), run.frames[-1][1].position), run.raw))

    def keys(self, ask: KeysAsk, payload: bytes) -> None:
        """The replica asks for records. Raises WireError for what is no list of keys."""
        if self._at is None:
            raise WireError("keys are asked for, and were not offered")
        self._image.ask(unpack_keys(payload, ask.count))

    def close(self) -> None:
        self._image.close()
        self._cursor.close()
