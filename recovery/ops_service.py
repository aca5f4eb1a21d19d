"""What a node's server answers to operators' commands: its report, where a change is held, comparisons.

Owns the handlers of the messages of shipping/messages_ops.py, and the images that are being compared. Each
is given up PASS_IDLE_S after it was last asked. What comes in is bounded, and so is every answer.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeVar

import msgspec

from ..shipping.messages_ops import (
    AlignAsk,
    AlignReply,
    BucketsAsk,
    BucketsReply,
    KeysAsk,
    KeysReply,
    LocateAsk,
    LocateReply,
    MendAsk,
    MendReply,
    PassAsk,
    PassEnd,
    PassReply,
    RecordsAsk,
    RecordsReply,
    ReportAsk,
    ReportReply,
)
from ..shipping.server import Handler
from ..store.errors import BusyError, PositionGoneError, UsageError, WireError
from ..store.event import KEY_BYTES_MAX
from ..store.ids import Position, StatePosition
from .held import find_held
from .mend import KEYS_MAX, mend
from .report import report_node
from .state_pass import StatePass, unpack_bits

PASSES_MAX: Final = 4
"""Images that one node keeps at a time: each pins old pages of the state."""
PASS_IDLE_S: Final = 60.0
TOKEN_BYTES: Final = 8
RECORDS_MAX: Final = 100_000
"""So many records are read for one answer."""
KEY_ANSWER_BYTES: Final = 256 << 10
RECORD_ANSWER_BYTES: Final = 4 << 20
T = TypeVar("T")


class OpsService:
    """The handlers of one node's server. Safe for threads."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._mutex = threading.Lock()
        self._passes: dict[bytes, _Kept] = {}
        self._timer: threading.Timer | None = None

    def handlers(self) -> dict[type, Handler]:
        return {
            ReportAsk: self._report,
            LocateAsk: self._locate,
            PassAsk: self._take,
            AlignAsk: self._align,
            BucketsAsk: self._add_up,
            KeysAsk: self._name,
            RecordsAsk: self._records,
            MendAsk: self._mend,
            PassEnd: self._end,
        }

    def close(self) -> None:
        """Give up all images."""
        with self._mutex:
            kept = list(self._passes.values())
            self._passes.clear()
            if self._timer is not None:
                self._timer.cancel()
        for one in kept:
            one.close()

    def _report(self, ask: ReportAsk, _payload: bytes) -> tuple[ReportReply, bytes]:
        report = report_node(self._store, is_brief=ask.is_brief)
        return ReportReply(report.node), msgspec.msgpack.encode(report)

    def _locate(self, ask: LocateAsk, _payload: bytes) -> tuple[LocateReply, bytes]:
        held = find_held(self._store, Position(*ask.position))
        return LocateReply(held.node, held.end, held.is_held, held.is_applied, held.why), b""

    def _take(self, _ask: PassAsk, _payload: bytes) -> tuple[PassReply, bytes]:
        self._give_up_idle()
        with self._mutex:
            if len(self._passes) >= PASSES_MAX:
                raise BusyError(f"{PASSES_MAX} comparisons are under way on this node", path=self._store)
            token = os.urandom(TOKEN_BYTES)
            kept = self._passes[token] = _Kept()
        try:
            taken = StatePass(self._store)
        except BaseException:
            with self._mutex:
                self._passes.pop(token, None)
            raise
        kept.begin(taken, self._store)
        self._look_later()
        return PassReply(token, taken.at), b""

    def _align(self, ask: AlignAsk, _payload: bytes) -> tuple[AlignReply, bytes]:
        with self._kept(ask.token) as taken:
            is_aligned = taken.align(StatePosition(*ask.to))
            return AlignReply(is_aligned, taken.at), b""

    def _add_up(self, ask: BucketsAsk, _payload: bytes) -> tuple[BucketsReply, bytes]:
        with self._kept(ask.token) as taken:
            is_complete = taken.add_up(_checked(ask.records))
            done = taken.done
            if not is_complete:
                return BucketsReply(done, False), b""
            taken.rewind()
            return BucketsReply(done, True), taken.buckets.pack()

    def _name(self, ask: KeysAsk, payload: bytes) -> tuple[KeysReply, bytes]:
        buckets = unpack_bits(payload)
        with self._kept(ask.token) as taken:
            found, is_complete = taken.names(buckets, _checked(ask.records), KEY_ANSWER_BYTES)
            return KeysReply(taken.done, is_complete), msgspec.msgpack.encode(found)

    def _records(self, ask: RecordsAsk, payload: bytes) -> tuple[RecordsReply, bytes]:
        keys = decoded(payload, list[bytes])
        check_keys(keys)
        found: list[bytes | None] = []
        size = 0
        with self._kept(ask.token) as taken:
            for key in keys:
                record = taken.get(key)
                found.append(record)
                size += len(record or b"")
                if size >= RECORD_ANSWER_BYTES:
                    break
        return RecordsReply(len(found)), msgspec.msgpack.encode(found)

    def _mend(self, ask: MendAsk, payload: bytes) -> tuple[MendReply, bytes]:
        pairs = decoded(payload, list[tuple[bytes, bytes | None]])
        check_keys([key for key, _ in pairs])
        done = mend(self._store, StatePosition(*ask.at), pairs, ask.source)
        return MendReply(done.mended, done.unchanged), b""

    def _end(self, ask: PassEnd, _payload: bytes) -> tuple[PassEnd, bytes]:
        with self._mutex:
            kept = self._passes.pop(ask.token, None)
        if kept is not None:
            kept.close()
        return PassEnd(ask.token), b""

    @contextmanager
    def _kept(self, token: bytes) -> Generator[StatePass, None, None]:
        with self._mutex:
            kept = self._passes.get(token)
        if kept is None:
            raise PositionGoneError(
                "the image was given up: it was not asked for too long, or the server began anew",
                path=self._store,
                hint="Compare again.",
            )
        with kept.mutex:
            yield kept.image()

    def _give_up_idle(self) -> None:
        now = monotonic()
        with self._mutex:
            idle = [
                token
                for token, kept in self._passes.items()
                if kept.is_taken and now - kept.asked_s > PASS_IDLE_S
            ]
            dead = [self._passes.pop(token) for token in idle]
        for kept in dead:
            kept.close()

    def _look_later(self) -> None:
        """An image that nobody asks for any more is given up, also if no other is ever taken."""
        with self._mutex:
            if not self._passes or (self._timer is not None and self._timer.is_alive()):
                return
            self._timer = threading.Timer(PASS_IDLE_S, self._look_again)
            self._timer.daemon = True
            self._timer.start()

    def _look_again(self) -> None:
        self._give_up_idle()
        with self._mutex:
            self._timer = None
        self._look_later()


class _Kept:
    """An image between two questions."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self.asked_s = monotonic()
        self._taken: StatePass | None = None
        self._is_closed = False

    @property
    def is_taken(self) -> bool:
        return self._taken is not None

    def begin(self, taken: StatePass, store: Path) -> None:
        """Raises BusyError, with the image closed, if it was given up before it was there."""
        with self.mutex:
            if not self._is_closed:
                self._taken = taken
                self.asked_s = monotonic()
                return
        taken.close()
        raise BusyError("the server ends, and gave the image up", path=store)

    def image(self) -> StatePass:
        self.asked_s = monotonic()
        if self._taken is None:
            raise BusyError("the image is being taken, or was given up")
        return self._taken

    def close(self) -> None:
        with self.mutex:
            taken, self._taken, self._is_closed = self._taken, None, True
        if taken is not None:
            taken.close()


def decoded(payload: bytes, kind: type[T]) -> T:
    """A payload of MessagePack. Raises WireError."""
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"a payload does not decode: {error}") from error


def check_keys(keys: list[bytes]) -> None:
    """Raises UsageError for too many, or what is no key."""
    if not 0 < len(keys) <= KEYS_MAX:
        raise UsageError(f"1 to {KEYS_MAX} sessions are asked for at once, not {len(keys)}")
    if any(not 0 < len(key) <= KEY_BYTES_MAX for key in keys):
        raise UsageError(f"a session's key has 1 to {KEY_BYTES_MAX} bytes")


def _checked(records: Any) -> int:
    return max(1, min(int(records), RECORDS_MAX))
