"""The other voters, reached over the network through shipping's client.

Owns the translation between what a node answers on the wire and what a promotion counts. One connection
a question: a promotion asks each voter twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..shipping.asking import FETCH_BYTES, NodeClient
from ..shipping.credentials import Secret
from ..store.errors import PromiseRefusedError, WireError
from ..store.ids import Position
from ..store.promise import Promise
from .promises import Answer, VoterState

ASK_TIMEOUT_MS = 2_000


class WireVoters:
    """The Voters port over TCP. `addresses` gives (host, port) of each voter's receiver."""

    def __init__(
        self,
        addresses: Mapping[str, tuple[str, int]],
        *,
        cluster_id: bytes,
        secret: Secret = b"",
        timeout_ms: int = ASK_TIMEOUT_MS,
    ) -> None:
        self._addresses = dict(addresses)
        self._cluster_id = cluster_id
        self._secret = secret
        self._timeout_ms = timeout_ms

    def state(self, node: str) -> VoterState:
        """Raises WireError, ForeignError for a node of another cluster, UsageError for a bad secret."""
        with self._connect(node) as client:
            reply = client.status()
        if reply.node != node:
            host, port = self._addresses[node]
            raise WireError(
                f"{host}:{port} is node {reply.node}, not {node}",
                node=node,
                hint="Look at the names and addresses of the peers.",
            )
        return VoterState(
            reply.node,
            reply.role,
            Position(*reply.end),
            reply.committed_lsn,
            Promise(reply.promise_epoch, reply.promise_candidate),
            reply.fault,
            reply.in_sync,
        )

    def promise(self, node: str, asked: Promise) -> Answer:
        """As state(), then the promise on the same voter."""
        self.state(node)  # an address that leads to another node must not count twice
        with self._connect(node) as client:
            try:
                reply = client.promise(asked)
            except PromiseRefusedError as error:
                return Answer(node, Position(0, 0, 0), False, refusal=error.message)
        if (reply.epoch, reply.candidate) != (asked.epoch, asked.candidate):
            raise WireError(f"{node} answered for epoch {reply.epoch} of {reply.candidate}", node=node)
        return Answer(node, Position(*reply.end), True, reply.fault, in_sync=reply.in_sync)

    def fetch(self, node: str, after: Position, limit_bytes: int = FETCH_BYTES) -> Iterator[bytes]:
        """Frames of that node's log. Raises PositionGoneError, and WireError as state()."""
        with self._connect(node) as client:
            yield from client.fetch(after, limit_bytes)

    def _connect(self, node: str) -> NodeClient:
        address = self._addresses.get(node)
        if address is None:
            raise WireError("its address was not given", node=node, hint="Name it among the peers.")
        return NodeClient(
            address[0],
            address[1],
            cluster_id=self._cluster_id,
            secret=self._secret,
            timeout_ms=self._timeout_ms,
            node=node,
        )
