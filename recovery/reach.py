"""Reaching the other nodes of a cluster: their addresses, and what proves that one may ask.

Owns how recovery connects to a node's receiver, and that several are asked at the same time. Whether an
answer can be believed is for whoever asks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import msgspec

from ..shipping.asking import NodeClient
from ..shipping.credentials import Secret
from ..shipping.roster import node_addresses
from ..shipping.server_client import ServerClient
from ..store.errors import PerdureError, WireError
from .source import newest_config, open_source

ASK_TIMEOUT_MS: Final = 2_000
ASKED_AT_ONCE: Final = 16
T = TypeVar("T")


class Reach(msgspec.Struct, frozen=True):
    """The addresses of other nodes' receivers by name, and what this node proves itself with."""

    peers: Mapping[str, tuple[str, int]] = {}
    secret: Secret = b""
    timeout_ms: int = ASK_TIMEOUT_MS

    def connect(self, node: str, cluster_id: bytes) -> NodeClient:
        """A connection to a node's receiver. Raises WireError, ForeignError, UsageError."""
        address = self.peers.get(node)
        if address is None:
            raise WireError(
                f"the address of {node} is not known", node=node, hint="Give --peer NODE=HOST:PORT."
            )
        return NodeClient(
            address[0],
            address[1],
            cluster_id=cluster_id,
            secret=self.secret,
            node=node,
            timeout_ms=self.timeout_ms,
        )

    def server(self, node: str, cluster_id: bytes) -> ServerClient:
        """A way to a node's server, which its receiver tells. Raises WireError, ForeignError, UsageError."""
        with self.connect(node, cluster_id) as client:
            said = client.status()
        if said.node != node:
            raise WireError(f"{said.node} answers at the address of {node}", node=node)
        if not said.serve_port:
            raise WireError(
                f"{node} has no server that could be asked",
                node=node,
                hint="`perdure node` runs one; its receiver alone answers only how far the node is.",
            )
        host = self.peers[node][0]
        return ServerClient(host, said.serve_port, cluster_id=cluster_id, secret=self.secret, node=node)

    def ask_all(self, ask: Callable[[str], T]) -> dict[str, T | PerdureError]:
        """What `ask` answers for each peer, or the error that it raised; all at the same time."""
        if not self.peers:
            return {}

        def answer(node: str) -> T | PerdureError:
            try:
                return ask(node)
            except PerdureError as error:
                return error

        with ThreadPoolExecutor(min(len(self.peers), ASKED_AT_ONCE)) as threads:
            return dict(zip(self.peers, threads.map(answer, self.peers), strict=True))


NOBODY: Final = Reach()


def known_reach(
    store: str | os.PathLike[str],
    given: Mapping[str, tuple[str, int]],
    secret: Secret = b"",
    *,
    configured: Mapping[str, tuple[str, int]] | None = None,
) -> Reach:
    """The way to the other nodes: addresses that are given, else those that the newest CONFIG in the log
    says, else, for nodes that belong to it, what is `configured`.

    Raises StoreMissingError, FormatError.
    """
    source = open_source(store)
    known = node_addresses(newest_config(source), source.identity.node, configured or {})
    return Reach(known | dict(given), secret)


def node_names(store: str | os.PathLike[str]) -> set[str]:
    """The nodes that the newest CONFIG in the log names, and this one. Raises as open_source."""
    source = open_source(store)
    config = newest_config(source)
    return {source.identity.node, *config.voters, *config.members}
