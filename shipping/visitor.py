"""A visitor: one connection to a receiver, from the greeting on.

Owns what a peer may say when. Before it has proved that it knows the secret it may send two small
messages, has a few seconds, and is answered nothing else; then it is a primary's shipper or someone who
asks. What goes wrong ends this connection only.
"""

from __future__ import annotations

import os
from enum import Enum
from typing import TYPE_CHECKING, Final

from ..store.backends import shares_state
from ..store.errors import (
    DivergedError,
    FencedError,
    ForeignError,
    PerdureError,
    PositionGoneError,
    PromiseRefusedError,
    WireError,
)
from ..store.ids import Position
from ..store.promise import Promise, read_promise
from .auth import NONCE_BYTES, SHIPPER, Listening
from .install import incoming_name
from .link import Link
from .messages import (
    DIVERGED,
    FENCED,
    FOREIGN,
    GONE,
    PROTOCOL_ERROR,
    REFUSED,
    UNASKED_US,
    Ack,
    Cut,
    FetchAsk,
    FetchReply,
    Frames,
    Greet,
    Heartbeat,
    Message,
    Peers,
    Piece,
    PieceAck,
    PromiseAsk,
    Proof,
    Refusal,
    ShipHello,
    ShipWelcome,
    SnapshotOffer,
    Start,
    StatusAsk,
    unpack_payload,
)
from .messages_rejoin import FactsAsk, KeysOffer, KeysReply, Parted
from .nodelog import monotonic_ms
from .parted import newest_snapshots
from .permission import read_permission
from .rejoin_facts import has_reigned, tell_facts

if TYPE_CHECKING:
    from .receiver import Receiver

HANDSHAKE_MS: Final = 5_000
ASK_IDLE_MS: Final = 60_000
SHIPPER_IDLE_MS: Final = 10_000
"""A shipper that sends no heartbeat for so long is dropped; it connects again if it lives."""


class Stage(Enum):
    GREETING = "greeting"
    PROVING = "proving"
    ASKING = "asking"
    MEETING = "meeting"
    """A shipper, before its hello or the decision where to start."""
    STREAMING = "streaming"
    SNAPSHOT = "snapshot"
    KEYS = "keys"
    """It gathers what it needs for a rejoin."""


SHIPPING: Final = frozenset({Stage.MEETING, Stage.STREAMING, Stage.SNAPSHOT, Stage.KEYS})
"""What a primary's shipper goes through."""


class Visitor:
    """One connection."""

    def __init__(self, receiver: Receiver, link: Link) -> None:
        self.link = link
        self.stage = Stage.GREETING
        self.reign: Promise | None = None
        self.primary = ""
        self.heard_ms = monotonic_ms()
        self.echo_us = 0
        self.batch: list[bytes] = []
        """Frames that were received and are not appended yet."""
        self.committed_lsn = 0
        """What came with them: it counts once they are appended, which only the primary in force may."""
        self.is_paused = False
        self.mask = 0
        self._receiver = receiver
        self._auth = Listening(receiver.secret, receiver.node.identity.cluster_id, os.urandom(NONCE_BYTES))

    @property
    def is_trusted(self) -> bool:
        return self.stage not in (Stage.GREETING, Stage.PROVING)

    @property
    def is_shipper(self) -> bool:
        return self.reign is not None or self.stage in (Stage.STREAMING, Stage.SNAPSHOT, Stage.KEYS)

    def limit_ms(self) -> int:
        """How long it may be silent."""
        if not self.is_trusted:
            return HANDSHAKE_MS
        return SHIPPER_IDLE_MS if self._auth.role == SHIPPER else ASK_IDLE_MS

    def take(self, message: Message, payload: bytes) -> None:
        """One message. Raises PerdureError if the connection must end."""
        if type(message) is Frames and self.stage is Stage.STREAMING:
            self.batch.append(unpack_payload(payload, message.raw_bytes, message.compressed))
            self.committed_lsn = message.committed_lsn
            return
        match self.stage, message:
            case Stage.GREETING, Greet():
                self.link.send(self._auth.challenge(message))
                self.stage = Stage.PROVING
            case Stage.PROVING, Proof():
                self._prove(message)
            case Stage.ASKING, StatusAsk():
                self.link.send(self._receiver.status())
            case Stage.ASKING, PromiseAsk():
                self._promise(message)
            case Stage.ASKING, FactsAsk():
                self.link.send(tell_facts(self._receiver.node))
            case Stage.ASKING, FetchAsk():
                self.link.send(*self._receiver.fetch(message))
            case (stage, _) if stage in SHIPPING and not isinstance(message, Refusal):
                self._take_from_shipper(message, payload)
            case _, Refusal():
                raise WireError(f"the peer ends the connection: {message.text}", node=self.primary or None)
            case _:
                raise WireError(f"a {type(message).__name__} message while {self.stage.value}")

    def _take_from_shipper(self, message: Message, payload: bytes) -> None:
        match self.stage, message:
            case Stage.MEETING, ShipHello():
                self._hello(message)
            case Stage.MEETING, Start() if self.reign:
                self._start(Position(*message.after))
            case Stage.MEETING, Cut() if self.reign:
                self._receiver.cut(message, self.reign)
                self.welcome(self.reign)
            case Stage.MEETING, Parted() if self.reign:
                self._receiver.has_parted(message)
            case Stage.MEETING, SnapshotOffer() if self.reign:
                self.link.send(self._receiver.begin_install(message, self.reign))
                self.stage = Stage.SNAPSHOT
            case Stage.SNAPSHOT, Piece():
                raw = unpack_payload(payload, message.raw_bytes, message.compressed)
                self.link.send(PieceAck(*self._receiver.take_piece(message, raw)))
            case Stage.MEETING, KeysOffer() if self.reign:
                self.stage = Stage.KEYS
                self._receiver.crossing.begin(self, message)
            case Stage.KEYS, FetchReply():
                self._receiver.crossing.take_frames(message, payload)
            case Stage.KEYS, KeysReply():
                self._receiver.crossing.take_records(message, payload)
            case ((Stage.MEETING | Stage.STREAMING | Stage.SNAPSHOT | Stage.KEYS), Heartbeat()):
                self._heartbeat(message)
            case ((Stage.STREAMING | Stage.SNAPSHOT), Peers()):
                self._receiver.take_peers(message)
            case _:
                raise WireError(f"a {type(message).__name__} message while {self.stage.value}")

    def refuse(self, error: PerdureError) -> None:
        """Say why the connection ends, if the peer may know."""
        if not self.is_trusted and not isinstance(error, ForeignError):
            return
        code, held = REFUSED, None
        if isinstance(error, (FencedError, PromiseRefusedError)):
            code, held = FENCED, read_promise(self._receiver.node.store)
        elif isinstance(error, ForeignError):
            code = FOREIGN
        elif isinstance(error, PositionGoneError):
            code = GONE
        elif isinstance(error, DivergedError):
            code = DIVERGED
        elif isinstance(error, WireError):
            code = PROTOCOL_ERROR
        refusal = Refusal(code, str(error)[:1000], held.epoch if held else 0, held.candidate if held else "")
        try:
            self.link.send(refusal)
        except WireError:
            return  # it is gone already

    def meet(self, reign: Promise) -> None:
        """Begin anew with where this node's log ends: it was changed, or cannot be changed as was planned."""
        self.stage = Stage.MEETING
        self.welcome(reign)

    def welcome(self, reign: Promise) -> None:
        """Say where this node's log ends."""
        receiver = self._receiver
        end = receiver.accept_reign(reign)
        node = receiver.node
        told = read_permission(node.store)
        self.link.send(
            ShipWelcome(
                node=node.node,
                end=end,
                committed_lsn=node.committed_lsn(),
                epochs=node.epochs(),
                oldest_lsn=node.oldest_lsn(),
                sync_replicas=node.log.config.sync_replicas,
                is_state_shared=shares_state(node.identity.backend),
                snapshots=newest_snapshots(node.store),
                applied_lsn=receiver.applied_lsn(),
                takes_keys=receiver.crossing.takes_keys,
                was_primary=has_reigned(node),
                is_sound=told is None or not told.is_anew,
                is_automatic=receiver.is_automatic or told is not None,
                is_forced=told is not None and told.is_forced,
                incoming=incoming_name(node.store),
            )
        )

    def acknowledge(self, position: Position) -> None:
        self.link.send(Ack(position, self._receiver.node.folded_lsn(), self.echo_us))
        self.echo_us = 0

    # -- each message ----------------------------------------------------------------------------

    def _prove(self, proof: Proof) -> None:
        own = self._auth.check(proof)
        self.link.send(own)
        self.link.trust()
        self.stage = Stage.MEETING if self._auth.role == SHIPPER else Stage.ASKING

    def _hello(self, hello: ShipHello) -> None:
        identity = self._receiver.node.identity
        if hello.shard != identity.shard:
            raise WireError(f"the primary ships shard {hello.shard}, this node holds {identity.shard}")
        if hello.node == identity.node:
            raise WireError(f"the primary calls itself {hello.node}, as this node does")
        self.link.check_name(hello.node)
        reign = Promise(hello.epoch, hello.node, hello.alone)
        self.primary, self.reign = hello.node, reign
        self.welcome(reign)
        self._receiver.rebuilding.meet(hello.epoch, hello.end[1])

    def _start(self, after: Position) -> None:
        end = self._receiver.node.log.cursor.at.position
        if after != end:
            raise WireError(f"the primary starts behind {after}, this log ends at {end}")
        self.stage = Stage.STREAMING
        self._receiver.streams_from(self)

    def _heartbeat(self, heartbeat: Heartbeat) -> None:
        is_asked = heartbeat.monotonic_us != UNASKED_US
        if is_asked:
            self.echo_us = heartbeat.monotonic_us
        replica = self._receiver.replica
        if self.reign is not None and not replica.hear_time(self.reign, heartbeat.time_ms):
            raise replica.fenced()  # a promotion of this node, in another process, has promised another one
        if self.stage is Stage.STREAMING:
            self._receiver.announced(heartbeat.committed_lsn)
            replica.hear_commit(heartbeat.committed_lsn, self.heard_ms)
        if is_asked and not self.batch:
            self.acknowledge(self._receiver.node.log.cursor.at.position)

    def _promise(self, ask: PromiseAsk) -> None:
        self.link.check_name(ask.candidate)
        try:
            self.link.send(self._receiver.promise(Promise(ask.epoch, ask.candidate, ask.alone)))
        except PromiseRefusedError as error:
            self.refuse(error)
