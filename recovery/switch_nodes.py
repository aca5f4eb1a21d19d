"""The servers of a cluster's nodes, as a switchover asks them.

Owns finding them (a node's receiver tells where its server listens) and one connection to each, which is
made before anybody waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from ..shipping.asking import NodeClient
from ..shipping.credentials import Secret
from ..shipping.messages import Message
from ..shipping.messages_switchover import (
    DrainAsk,
    Drained,
    SwitchAsk,
    SwitchReply,
    TakeOverAsk,
    TookOver,
    UndrainAsk,
    Undrained,
)
from ..shipping.server_client import ServerClient
from ..store.errors import WireError
from .switchover import ASK_MS, SNAPSHOT_TIMEOUT_MS

M = TypeVar("M", bound=Message)


class WireNodes:
    """The Nodes port over TCP. `addresses` gives (host, port) of each node's receiver, one's own included."""

    def __init__(
        self, addresses: Mapping[str, tuple[str, int]], *, cluster_id: bytes, secret: Secret = b""
    ) -> None:
        self._addresses = dict(addresses)
        self._cluster_id = cluster_id
        self._secret = secret
        self._clients: dict[str, ServerClient] = {}

    @property
    def names(self) -> Sequence[str]:
        return list(self._addresses)

    def look(self, node: str, snapshot_ms: int = 0) -> SwitchReply:
        reply = self._ask(
            node, SwitchAsk(snapshot_ms), SwitchReply, SNAPSHOT_TIMEOUT_MS if snapshot_ms else ASK_MS
        )
        if reply.node != node:
            raise WireError(f"node {reply.node} answers at the address of {node}", node=node)
        return reply

    def drain(self, node: str, asked: DrainAsk) -> Drained:
        return self._ask(node, asked, Drained, ASK_MS)

    def undrain(self, node: str, asked: UndrainAsk) -> Undrained:
        return self._ask(node, asked, Undrained, ASK_MS)

    def take_over(self, node: str, asked: TakeOverAsk, timeout_ms: int) -> TookOver:
        return self._ask(node, asked, TookOver, timeout_ms)

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def __enter__(self) -> WireNodes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, node: str, question: Message, wanted: type[M], timeout_ms: int) -> M:
        client = self._clients.get(node)
        if client is None:
            client = self._clients[node] = self._find(node)
        try:
            return client.ask(question, wanted, timeout_ms=timeout_ms)[0]
        except WireError:
            self._clients.pop(node).close()  # it may listen elsewhere when it is back
            raise

    def _find(self, node: str) -> ServerClient:
        host, port = self._addresses[node]
        with NodeClient(
            host, port, cluster_id=self._cluster_id, secret=self._secret, node=node, timeout_ms=ASK_MS
        ) as client:
            reply = client.status()
        if not reply.serve_port:
            raise WireError("no server runs there", node=node, hint="Run the node with `perdure node`.")
        return ServerClient(
            host, reply.serve_port, cluster_id=self._cluster_id, secret=self._secret, node=node
        )
