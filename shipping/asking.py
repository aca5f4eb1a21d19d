"""Asking a node: status, promise, frames. One connection, blocking, with a deadline for each answer.

Owns the asking side of the request messages. Every answer comes from a peer that has proved that it
knows the secret and belongs to the cluster.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Final, TypeVar

from ..store.errors import FencedError, ForeignError, PositionGoneError, PromiseRefusedError, WireError
from ..store.ids import Position
from ..store.promise import Promise
from .auth import CLIENT, NONCE_BYTES, STRANGER_HINT, Connecting
from .credentials import Secret, check_secret
from .link import Link, LinkClosed, begin_connect, check_connected
from .lookup import numeric_host
from .messages import (
    FENCED,
    FOREIGN,
    GONE,
    Challenge,
    FetchAsk,
    FetchReply,
    Message,
    PromiseAsk,
    PromiseReply,
    Proof,
    Refusal,
    StatusAsk,
    StatusReply,
)
from .messages_rejoin import FactsAsk, FactsReply
from .messages_witness import InSyncAsk, InSyncReply

ANSWER_MS: Final = 5_000
FETCH_BYTES: Final = 1 << 20
M = TypeVar("M", bound=Message)


class NodeClient:
    """A connection to one node's receiver. Not for two threads at once."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        cluster_id: bytes,
        secret: Secret = b"",
        timeout_ms: int = ANSWER_MS,
        node: str = "",
    ) -> None:
        """Connect and prove both sides. With certificates the other's must be that of `node`, if it is given.

        Raises WireError if the node can't be reached within `timeout_ms` or does not know the secret,
        ForeignError if it belongs to another cluster, UsageError for a secret that is too short.
        """
        check_secret(secret, host)
        self._name = f"{host}:{port}"
        self._timeout_ms = timeout_ms
        self._is_proved = False
        deadline = self._deadline()
        self._link: Link = begin_connect(host, port, self._name, secret, node=node)
        auth = Connecting(secret, cluster_id, CLIENT, os.urandom(NONCE_BYTES))
        try:
            self._wait(select.POLLOUT, deadline)
            check_connected(self._link)
            self._link.send(auth.greet())
            self._link.send(auth.answer(self._answer(Challenge, deadline)[0]))
            auth.check(self._answer(Proof, deadline)[0])
            self._link.trust()
            self._is_proved = True
        except BaseException as error:
            self._link.close()
            if isinstance(error, LinkClosed):
                raise auth.explained(error) from error
            raise

    def status(self) -> StatusReply:
        """How far the node is. Raises WireError."""
        return self._ask(StatusAsk(), StatusReply)[0]

    def rejoin_facts(self) -> FactsReply:
        """What a replica's way back depends on, on the node's side. Raises WireError."""
        return self._ask(FactsAsk(), FactsReply)[0]

    def promise(self, promise: Promise) -> PromiseReply:
        """Ask the node to promise an epoch; its answer is durable there, and so is `end`.

        Raises PromiseRefusedError if it promised that epoch to another candidate, or a higher one.
        """
        return self._ask(PromiseAsk(promise.epoch, promise.candidate, promise.alone), PromiseReply)[0]

    def record_in_sync(self, ask: InSyncAsk) -> InSyncReply:
        """Tell a witness which nodes are in sync; its answer is durable there.

        Raises PromiseRefusedError if it promised a higher epoch, or this one to another node.
        """
        return self._ask(ask, InSyncReply)[0]

    def fetch(self, after: Position, limit_bytes: int = FETCH_BYTES) -> Iterator[bytes]:
        """Runs of frames of the node's log from behind `after` up to its end, as they stand there.

        Raises PositionGoneError if the position is not in its log, WireError if it does not answer.
        """
        while True:
            reply, raw = self._ask(FetchAsk((after.epoch, after.lsn, after.chain), limit_bytes), FetchReply)
            if not raw:
                return
            yield raw
            after = Position(*reply.end)

    def peer_host(self) -> str:
        """The numeric address at which the node was reached. Raises OSError if the connection broke."""
        return numeric_host(self._link.socket.getpeername())

    def close(self) -> None:
        self._link.close()

    def __enter__(self) -> NodeClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, question: Message, wanted: type[M]) -> tuple[M, bytes]:
        deadline = self._deadline()
        self._link.send(question)
        return self._answer(wanted, deadline)

    def _answer(self, wanted: type[M], deadline: float) -> tuple[M, bytes]:
        while True:
            if self._link.has_unsent:
                self._wait(select.POLLIN | select.POLLOUT, deadline)
                self._link.flush()
            else:
                self._wait(select.POLLIN, deadline)
            for message, payload in self._link.receive():
                if isinstance(message, Refusal):
                    raise (refused if self._is_proved else refused_unproved)(message, self._name)
                if not isinstance(message, wanted):
                    raise WireError(f"{self._name} answered with a {type(message).__name__} message")
                return message, payload

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout_ms / 1000

    def _wait(self, events: int, deadline: float) -> None:
        poller = select.poll()
        poller.register(self._link.fileno(), events)
        left = deadline - time.monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            raise WireError(
                f"{self._name} did not answer within {self._timeout_ms} ms",
                hint="See whether its receiver runs, and whether the address is right.",
            )


def refused(
    refusal: Refusal, name: str
) -> WireError | ForeignError | PromiseRefusedError | FencedError | PositionGoneError:
    """The error that a refusal stands for, from a peer that has proved itself."""
    if refusal.code == GONE:
        return PositionGoneError(f"{name} refuses: {refusal.text}")
    if refusal.code == FENCED:
        return PromiseRefusedError(
            f"{name} refuses: {refusal.text}",
            hint=f"Epoch {refusal.epoch} is promised to {refusal.candidate}; try a higher one.",
        )
    if refusal.code == FOREIGN:
        return ForeignError(f"{name} refuses: {refusal.text}")
    return WireError(f"{name} refuses: {refusal.text}")


def refused_unproved(refusal: Refusal, name: str) -> WireError | ForeignError:
    """The error for a refusal before the peer's proof: a stranger can say it, so that no code but `foreign`
    counts."""
    if refusal.code == FOREIGN:
        return ForeignError(f"{name} refuses: {refusal.text}")
    return WireError(f"{name} refuses before the proof of the secret: {refusal.text}", hint=STRANGER_HINT)
