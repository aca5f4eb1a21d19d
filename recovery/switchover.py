"""Switchover: the primary hands over to another node in order; nothing is lost, writers wait for a moment.

Steps, of which each can be broken off:

    check     who is primary, is the other one fit; a snapshot is taken where there is no recent one
    drain     the primary's writers are held back, with a deadline at which they go on by themselves
    hand over the target waits until its log is the same to the digest, compares sampled sessions, gathers
              promises (the old primary's too) and begins its epoch
    check     the new primary has what the old one had, and the old one follows it

Whatever fails before the target has begun its epoch ends the drain; if nodes have promised by then, the old
primary begins an epoch of its own. This process may die at any point: the drain's deadline passes, or the
target, which does not need it, has become primary.

Owns the decision (may_switch, pure) and the order of the steps; what a node does is switch_service's.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, Protocol

import msgspec

from ..shipping.messages_switchover import (
    DrainAsk,
    Drained,
    SwitchReply,
    TakeOverAsk,
    TookOver,
    UndrainAsk,
    Undrained,
)
from ..store.errors import NotPrimaryError, PerdureError, PromiseRefusedError, UsageError, WireError
from ..store.ids import StatePosition

TIMEOUT_MS: Final = 10_000
LAG_EVENTS_MAX: Final = 10_000
"""A target that lacks more would keep writers waiting while it catches up."""
SNAPSHOT_MS: Final = 3_600_000
"""A snapshot that is older is taken anew first."""
SNAPSHOT_TIMEOUT_MS: Final = 600_000
ASK_MS: Final = 5_000
AFTER_MS: Final = 5_000
UNDO_MS: Final = 2_000
"""How long a target that has promises may take to begin its epoch after the switchover was given up."""
POLL_S: Final = 0.02


class SwitchoverReport(msgspec.Struct, frozen=True):
    """What a switchover did. Times in ms."""

    node: str
    """The primary now."""
    before: str
    """The primary before."""
    epoch: int
    was_primary: bool
    """The node was primary already, and nothing was done."""
    pause_ms: int
    """From the order to hold writers back until the new epoch was begun, and committed."""
    waited_ms: int
    """Of that, for the rest of the log."""
    promotion_ms: int
    """Of that, for promises and the new epoch."""
    lag_events: int
    """What the target lacked when the checks were made."""
    end_lsn: int
    digest: str
    sessions: int
    sampled: int
    """Sessions that were compared one by one."""
    is_committed: bool
    problems: tuple[str, ...]
    """What the checks afterwards found."""


class Nodes(Protocol):
    """The way to the servers of the cluster's nodes."""

    @property
    def names(self) -> Sequence[str]: ...

    def look(self, node: str, snapshot_ms: int = 0) -> SwitchReply:
        """How a node is; with `snapshot_ms` a snapshot is taken first unless one is younger.

        This and the others raise WireError, and what the node raises.
        """
        ...

    def drain(self, node: str, asked: DrainAsk) -> Drained: ...

    def undrain(self, node: str, asked: UndrainAsk) -> Undrained: ...

    def take_over(self, node: str, asked: TakeOverAsk, timeout_ms: int) -> TookOver: ...


Step = Callable[[str], None]


class SwitchoverRefusedError(PromiseRefusedError):
    """The checks say that this node may not take over now. Nothing was changed. `reasons` are all of them."""

    def __init__(self, node: str, reasons: Sequence[str]) -> None:
        super().__init__(
            f"{node} cannot take over: {'; '.join(reasons)}",
            node=node,
            hint="Nothing was changed. Mend that, or name another node.",
        )
        self.reasons = tuple(reasons)


def find_primary(looks: Mapping[str, SwitchReply]) -> str:
    """The primary of the highest epoch among the nodes that answered. Raises NotPrimaryError if none is."""
    primaries = [reply for reply in looks.values() if reply.is_primary]
    if not primaries:
        raise NotPrimaryError(
            f"none of {', '.join(sorted(looks)) or 'the nodes'} is primary",
            hint="A switchover hands over from a primary; see `perdure promote` and `perdure failover`.",
        )
    return max(primaries, key=lambda reply: reply.end[0]).node


def reasons_against(primary: str, target: str, looks: Mapping[str, SwitchReply]) -> list[str]:
    """Why `target` must not take over from `primary`, as far as the nodes that answered tell. Pure."""
    before, after = looks[primary], looks.get(target)
    if after is None and target in before.witnesses:
        return [f"{target} is a witness: it keeps promises, and no log"]
    if after is None:
        return [f"{target} does not answer"]
    data = [voter for voter in before.voters if voter not in before.witnesses]
    lag = before.end[1] - after.end[1]
    heard = [voter for voter in before.voters if voter in looks]
    confirming = [voter for voter in data if voter in looks and voter != target]
    found = [
        (target not in data, f"{target} is not among the voters that keep the log: {', '.join(data)}"),
        (bool(after.fault), f"its state does not follow its log: {after.fault}"),
        (not after.has_shipper, "no shipper waits there (run it with `perdure node`)"),
        (
            after.promise_epoch > before.promise_epoch,
            f"it has promised epoch {after.promise_epoch} to {after.promise_candidate}",
        ),
        (lag > LAG_EVENTS_MAX, f"it lacks {lag} events, and at most {LAG_EVENTS_MAX} may be waited for"),
        (
            2 * len(heard) <= len(before.voters),
            f"only {len(heard)} of {len(before.voters)} voters answer, and it needs promises of a majority",
        ),
        (
            len(confirming) < before.sync_replicas,
            f"{before.sync_replicas} replica(s) must confirm writes, and {len(confirming)} besides it answer",
        ),
        (before.drained_ms > 0, "another switchover is under way"),
    ]
    return [why for is_against, why in found if is_against]


def switch_over(
    nodes: Nodes,
    target: str,
    *,
    timeout_ms: int = TIMEOUT_MS,
    snapshot_ms: int = SNAPSHOT_MS,
    on_step: Step = lambda _step: None,
) -> SwitchoverReport:
    """Make `target` the primary, in order. `timeout_ms` is how long writers wait at most.

    Raises SwitchoverRefusedError if the checks find a reason, NotPrimaryError if there is no primary,
    UsageError for a node that is not known; whatever else goes wrong (DivergedError, WireError,
    LockTimeoutError, Ctrl-C) is raised after the old primary's writers were let go on, unless the target has
    taken over meanwhile.
    """
    if target not in nodes.names:
        raise UsageError(f"{target} is not known", hint=f"The nodes are {', '.join(sorted(nodes.names))}.")
    on_step("check")
    looks = look_at_all(nodes)
    primary = find_primary(looks)
    if primary == target:
        return _nothing_done(looks[primary])
    reasons = reasons_against(primary, target, looks)
    if reasons:
        raise SwitchoverRefusedError(target, reasons)
    if snapshot_ms:
        on_step("snapshot")
        nodes.look(target, snapshot_ms)
    return _Switchover(nodes, primary, target, looks, timeout_ms, on_step).run()


def look_at_all(nodes: Nodes) -> dict[str, SwitchReply]:
    """What each node that answers says of itself; asked all at once."""

    def look(node: str) -> SwitchReply | None:
        with suppress(PerdureError):
            return nodes.look(node)
        return None

    with ThreadPoolExecutor(max(1, len(nodes.names))) as pool:
        found = dict(zip(nodes.names, pool.map(look, nodes.names), strict=True))
    return {name: reply for name, reply in found.items() if reply is not None}


class _Switchover:
    """One switchover, from the drain on."""

    def __init__(
        self,
        nodes: Nodes,
        primary: str,
        target: str,
        looks: Mapping[str, SwitchReply],
        timeout_ms: int,
        on_step: Step,
    ) -> None:
        self.nodes = nodes
        self.primary = primary
        self.target = target
        self.looks = looks
        self.timeout_ms = timeout_ms
        self.on_step = on_step
        self.number = secrets.randbits(63) + 1

    def run(self) -> SwitchoverReport:
        self.on_step("drain")
        began = time.monotonic()
        try:
            drained = self.nodes.drain(self.primary, DrainAsk(self.number, self.timeout_ms))
            self.on_step("hand over")
            taken = self._hand_over(drained)
        except BaseException as error:
            self.on_step("undo")
            left = self._undo()
            if left and isinstance(error, PerdureError):
                error.hint = f"{error.hint} {left}".strip()
            raise
        pause_ms = round((time.monotonic() - began) * 1000)
        self.on_step("check again")
        with suppress(PerdureError):  # its writers know already that another node is primary
            self.nodes.undrain(self.primary, UndrainAsk(self.number))
        return self._report(drained, taken, pause_ms)

    def _hand_over(self, drained: Drained) -> TookOver:
        asked = TakeOverAsk(self.primary, drained.end, drained.samples, self.timeout_ms // 2)
        try:
            return self.nodes.take_over(self.target, asked, self.timeout_ms)
        except WireError:
            # The answer was lost, not the question: the target may have become primary all the same.
            taken = self._taken_after_all(drained)
            if taken is None:
                raise
            return taken

    def _taken_after_all(self, drained: Drained) -> TookOver | None:
        end = StatePosition(*drained.end)
        with suppress(PerdureError):
            reply = self.nodes.look(self.target)
            if reply.is_primary and reply.end[0] > end.epoch:
                is_committed = reply.committed_lsn > end.lsn
                return TookOver(reply.end[0], reply.end[:3], end.position, is_committed, 0, 0)
        return None

    def _undo(self) -> str:
        """Let the writers go on: on the old primary, in a new epoch if others have promised by now.

        Nothing is raised. Answers what a person has to do, empty if nothing: what is only drained ends by the
        drain's deadline.
        """
        with suppress(PerdureError):
            self.nodes.undrain(self.primary, UndrainAsk(self.number))
        deadline = time.monotonic() + UNDO_MS / 1000
        try:
            while True:
                looks = look_at_all(self.nodes)
                before = looks.get(self.primary)
                is_served = any(reply.is_primary and reply.node != self.primary for reply in looks.values())
                highest = max((reply.promise_epoch for reply in looks.values()), default=0)
                if before is None or is_served or highest <= before.end[0]:
                    return ""
                if time.monotonic() > deadline:
                    break  # the target was promised an epoch, and does not begin it
                time.sleep(POLL_S)
            self.nodes.take_over(
                self.primary, TakeOverAsk(self.primary, before.end, [], self.timeout_ms), self.timeout_ms
            )
        except PerdureError as error:
            return (
                f"{self.primary} could not go on either ({error.message}): see `perdure status` on all nodes,"
                " and bring back the one that does not answer, or promote one."
            )
        return ""

    def _report(self, drained: Drained, taken: TookOver, pause_ms: int) -> SwitchoverReport:
        end = StatePosition(*drained.end)
        return SwitchoverReport(
            node=self.target,
            before=self.primary,
            epoch=taken.epoch,
            was_primary=False,
            pause_ms=pause_ms,
            waited_ms=taken.waited_ms,
            promotion_ms=taken.promotion_ms,
            lag_events=max(0, self.looks[self.primary].end[1] - self.looks[self.target].end[1]),
            end_lsn=end.lsn,
            digest=f"{end.digest:016x}",
            sessions=end.session_count,
            sampled=len(drained.samples),
            is_committed=taken.is_committed,
            problems=tuple(self._problems(end, taken)),
        )

    def _problems(self, end: StatePosition, taken: TookOver) -> list[str]:
        """What is not as it should be: does the new one begin where the old one ended, does that follow?"""
        found: list[str] = []
        if taken.before != end.position:  # its chain covers count and digest
            found.append(f"{self.target} began at {taken.before}; {self.primary} ended at {end.position}")
        if not taken.is_committed:
            found.append("the new epoch is not confirmed by enough replicas yet")
        deadline = time.monotonic() + AFTER_MS / 1000
        while True:
            why = self._why_not_following(taken)
            if not why or time.monotonic() > deadline:
                return [*found, why] if why else found
            time.sleep(POLL_S)

    def _why_not_following(self, taken: TookOver) -> str:
        try:
            reply = self.nodes.look(self.primary)
        except PerdureError as error:
            return f"{self.primary} does not answer: {error}"
        if reply.is_primary:
            return f"{self.primary} does not know yet that it was relieved"
        if reply.end[0] < taken.epoch:
            return f"{self.primary} does not follow {self.target} yet"
        return ""


def _nothing_done(primary: SwitchReply) -> SwitchoverReport:
    end = StatePosition(*primary.end)
    return SwitchoverReport(
        node=primary.node,
        before=primary.node,
        epoch=end.epoch,
        was_primary=True,
        pause_ms=0,
        waited_ms=0,
        promotion_ms=0,
        lag_events=0,
        end_lsn=end.lsn,
        digest=f"{end.digest:016x}",
        sessions=end.session_count,
        sampled=0,
        is_committed=primary.committed_lsn >= end.lsn or primary.sync_replicas == 0,
        problems=(),
    )
