"""Promotion: a candidate gathers promises, takes what it lacks, then begins an epoch.

Owns the order of a promotion, one durable step after the other:

    1. look: the candidate's log is whole and settled, it votes, nothing speaks against it
    2. ask every other voter how far it is, and which epochs it knows of
    3. the candidate promises the new epoch to itself: it takes no frame of an older one any more
    4. ask every other voter for its promise; each answer says how far that voter is, for good
    5. count (see promises); while a promiser is further: fetch what it has (see forward), count again
    6. EPOCH_START, durable in the candidate's log: it is primary
    7. wait a while for the EPOCH_START to be committed, if a shipper runs; only the report depends on it

Survives a crash: before 6 nothing but promises was made, and frames appended that other logs have; promises
fence the old primary and bind nobody to this candidate in a later epoch. Run again it takes the next epoch,
and no epoch is ever begun twice: the candidate's own promise stands before any other is asked for. Safety
rests on the promises alone; the looks of 1 and 2 only save futile tries.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from ..shipping.credentials import Secret
from ..shipping.cut import finish_cut
from ..shipping.nodelog import NodeLog, is_running, open_node_log
from ..shipping.rebuild import why_unfit
from ..shipping.roster import node_addresses
from ..shipping.slots import slot_nodes, slot_or_new
from ..store import names
from ..store.control import VOTERS_MAX, Config
from ..store.cursor import list_segments
from ..store.errors import (
    DivergedError,
    ForeignError,
    PerdureError,
    PositionGoneError,
    PromiseRefusedError,
    UsageError,
    WireError,
)
from ..store.ids import EPOCH_MAX, Position
from ..store.log import EventLog
from ..store.page import Word
from ..store.promise import Promise, leaps, read_promise
from .counting import electors_in_force
from .forward import cut_to_prefix, fetch_rest
from .promises import Answer, Decision, Voters, VoterState, Why, count_promises
from .promotion import NOTHING_AT_RISK, AtRisk, PromotionRefusedError, PromotionReport, at_risk_of, refusal
from .voters import WireVoters

__all__ = ["COMMIT_TIMEOUT_MS", "PromotionRefusedError", "PromotionReport", "Step", "promote"]

COMMIT_TIMEOUT_MS: Final = 2_000
SHIPPER_MS: Final = 100
"""Without a shipper it is not waited for longer."""
POLL_MS: Final = 2
T = TypeVar("T")


Step = Callable[[str], None]
"""Called with the name of each step as it begins."""


def promote(
    store: str | os.PathLike[str],
    peers: Mapping[str, tuple[str, int]] | Voters,
    secret: Secret = b"",
    *,
    accept_data_loss: bool = False,
    alone: bool = False,
    epoch_min: int = 0,
    on_step: Step | None = None,
    drained: str = "",
    commit_timeout_ms: int = COMMIT_TIMEOUT_MS,
) -> PromotionReport:
    """Make the node of `store` the primary, by the promises of the other voters.

    `peers` gives (host, port) of the other voters' receivers, which `secret` opens (the CONFIG in the log may
    say the others), or is the way to them itself. Run it while the node's own receiver runs or not: both take
    the write lock.
    `accept_data_loss` allows what may lose acknowledged writes: sync_replicas = 0 needs it always.
    `alone` makes the node the only voter, with sync_replicas = 0; of two nodes that loses nothing if
    each write needed both. The new epoch is `epoch_min` at least. A node that is primary already stays so,
    and nothing is done. With sync_replicas >= 1 and a shipper the call waits up to `commit_timeout_ms` for
    the epoch to be committed; `is_committed` of the report says whether it was. `drained` names the primary
    of the newest epoch where it takes part in this (a switchover): with its promise, or as the candidate
    itself, nothing can be lost with sync_replicas = 0 either, because its log has all that it acknowledged;
    without it is refused, and so is one while somebody who was promised a newer epoch is not heard.

    Raises PromotionRefusedError (`decision` says why and names the node that stands in the way),
    NoQuorumError if too few voters answered, DivergedError for two histories under one position,
    CorruptError, PoisonedError or another StorageError if the candidate's own log is not fit.
    """
    started = time.monotonic_ns()
    finish_cut(Path(store))  # which a promotion that died had begun
    node = open_node_log(Path(store), [])
    if isinstance(peers, Mapping):
        addresses = node_addresses(node.log.config, node.node, peers) | dict(peers)
        voters: Voters = WireVoters(addresses, cluster_id=node.identity.cluster_id, secret=secret)
    else:
        voters = peers
    promotion = _Promotion(node, voters, accept_data_loss, alone, on_step or _silent)
    promotion.drained = drained
    try:
        promotion.epoch_min = epoch_min
        report = promotion.run(commit_timeout_ms)
    finally:
        promotion.node.close()
    return msgspec.structs.replace(report, elapsed_ms=(time.monotonic_ns() - started) // 1_000_000)


class _Promotion:
    """One try of one candidate."""

    def __init__(
        self, node: NodeLog, voters: Voters, accept_data_loss: bool, alone: bool, on_step: Step
    ) -> None:
        self.node = node
        self.name = node.node
        self.peers = voters
        self.accept_data_loss = accept_data_loss
        self.alone = alone
        self.on_step = on_step
        self.drained = ""
        self.promised: dict[str, Promise] | None = None
        """The newest promise before this one, own and of voters that said it; None before they are asked."""
        self.epoch_min = 0
        self.unheard: dict[str, str] = {}
        self.fetched_from: list[str] = []
        self.fetched_events = 0
        self.cut_from = 0

    @property
    def log(self) -> EventLog:
        return self.node.log

    @property
    def config(self) -> Config:
        """The newest in the log; a store that never had voters is its own only one."""
        config = self.log.config
        return config if config.voters else Config((self.name,))

    def run(self, commit_timeout_ms: int) -> PromotionReport:
        self.on_step("look")
        end, is_primary = self._look()
        if is_primary and not self.alone:
            return self._report_primary()
        self._refuse_early(end)
        self.on_step("ask")
        own_promise = self.log.promise
        states = self._ask_all(self._others(), self.peers.state)
        self.promised = {self.name: own_promise, **{state.node: state.promise for state in states}}
        self._refuse_futile(end, states)
        epoch = self._next_epoch(states)
        asked = Promise(epoch, self.name, self.alone)
        self.on_step("promise")
        own = self._promise_self(asked, is_first=True)
        self.on_step("gather")
        own, decision = self._gather(asked, own)
        if not decision.is_granted:
            raise self._refusal(decision)
        at_risk = at_risk_of(decision, own.end, self._seen(states))
        self.on_step("begin")
        start = self._begin(asked, own.end, at_risk)
        self.on_step("commit")
        is_committed = self._await_commit(start, commit_timeout_ms)
        return self._report(decision, own.end, start, at_risk, is_committed)

    # -- before anything is promised -------------------------------------------------------------

    def _look(self) -> tuple[Position, bool]:
        """(where the log ends, is it primary in force). Settles the log, which may be what is wrong."""
        end = self.node.end_on_disk()
        if len(self.config.voters) > VOTERS_MAX:
            raise UsageError(f"{len(self.config.voters)} voters; at most {VOTERS_MAX} are asked")
        return end, self.log.is_primary

    def _refuse_early(self, end: Position) -> None:
        """Refuse what no promise could change, so that nobody is fenced for nothing."""
        everyone = [Answer(name, Position(0, 1, 0), True) for name in self._others()]
        decision = self._count(Answer(self.name, end, True, self._own_fault()), everyone)
        if not decision.is_granted:
            raise self._refusal(decision)

    def _refuse_futile(self, end: Position, states: Iterable[VoterState]) -> None:
        """Refuse one that too few voters hear, or that may lack writes, as a witness or a promise says: its
        own promise would only fence the primary."""
        answers = [
            Answer(state.node, state.end, True, state.fault, in_sync=state.in_sync) for state in states
        ]
        decision = self._count(Answer(self.name, end, True), answers)
        if decision.why in (Why.NOT_IN_SYNC, Why.TOO_FEW, Why.NEEDS_DATA_LOSS):
            raise self._refusal(decision)

    def _own_fault(self) -> str:
        """What of this node must not become the history of all, empty if nothing."""
        for name, fault in (
            (names.INSTALL_PLAN, "it is being made anew from a snapshot"),
            (names.CUT_PLAN, "its log is being cut"),
            (names.REJOIN_PLAN, "it is going over to another history"),
        ):
            if (self.node.store / name).exists():
                return f"{self.name} is not fit: {fault} ({name})"
        fault = why_unfit(self.node.store)
        return f"{self.name} is not fit: its state does not follow its log: {fault}" if fault else ""

    def _next_epoch(self, states: Iterable[VoterState]) -> int:
        """One above every epoch that was ever promised or begun, as far as anybody said.

        What leaps is passed over: whoever says so has gone mad, and nobody else would promise it.
        """
        seen = [self.log.promise.epoch, self.log.cursor.at.epoch]
        if self.log.cursor.header:
            seen.append(self.log.cursor.header.epoch)
        own = max(seen)
        told = [self.epoch_min - 1]
        for state in states:
            told += [state.end.epoch, state.promise.epoch]
        seen += [epoch for epoch in told if not leaps(own, epoch)]
        if max(seen) >= EPOCH_MAX:
            raise UsageError(f"epoch {max(seen)} is the last one there can be")
        return max(seen) + 1

    # -- promises --------------------------------------------------------------------------------

    def _promise_self(self, asked: Promise, *, is_first: bool = False) -> Answer:
        """Promise the epoch to itself: from here on the log takes nothing of an older one.

        The first time nobody may have done so: two promotions of one node, both with the same promise, would
        take each other's for their own.
        """
        log = self.log
        log.lock_any()
        try:
            held = read_promise(self.node.store)
            if is_first and (held.epoch, held.candidate) == (asked.epoch, asked.candidate):
                raise PromiseRefusedError(
                    f"another promotion of {self.name} was promised epoch {asked.epoch} meanwhile",
                    node=self.name,
                    hint="See whether it is primary now, or try again.",
                )
            log.give_promise(asked)
            at = log.cursor.at
            log.flush(at.lsn)
            return Answer(self.name, at.position, True, self._own_fault())
        finally:
            log.unlock()

    def _gather(self, asked: Promise, own: Answer) -> tuple[Answer, Decision]:
        """Promises, and whatever log of the promisers this one lacks, until the count is made.

        Who did not answer before is asked only where the others are not enough: waiting for it, while nobody
        is primary, would let another candidate come first. Where data loss is accepted nobody is left out.
        """
        answers: dict[str, Answer] = {}
        heard: set[str] = set()
        silent = set() if self.accept_data_loss else set(self.unheard)
        while True:
            # What was fetched may bring a CONFIG, and with it voters that were not asked.
            missing = [name for name in self._others() if name not in heard | silent]
            heard.update(missing)
            for answer in self._ask_all(missing, lambda name: self.peers.promise(name, asked)):
                answers[answer.node] = answer
            decision = self._count(own, list(answers.values()))
            if decision.why is not Why.FURTHER:
                if decision.is_granted or not silent:
                    return own, decision
                silent.clear()
                continue
            better = answers.pop(decision.node)
            self.on_step("fetch")
            try:
                own = self._fetch(asked, better)
                answers[better.node] = better
            except (WireError, ForeignError, PositionGoneError) as error:
                # Without it the others have to be enough, and they say so only if nothing is lost.
                self.unheard[better.node] = str(error)
                own = self._promise_self(asked)

    def _fetch(self, asked: Promise, better: Answer) -> Answer:
        self.node, cut_from = cut_to_prefix(self.node, asked, better.node, better.end, self.peers)
        self.cut_from = cut_from or self.cut_from
        self.fetched_events += fetch_rest(self.node, asked, better.node, better.end, self.peers)
        self.fetched_from.append(better.node)
        return self._promise_self(asked)

    def _count(self, own: Answer, answers: list[Answer]) -> Decision:
        unsure = self._why_unsure(own, answers)
        keeps = self.config.electors.sync_replicas == 0 and not unsure
        decision = count_promises(
            self.config,
            own,
            answers,
            committed_lsn=self.node.committed_lsn(),
            accept_data_loss=self.accept_data_loss or keeps,
            alone=self.alone,
        )
        if keeps:
            return msgspec.structs.replace(decision, keeps_acknowledged=True)
        if self.drained and decision.why is Why.NEEDS_DATA_LOSS:
            return msgspec.structs.replace(decision, message=unsure)
        return decision

    def _why_unsure(self, own: Answer, answers: list[Answer]) -> str:
        """Why it is not known that the drained primary's log has all that was acknowledged; empty if it is.

        Only that primary acknowledged, and only what its log had when it promised, unless an epoch was
        promised since to somebody who may have begun it: that one's log has to be here as well.
        """
        given = {answer.node: answer for answer in answers if answer.is_given}
        sound = {own.node: own} | {node: answer for node, answer in given.items() if not answer.fault}
        if self.drained not in sound:
            return f"what {self.drained or 'the primary'} acknowledged is not known here"
        if self.promised is None:
            return ""
        begun = max(own.end.epoch, sound[self.drained].end.epoch)
        for promise in self.promised.values():
            if promise.epoch > begun and promise.candidate not in sound:
                return (
                    f"epoch {promise.epoch} was promised to {promise.candidate}, which may have begun it, and"
                    " what it acknowledged then is not known here"
                )
        unknown = sorted(given.keys() - self.promised.keys())
        return f"what {', '.join(unknown)} promised before is not known" if unknown else ""

    def _begin(self, asked: Promise, end: Position, at_risk: AtRisk) -> Position:
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
            if log.cursor.header is not None and log.cursor.header.epoch >= asked.epoch:
                raise PromiseRefusedError(
                    f"another promotion of {self.name} has begun epoch {log.cursor.header.epoch} meanwhile",
                    node=self.name,
                    hint="See whether it is primary now.",
                )
            if log.cursor.at.position != end:
                raise DivergedError(
                    f"the log ended at {end} when it was promised, and ends at {log.cursor.at.position}",
                    node=self.name,
                    hint="Try again.",
                )
            reason = "promoted alone" if self.alone else "promoted"
            if at_risk.first:
                reason += ", data loss accepted"
            return log.start_epoch(asked, self._config_after(), reason, (at_risk.first, at_risk.last))
        finally:
            log.unlock()

    def _config_after(self) -> Config:
        """What was the newest stays so. A k that was left for a while is in force again: whether this node
        may go on without replicas is for it to find out anew."""
        config = self.config
        if self.alone:
            return Config((self.name,), 0, config.members, is_auto=config.is_auto)
        if config.degraded_from:
            return msgspec.structs.replace(config, sync_replicas=config.degraded_from, degraded_from=0)
        return config

    def _await_commit(self, start: Position, timeout_ms: int) -> bool:
        """Is the EPOCH_START committed, within the time if a shipper runs?"""
        words = self.log.words
        if self.log.config.sync_replicas == 0:
            return True
        began = time.monotonic()
        while words[Word.COMMITTED] < start.lsn:
            waited_ms = (time.monotonic() - began) * 1000
            if waited_ms >= timeout_ms or (waited_ms >= SHIPPER_MS and not self._has_shipper()):
                return False
            time.sleep(POLL_MS / 1000)
        return True

    def _has_shipper(self) -> bool:
        """Does one ship, or wait to? It holds its lock all the time, and is in the page once it ships."""
        return bool(self.log.words[Word.SHIPPER]) or is_running(self.node.store, names.SHIPPER_LOCK)

    # -- asking ----------------------------------------------------------------------------------

    def _others(self) -> list[str]:
        """The other voters: those of the CONFIG before as well until the newest is committed."""
        electors = electors_in_force(self.config, self.node.committed_lsn())
        names = [voter for each in electors for voter in each.voters if voter != self.name]
        return list(dict.fromkeys(names))

    def _ask_all(self, others: list[str], ask: Callable[[str], T]) -> list[T]:
        """What these voters answer, asked all at once; who does not answer is `unheard`."""
        if not others:
            return []
        answers: list[T] = []
        with ThreadPoolExecutor(len(others), thread_name_prefix="perdure-ask") as pool:
            waiting = [(name, pool.submit(ask, name)) for name in others]
            for name, answer in waiting:
                try:
                    answers.append(answer.result())
                    self.unheard.pop(name, None)
                except UsageError:
                    raise  # it is about what this side was given, not about that voter
                except (PerdureError, OSError) as error:
                    self.unheard[name] = str(error)
        return answers

    # -- saying ----------------------------------------------------------------------------------

    def _refusal(self, decision: Decision) -> Exception:
        return refusal(
            decision,
            self.name,
            path=self.node.store,
            config=self.config,
            end_lsn=self.log.cursor.at.lsn,
            unheard=self.unheard,
        )

    def _seen(self, states: Iterable[VoterState]) -> list[int]:
        """Where other logs were known to end: what nodes said, and what the primary told of all nodes.

        A damaged slot tells nothing: the promises are given, and nobody else would become primary.
        """
        store = self.node.store
        slots = [slot_or_new(store, node) for node in slot_nodes(store)]
        return [state.end.lsn for state in states] + [slot.lsn for slot in slots]

    def _report(
        self, decision: Decision, end: Position, start: Position, at_risk: AtRisk, is_committed: bool
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
            at_risk=at_risk.words,
            elapsed_ms=0,
            fetched_from=tuple(self.fetched_from),
            fetched_events=self.fetched_events,
            cut_from=self.cut_from,
            is_committed=is_committed,
            at_risk_from=at_risk.first,
            at_risk_to=at_risk.last,
        )

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
            at_risk=NOTHING_AT_RISK.words,
            elapsed_ms=0,
            is_committed=self.config.sync_replicas == 0 or self.node.committed_lsn() >= start.lsn,
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
