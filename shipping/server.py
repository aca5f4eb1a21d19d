"""The server: a node's front door, where other nodes and clients ask for work. One thread a connection.

Owns the listening socket, who may connect and for how long, and how a question becomes an answer. What can
be asked is a table of handlers, which the rooms give: {type of message: function(message, payload), which
answers (reply, payload)}. An error of the tree that a handler raises is the answer (Failed); any other one
ends that connection. Invariant: no handler runs for a peer that has not proved that it knows the secret.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from time import monotonic
from typing import Any, Final, TypeAlias, TypeVar

from ..store.errors import ForeignError, PerdureError, WireError
from .auth import CLIENT, NONCE_BYTES, Listening
from .conversation import Conversation
from .credentials import Secret, check_secret
from .door import Door
from .link import Link, LinkClosed, accept, listen
from .messages import FOREIGN, REFUSED, Greet, Message, Proof, Refusal
from .nodelog import monotonic_ms
from .wire_errors import failed

logger = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 512
"""So many are served at the same time; one more is told so and closed."""
STRANGERS_MAX: Final = 32
"""Connections that have not proved themselves yet; the oldest goes when another one comes."""
HANDSHAKE_MS: Final = 5_000
IDLE_MS: Final = 60_000
"""A connection that asks nothing for so long is closed; who asks connects again."""
SEND_MS: Final = 10_000
"""An answer that the peer does not take for so long ends its connection."""
TICK_MS: Final = 50
END_S: Final = 2.0
"""How long close() waits for handlers that are at work."""

Handler: TypeAlias = Callable[[Any, bytes], "tuple[Message, bytes]"]
Handlers: TypeAlias = Mapping[type, Handler]
Check: TypeAlias = Callable[[Link, Message], None]
_Said = TypeVar("_Said", Greet, Proof)


class Server:
    """The server of one node."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        cluster_id: bytes,
        secret: Secret,
        handlers: Handlers,
        check: Check | None = None,
    ) -> None:
        """Listen; port 0 takes a free one. `check` may raise WireError for a message that the peer of a link
        must not send. Raises WireError if the address is taken, UsageError for a secret
        that is too short.
        """
        check_secret(secret, host)
        self._cluster_id = cluster_id
        self._secret = secret
        self._handlers = dict(handlers)
        self._check = check
        self._mutex = threading.Lock()
        self._guests: dict[Link, _Guest] = {}
        self._listener = listen(host, port)
        self.port = int(self._listener.getsockname()[1])

    def run(self, should_stop: Callable[[], bool], lifeline: int | None = None) -> None:
        """Serve until `should_stop` says so, or `lifeline` (a descriptor) is readable."""
        poller = select.poll()
        door = Door(
            partial(poller.register, self._listener, select.POLLIN),
            partial(poller.unregister, self._listener),
        )
        if lifeline is not None:
            poller.register(lifeline, select.POLLIN | select.POLLHUP)
        while not should_stop():
            door.tick(monotonic_ms())
            for descriptor, _ in poller.poll(TICK_MS):
                if descriptor == lifeline:
                    return
                self._accept(door)

    def close(self) -> None:
        """Hang up on everybody, and wait a moment for the handlers that are at work."""
        self._listener.close()
        with self._mutex:
            guests = list(self._guests.values())
        for guest in guests:
            guest.hang_up()
        deadline = monotonic() + END_S
        for guest in guests:
            guest.thread.join(max(0.0, deadline - monotonic()))

    def _accept(self, door: Door) -> None:
        try:
            accepted = accept(self._listener, self._secret)
        except WireError as error:
            door.shut(str(error))
            return
        if accepted is None:
            return
        door.took()
        link, _ = accepted
        with self._mutex:
            is_full = len(self._guests) >= CONNECTIONS_MAX
            strangers = [guest for guest in self._guests.values() if guest.is_strange]
        if is_full:
            logger.warning("too many connections: peer=%s", link.peer)
            _say_farewell(link, f"{CONNECTIONS_MAX} connections are served already")
            return
        if len(strangers) >= STRANGERS_MAX:
            logger.warning("too many strangers: peer=%s", strangers[0].link.peer)
            strangers[0].hang_up()
        auth = Listening(self._secret, self._cluster_id, os.urandom(NONCE_BYTES))
        guest = _Guest(link, auth, self._handlers, self._check)
        guest.thread = threading.Thread(target=self._serve, args=(guest,), name="perdure-guest", daemon=True)
        with self._mutex:
            self._guests[link] = guest
        guest.thread.start()

    def _serve(self, guest: _Guest) -> None:
        try:
            guest.serve()
        except Exception as error:
            level = logging.INFO if isinstance(error, LinkClosed) else logging.WARNING
            is_known = isinstance(error, (PerdureError, OSError))
            logger.log(
                level if is_known else logging.ERROR,
                "connection ended: peer=%s error=%s",
                guest.link.peer,
                error,
                exc_info=None if is_known else error,
            )
        finally:
            try:
                guest.link.close()  # before it is forgotten: close() waits for those that it knows
            finally:
                with self._mutex:
                    self._guests.pop(guest.link, None)


class _Guest:
    """One connection, and the thread that serves it."""

    thread: threading.Thread

    def __init__(self, link: Link, auth: Listening, handlers: Handlers, check: Check | None) -> None:
        self.link = link
        self._check = check
        self.is_strange = True
        """It has not proved itself yet, and was not hung up on."""
        self._auth = auth
        self._handlers = handlers
        self._talk = Conversation(link)

    def serve(self) -> None:
        """Answer until the peer hangs up or is silent for too long. Raises PerdureError then."""
        self._meet(monotonic() + HANDSHAKE_MS / 1000)
        while True:
            message, payload = self._talk.take(monotonic() + IDLE_MS / 1000)
            if isinstance(message, Refusal):
                return
            if self._check is not None:
                self._check(self.link, message)
            reply, data = self._answer(message, payload)
            self._talk.send(reply, data, monotonic() + SEND_MS / 1000)

    def hang_up(self) -> None:
        """End the connection from another thread: the one that serves it wakes, and closes it."""
        self.is_strange = False
        with contextlib.suppress(OSError):
            self.link.socket.shutdown(socket.SHUT_RDWR)

    def _meet(self, deadline: float) -> None:
        greet = self._expect(Greet, deadline)
        self._talk.send(self._auth.challenge(greet), b"", deadline)
        proof = self._expect(Proof, deadline)
        try:
            own = self._auth.check(proof)
        except ForeignError as error:  # it knows the secret: it may know why
            self._talk.send(Refusal(FOREIGN, str(error)[:1000]), b"", deadline)
            raise
        if self._auth.role != CLIENT:
            raise WireError(f"a peer greeted as {self._auth.role}, which has no business here")
        self._talk.send(own, b"", deadline)
        self.link.trust()
        self.is_strange = False

    def _expect(self, kind: type[_Said], deadline: float) -> _Said:
        message, _ = self._talk.take(deadline)
        if not isinstance(message, kind):
            raise WireError(f"a {type(message).__name__} message before the peer proved itself")
        return message

    def _answer(self, message: Message, payload: bytes) -> tuple[Message, bytes]:
        handler = self._handlers.get(type(message))
        try:
            if handler is None:
                raise WireError(f"this node's server is not asked with {type(message).__name__}")
            return handler(message, payload)
        except PerdureError as error:
            logger.info("failed: asked=%s error=%s", type(message).__name__, error)
            return failed(error), b""


def merged(tables: Iterable[Handlers]) -> dict[type, Handler]:
    """One table of several rooms'. Raises WireError if two of them answer the same message."""
    found: dict[type, Handler] = {}
    for table in tables:
        for kind, handler in table.items():
            if kind in found:
                raise WireError(f"two handlers for {kind.__name__}")
            found[kind] = handler
    return found


def _say_farewell(link: Link, why: str) -> None:
    with contextlib.suppress(WireError):
        link.send(Refusal(REFUSED, why))
    link.close()
