"""The pipe between a node's monitor and its elector: what each tells the other, and how.

Owns the messages and their bytes. A message is one packet of a unix socket, whole or not at all, so that
either side can be started again at any time. Neither ever waits for the other: what does not fit now is told
anew, in its newest form, the next time.
"""

from __future__ import annotations

import socket
from typing import Final, TypeAlias

import msgspec

from ..store.errors import DECODE_ERRORS, WireError
from .detection import PeerHealth
from .messages_health import StandAsk, StandReply
from .messages_server import Failed
from .unmonitored import Unmonitored

PACKET_BYTES_MAX: Final = 64 << 10


class Report(msgspec.Struct, frozen=True, tag="report"):
    """The monitor looked."""

    clock_ms: int
    """Of the detector: stands still while nobody looked."""
    failing: str
    """Why this node must give up if it is primary, empty if it need not."""
    peers: list[PeerHealth]
    unmonitored: Unmonitored


class Order(msgspec.Struct, frozen=True, tag="order"):
    """Somebody asks this node to stand."""

    number: int
    ask: StandAsk


class Told(msgspec.Struct, frozen=True, tag="told"):
    """What the elector thinks, for heartbeats and for those who ask."""

    state: str
    coordinator: str
    why: str
    peers: dict[str, tuple[str, int]] | None = None
    """Host and port of the other nodes' receivers, as the log says now; None: as they were."""


class Done(msgspec.Struct, frozen=True, tag="done"):
    """What became of an order: a reply, or why there is none."""

    number: int
    reply: StandReply | None = None
    error: Failed | None = None


PipeMessage: TypeAlias = Report | Order | Told | Done

_encode = msgspec.msgpack.Encoder().encode
_decoder: Final = msgspec.msgpack.Decoder(PipeMessage)


class Pipe:
    """One end."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        end.setblocking(False)

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, message: PipeMessage) -> bool:
        """Give it to the other side; False if that does not read at the moment, or is away."""
        try:
            self._end.send(_encode(message))
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise WireError(f"the pipe between monitor and elector broke: {error.strerror}") from error
        return True

    def receive(self) -> list[PipeMessage]:
        """Everything that has come. Raises WireError once the node process, which holds it, has ended."""
        found: list[PipeMessage] = []
        while True:
            try:
                data = self._end.recv(PACKET_BYTES_MAX)
            except (BlockingIOError, InterruptedError):
                return found
            except OSError as error:
                raise WireError(f"the pipe between monitor and elector broke: {error.strerror}") from error
            if not data:
                raise WireError("the pipe between monitor and elector was closed")
            try:
                found.append(_decoder.decode(data))
            except DECODE_ERRORS as error:
                raise WireError("a message between monitor and elector does not decode") from error

    def close(self) -> None:
        self._end.close()


def pipe_pair() -> tuple[socket.socket, socket.socket]:
    """The two ends, for the node process to hold and to pass on. Closed by whoever takes them."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
