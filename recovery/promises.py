"""Counting promises: may a candidate begin an epoch? A pure decision, no input or output.

Owns the decision, its words, and the port through which voters are asked; the sets that suffice are
counting's. What is counted:

    | asked for                       | needs                            | what it keeps                    |
    |---------------------------------|----------------------------------|----------------------------------|
    | k >= 1                          | a majority of the voters, d - k  | every acknowledged write, and    |
    |                                 | other replicas with sound logs   | one primary an epoch             |
    | accept_data_loss (k = 0: always)| a majority of the voters         | one primary an epoch             |
    | alone                           | nobody                           | that nobody else can commit: for |
    |                                 |                                  | two nodes with k = 1 everything  |

A promiser whose own log is empty or not to be trusted counts for the majority only, and so does a witness.
A witness may know that only some nodes hold every acknowledged write (policy available, docs/failover.md):
then the candidate, or a promiser with a sound log, must be one of them. Where a primary may go on alone,
somebody has to say that it did not: a witness, or else every other replica.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Protocol

import msgspec

from ..shipping.asking import FETCH_BYTES
from ..store.control import AVAILABLE, Config
from ..store.ids import Position
from ..store.promise import Promise, leaps
from .counting import electors_in_force, is_majority, meets_acknowledged, needs_consent, promises_needed


class Answer(msgspec.Struct, frozen=True):
    """What a voter answered when it was asked for its promise."""

    node: str
    end: Position
    """Where its log ends on disk, after the promise: no acknowledgement it ever sent goes beyond."""
    is_given: bool
    """The epoch is promised to the candidate, durably."""
    fault: str = ""
    """Why its log is not to be trusted (corrupt, rebuilding, short of what it acknowledged)."""
    refusal: str = ""
    """What it said instead of promising."""
    in_sync: tuple[str, ...] = ()
    """Of a witness: the only nodes that hold every acknowledged write, as far as it was told; empty if it
    was told nothing."""


class VoterState(msgspec.Struct, frozen=True):
    """What a voter says of itself without promising anything."""

    node: str
    role: str
    end: Position
    committed_lsn: int
    promise: Promise
    """The newest promise that it gave."""
    fault: str = ""
    in_sync: tuple[str, ...] = ()
    """As in Answer."""


class Voters(Protocol):
    """The way to the other voters."""

    def state(self, node: str) -> VoterState:
        """Ask a voter how far it is. Raises WireError if it does not answer."""
        ...

    def promise(self, node: str, asked: Promise) -> Answer:
        """Ask a voter for its promise; a refusal is an answer. Raises WireError if none comes."""
        ...

    def fetch(self, node: str, after: Position, limit_bytes: int = FETCH_BYTES) -> Iterator[bytes]:
        """Runs of frames of its log from behind `after` to the end, each at most about `limit_bytes`.

        Raises PositionGoneError if the position is not in that log, WireError if the node does not answer.
        """
        ...


class Why(Enum):
    """Why a candidate may not begin its epoch, or that it may."""

    GRANTED = "granted"
    NO_VOTER = "no-voter"
    """The candidate is not among the voters of the newest CONFIG in its log."""
    FAULTY = "faulty"
    """The candidate's own log or state must not become the history of all."""
    EMPTY = "empty"
    """The candidate has no log."""
    NEEDS_DATA_LOSS = "needs-accept-data-loss"
    """Acknowledged writes may be lost, and that was not accepted."""
    FURTHER = "further"
    """A promiser holds more of the log than the candidate."""
    DIVERGED = "diverged"
    """A promiser has another frame under the candidate's position."""
    NOT_IN_SYNC = "not-in-sync"
    """A primary may have gone on without the candidate, as a witness was told."""
    REFUSED = "refused"
    """Too few promised (alone: any), and one has promised a higher or the same epoch to another."""
    TOO_FEW = "too-few"
    """Too few voters could be reached."""


class Decision(msgspec.Struct, frozen=True):
    """Whether a candidate may begin its epoch, and what decided it."""

    why: Why
    message: str
    needed: int
    """Promises needed besides the candidate's own."""
    promisers: tuple[str, ...]
    """Voters besides the candidate that promised."""
    node: str = ""
    """The node that stands in the way: further, diverged or refusing."""
    keeps_acknowledged: bool = True
    """No acknowledged write can be lost by this promotion."""

    @property
    def is_granted(self) -> bool:
        return self.why is Why.GRANTED


def count_promises(
    config: Config,
    candidate: Answer,
    answers: Sequence[Answer],
    *,
    committed_lsn: int = 0,
    accept_data_loss: bool = False,
    alone: bool = False,
) -> Decision:
    """Decide whether `candidate` may begin the epoch that `answers` are about.

    `config` is the newest in the candidate's log; `committed_lsn` is what it knows to be committed: above
    the LSN of that CONFIG the one before no longer counts. Answers of nodes that do not vote do not count.
    The first obstacle decides, in the order of Why.
    """
    count = _Count(config, committed_lsn, candidate, answers)
    nodes, k, others = len(config.voters), config.electors.sync_replicas, count.others
    needed = promises_needed(
        nodes, k, witnesses=len(config.witnesses), accept_data_loss=accept_data_loss, alone=alone
    )

    def decide(obstacle: tuple[Why, str, str]) -> Decision:
        return Decision(*obstacle[:2], needed, count.promisers, obstacle[2], count.keeps_acknowledged)

    if not accept_data_loss and needs_consent(config, committed_lsn, alone=alone):
        consent = (Why.NEEDS_DATA_LOSS, _consent(nodes, k), "")
    else:
        consent = None
    found = _unfit(config, candidate) or consent or _better(candidate, count.sound)
    if found is None and count.outside and not (accept_data_loss or alone):
        found = (Why.NOT_IN_SYNC, count.outside, "")
    if found is not None:
        return decide(found)
    refused = [answer for answer in others if answer.refusal and not answer.is_given]
    is_enough = (alone or count.is_majority) and (count.keeps_acknowledged or accept_data_loss)
    if is_enough and not (alone and refused):
        given = f"{len(count.given)} of {nodes - 1} other voters promised, {needed} are needed"
        return decide((Why.GRANTED, given, ""))
    heard = count.words(needed)
    if refused:
        first = refused[0]
        return decide((Why.REFUSED, f"{heard}: {first.node} {first.refusal}", first.node))
    return decide((Why.TOO_FEW, f"{heard}: {', '.join(count.missing())}", ""))


class _Count:
    """Who of the voters promised, and whose log is to be relied on."""

    def __init__(
        self, config: Config, committed_lsn: int, candidate: Answer, answers: Sequence[Answer]
    ) -> None:
        electors = electors_in_force(config, committed_lsn)
        self.voters = {voter for each in electors for voter in each.voters}
        heard = {answer.node: answer for answer in answers if answer.node in self.voters}
        heard.pop(candidate.node, None)
        self.others = list(heard.values())
        self.given = [answer for answer in self.others if answer.is_given]
        self.witnesses = [answer for answer in self.given if answer.node in config.witnesses]
        self.logs = [
            _with_fault(answer, candidate.end) for answer in self.given if answer not in self.witnesses
        ]
        self.sound = [answer for answer in self.logs if not answer.fault]
        self.agreeing = {candidate.node, *(answer.node for answer in self.given)}
        holders = {candidate.node, *(answer.node for answer in self.sound)}
        self.outside = _not_in_sync(config, self.witnesses, holders)
        self.is_majority = all(is_majority(each, self.agreeing) for each in electors)
        self.keeps_acknowledged = not self.outside and all(
            meets_acknowledged(each, holders) for each in electors
        )
        self.promisers = tuple(sorted(answer.node for answer in self.given))

    def words(self, needed: int) -> str:
        if not self.witnesses:
            return f"{len(self.sound)} of the {needed} promises that are needed"
        count = f"{len(self.sound)} replica(s) and {len(self.witnesses)} witness(es)"
        return f"{count} promised, {needed} are needed"

    def missing(self) -> list[str]:
        faulty = [
            f"{answer.node} promised, and is not to be relied on ({answer.fault})"
            for answer in self.logs
            if answer.fault
        ]
        return faulty + [f"{node} did not answer" for node in sorted(self.voters - self.agreeing)]


def _unfit(config: Config, candidate: Answer) -> tuple[Why, str, str] | None:
    """What speaks against the candidate, whoever promises."""
    if candidate.node not in config.data_voters:
        return (Why.NO_VOTER, _no_voter(config, candidate.node), "")
    if candidate.fault:
        return (Why.FAULTY, candidate.fault, "")
    if candidate.end.lsn == 0:
        return (Why.EMPTY, f"{candidate.node} has no log", "")
    return None


def _better(candidate: Answer, sound: Sequence[Answer]) -> tuple[Why, str, str] | None:
    """The furthest promiser whose log is further than the candidate's, or another history."""
    best = max(sound, key=lambda answer: answer.end[:2], default=candidate)
    if is_further(best.end, candidate.end):
        ours = f"{candidate.node} {_place(candidate.end)}"
        return (Why.FURTHER, f"{best.node} is further: {_place(best.end)}, {ours}", best.node)
    for answer in sound:
        if answer.end[:2] == candidate.end[:2] and answer.end != candidate.end:
            message = f"{answer.node} and {candidate.node} have different frames at {_place(candidate.end)}"
            return (Why.DIVERGED, message, answer.node)
    return None


def _no_voter(config: Config, node: str) -> str:
    if node in config.witnesses:
        return f"{node} is a witness: it keeps promises, and no log"
    return f"{node} is not among the voters {', '.join(config.voters)}"


def _not_in_sync(config: Config, witnesses: Sequence[Answer], holders: set[str]) -> str:
    """Why it is not known that one of `holders` has what a primary acknowledged alone, empty if it is."""
    for answer in witnesses:
        if answer.in_sync and not holders & set(answer.in_sync):
            return (
                f"{answer.node} was told that only {', '.join(answer.in_sync)} has every acknowledged write"
            )
    if config.policy != AVAILABLE or witnesses or set(config.data_voters) <= holders:
        return ""
    return "no witness answered that could say whether the primary went on alone"


def _with_fault(answer: Answer, known: Position) -> Answer:
    """An empty log may be new, or may have lost what it acknowledged: it cannot vouch for either.

    Nor can one that tells of an epoch which no election can have brought (see leaps).
    """
    if leaps(known.epoch, answer.end.epoch) and not answer.fault:
        return msgspec.structs.replace(answer, fault=f"it tells of an absurd epoch, {answer.end.epoch}")
    if answer.end.lsn or answer.fault:
        return answer
    return msgspec.structs.replace(answer, fault="its log is empty")


def is_further(end: Position, than: Position) -> bool:
    """Does a log that ends at `end` hold more than one that ends at `than`? The epoch decides first."""
    return (end.epoch, end.lsn) > (than.epoch, than.lsn)


def _consent(nodes: int, k: int) -> str:
    if k == 0:
        return "with sync_replicas = 0 writes were acknowledged that no replica may hold"
    return f"alone among {nodes} voters, others may hold acknowledged writes, or be promoted as well"


def _place(end: Position) -> str:
    return f"LSN {end.lsn} of epoch {end.epoch}"
