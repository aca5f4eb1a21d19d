"""The other nodes of a cluster, asked over their receivers' ports.

Owns the way from an address on the command line to what a promotion wants to know. A connection serves one
question, so that a node which hangs holds up nothing but its own answer.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..recovery import Answer, VoterState
from ..shipping import NodeClient
from ..store import Position, Promise, PromiseRefusedError, WireError

ANSWER_MS = 5_000


class Peers:
    """Nodes by name, as `promote` asks them (the protocol Voters)."""

    def __init__(
        self,
        addresses: Mapping[str, tuple[str, int]],
        *,
        cluster_id: bytes,
        secret: bytes,
        timeout_ms: int = ANSWER_MS,
    ) -> None:
        self._addresses = addresses
        self._cluster_id = cluster_id
        self._secret = secret
        self._timeout_ms = timeout_ms

    def state(self, node: str) -> VoterState:
        """Ask a node how far it is. Raises WireError if it does not answer."""
        with self.connect(node) as client:
            reply = client.status()
        self._check_name(node, reply.node)
        return VoterState(
            reply.node,
            reply.role,
            Position(*reply.end),
            reply.committed_lsn,
            Promise(reply.promise_epoch, reply.promise_candidate),
            reply.fault,
        )

    def promise(self, node: str, asked: Promise) -> Answer:
        """Ask a node for its promise; a refusal is an answer. Raises WireError if none comes.

        Only a node that says it has this name is asked: a wrong address must not count one voter twice.
        """
        with self.connect(node) as client:
            self._check_name(node, client.status().node)
            try:
                reply = client.promise(asked)
            except PromiseRefusedError as error:
                return Answer(node, Position(0, 0, 0), False, refusal=error.message)
        return Answer(node, Position(*reply.end), True, fault=reply.fault)

    def connect(self, node: str) -> NodeClient:
        """A connection to a node. Raises WireError, also for one whose address is not known."""
        address = self._addresses.get(node)
        if address is None:
            raise WireError(f"the address of {node} is not known", node=node, hint=f"Give --peer {node}=HOST:PORT.")
        host, port = address
        return NodeClient(
            host, port, cluster_id=self._cluster_id, secret=self._secret, timeout_ms=self._timeout_ms
        )

    def _check_name(self, node: str, name: str) -> None:
        if node != name:
            raise WireError(f"at the address of {node} {name} answers", node=node, hint="See the addresses.")
