"""Links: sockets that carry messages, never blocking. The only module that opens sockets to other nodes.

Owns a connection's two buffers and their limits. What is sent waits in memory until the peer takes it,
at most OUT_BYTES_MAX; what is received is held until a message is whole. With certificates a link is a
TlsLink; whoever uses it sees no difference but what check_name says.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..store.errors import PerdureError, WireError
from .credentials import Secret, TlsFiles, tls_of
from .door import NO_ROOM
from .messages import GREETING_BYTES_MAX, MESSAGE_BYTES_MAX, Decoder, Message, encode_message

if TYPE_CHECKING:
    from .tls import TlsStream

OUT_BYTES_MAX = 48 << 20
"""Unsent bytes a link may hold: room for credits, one largest message and what goes beside them."""
RECEIVE_BYTES = 256 << 10
RECEIVE_BYTES_MIN = 4 << 10
"""At first, and where little comes: the system maps and unmaps a large buffer for each call."""
BACKLOG = 64


class LinkClosed(WireError):
    """The peer closed the connection, or it broke."""


class Link:
    """One connection to another node. After WireError it must be closed."""

    def __init__(self, connection: socket.socket, peer: str) -> None:
        self.socket = connection
        self.peer = peer
        self.decoder = Decoder(GREETING_BYTES_MAX)
        self._feed: Callable[[bytes], None] = self.decoder.feed
        self._out: deque[memoryview] = deque()
        self.out_bytes = 0
        self._room_bytes = RECEIVE_BYTES_MIN
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def fileno(self) -> int:
        return self.socket.fileno()

    def check_name(self, node: str) -> None:
        """Raise WireError if the peer has a certificate that is not that of `node`."""

    def trust(self) -> None:
        """The peer has proved itself: take messages of full size."""
        self.decoder.limit_bytes = MESSAGE_BYTES_MAX

    def send(self, message: Message, payload: bytes | memoryview = b"") -> None:
        """Send a message now, or as soon as the peer takes more. Raises WireError if the link broke."""
        data = encode_message(message, payload)
        if not self._out:
            try:
                sent = self.socket.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                raise self._broken(error) from error
            if sent == len(data):
                return
            self._out.append(memoryview(data)[sent:])
            self.out_bytes = len(data) - sent
            return
        if self.out_bytes + len(data) > OUT_BYTES_MAX:
            raise WireError(f"{self.peer} takes nothing; {self.out_bytes} bytes wait for it", node=self.peer)
        self._out.append(memoryview(data))
        self.out_bytes += len(data)
        self.flush()

    def flush(self) -> None:
        """Give the system what it takes. Raises WireError if the link broke."""
        out = self._out
        while out:
            try:
                sent = self.socket.send(out[0])
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                raise self._broken(error) from error
            self.out_bytes -= sent
            if sent == len(out[0]):
                out.popleft()
            else:
                out[0] = out[0][sent:]
                return

    @property
    def has_unsent(self) -> bool:
        return bool(self._out)

    def receive(self) -> list[tuple[Message, bytes]]:
        """The messages that are complete now. Raises WireError for bad bytes, or when the peer closed."""
        try:
            data = self.socket.recv(self._room_bytes)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError as error:
            raise self._broken(error) from error
        if not data:
            raise LinkClosed(f"{self.peer} closed the connection")
        self._room_bytes = RECEIVE_BYTES if len(data) >= RECEIVE_BYTES_MIN else RECEIVE_BYTES_MIN
        self._feed(data)
        return self.decoder.messages()

    def close(self) -> None:
        self.socket.close()

    def _broken(self, error: OSError) -> LinkClosed:
        return LinkClosed(f"the connection to {self.peer} broke: {error.strerror or error}")


class TlsLink(Link):
    """A link on which everything is encrypted, and whose peer has shown a certificate."""

    def __init__(self, connection: socket.socket, peer: str, stream: TlsStream) -> None:
        super().__init__(connection, peer)
        self._stream = stream
        self._early: list[bytes] = []
        """Messages that wait for the end of the handshake."""
        self._feed = self._take

    def check_name(self, node: str) -> None:
        self._stream.check_name(node)

    def begin(self) -> None:
        """Put the first bytes of the handshake in front; they go once the connection stands."""
        self._stream.begin()
        self._queue()

    def send(self, message: Message, payload: bytes | memoryview = b"") -> None:
        data = encode_message(message, payload)
        if self.out_bytes + len(data) > OUT_BYTES_MAX:
            raise WireError(f"{self.peer} takes nothing; {self.out_bytes} bytes wait for it", node=self.peer)
        if self._stream.is_ready:
            self._stream.encrypt(data)
            self._queue()
        else:
            self._early.append(data)
            self.out_bytes += len(data)
        self.flush()

    def receive(self) -> list[tuple[Message, bytes]]:
        try:
            return super().receive()
        except LinkClosed as error:
            raise LinkClosed(error.message, hint=self._stream.closed_hint()) from error

    def _take(self, data: bytes) -> None:
        stream = self._stream
        try:
            plain = stream.take(data)
            if stream.is_ready and self._early:
                for early in self._early:
                    stream.encrypt(early)
                    self.out_bytes -= len(early)
                self._early.clear()
        finally:
            self._queue()
            self._try_flush()
        if plain:
            self.decoder.feed(plain)

    def _queue(self) -> None:
        """Take the records that TLS has made into what is to be sent."""
        data = self._stream.to_send()
        if data:
            self._out.append(memoryview(data))
            self.out_bytes += len(data)

    def _try_flush(self) -> None:
        """As flush; a link that broke is told by the next call, and what was received counts."""
        if self.out_bytes > OUT_BYTES_MAX:
            raise WireError(f"{self.peer} takes nothing; {self.out_bytes} bytes wait for it", node=self.peer)
        with contextlib.suppress(LinkClosed):
            self.flush()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket that does not block. Raises WireError if the address cannot be taken."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        is_taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        raise WireError(
            f"cannot listen on {host}:{port}: {_reason(error)}",
            hint="Is another process using the port?" if is_taken else "Give an address of this machine.",
        ) from error
    return listener


def accept(listener: socket.socket, secret: Secret) -> tuple[Link, str] | None:
    """The next connection with its peer's host, None if there is none or it went away at once.

    It is encrypted if `secret` has certificates. Raises WireError if the system gives no connection.
    """
    try:
        connection, address = listener.accept()
    except OSError as error:
        if error.errno in NO_ROOM:
            raise WireError(f"cannot take a connection: {error.strerror}") from error
        return None
    host = str(address[0])
    try:
        return _link(connection, f"{host}:{address[1]}", tls_of(secret), is_listening=True), host
    except PerdureError as error:  # certificates that cannot be read
        raise WireError(f"cannot take a connection: {error}") from error


def begin_connect(host: str, port: int, peer: str, secret: Secret, *, node: str = "") -> Link:
    """A link whose connection is under way; writable once it is decided. Raises WireError.

    It is encrypted if `secret` has certificates; the peer's must then be that of `node`, if one is given.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        connection = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        hint = "Look at the host's name." if isinstance(error, UnicodeError) else ""
        raise WireError(f"cannot reach {host}:{port}: {_reason(error)}", node=peer, hint=hint) from error
    link = _link(connection, peer, tls_of(secret), is_listening=False, node=node)
    code = connection.connect_ex(address)
    if code not in (0, errno.EINPROGRESS):
        connection.close()
        raise WireError(f"cannot reach {host}:{port}: {errno.errorcode.get(code, code)}", node=peer)
    return link


def _reason(error: OSError | UnicodeError) -> str:
    """Why a host was not found; UnicodeError is what an impossible name is called."""
    return (error.strerror if isinstance(error, OSError) else "") or str(error)


def _link(
    connection: socket.socket, peer: str, files: TlsFiles | None, *, is_listening: bool, node: str = ""
) -> Link:
    if files is None:
        return Link(connection, peer)
    from .tls import TlsStream  # noqa: PLC0415 - ssl doubles the time of `import perdure`

    try:
        link = TlsLink(connection, peer, TlsStream(files, peer, is_listening=is_listening, node=node))
        if not is_listening:
            link.begin()
    except BaseException:
        connection.close()
        raise
    return link


def check_connected(link: Link) -> None:
    """Raise WireError if the connection that was under way failed."""
    code = link.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise WireError(f"cannot reach {link.peer}: {errno.errorcode.get(code, code)}", node=link.peer)
