"""The forwarder: finds the primary, wherever it is, and asks its server on behalf of this node's clients.

Owns which node is taken for the primary (the one with the highest epoch of those that say so) and the
connections to it. What is asked, and again, is for who calls (store/elsewhere.py). Nothing is connected, and
no configuration read, before the first call.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Final, TypeVar

import msgspec

from ..store.errors import ForeignError, Indeterminate, NotPrimaryError, PerdureError, WireError
from ..store.forwarding import decode_records
from ..store.identity import Identity, read_identity
from ..store.ids import Position
from ..store.option import split_address
from ..store.ports import Sought, Submitted
from ..store.promise import read_promise
from .credentials import Secret
from .finding import Search
from .forward_service import wire_position
from .messages import Message
from .messages_forward import (
    ForwardAsk,
    ForwardReply,
    OutcomeAsk,
    OutcomeReply,
    PositionAsk,
    PositionReply,
    RefreshAsk,
    RefreshReply,
    SweepAsk,
    SweepReply,
)
from .server_client import AnswerLost, ServerClient

logger = logging.getLogger(__name__)

IDLE_CLIENTS_MAX: Final = 16
"""Connections to the primary that are kept while nobody asks."""
STATUS_MS: Final = 1_000
"""How long one node may take to say what it is."""
NODES_MAX: Final = 64
AGAIN_S: Final = 0.02
"""After a search that found none, the next one begins at the earliest so much later."""
M = TypeVar("M", bound=Message)


class Way(msgspec.Struct, frozen=True):
    """Where the other nodes are, and what opens them."""

    peers: Mapping[str, tuple[str, int]]
    """Host and port of receivers by node, as far as they are configured."""
    secret: Secret = b""


class _Primary:
    """A node that says it is the primary, and the connections to its server."""

    def __init__(
        self, node: str, epoch: int, address: tuple[str, int], cluster_id: bytes, secret: Secret
    ) -> None:
        self.node = node
        self.epoch = epoch
        self._address = address
        self._cluster_id = cluster_id
        self._secret = secret
        self._idle: list[ServerClient] = []

    def take(self) -> ServerClient:
        try:
            return self._idle.pop()
        except IndexError:
            host, port = self._address
            return ServerClient(host, port, cluster_id=self._cluster_id, secret=self._secret, node=self.node)

    def give(self, client: ServerClient) -> None:
        if len(self._idle) < IDLE_CLIENTS_MAX:
            self._idle.append(client)
        else:
            client.close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


class NodeForwarder:
    """A node's way to the primary (the port Forwarder). Safe for threads."""

    def __init__(self, store: Path, look: Callable[[], Way]) -> None:
        """`look` tells the way when it is first needed; it may raise PerdureError."""
        self._store = store
        self._look = look
        self._way: Way | None = None
        self._identity: Identity | None = None
        self._members: Mapping[str, str] = {}
        self._primary: _Primary | None = None
        self._searching = threading.Lock()
        self._next_search = 0.0

    # -- the port --------------------------------------------------------------------------------

    def knows(self, members: Mapping[str, str]) -> bool:
        self._members = members
        found = self._addresses()
        if not found:
            self._way = None  # looked for again: the node process may be started meanwhile
        return bool(found)

    def submit(
        self, change: bytes, operation_id: bytes, attempt: int, is_durable: bool, timeout_ms: int
    ) -> Submitted:
        deadline = monotonic() + timeout_ms / 1000
        primary = self._find(deadline)
        asked = ForwardAsk(operation_id, attempt, primary.epoch, is_durable)
        try:
            reply, payload = self._ask_of(primary, asked, ForwardReply, change, deadline)
        except AnswerLost as error:
            raise Indeterminate(error.message, position=None, operation_id=operation_id.hex()) from error
        position = Position(*reply.position)
        if not reply.is_conflict:
            return Submitted(position)
        return Submitted(position, decode_records(payload), reply.is_whole)

    def outcome(self, sought: Sought, timeout_ms: int) -> str:
        position = None if sought.position is None else wire_position(sought.position)
        asked = OutcomeAsk(
            sought.operation_id, wire_position(sought.base), sought.attempt, position, timeout_ms
        )
        return self._ask(asked, OutcomeReply, timeout_ms).outcome

    def position(self, *, is_confirmed: bool, timeout_ms: int) -> Position:
        reply = self._ask(PositionAsk(is_confirmed, timeout_ms), PositionReply, timeout_ms)
        if not reply.is_primary:
            self._forget(self._primary)
            raise NotPrimaryError(f"{reply.node} is not the primary", node=reply.node)
        return Position(*reply.position)

    def refresh(self, touches: bytes, timeout_ms: int) -> int:
        return self._ask(RefreshAsk(), RefreshReply, timeout_ms, touches).taken

    def sweep(self, limit: int, timeout_ms: int) -> tuple[int, Position]:
        reply = self._ask(SweepAsk(limit), SweepReply, timeout_ms)
        return reply.expired, Position(*reply.position)

    def primary(self, timeout_ms: int) -> tuple[int, str]:
        found = self._primary
        try:
            self._forget(found)
            found = self._find(monotonic() + timeout_ms / 1000)
        except PerdureError:
            return 0, ""
        return found.epoch, found.node

    def close(self) -> None:
        self._forget(self._primary)

    # -- asking ----------------------------------------------------------------------------------

    def _ask(self, question: Message, wanted: type[M], timeout_ms: int, payload: bytes = b"") -> M:
        deadline = monotonic() + timeout_ms / 1000
        return self._ask_of(self._find(deadline), question, wanted, payload, deadline)[0]

    def _ask_of(
        self, primary: _Primary, question: Message, wanted: type[M], payload: bytes, deadline: float
    ) -> tuple[M, bytes]:
        client = primary.take()
        left_ms = max(1, int((deadline - monotonic()) * 1000))
        try:
            answer = client.ask(
                question, wanted, payload, timeout_ms=left_ms, is_over=lambda: self._is_over(primary.epoch)
            )
        except (WireError, ForeignError, NotPrimaryError):
            client.close()
            self._forget(primary)
            raise
        except PerdureError:
            primary.give(client)
            raise
        except BaseException:
            client.close()
            raise
        primary.give(client)
        return answer

    def _is_over(self, epoch: int) -> bool:
        """Has this node promised a later epoch than that of the primary that was asked?

        Then the answer may never come, and another one will know it.
        """
        try:
            return read_promise(self._store).epoch > epoch
        except PerdureError:
            return False

    def _may_be_here(self) -> bool:
        """Is this node the candidate of the latest epoch, or its primary by now?"""
        try:
            return read_promise(self._store).candidate == self._ways()[1].node
        except PerdureError:
            return False

    # -- finding ---------------------------------------------------------------------------------

    def _forget(self, primary: _Primary | None) -> None:
        if primary is not None:
            if self._primary is primary:
                self._primary = None
            primary.close()

    def _find(self, deadline: float) -> _Primary:
        """The primary; it is searched by one thread at a time. Raises NotPrimaryError if there is none."""
        found = self._primary
        if found is not None:
            return found
        if not self._searching.acquire(timeout=max(0.0, deadline - monotonic())):
            raise NotPrimaryError("no node has said in time that it is the primary")
        try:
            if self._primary is None:
                if monotonic() < self._next_search:
                    raise NotPrimaryError("no node says that it is the primary")
                try:
                    self._primary = self._search(deadline)
                except NotPrimaryError:
                    self._next_search = monotonic() + AGAIN_S
                    raise
            return self._primary
        finally:
            self._searching.release()

    def _search(self, deadline: float) -> _Primary:
        way, identity = self._ways()
        addresses = self._addresses()
        timeout_ms = min(STATUS_MS, max(1, int((deadline - monotonic()) * 1000)))
        search = Search(addresses, identity.cluster_id, way.secret, timeout_ms, self._may_be_here)
        node, status = search.run()
        epoch, port = status.end[0], status.serve_port
        if not port:
            raise NotPrimaryError(f"the primary {node} runs no server", node=node)
        logger.info("primary found: node=%s epoch=%d", node, epoch)
        return _Primary(node, epoch, (addresses[node][0], port), identity.cluster_id, way.secret)

    def _addresses(self) -> dict[str, tuple[str, int]]:
        """The receivers of all other nodes. What the log tells of its members wins."""
        way, identity = self._ways()
        addresses = dict(way.peers)
        addresses.update((node, split_address(text)) for node, text in self._members.items())
        addresses.pop(identity.node, None)
        return dict(list(addresses.items())[:NODES_MAX])

    def _ways(self) -> tuple[Way, Identity]:
        way = self._way
        if way is None:
            way = self._way = self._look()
        if self._identity is None:
            self._identity = read_identity(self._store)
        return way, self._identity
