"""Changing a cluster's members from any node: here if this node is the primary, else by its server.

Owns what the primary's server does when it is asked for a step of a change, and who asks it. Each step is
whole in itself (see members): whoever asks may die between two of them, and the same command goes on later.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from ..shipping.messages import Message, StatusReply
from ..shipping.messages_members import MemberAsk, MemberReply, MemberStep
from ..shipping.server import Handler
from ..shipping.server_client import AnswerLost, ServerClient
from ..store.errors import Indeterminate, NoQuorumError, NotPrimaryError, PerdureError
from ..store.identity import read_identity
from . import members
from .members import CATCH_UP_TIMEOUT_MS, Membership, list_members
from .ops_service import decoded
from .reach import NOBODY, Reach

FOLLOW_MS: Final = 1_000
"""So long the server waits in one step for a node to follow: whoever asks may be gone by then."""
STEP_TIMEOUT_MS: Final = 3 * members.CHANGE_TIMEOUT_MS
"""A step makes two changes at most, and each waits to be committed."""
HINT: Final = "Give --peer NODE=HOST:PORT for the other nodes, or use the primary's directory."


def _follow_ms(wait_ms: int | None) -> int:
    return FOLLOW_MS if wait_ms is None else min(wait_ms, FOLLOW_MS)


class MemberService:
    """The handler of one node's server."""

    def __init__(self, store: Path) -> None:
        self._store = store

    def handlers(self) -> dict[type, Handler]:
        return {MemberAsk: self._take_step}

    def _take_step(self, asked: MemberAsk, _payload: bytes) -> tuple[Message, bytes]:
        store = self._store
        match asked.step:
            case MemberStep.MEMBER:
                found = members.add_member(store, asked.node, asked.address, votes=False)
            case MemberStep.FOLLOW:
                found = members.await_following(store, asked.node, timeout_ms=_follow_ms(asked.wait_ms))
            case MemberStep.VOTE:
                found = members.let_vote(store, asked.node)
            case MemberStep.WITNESS:
                found = members.add_witness(store, asked.node, asked.address)
            case MemberStep.REMOVE:
                found = members.remove_member(store, asked.node)
            case MemberStep.SYNC:
                found = members.set_sync_replicas(store, asked.sync_replicas)
            case _:
                found = members.set_policy(store, asked.policy)
        return MemberReply(found.node), msgspec.msgpack.encode(found)


class Members:
    """The members of the cluster that a node belongs to; changed by the primary, wherever it is.

    Every call raises UsageError, NoQuorumError and Indeterminate as members does, the last one also if the
    primary's answer was lost; and NotPrimaryError if no node that answers is primary.
    """

    def __init__(self, store: str | os.PathLike[str], reach: Reach = NOBODY) -> None:
        """`reach` is the way to the other nodes."""
        self._store = store
        self._reach = reach
        self._server: ServerClient | None = None

    def add(
        self,
        name: str,
        address: str,
        *,
        votes: bool = True,
        timeout_ms: int = CATCH_UP_TIMEOUT_MS,
        on_step: Callable[[str], None] = lambda _step: None,
    ) -> Membership:
        """As members.add_member."""
        if self._is_here():
            return self._here(
                lambda: members.add_member(
                    self._store, name, address, votes=votes, timeout_ms=timeout_ms, on_step=on_step
                )
            )
        on_step("member")
        found = self._ask(MemberAsk(MemberStep.MEMBER, name, address))
        if votes and name not in found.voters:
            on_step("follow")
            self._await_following(name, timeout_ms)
            on_step("vote")
            found = self._ask(MemberAsk(MemberStep.VOTE, name))
        return found

    def add_witness(self, name: str, address: str) -> Membership:
        """As members.add_witness."""
        if self._is_here():
            return self._here(lambda: members.add_witness(self._store, name, address))
        return self._ask(MemberAsk(MemberStep.WITNESS, name, address))

    def remove(self, name: str) -> Membership:
        """As members.remove_member."""
        if self._is_here():
            return self._here(lambda: members.remove_member(self._store, name))
        return self._ask(MemberAsk(MemberStep.REMOVE, name))

    def set_sync_replicas(self, sync_replicas: int | None) -> Membership:
        """As members.set_sync_replicas."""
        if self._is_here():
            return self._here(lambda: members.set_sync_replicas(self._store, sync_replicas))
        return self._ask(MemberAsk(MemberStep.SYNC, sync_replicas=sync_replicas))

    def set_policy(self, policy: str) -> Membership:
        """As members.set_policy."""
        if self._is_here():
            return self._here(lambda: members.set_policy(self._store, policy))
        return self._ask(MemberAsk(MemberStep.POLICY, policy=policy))

    def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def __enter__(self) -> Members:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_here(self) -> bool:
        """Is this node to make the change: as the primary, or because it knows of no other?"""
        return not self._reach.peers or list_members(self._store).role == "primary"

    def _here(self, change: Callable[[], Membership]) -> Membership:
        try:
            return change()
        except NotPrimaryError as error:
            error.hint = HINT
            raise

    def _await_following(self, name: str, timeout_ms: int) -> None:
        deadline = time.monotonic() + timeout_ms / 1000
        while True:
            left_ms = max(0, int((deadline - time.monotonic()) * 1000))
            try:
                self._ask(MemberAsk(MemberStep.FOLLOW, name, wait_ms=_follow_ms(left_ms)))
                return
            except NoQuorumError as error:
                if time.monotonic() >= deadline:
                    raise members.not_in_time(error, timeout_ms) from error

    def _ask(self, asked: MemberAsk) -> Membership:
        if self._server is None:
            self._server = self._find()
        try:
            _, data = self._server.ask(asked, MemberReply, timeout_ms=STEP_TIMEOUT_MS)
        except AnswerLost as error:
            raise Indeterminate(
                f"the primary was asked for the change, and its answer was lost: {error.message}",
                position=None,
                operation_id=None,
                hint="See `perdure member list`, then run the same command again: it goes on from there.",
            ) from error
        return decoded(data, Membership)

    def _find(self) -> ServerClient:
        """The server of the primary of the highest epoch. Raises NotPrimaryError, WireError."""
        cluster_id = read_identity(Path(self._store)).cluster_id

        def status(node: str) -> StatusReply:
            with self._reach.connect(node, cluster_id) as client:
                return client.status()

        answers = self._reach.ask_all(status)
        claims = [
            (answer.end[0], node)
            for node, answer in answers.items()
            if isinstance(answer, StatusReply) and answer.role == "primary" and answer.node == node
        ]
        if not claims:
            problems = [
                f"{node}: {got.message}" for node, got in answers.items() if isinstance(got, PerdureError)
            ]
            raise NotPrimaryError(
                f"the members are changed by the primary, and none of this node and "
                f"{', '.join(sorted(answers))} is it" + (f" ({'; '.join(problems)})" if problems else ""),
                path=os.fspath(self._store),
                hint="See `perdure status`; `perdure promote` makes a node the primary.",
            )
        return self._reach.server(max(claims)[1], cluster_id)
