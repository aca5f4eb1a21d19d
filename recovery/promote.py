"""Promotion by hand: a candidate gathers promises, then begins an epoch.

Owns the order of a promotion, one durable step after the other:

    1. look: the candidate's log is whole and settled, it votes, nothing speaks against it
    2. ask every other voter how far it is; whoever is further should be promoted instead
    3. the candidate promises the new epoch to itself: it takes no frame of an older one any more
    4. ask every other voter for its promise; each answer says how far that voter is, for good
    5. count (see promises)
    6. EPOCH_START, durable in the candidate's log: it is primary

Survives a crash: before 6 nothing but promises was made; they fence the old primary and bind nobody to
this candidate in a later epoch. Run again it takes the next epoch, and no epoch is ever begun twice: the
candidate's own promise stands before any other is asked for. Safety rests on the promises alone; the
looks of 1 and 2 only save futile tries.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from ..shipping.credentials import Secret
from ..shipping.faults import read_fault
from ..shipping.nodelog import NodeLog, open_node_log
from ..store import names
from ..store.control import Config
from ..store.cursor import list_segments
from ..store.errors import (
    DivergedError,
    ForeignError,
    NoQuorumError,
    PerdureError,
    PromiseRefusedError,
    UsageError,
    WireError,
)
from ..store.ids import EPOCH_MAX, Position
from ..store.promise import Promise, read_promise
from .counting import promises_needed
from .promises import Answer, Decision, Voters, VoterState, Why, count_promises, is_further
from .voters import WireVoters

VOTERS_MAX = 32
T = TypeVar("T")


class PromotionRefusedError(PromiseRefusedError):
    """The candidate may not begin an epoch. `decision` says why; nothing but promises was made."""

    def __init__(self, message: str, *, decision: Decision, path: Path, node: str, hint: str) -> None:
        super().__init__(message, path=path, node=node, hint=hint)
        self.decision = decision


class PromotionReport(msgspec.Struct, frozen=True):
    """What a promotion did."""

    node: str
    epoch: int
    start: Position
    """Of the EPOCH_START."""
    before: Position
    """Where the log ended when it was promised."""
    voters: tuple[str, ...]
    """From now on."""
    sync_replicas: int
    """From now on."""
    promisers: tuple[str, ...]
    needed: int
    unheard: tuple[str, ...]
    """Voters that did not answer, or refused."""
    is_alone: bool
    was_primary: bool
    """The node was primary already, and nothing was done."""
    keeps_acknowledged: bool
    """No write that was acknowledged with sync_replicas >= 1 can have been lost."""
    at_risk: str
    """Which writes may be lost, in words; empty if none can be."""
    elapsed_ms: int


Step = Callable[[str], None]
"""Called with the name of each step as it begins."""


def promote(
    store: str | os.PathLike[str],
    peers: Mapping[str, tuple[str, int]] | Voters,
    secret: Secret = b"",
    *,
    accept_data_loss: bool = False,
    alone: bool = False,
    on_step: Step | None = None,
) -> PromotionReport:
    """Make the node of `store` the primary, by the promises of the other voters.

    `peers` gives (host, port) of the other voters' receivers, which `secret` opens, or is the way to
    them itself. Run it while the node's own receiver runs or not: both take the write lock.
    `accept_data_loss` allows what may lose acknowledged writes: sync_replicas = 0 needs it always.
    `alone` makes the node the only voter, with sync_replicas = 0; of two nodes that loses nothing if
    each write needed both. A node that is primary already stays so, and nothing is done.

    Raises PromotionRefusedError (`decision` says why and names the node that stands in the way),
    NoQuorumError if too few voters answered, DivergedError for two histories under one position,
    CorruptError, PoisonedError or another StorageError if the candidate's own log is not fit.
    """
    started = time.monotonic_ns()
    node = open_node_log(Path(store), [])
    if isinstance(peers, Mapping):
        voters: Voters = WireVoters(peers, cluster_id=node.identity.cluster_id, secret=secret)
    else:
        voters = peers
    try:
        report = _Promotion(node, voters, accept_data_loss, alone, on_step or _silent).run()
    finally:
        node.close()
    return msgspec.structs.replace(report, elapsed_ms=(time.monotonic_ns() - started) // 1_000_000)


class _Promotion:
    """One try of one candidate."""

    def __init__(
        self, node: NodeLog, voters: Voters, accept_data_loss: bool, alone: bool, on_step: Step
    ) -> None:
        self.node = node
        self.name = node.node
        self.log = node.log
        self.peers = voters
        self.accept_data_loss = accept_data_loss
        self.alone = alone
        self.on_step = on_step
        self.config = Config()
        self.unheard: dict[str, str] = {}

    def run(self) -> PromotionReport:
        self.on_step("look")
        end, is_primary = self._look()
        if is_primary and not self.alone:
            return self._report_primary()
        self._refuse_early(end)
        self.on_step("ask")
        states = self._ask_states()
        self._compare(end, states)
        epoch = self._next_epoch(states)
        asked = Promise(epoch, self.name, self.alone)
        self.on_step("promise")
        own = self._promise_self(asked)
        self.on_step("gather")
        answers = self._ask_promises(asked)
        decision = self._count(own, answers)
        if not decision.is_granted:
            raise self._refusal(decision)
        self.on_step("begin")
        start = self._begin(asked, own.end)
        return self._report(decision, own.end, start, states)

    # -- before anything is promised -------------------------------------------------------------

    def _look(self) -> tuple[Position, bool]:
        """(where the log ends, is it primary in force). Settles the log, which may be what is wrong."""
        end = self.node.end_on_disk()
        self.config = self.log.config
        if not self.config.voters:
            self.config = Config((self.name,))
        if len(self.config.voters) > VOTERS_MAX:
            raise UsageError(f"{len(self.config.voters)} voters; at most {VOTERS_MAX} are asked")
        return end, self.log.is_primary

    def _refuse_early(self, end: Position) -> None:
        """Refuse what no promise could change, so that nobody is fenced for nothing."""
        everyone = [Answer(name, Position(0, 1, 0), True) for name in self.config.voters if name != self.name]
        decision = self._count(Answer(self.name, end, True, self._own_fault()), everyone)
        if not decision.is_granted:
            raise self._refusal(decision)

    def _own_fault(self) -> str:
        """What of this node must not become the history of all, empty if nothing."""
        for name, fault in (
            (names.INSTALL_PLAN, "it is being made anew from a snapshot"),
            (names.CUT_PLAN, "its log is being cut"),
        ):
            if (self.node.store / name).exists():
                return f"{self.name} is not fit: {fault} ({name})"
        fault = read_fault(self.node.store)
        return f"{self.name} is not fit: its state does not follow its log: {fault}" if fault else ""

    def _ask_states(self) -> list[VoterState]:
        return self._ask_all(self.peers.state)

    def _compare(self, end: Position, states: Iterable[VoterState]) -> None:
        """Refuse if a voter is further: its promise would only say the same, and fence the primary."""
        answers = [Answer(state.node, state.end, True, state.fault) for state in states]
        further = [answer for answer in answers if is_further(answer.end, end) and not answer.fault]
        if further:
            own = Answer(self.name, end, True)
            best = max(further, key=lambda answer: answer.end[:2])
            decision = self._count(own, [best])
            if decision.why is Why.FURTHER:
                raise self._refusal(decision)

    def _next_epoch(self, states: Iterable[VoterState]) -> int:
        """One above every epoch that was ever promised or begun, as far as anybody said."""
        seen = [self.log.promise.epoch, self.log.cursor.at.epoch]
        if self.log.cursor.header:
            seen.append(self.log.cursor.header.epoch)
        for state in states:
            seen += [state.end.epoch, state.promise.epoch]
        if max(seen) >= EPOCH_MAX:
            raise UsageError(f"epoch {max(seen)} is the last one there can be")
        return max(seen) + 1

    # -- promises --------------------------------------------------------------------------------

    def _promise_self(self, asked: Promise) -> Answer:
        """Promise the epoch to itself: from here on the log takes nothing of an older one."""
        log = self.log
        log.lock_any()
        try:
            log.give_promise(asked)
            at = log.cursor.at
            log.flush(at.lsn)
            return Answer(self.name, at.position, True, self._own_fault())
        finally:
            log.unlock()

    def _ask_promises(self, asked: Promise) -> list[Answer]:
        return self._ask_all(lambda name: self.peers.promise(name, asked))

    def _count(self, own: Answer, answers: list[Answer]) -> Decision:
        return count_promises(
            self.config,
            own,
            answers,
            committed_lsn=self.node.committed_lsn(),
            accept_data_loss=self.accept_data_loss,
            alone=self.alone,
        )

    def _begin(self, asked: Promise, end: Position) -> Position:
        """EPOCH_START, under the write lock, if the promise and the log are still as they were counted."""
        log = self.log
        log.lock_any()
        try:
            held = read_promise(self.node.store)
            if held != asked:
                raise PromiseRefusedError(
                    f"epoch {held.epoch} was promised to {held.candidate} meanwhile",
                    node=self.name,
                    hint="Another candidate is at work; see who is primary before you try again.",
                )
            if log.cursor.at.position != end:
                raise DivergedError(
                    f"the log ended at {end} when it was promised, and ends at {log.cursor.at.position}",
                    node=self.name,
                    hint="Try again.",
                )
            reason = "promoted alone" if self.alone else "promoted"
            return log.start_epoch(asked, self._config_after(), reason)
        finally:
            log.unlock()

    def _config_after(self) -> Config:
        return Config((self.name,), 0) if self.alone else self.config

    # -- asking ----------------------------------------------------------------------------------

    def _ask_all(self, ask: Callable[[str], T]) -> list[T]:
        """What the other voters answer, asked all at once; who does not answer is `unheard`."""
        others = [name for name in self.config.voters if name != self.name]
        if not others:
            return []
        answers: list[T] = []
        with ThreadPoolExecutor(len(others), thread_name_prefix="perdure-ask") as pool:
            waiting = [(name, pool.submit(ask, name)) for name in others]
            for name, answer in waiting:
                try:
                    answers.append(answer.result())
                    self.unheard.pop(name, None)
                except (WireError, ForeignError, OSError) as error:
                    self.unheard[name] = str(error)
        return answers

    # -- saying ----------------------------------------------------------------------------------

    def _refusal(self, decision: Decision) -> PerdureError:
        hints = {
            Why.FURTHER: f"Promote {decision.node} instead.",
            Why.NEEDS_DATA_LOSS: f"{self._risk()} Accept that (--accept-data-loss) to go on.",
            Why.NO_VOTER: "Promote one of the voters.",
            Why.EMPTY: "Promote a node that has a log, or begin a cluster with `perdure init`.",
            Why.FAULTY: "Promote another node, or bootstrap this one anew.",
            Why.DIVERGED: "See `perdure verify` on both; one of them must be bootstrapped anew.",
            Why.NOT_IN_SYNC: f"Promote one that has them. {self._risk()} --accept-data-loss accepts that.",
            Why.REFUSED: "Another candidate is at work; see who is primary before you try again.",
        }
        text = f"{self.name} cannot become primary: {decision.message}"
        if decision.why is Why.TOO_FEW:
            heard = "; ".join(f"{name}: {why}" for name, why in sorted(self.unheard.items()))
            return NoQuorumError(
                f"{text} ({heard})" if heard else text,
                node=self.name,
                hint=f"Bring back enough voters. If they are gone for good: {self._way_out(decision)}.",
            )
        if decision.why is Why.DIVERGED:
            return DivergedError(text, node=self.name, hint=hints[Why.DIVERGED])
        return PromotionRefusedError(
            text, decision=decision, path=self.node.store, node=self.name, hint=hints[decision.why]
        )

    def _way_out(self, decision: Decision) -> str:
        """Which options would let the promotion go on, with what it has."""
        nodes, k = len(self.config.voters), self.config.sync_replicas
        relaxed = promises_needed(nodes, k, accept_data_loss=True)
        if len(decision.promisers) >= relaxed:
            return "--accept-data-loss"
        return "--alone" if nodes == 2 and k >= 1 else "--alone --accept-data-loss"

    def _risk(self) -> str:
        lsn = self.log.cursor.at.lsn
        return f"What was written above LSN {lsn}, where {self.name}'s log ends, would be lost."

    def _report(
        self, decision: Decision, end: Position, start: Position, states: list[VoterState]
    ) -> PromotionReport:
        config = self._config_after()
        return PromotionReport(
            node=self.name,
            epoch=start.epoch,
            start=start,
            before=end,
            voters=config.voters,
            sync_replicas=config.sync_replicas,
            promisers=decision.promisers,
            needed=decision.needed,
            unheard=tuple(sorted(self.unheard)),
            is_alone=self.alone,
            was_primary=False,
            keeps_acknowledged=decision.keeps_acknowledged,
            at_risk=self._at_risk(decision, end, states),
            elapsed_ms=0,
        )

    def _at_risk(self, decision: Decision, end: Position, states: list[VoterState]) -> str:
        if decision.keeps_acknowledged:
            return ""
        text = f"writes above LSN {end.lsn} that the old primary acknowledged are lost, if there were any"
        further = max((state.end.lsn for state in states), default=0)
        return f"{text}; LSN {further} was seen" if further > end.lsn else text

    def _report_primary(self) -> PromotionReport:
        start = self._epoch_start()
        return PromotionReport(
            node=self.name,
            epoch=start.epoch,
            start=start,
            before=start,
            voters=self.config.voters,
            sync_replicas=self.config.sync_replicas,
            promisers=(),
            needed=0,
            unheard=(),
            is_alone=self.log.promise.alone,
            was_primary=True,
            keeps_acknowledged=True,
            at_risk="",
            elapsed_ms=0,
        )

    def _epoch_start(self) -> Position:
        """Position of the EPOCH_START of the epoch in force; of the log's end if retention passed it."""
        end = self.log.cursor.at.position
        cursor = self.node.cursor()
        try:
            files = [file for file in list_segments(cursor.log) if file.epoch == end.epoch]
            if files:
                cursor.open_segment(files[0])
                run = cursor.read()
                if run is not None:
                    return run.frames[0][1].position
            return end
        finally:
            cursor.close()


def _silent(_step: str) -> None:
    return None
