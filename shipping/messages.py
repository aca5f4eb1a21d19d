"""Messages: the bytes that two nodes exchange. Pure: bytes in, values out.

Owns the envelope and every message's body; what a message means is for whoever gets it. Hostile bytes
give WireError and nothing else, and never more memory than one message of the size that is allowed at
the time (small before a peer has proved that it knows the secret). Little-endian:

    offset  size  field
    0       4     bytes behind this field
    4       1     protocol version (1)
    5       1     kind of message
    6       2     body length, bytes
    8       ...   body: a MessagePack map of the kind's fields
    ...     ...   payload: frames, a piece of a snapshot, or nothing

The page docs/protocol.md says in which order they come.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final, TypeAlias

import msgspec

from ..store import zstd
from ..store.errors import CorruptError, WireError
from ..store.frame import FRAME_BYTES_MAX
from . import (
    messages_forward,
    messages_health,
    messages_members,
    messages_ops,
    messages_rejoin,
    messages_server,
    messages_switchover,
    messages_witness,
)
from .messages_forward import ForwardMessage
from .messages_health import HealthMessage
from .messages_members import MemberMessage
from .messages_ops import OpsMessage
from .messages_rejoin import RejoinMessage
from .messages_server import ServerMessage
from .messages_switchover import SwitchoverMessage
from .messages_witness import Nodes, WitnessMessage
from .wire_types import (
    NODES_MAX,
    Count,
    NodeName,
    NodeNameOrNone,
    WireEpoch,
    WirePosition,
    WireState,
    WireTime,
)

PROTOCOL: Final = 1
ENVELOPE = struct.Struct("<IBBH")
ENVELOPE_BYTES: Final = 8
assert ENVELOPE.size == ENVELOPE_BYTES

BODY_BYTES_MAX: Final = 0xFFFF
PAYLOAD_BYTES_MAX: Final = FRAME_BYTES_MAX
MESSAGE_BYTES_MAX: Final = PAYLOAD_BYTES_MAX + BODY_BYTES_MAX + ENVELOPE_BYTES
GREETING_BYTES_MAX: Final = 1024
"""Largest message before the peer has proved that it knows the secret."""
EPOCHS_MAX: Final = 1024
"""So many of the newest epochs are told in a handshake."""


class Greet(msgspec.Struct, frozen=True):
    """The connecting side begins: what it wants to be, and its nonce."""

    role: str
    nonce: bytes


class Challenge(msgspec.Struct, frozen=True):
    """The listening side's nonce."""

    nonce: bytes


class Proof(msgspec.Struct, frozen=True):
    """Knowledge of the secret, and a tag that tells only those who know it which cluster is meant."""

    cluster_tag: bytes
    mac: bytes


class Refusal(msgspec.Struct, frozen=True):
    """The connection ends here, and why. `code` is one of the words in REFUSALS."""

    code: str
    text: str
    epoch: WireEpoch = 0
    candidate: NodeNameOrNone = ""


class ShipHello(msgspec.Struct, frozen=True):
    """A primary's shipper says who ships."""

    node: NodeName
    shard: Count
    epoch: WireEpoch
    alone: bool
    end: WirePosition
    committed_lsn: Count
    epochs: list[tuple[WireEpoch, Count]]
    """(epoch, first LSN) of the newest epochs in the log."""
    voters: tuple[str, ...]
    sync_replicas: Count


class ShipWelcome(msgspec.Struct, frozen=True):
    """A replica says where its log ends, on disk."""

    node: NodeName
    end: WirePosition
    committed_lsn: Count
    applied_lsn: Count
    epochs: list[tuple[WireEpoch, Count]]
    oldest_lsn: Count
    """First LSN in the log, 0 if the log is empty."""
    sync_replicas: Count = 0
    """By the newest CONFIG in its log."""
    is_sound: bool = True
    was_primary: bool = False
    is_state_shared: bool = True
    snapshots: list[Count] = []
    """LSNs of its newest snapshots."""
    takes_keys: bool = True
    is_automatic: bool = True
    is_forced: bool = False
    """What these say: see ReplicaFacts."""
    incoming: str = ""
    """File name of a snapshot of which a part is here."""


class Start(msgspec.Struct, frozen=True):
    """Frames follow, from behind this position: the replica's end."""

    after: WirePosition


class Cut(msgspec.Struct, frozen=True):
    """The replica's log is to end here: what is behind it was never committed."""

    to: WirePosition
    is_open: bool = False
    """The primary's segment goes on there: so does the replica's."""
    is_accepted: bool = False
    """Also if what is cut was committed: a promotion accepted that it is lost."""


class Frames(msgspec.Struct, frozen=True):
    """Consecutive frames of one segment, in the payload."""

    raw_bytes: Count
    compressed: bool
    committed_lsn: Count


UNASKED_US: Final = 0
"""In place of a heartbeat's `monotonic_us`: it is not answered."""


class Heartbeat(msgspec.Struct, frozen=True):
    """The primary is there: how far is committed, where its log ends on disk, its clocks."""

    committed_lsn: Count
    end_lsn: Count
    time_ms: WireTime
    """Session time: the replica takes it over."""
    monotonic_us: Count


class Ack(msgspec.Struct, frozen=True):
    """On the replica's disk up to here. Also the answer to a heartbeat."""

    position: WirePosition
    applied_lsn: Count
    echo_us: Count = 0
    """`monotonic_us` of the last heartbeat."""


class Pause(msgspec.Struct, frozen=True):
    """The replica cannot write at the moment, and goes on by itself once it can."""

    text: str


class Peers(msgspec.Struct, frozen=True):
    """What the primary's slots say of all replicas: (node, acknowledged LSN, state)."""

    slots: Annotated[
        list[tuple[NodeName, Count, Annotated[str, msgspec.Meta(max_length=32)]]],
        msgspec.Meta(max_length=NODES_MAX),
    ]


class SnapshotOffer(msgspec.Struct, frozen=True):
    """The log no longer has what the replica needs: a snapshot, and the log from its segment on.

    `log_bytes` are the frames between the start of the segment and the snapshot's position.
    """

    name: str
    at: WireState
    snapshot_bytes: Count
    segment_lsn: Count
    segment_epoch: WireEpoch
    segment_primary: NodeName
    segment_previous: WireState
    log_bytes: Count
    parted_lsn: int = -1
    """The replica's log behind this LSN is of another history; -1 if nothing is known to be."""


class SnapshotWant(msgspec.Struct, frozen=True):
    """From which offsets (bytes) the replica wants the two parts."""

    snapshot_offset: Count
    log_offset: Count


class Piece(msgspec.Struct, frozen=True):
    """A piece of the snapshot (part 0) or of the log before it (part 1), in the payload."""

    part: Count
    offset: Count
    raw_bytes: Count
    compressed: bool


class PieceAck(msgspec.Struct, frozen=True):
    """The replica has written so much of both parts."""

    snapshot_offset: Count
    log_offset: Count


class StatusAsk(msgspec.Struct, frozen=True):
    """How far is this node?"""


class StatusReply(msgspec.Struct, frozen=True):
    """What a node says of itself; its log is on disk up to `end`."""

    node: NodeName
    shard: Count
    role: str
    end: WirePosition
    committed_lsn: Count
    applied_lsn: Count
    promise_epoch: WireEpoch
    promise_candidate: NodeNameOrNone
    voters: tuple[str, ...]
    sync_replicas: Count
    oldest_lsn: Count
    primary: str
    primary_heard_ms: int
    """Milliseconds since a shipper was last heard, -1 if none was."""
    fault: str
    """Why this node must not become primary, empty if nothing speaks against it."""
    serve_port: Count = 0
    """Where its server listens, 0 if it is not known."""
    monitor_port: Count = 0
    in_sync: Nodes = ()
    """Of a witness: the nodes that hold every acknowledged write, if it was ever told."""


class PromiseAsk(msgspec.Struct, frozen=True):
    """Promise `epoch` to `candidate`."""

    epoch: WireEpoch
    candidate: NodeName
    alone: bool = False


class PromiseReply(msgspec.Struct, frozen=True):
    """The promise is durable; the position covers every acknowledgement ever sent in a lower epoch."""

    epoch: WireEpoch
    candidate: NodeName
    end: WirePosition
    committed_lsn: Count
    fault: str
    in_sync: Nodes = ()
    """As in StatusReply."""


class FetchAsk(msgspec.Struct, frozen=True):
    """Frames of this node's log from behind a position."""

    after: WirePosition
    limit_bytes: Count


class FetchReply(msgspec.Struct, frozen=True):
    """Consecutive frames of one segment in the payload; none if the log ends there."""

    raw_bytes: Count
    end: WirePosition


Message: TypeAlias = (
    Greet
    | Challenge
    | Proof
    | Refusal
    | ShipHello
    | ShipWelcome
    | Start
    | Cut
    | Frames
    | Heartbeat
    | Ack
    | Pause
    | Peers
    | SnapshotOffer
    | SnapshotWant
    | Piece
    | PieceAck
    | StatusAsk
    | StatusReply
    | PromiseAsk
    | PromiseReply
    | FetchAsk
    | FetchReply
    | RejoinMessage
    | ServerMessage
    | ForwardMessage
    | WitnessMessage
    | SwitchoverMessage
    | HealthMessage
    | MemberMessage
    | OpsMessage
)

KINDS: Final[dict[int, type[Message]]] = {
    1: Greet,
    2: Challenge,
    3: Proof,
    4: Refusal,
    10: ShipHello,
    11: ShipWelcome,
    12: Start,
    13: Cut,
    20: Frames,
    21: Heartbeat,
    22: Ack,
    23: Pause,
    24: Peers,
    30: SnapshotOffer,
    31: SnapshotWant,
    32: Piece,
    33: PieceAck,
    40: StatusAsk,
    41: StatusReply,
    42: PromiseAsk,
    43: PromiseReply,
    44: FetchAsk,
    45: FetchReply,
    **messages_rejoin.KINDS,
    **messages_server.KINDS,
    **messages_forward.KINDS,
    **messages_witness.KINDS,
    **messages_switchover.KINDS,
    **messages_health.KINDS,
    **messages_members.KINDS,
    **messages_ops.KINDS,
}
WITH_PAYLOAD: Final = frozenset({20, 32, 45}).union(
    messages_rejoin.WITH_PAYLOAD,
    messages_server.WITH_PAYLOAD,
    messages_forward.WITH_PAYLOAD,
    messages_witness.WITH_PAYLOAD,
    messages_switchover.WITH_PAYLOAD,
    messages_members.WITH_PAYLOAD,
    messages_ops.WITH_PAYLOAD,
)

FENCED: Final = "fenced"
FOREIGN: Final = "foreign"
DIVERGED: Final = "diverged"
REFUSED: Final = "refused"
GONE: Final = "gone"
PROTOCOL_ERROR: Final = "protocol"
REFUSALS: Final = frozenset({FENCED, FOREIGN, DIVERGED, REFUSED, GONE, PROTOCOL_ERROR})

_KIND_OF: Final = {kind: number for number, kind in KINDS.items()}
_DECODERS: Final = {number: msgspec.msgpack.Decoder(kind) for number, kind in KINDS.items()}
_encode = msgspec.msgpack.Encoder().encode
_unpack_envelope = ENVELOPE.unpack_from


def encode_message(message: Message, payload: bytes | memoryview = b"") -> bytes:
    """The bytes of one message. Raises WireError if it is larger than a peer may accept."""
    body = _encode(message)
    body_bytes, payload_bytes = len(body), len(payload)
    if body_bytes > BODY_BYTES_MAX or payload_bytes > PAYLOAD_BYTES_MAX:
        raise WireError(
            f"a {type(message).__name__} message of {body_bytes} + {payload_bytes} bytes is too large",
            hint=f"Bodies hold {BODY_BYTES_MAX} bytes, payloads {PAYLOAD_BYTES_MAX}.",
        )
    size = ENVELOPE_BYTES - 4 + body_bytes + payload_bytes
    head = ENVELOPE.pack(size, PROTOCOL, _KIND_OF[type(message)], body_bytes)
    return b"".join((head, body, payload))


class Decoder:
    """Turns a stream of bytes into messages.

    `feed` bytes as they come, then take what `messages` gives. Holds at most one message that is not
    complete. After a WireError it is of no further use: the connection must be closed.
    """

    def __init__(self, limit_bytes: int = GREETING_BYTES_MAX) -> None:
        self.limit_bytes = limit_bytes
        self._buffer: bytes | bytearray = b""
        """Bytes as they came, as long as each piece ends with a message."""

    @property
    def held_bytes(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        if not self._buffer:
            self._buffer = data
            return
        if isinstance(self._buffer, bytes):
            self._buffer = bytearray(self._buffer)
        self._buffer += data

    def messages(self) -> list[tuple[Message, bytes]]:
        """(message, payload) for every complete one. Raises WireError at the first that is none."""
        buffer = self._buffer
        found: list[tuple[Message, bytes]] = []
        at, left = 0, len(buffer)
        while left >= ENVELOPE_BYTES:
            size, version, kind, body_bytes = _unpack_envelope(buffer, at)
            if version != PROTOCOL or kind not in KINDS or size + 4 > self.limit_bytes:
                raise self._refused(size, version, kind)
            body_at = at + ENVELOPE_BYTES
            payload_at, end = body_at + body_bytes, at + 4 + size
            if payload_at > end:
                raise self._refused(size, version, kind)
            if payload_at < end and kind not in WITH_PAYLOAD:
                raise WireError(f"a {KINDS[kind].__name__} message with a payload")
            left -= 4 + size
            if left < 0:
                break
            try:
                message = _DECODERS[kind].decode(buffer[body_at:payload_at])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise WireError(f"the body of a {KINDS[kind].__name__} message does not decode") from error
            found.append((message, _copied(buffer, payload_at, end)))
            at = end
        if not left:
            self._buffer = b""
        elif isinstance(buffer, bytearray):
            del buffer[:at]
        elif at:
            self._buffer = buffer[at:]
        return found

    def _refused(self, size: int, version: int, kind: int) -> WireError:
        if version != PROTOCOL:
            return WireError(
                f"the peer speaks protocol {version}, this node {PROTOCOL}, or it is no node at all",
                hint="Run the same version of perdure on all nodes.",
            )
        if kind not in KINDS:
            return WireError(f"a message of unknown kind {kind}")
        return WireError(f"a message of {size + 4} bytes; at most {self.limit_bytes} are taken here")


def _copied(buffer: bytes | bytearray, start: int, end: int) -> bytes:
    if isinstance(buffer, bytes):
        return buffer[start:end]
    return bytes(memoryview(buffer)[start:end])


def pack_payload(raw: bytes, compress: bool) -> tuple[bytes, bool]:
    """(payload, is it compressed): compressed only if that makes it smaller."""
    if not compress:
        return raw, False
    packed = zstd.compress(raw)
    return (packed, True) if len(packed) < len(raw) else (raw, False)


def unpack_payload(payload: bytes, raw_bytes: int, compressed: bool) -> bytes:
    """What pack_payload was given. Raises WireError if it is not `raw_bytes` long."""
    if raw_bytes > PAYLOAD_BYTES_MAX:
        raise WireError(f"a payload of {raw_bytes} bytes is announced")
    if not compressed:
        if len(payload) != raw_bytes:
            raise WireError(f"a payload of {len(payload)} bytes, announced were {raw_bytes}")
        return payload
    try:
        return zstd.decompress(payload, raw_bytes)
    except CorruptError as error:
        raise WireError(f"a payload that does not decompress: {error.message}") from error
