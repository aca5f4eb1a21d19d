"""A peer: one replica as the shipper deals with it, from the connection to the stream of frames.

Owns the connection's stages, its time limits and retries. A peer never blocks, and what goes wrong with
it stays with it: it is disconnected, its slot says why, and it is tried again.
"""

from __future__ import annotations

import logging
import os
import random
import selectors
import time
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from ..store.cursor import LogCursor
from ..store.errors import (
    DivergedError,
    FencedError,
    ForeignError,
    PerdureError,
    PoisonedError,
    PositionGoneError,
    WireError,
)
from ..store.ids import Position
from ..store.promise import leaps
from . import slots
from .asking import refused_unproved
from .auth import NONCE_BYTES, SHIPPER, Connecting
from .bootstrap import SnapshotSender
from .credentials import CertificateError
from .keys_sender import KeysSender
from .link import Link, LinkClosed, begin_connect, check_connected
from .messages import (
    DIVERGED,
    FENCED,
    FOREIGN,
    Ack,
    Challenge,
    Cut,
    FetchAsk,
    Message,
    Pause,
    Peers,
    PieceAck,
    Proof,
    Refusal,
    ShipWelcome,
    SnapshotWant,
    Start,
)
from .messages_rejoin import KeysAsk, Parted
from .nodelog import monotonic_ms, now_ms
from .placement import CutTo, GiveKeys, HasDiverged, NeedsSnapshot, Placement, StreamFrom
from .reign import Fenced, Reign
from .sender import Sender
from .slots import Slot, new_slot

logger = logging.getLogger(__name__)

HEARTBEAT_MS: Final = 100
HANDSHAKE_MS: Final = 5_000
RETRY_MS_MIN: Final = 50
RETRY_MS_MAX: Final = 2_000
REFUSED_RETRY_MS: Final = 5_000
"""Pause after a refusal that only a person can change."""
KEYS_TRIES: Final = 3
"""So often in a row an image of the state for a replica that takes keys may fail; then it gets a snapshot."""
PUMP_MESSAGES: Final = 8
"""Messages sent to one replica before the others have their turn."""
UNSENT_BYTES_MAX: Final = 4 << 20
"""No further frames are read for a replica while so much waits for its socket."""
ERROR_CHARS_MAX: Final = 1000
_new = tuple.__new__
T = TypeVar("T")


NO_SNAPSHOT: Final[dict[str, Any]] = {
    "snapshot": "",
    "snapshot_lsn": 0,
    "snapshot_bytes": 0,
    "snapshot_total_bytes": 0,
}


class Stage(Enum):
    WAITING = "waiting"
    CONNECTING = "connecting"
    GREETING = "greeting"
    PROVING = "proving"
    MEETING = "meeting"
    SEARCHING = "searching"
    STREAMING = "streaming"
    SNAPSHOT = "snapshot"
    KEYS = "keys"
    """It takes the keys that its state has from another history."""


class Peer:
    """One replica."""

    def __init__(self, reign: Reign, name: str, host: str, port: int, slot: Slot | None) -> None:
        self.name = name
        self._reign = reign
        self._host, self._port = host, port
        self._link: Link | None = None
        self._stage = Stage.WAITING
        self._auth: Connecting | None = None
        self.sender: Sender | None = None
        self._placement: Placement | None = None
        self._snapshot: SnapshotSender | None = None
        self._keys: KeysSender | None = None
        self._keys_failures = 0
        self._keys_failed_with = ""
        self._incoming = ""
        """Name of a snapshot of which the replica has a part."""
        self._retry_ms = 0
        self._retry_at_ms = 0
        self._since_ms = 0
        self._heard_ms = 0
        self._heartbeat_ms = 0
        self._committed_sent = -1
        self._mask = 0
        self._failed_with = ""
        self._random = random.Random()
        self._slot = slot or new_slot(name)
        self._newest_ack: Ack | None = None
        """What the slot does not tell yet."""
        self._round_trip_us = 0
        if self._slot.state in (slots.STREAMING, slots.CATCH_UP, slots.PAUSED):
            self._set_slot(state=slots.DISCONNECTED)

    @property
    def address(self) -> tuple[str, int]:
        return self._host, self._port

    @property
    def is_streaming(self) -> bool:
        """Does it follow closely?"""
        return self._slot.state == slots.STREAMING and self.sender is not None

    @property
    def slot(self) -> Slot:
        """What is known of it now."""
        if self._newest_ack is not None:
            self._set_slot()
        return self._slot

    # -- driven by the shipper -------------------------------------------------------------------

    def tick(self, at_ms: int) -> None:
        """Connect if it is time, send heartbeats, give up what takes too long. `at_ms` is monotonic."""
        if self._stage is Stage.WAITING:
            if at_ms >= self._retry_at_ms:
                self._guarded(self._connect)
            return
        if self._stage in (Stage.STREAMING, Stage.SNAPSHOT, Stage.KEYS):
            if at_ms - self._heard_ms > self._reign.silence_ms:
                self._fail(WireError(f"nothing was heard for {at_ms - self._heard_ms} ms", node=self.name))
            elif at_ms - self._heartbeat_ms >= HEARTBEAT_MS:
                self._guarded(self._heartbeat)
                self._update_state()
        elif at_ms - self._since_ms > HANDSHAKE_MS:
            self._fail(WireError(f"no handshake within {HANDSHAKE_MS} ms", node=self.name))

    def pump(self) -> bool:
        """Send what the credits and the socket allow; says whether there may be more."""
        sender = self.sender
        if sender is not None and sender.number == sender.window.next:
            return False  # it has all
        if self._stage is Stage.STREAMING:
            return self._guarded(self._pump_frames)
        if self._stage is Stage.SNAPSHOT:
            return self._guarded(self._pump_snapshot)
        if self._stage is Stage.KEYS:
            return self._guarded(self._pump_keys)
        if self._stage is Stage.SEARCHING:
            return self._guarded(self._step_placement)
        return False

    @property
    def is_owed(self) -> bool:
        """Has it not been told of the commit LSN?"""
        return self._committed_sent < self._reign.committed_lsn and self._stage is Stage.STREAMING

    def announce(self) -> None:
        """Tell it the commit LSN now, by a heartbeat that it does not answer."""
        if self._stage is Stage.STREAMING:
            self._committed_sent = self._reign.committed_lsn
            self._guarded(lambda: self._send(self._reign.announcement()))

    def ask(self) -> None:
        """Ask it whether this node still is the primary: a heartbeat now."""
        if self._stage is Stage.STREAMING:
            self._guarded(self._heartbeat)

    def tell_peers(self, message: Peers) -> None:
        if self._stage is Stage.STREAMING and self._link is not None and not self._link.has_unsent:
            self._guarded(lambda: self._send(message))

    def on_event(self, mask: int) -> None:
        """The socket is ready."""
        try:
            if mask & selectors.EVENT_WRITE:
                self._writable()
            if mask & selectors.EVENT_READ:
                self._readable()
        except PoisonedError:
            raise
        except (PerdureError, OSError) as error:
            self._fail(error)

    def needs_snapshot(self) -> None:
        """The log is no longer kept for it."""
        self._set_slot(state=slots.SNAPSHOT, **NO_SNAPSHOT)

    def close(self) -> None:
        self._disconnect()
        if self._slot.state not in (slots.SNAPSHOT, slots.DIVERGED, slots.REFUSED):
            self._set_slot(state=slots.DISCONNECTED)

    # -- connecting ------------------------------------------------------------------------------

    def _connect(self) -> None:
        host = self._reign.lookup.address(self._host)
        if host is None:
            return  # it is being looked up; the next tick asks again
        self._since_ms = monotonic_ms()
        self._stage = Stage.CONNECTING
        link = begin_connect(host, self._port, self.name, self._reign.secret, node=self.name)
        self._link = link
        self._mask = selectors.EVENT_READ | selectors.EVENT_WRITE
        self._reign.selector.register(link.socket, self._mask, self.on_event)

    def _writable(self) -> None:
        link = self._link
        if link is None:
            return
        if self._stage is Stage.CONNECTING:
            check_connected(link)
            self._stage = Stage.GREETING
            identity = self._reign.node.identity
            self._auth = Connecting(self._reign.secret, identity.cluster_id, SHIPPER, os.urandom(NONCE_BYTES))
            self._send(self._auth.greet())
        link.flush()
        self._watch()

    def _readable(self) -> None:
        link = self._link
        if link is None or self._stage is Stage.CONNECTING:
            return
        messages = link.receive()
        if messages:
            self._heard_ms = monotonic_ms()
        for message, payload in messages:
            if type(message) is Ack and self._stage is Stage.STREAMING:
                self._acked(message)
                continue
            self._take(message, payload)
            if self._link is not link:
                return
        if link.out_bytes or self._mask != selectors.EVENT_READ:
            self._watch()

    def _take(self, message: Message, payload: bytes) -> None:
        match self._stage, message:
            case _, Refusal():
                self._refused(message)
            case Stage.GREETING, Challenge() if self._auth:
                self._send(self._auth.answer(message))
                self._stage = Stage.PROVING
            case Stage.PROVING, Proof() if self._auth and self._link:
                self._auth.check(message)
                self._link.trust()
                self._stage = Stage.MEETING
                self._send(self._reign.hello())
            case Stage.MEETING, ShipWelcome():
                self._welcomed(message)
            case ((Stage.STREAMING | Stage.SNAPSHOT), Pause()):
                self._set_slot(state=slots.PAUSED, error=message.text[:ERROR_CHARS_MAX])
            case Stage.SNAPSHOT, SnapshotWant() if self._snapshot:
                self._snapshot.want(message)
                self._note_progress(self._snapshot)
            case Stage.SNAPSHOT, PieceAck() if self._snapshot:
                self._snapshot.acked(message)
                self._note_progress(self._snapshot)
            case Stage.KEYS, FetchAsk() if self._keys:
                self._with_keys(partial(self._keys.frames, message))
            case Stage.KEYS, KeysAsk() if self._keys:
                self._keys.keys(message, payload)
            case Stage.KEYS, ShipWelcome():
                self._end_keys()
                self._welcomed(message)
            case ((Stage.SNAPSHOT | Stage.KEYS | Stage.SEARCHING | Stage.MEETING), Ack()):
                pass  # an answer to a heartbeat, perhaps of the stage before
            case _:
                raise WireError(
                    f"a {type(message).__name__} message while {self._stage.value}", node=self.name
                )

    # -- where the replica stands ----------------------------------------------------------------

    def _welcomed(self, welcome: ShipWelcome) -> None:
        if welcome.node != self.name:
            raise WireError(
                f"{self._host}:{self._port} is node {welcome.node}, not {self.name}",
                node=self.name,
                hint="Look at the names and addresses of the replicas.",
            )
        self._set_slot(applied_lsn=welcome.applied_lsn)
        self._incoming = welcome.incoming
        self._placement = Placement(self._reign, welcome)
        self._stage = Stage.SEARCHING

    def _step_placement(self) -> bool:
        if self._placement is None:
            return False
        match self._placement.step():
            case None:
                return True
            case StreamFrom(after, cursor):
                self._begin_stream(after, cursor)
            case CutTo(position, is_open, is_accepted):
                logger.warning("cutting a replica's tail: node=%s to=%s", self.name, position)
                self._stage = Stage.MEETING
                self._since_ms = monotonic_ms()
                self._send(Cut(position, is_open, is_accepted))
            case GiveKeys(fork) if self._keys_failures >= KEYS_TRIES:
                why = f"{KEYS_TRIES} times its keys could not be given: {self._keys_failed_with}"
                logger.error("a snapshot instead of keys: node=%s because=%s", self.name, why)
                self._begin_snapshot(why, fork.lsn)
            case GiveKeys(fork):
                logger.warning("giving a replica the keys that it changed: node=%s fork=%s", self.name, fork)
                self._keys = KeysSender(self._reign.node, fork)
                self._stage = Stage.KEYS
                self._heard_ms = monotonic_ms()
                self._set_slot(state=slots.CATCH_UP, error="")
            case NeedsSnapshot(why, parted_lsn):
                self._begin_snapshot(why, parted_lsn)
            case HasDiverged(why, is_fault):
                self._send(Parted(why, is_fault))
                raise DivergedError(
                    f"the replica has another history: {why}",
                    node=self.name,
                    hint="It keeps its own log until `perdure rejoin DIR` there says otherwise.",
                )
        self._end_placement()
        return False

    def _end_placement(self) -> None:
        if self._placement is not None:
            self._placement.close()
            self._placement = None

    # -- sending ---------------------------------------------------------------------------------

    def _begin_stream(self, after: Position, cursor: LogCursor) -> None:
        reign = self._reign
        self.sender = Sender(reign.window, reign.node.cursor, after, cursor, compress=reign.compress)
        self._stage = Stage.STREAMING
        self._retry_ms = self._keys_failures = 0
        self._failed_with = ""
        self._heard_ms = monotonic_ms()
        self._send(Start(after))
        self._heartbeat()
        reign.acked[self.name] = after
        reign.has_news = True
        logger.info("streaming: node=%s after=%s", self.name, after)
        state = slots.STREAMING if self.sender.is_close else slots.CATCH_UP
        self._set_slot(state=state, error="", position=after, **NO_SNAPSHOT)

    def _begin_snapshot(self, why: str, parted_lsn: int) -> None:
        reign = self._reign
        path = reign.named_snapshot(self._incoming) or reign.find_snapshot()
        self._set_slot(state=slots.SNAPSHOT, error="")
        if path is None:
            raise PositionGoneError(
                "the replica needs a snapshot, and there is none that this log reaches",
                node=self.name,
                hint="`perdure snapshot create` on the primary; the replica then goes on by itself.",
            )
        self._snapshot = SnapshotSender(
            reign.node,
            path,
            compress=reign.compress,
            parted_lsn=parted_lsn,
            bytes_per_s=reign.snapshot_bytes_per_s,
        )
        self._stage = Stage.SNAPSHOT
        self._heard_ms = monotonic_ms()
        logger.info("sending a snapshot: node=%s path=%s because=%s", self.name, path, why)
        lsn = self._snapshot.offer.at[1]
        self._set_slot(snapshot=path.name, snapshot_lsn=lsn)
        self._send(self._snapshot.offer)

    def _pump_frames(self) -> bool:
        sender, link = self.sender, self._link
        if sender is None or link is None:
            return False
        for _ in range(PUMP_MESSAGES):
            if link.out_bytes >= UNSENT_BYTES_MAX:
                return False
            found = sender.next_message(self._reign.committed_lsn)
            if found is None:
                return False
            message, payload = found
            self._committed_sent = message.committed_lsn
            link.send(message, payload)
            if link.out_bytes:
                self._watch()
            if sender.has_sent_all:
                return False
        return True

    def _pump_snapshot(self) -> bool:
        snapshot, link = self._snapshot, self._link
        if snapshot is None or link is None:
            return False
        for _ in range(PUMP_MESSAGES):
            if link.out_bytes >= UNSENT_BYTES_MAX:
                return False
            found = snapshot.next_message()
            if found is None:
                return False
            self._send(*found)
        return True

    def _pump_keys(self) -> bool:
        keys = self._keys
        if keys is None:
            return False
        found = self._with_keys(lambda: keys.next_message(self._reign.window.end.lsn))
        if found is not None:
            self._send(*found)
        return False

    def _with_keys(self, action: Callable[[], T]) -> T:
        """Do it; what is wrong with this node's state or log, not with the replica, is counted."""
        try:
            return action()
        except WireError:
            raise
        except (PerdureError, OSError) as error:
            self._keys_failures += 1
            self._keys_failed_with = str(error)[:ERROR_CHARS_MAX]
            raise

    def _end_keys(self) -> None:
        if self._keys is not None:
            self._keys.close()
            self._keys = None

    def _note_progress(self, snapshot: SnapshotSender) -> None:
        have, total = snapshot.progress()
        self._set_slot(snapshot_bytes=have, snapshot_total_bytes=total)

    def _heartbeat(self) -> None:
        reign = self._reign
        self._heartbeat_ms = monotonic_ms()
        self._committed_sent = reign.committed_lsn
        self._send(reign.heartbeat())

    def _acked(self, ack: Ack) -> None:
        if self.sender is None:
            return
        position = _new(Position, ack.position)
        if self.sender.take_ack(position):
            self._reign.acked[self.name] = position
            self._reign.has_news = True
            if self._slot.state == slots.CATCH_UP and self.sender.is_close:
                self._update_state()  # at once: writers wait for replicas that follow closely
        self._newest_ack = ack
        if ack.echo_us:
            self._reign.echoed[self.name] = ack.echo_us
            self._reign.has_echo = True
            self._round_trip_us = max(0, time.monotonic_ns() // 1000 - ack.echo_us)

    def _update_state(self) -> None:
        """Is the replica close now, or behind; how old is what it lacks?"""
        sender, slot = self.sender, self._slot
        if sender is None:
            return
        oldest = sender.oldest_unacked_ms
        state = slots.STREAMING if sender.is_close else slots.CATCH_UP
        if slot.state == slots.PAUSED and oldest:
            state = slots.PAUSED
        error = slot.error if state == slots.PAUSED else ""
        self._set_slot(
            state=state, error=error, lag_ms=max(0, self._reign.node.log.now_ms() - oldest) if oldest else 0
        )

    def _send(self, message: Message, payload: bytes = b"") -> None:
        if self._link is None:
            return
        self._link.send(message, payload)
        self._watch()

    def _watch(self) -> None:
        """Ask for writability only while something waits to be sent."""
        link = self._link
        if link is None:
            return
        mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.has_unsent else 0)
        if mask != self._mask:
            self._mask = mask
            self._reign.selector.modify(link.socket, mask, self.on_event)

    # -- failing ---------------------------------------------------------------------------------

    def _guarded(self, action: Callable[[], object]) -> bool:
        """Do it; what goes wrong with this replica ends its connection only."""
        try:
            return bool(action())
        except PoisonedError:
            raise
        except (PerdureError, OSError) as error:
            self._fail(error)
            return False

    def _refused(self, refusal: Refusal) -> None:
        if self._stage in (Stage.GREETING, Stage.PROVING) and refusal.code != FOREIGN:
            # A receiver says nothing else to whom it does not know, and anybody could say this.
            raise refused_unproved(refusal, f"{self._host}:{self._port}")
        if refusal.code == FENCED:
            self._fail(FencedError(refusal.text[:ERROR_CHARS_MAX], node=self.name))
            own = self._reign.electorate.epoch
            if leaps(own, refusal.epoch):
                logger.error("an absurd epoch: node=%s epoch=%d own_epoch=%d", self.name, refusal.epoch, own)
            elif refusal.epoch > own:
                raise Fenced(refusal.epoch, refusal.candidate)
            return
        if refusal.code == FOREIGN:
            raise ForeignError(refusal.text, node=self.name)
        if refusal.code == DIVERGED:
            raise DivergedError(refusal.text, node=self.name)
        raise WireError(f"the replica refuses: {refusal.text}", node=self.name)

    def _fail(self, error: Exception) -> None:
        closed_on_proof = False
        if isinstance(error, LinkClosed) and self._stage is Stage.PROVING and self._auth is not None:
            closed_on_proof, error = True, self._auth.explained(error)
        text, state = str(error)[:ERROR_CHARS_MAX], self._state_after(error)
        self._retry_ms = min(max(RETRY_MS_MIN, self._retry_ms * 2), RETRY_MS_MAX)
        is_first = closed_on_proof and text != self._failed_with  # it may have died just then
        if state in (slots.DIVERGED, slots.REFUSED) and not is_first:
            self._retry_ms = REFUSED_RETRY_MS
        if text != self._failed_with:
            self._failed_with = text
            logger.warning("replica lost: node=%s state=%s error=%s", self.name, state, text)
        self._disconnect()
        self._set_slot(state=state, error=text)

    def _state_after(self, error: Exception) -> str:
        """What the slot says after a failure."""
        if isinstance(error, DivergedError):
            return slots.DIVERGED
        if isinstance(error, (ForeignError, FencedError, CertificateError)) or self._stage is Stage.PROVING:
            return slots.REFUSED
        if isinstance(error, PositionGoneError) or self._slot.state == slots.SNAPSHOT:
            return slots.SNAPSHOT
        if self._stage is Stage.MEETING and not isinstance(error, LinkClosed):
            return slots.REFUSED
        return slots.DISCONNECTED

    def _disconnect(self) -> None:
        if self._link is not None:
            self._reign.selector.unregister(self._link.socket)
            self._link.close()
            self._link = None
        self._end_placement()
        self._end_keys()
        if self.sender is not None:
            self.sender.close()
            self.sender = None
        if self._snapshot is not None:
            self._snapshot.close()
            self._snapshot = None
        self._reign.acked.pop(self.name, None)
        self._reign.echoed.pop(self.name, None)
        self._stage = Stage.WAITING
        self._retry_at_ms = monotonic_ms() + int(self._retry_ms * self._random.uniform(0.5, 1.5))

    def _set_slot(self, *, position: Position | None = None, **changes: object) -> None:
        ack, self._newest_ack = self._newest_ack, None
        if ack is not None:
            changes.setdefault("applied_lsn", ack.applied_lsn)
            changes["round_trip_us"] = self._round_trip_us
            position = position or Position(*ack.position)
        if position is not None:
            changes.update(epoch=position.epoch, lsn=position.lsn, chain=position.chain)
        if self._link is not None and self._heard_ms:
            changes["last_seen_ms"] = now_ms()
        self._slot = msgspec.structs.replace(self._slot, **changes)
