"""Peers that mean harm, for the tests of what they can do: one that connects, and one that is connected to.

Owns how such a peer speaks: it can do the handshake properly, say any bytes at any time, and sees what it is
answered. It knows the protocol's codec, and nothing of what a node makes of it.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

import msgspec

from perdure.shipping.auth import NONCE_BYTES, Connecting, Listening
from perdure.shipping.messages import (
    ENVELOPE,
    KINDS,
    MESSAGE_BYTES_MAX,
    PROTOCOL,
    WITH_PAYLOAD,
    Challenge,
    Decoder,
    Greet,
    Message,
    Proof,
    encode_message,
)
from perdure.store import WireError

HOST = "127.0.0.1"
WAIT_S = 10.0
EXTREMES = (
    0,
    1,
    2,
    7,
    255,
    65_536,
    2**31,
    2**32 - 1,
    2**32,
    2**62 - 1,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -1,
)
WORDS = ("", "n1", "n2", "n9", "../../etc", "x" * 300, "streaming", "\u0000")


class Intruder:
    """A connection to a node."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((HOST, port), timeout=WAIT_S)
        self._decoder = Decoder(MESSAGE_BYTES_MAX)
        self._heard: list[Message] = []
        self.sent = bytearray()
        """Everything that it said."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def say(self, *words: Message | bytes, payload: bytes = b"") -> None:
        """Send messages or bare bytes; that the other side has hung up already is no matter."""
        for word in words:
            data = word if isinstance(word, bytes) else encode_message(word, payload)
            self.sent += data
            with contextlib.suppress(ConnectionError):
                self.socket.sendall(data)

    def hear(self) -> Message:
        """The next message. Raises ConnectionError when the other side has hung up."""
        while not self._heard:
            data = self.socket.recv(1 << 16)
            if not data:
                raise ConnectionError("closed")
            self._decoder.feed(data)
            self._heard += [message for message, _ in self._decoder.messages()]
        return self._heard.pop(0)

    def meet(self, secret: bytes, cluster_id: bytes, role: str) -> None:
        """The handshake as it should be."""
        auth = Connecting(secret, cluster_id, role, os.urandom(NONCE_BYTES))
        self.say(auth.greet())
        challenge = self.hear()
        assert isinstance(challenge, Challenge)
        self.say(auth.answer(challenge))
        proof = self.hear()
        assert isinstance(proof, Proof)
        auth.check(proof)

    def end(self) -> None:
        """Say nothing more."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def last_words(self) -> list[Message]:
        """What the other side says until it hangs up, which it must."""
        heard: list[Message] = []
        with contextlib.suppress(ConnectionError):
            while True:
                heard.append(self.hear())
        return heard


class HostileNode:
    """A node that takes connections, proves itself, and then does what `act` says with each of them."""

    def __init__(self, secret: bytes, cluster_id: bytes, act: Callable[[HostileLink], None]) -> None:
        self._secret, self._cluster_id, self._act = secret, cluster_id, act
        self._server = socket.create_server((HOST, 0))
        self.port = int(self._server.getsockname()[1])
        self.proofs = 0
        """So often a node gave its proof."""
        self.visits = 0
        self.over = threading.Event()
        """Set when it ends."""
        self._mutex = threading.Lock()
        self._visitors: dict[threading.Thread, socket.socket] = {}
        self._listening = threading.Thread(target=self._run, daemon=True)
        self._listening.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Take nobody any more, and wait until every thread is gone: what it looks at is there no longer."""
        with self._mutex:
            self.over.set()
            taken = dict(self._visitors)
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._listening.join()
        self._server.close()
        for thread, connection in taken.items():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                thread = threading.Thread(target=self._meet, args=(connection,), daemon=True)
                with self._mutex:
                    if self.over.is_set():
                        connection.close()
                        return
                    self._visitors[thread] = connection
                    thread.start()

    def _meet(self, connection: socket.socket) -> None:
        link = HostileLink(connection, self.over)
        with connection, contextlib.suppress(OSError, WireError):
            auth = Listening(self._secret, self._cluster_id, os.urandom(NONCE_BYTES))
            greet = link.hear()
            assert isinstance(greet, Greet)
            link.say(auth.challenge(greet))
            proof = link.hear()
            assert isinstance(proof, Proof)
            self.proofs += 1
            link.say(auth.check(proof))
            self.visits += 1
            self._act(link)


class Stranger(HostileNode):
    """Who listens where a node should, and answers a greeting, or the proof, with a word of its own."""

    def __init__(self, word: Message, *, challenges: bool = False) -> None:
        self._word, self._challenges = word, challenges
        super().__init__(b"", b"", lambda _link: None)

    def _meet(self, connection: socket.socket) -> None:
        link = HostileLink(connection, self.over)
        with connection, contextlib.suppress(OSError, WireError):
            link.hear()
            if self._challenges:
                link.say(Challenge(os.urandom(NONCE_BYTES)))
                link.hear()
            link.say(self._word)
            self.visits += 1
            link.listen_on(1)


class HostileLink(Intruder):
    """The other direction: a connection that was taken."""

    def __init__(self, connection: socket.socket, over: threading.Event) -> None:
        connection.settimeout(WAIT_S)
        self.socket = connection
        self.over = over
        """Set when the node that it belongs to ends."""
        self._decoder = Decoder(MESSAGE_BYTES_MAX)
        self._heard = []
        self.sent = bytearray()

    def listen_on(self, until_s: float = WAIT_S) -> None:
        """Take what comes until the other side hangs up."""
        deadline = time.monotonic() + until_s
        with contextlib.suppress(OSError):
            while time.monotonic() < deadline and self.socket.recv(1 << 16):
                continue


def mad_message(source: random.Random, kinds: tuple[int, ...] = tuple(KINDS)) -> bytes:
    """A message whose envelope is right, and whose fields hold anything."""
    kind = source.choice(kinds)
    body = msgspec.msgpack.encode(
        {field.name: _mad_value(source, field.type) for field in msgspec.structs.fields(KINDS[kind])}
    )
    payload = source.randbytes(source.choice((0, 1, 100, 5000))) if kind in WITH_PAYLOAD else b""
    return ENVELOPE.pack(4 + len(body) + len(payload), PROTOCOL, kind, len(body)) + body + payload


def _mad_value(source: random.Random, kind: Any) -> Any:
    """A value that is mostly one of the type."""
    if source.random() < 0.03:
        return source.choice((None, 1.5, True, "n1", [], {}, b"\xff" * 40, *EXTREMES))
    if get_origin(kind) is Annotated:
        return _mad_value(source, get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return _mad_value(source, source.choice(get_args(kind)))
    arguments = get_args(kind)
    if get_origin(kind) is tuple and (len(arguments) < 2 or arguments[1] is not Ellipsis):
        return [_mad_value(source, each) for each in arguments]
    if get_origin(kind) in (list, tuple):
        return [_mad_value(source, arguments[0]) for _ in range(source.randrange(4))]
    if get_origin(kind) is dict:
        return {_mad_value(source, str): _mad_value(source, arguments[1])}
    plain = {
        bool: source.random() < 0.5,
        int: source.randrange(8) if source.random() < 0.6 else source.choice(EXTREMES),
        bytes: source.randbytes(source.choice((0, 16, 32))),
        str: source.choice(WORDS),
    }
    return plain.get(kind)
