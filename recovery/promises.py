"""Counting promises: may a candidate begin an epoch? A pure decision, no input or output.

Owns the arithmetic of a promotion, and the port through which voters are asked. With `nodes` voters in
all (n = nodes - 1 besides the primary) and k = sync_replicas a candidate needs q promises besides its own:

    | asked for                       | q                                | what it keeps                    |
    |---------------------------------|----------------------------------|----------------------------------|
    | k >= 1                          | max(n - k, floor(nodes / 2))     | every acknowledged write, and    |
    |                                 |                                  | one primary an epoch             |
    | accept_data_loss (k = 0: always)| floor(nodes / 2)                 | one primary an epoch             |
    | alone                           | 0                                | that nobody else can commit: for |
    |                                 |                                  | two nodes with k = 1 everything  |

Two sets of floor(nodes / 2) + 1 nodes always meet, so that no epoch has two primaries; a set that n - k
replicas and the candidate promised meets every set of k replicas that acknowledged a write, so that the
furthest log among the promisers holds every one that was acknowledged. A promiser whose own log is empty
or not to be trusted counts for the first, not for the second. Without replicas that confirm (k = 0) no count
of promises can show that nothing is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

import msgspec

from ..store.ids import Position
from ..store.promise import Promise


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


class VoterState(msgspec.Struct, frozen=True):
    """What a voter says of itself without promising anything."""

    node: str
    role: str
    end: Position
    committed_lsn: int
    promise: Promise
    """The newest promise that it gave."""
    fault: str = ""


class Voters(Protocol):
    """The way to the other voters."""

    def state(self, node: str) -> VoterState:
        """Ask a voter how far it is. Raises WireError if it does not answer."""
        ...

    def promise(self, node: str, asked: Promise) -> Answer:
        """Ask a voter for its promise; a refusal is an answer. Raises WireError if none comes."""
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


def promises_needed(nodes: int, k: int, *, accept_data_loss: bool = False, alone: bool = False) -> int:
    """q: the promises that a candidate needs besides its own, of `nodes` voters in all."""
    if alone or nodes <= 1:
        return 0
    majority = nodes // 2
    if k == 0 or accept_data_loss:
        return majority
    return max(nodes - 1 - k, majority)


def count_promises(
    voters: Sequence[str],
    k: int,
    candidate: Answer,
    answers: Sequence[Answer],
    *,
    accept_data_loss: bool = False,
    alone: bool = False,
) -> Decision:
    """Decide whether `candidate` may begin the epoch that `answers` are about.

    `voters` are all nodes that vote, the primary and the candidate included; `k` is sync_replicas.
    Answers of nodes that do not vote do not count. The first obstacle decides, in the order of Why.
    """
    others = {answer.node: answer for answer in answers if answer.node in voters}
    others.pop(candidate.node, None)
    given = [_with_fault(answer) for answer in others.values() if answer.is_given]
    sound = [answer for answer in given if not answer.fault]
    nodes = len(voters)
    needed = promises_needed(nodes, k, accept_data_loss=accept_data_loss, alone=alone)
    promisers = tuple(sorted(answer.node for answer in given))
    keeps = keeps_acknowledged(nodes, k, len(sound))

    def decide(why: Why, message: str, node: str = "") -> Decision:
        return Decision(why, message, needed, promisers, node, keeps)

    if candidate.node not in voters:
        return decide(Why.NO_VOTER, f"{candidate.node} is not among the voters {', '.join(voters)}")
    if candidate.fault:
        return decide(Why.FAULTY, candidate.fault)
    if candidate.end.lsn == 0:
        return decide(Why.EMPTY, f"{candidate.node} has no log")
    if not accept_data_loss and needs_consent(nodes, k, alone=alone):
        return decide(Why.NEEDS_DATA_LOSS, _consent(nodes, k))
    for answer in sound:
        if is_further(answer.end, candidate.end):
            ours = f"{candidate.node} {_place(candidate.end)}"
            message = f"{answer.node} is further: {_place(answer.end)}, {ours}"
            return decide(Why.FURTHER, message, answer.node)
        if answer.end[:2] == candidate.end[:2] and answer.end != candidate.end:
            message = f"{answer.node} and {candidate.node} have different frames at {_place(candidate.end)}"
            return decide(Why.DIVERGED, message, answer.node)
    refused = [answer for answer in others.values() if answer.refusal and not answer.is_given]
    if len(given) >= needed and (keeps or accept_data_loss) and not (alone and refused):
        return decide(Why.GRANTED, f"{len(given)} of {nodes - 1} other voters promised, {needed} are needed")
    count = f"{len(sound)} of the {needed} promises that are needed"
    if refused:
        return decide(Why.REFUSED, f"{count}: {refused[0].node} {refused[0].refusal}", refused[0].node)
    faulty = [
        f"{answer.node} promised, and is not to be relied on ({answer.fault})"
        for answer in given
        if answer.fault
    ]
    missing = [f"{node} did not answer" for node in sorted(set(voters) - set(promisers) - {candidate.node})]
    return decide(Why.TOO_FEW, f"{count}: {', '.join(faulty + missing)}")


def _with_fault(answer: Answer) -> Answer:
    """An empty log may be new, or may have lost what it acknowledged: it cannot vouch for either."""
    if answer.end.lsn or answer.fault:
        return answer
    return msgspec.structs.replace(answer, fault="its log is empty")


def needs_consent(nodes: int, k: int, *, alone: bool) -> bool:
    """Can the promotion lose acknowledged writes, or make a second primary, so that it must be accepted?

    Alone is safe for one thing only: two nodes of which each write needs both.
    """
    if nodes <= 1:
        return False
    return k == 0 or (alone and not (nodes == 2 and k >= 1))


def keeps_acknowledged(nodes: int, k: int, promised: int) -> bool:
    """Do candidate and `promised` others meet every set of k replicas that acknowledged a write?"""
    return nodes <= 1 or (k >= 1 and promised >= nodes - 1 - k)


def is_further(end: Position, than: Position) -> bool:
    """Does a log that ends at `end` hold more than one that ends at `than`? The epoch decides first."""
    return (end.epoch, end.lsn) > (than.epoch, than.lsn)


def _consent(nodes: int, k: int) -> str:
    if k == 0:
        return "with sync_replicas = 0 writes were acknowledged that no replica may hold"
    return f"alone among {nodes} voters, others may hold acknowledged writes, or be promoted as well"


def _place(end: Position) -> str:
    return f"LSN {end.lsn} of epoch {end.epoch}"
