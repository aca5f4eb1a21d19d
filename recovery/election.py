"""Election: whether this node should stand for primary, hold back, or step down, and why. Pure.

Owns that decision for the coordinator `quorum`, and the part of it that other coordinators share. It takes
what the monitor saw and what the node is, and gives an action with its reason in words; no clock, socket or
random number is in it. Safety does not rest on it: a wrong decision costs a pause, because promises decide
(see promises). What it saves:

    | situation                                        | what it avoids                                   |
    |--------------------------------------------------|--------------------------------------------------|
    | too few voters are heard                         | an epoch promised to itself by a node that is cut |
    |                                                  | off, which would fence a good primary afterwards |
    | a majority still hears the primary               | a failover for one broken link                   |
    | another node is further, or comes first          | two candidates at once                           |
    | another candidate has been promised a new epoch  | taking its promises away                         |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final

import msgspec

from ..shipping.detection import PeerHealth, Verdict
from ..store.control import Config
from .counting import electors_in_force, is_majority, meets_acknowledged, needs_consent

CANDIDACY_MS: Final = 150
SILENCE_MS: Final = 1_000
BACKOFF_MS_MAX: Final = 2_000
FIRST_SHARE: Final = 5
"""The best candidate waits for this part of the time that was drawn."""


class Kind(Enum):
    """What to do."""

    NOTHING = "nothing"
    HOLD_BACK = "hold back"
    """The primary is suspected, and this node does not stand, or not yet."""
    STAND = "stand"
    STEP_DOWN = "step down"


class Action(msgspec.Struct, frozen=True):
    """What to do, and why."""

    kind: Kind
    why: str
    suspect: str = ""
    """The primary that is given up, where one is."""


class Own(msgspec.Struct, frozen=True):
    """This node, at one moment."""

    node: str
    is_primary: bool
    epoch: int
    """Of the end of its log."""
    lsn: int
    """On its disk."""
    primary: str
    """Who began that epoch; empty if the log is empty."""
    promise_epoch: int
    promise_candidate: str
    config: Config
    """The newest in its log."""
    committed_lsn: int = 0
    fault: str = ""
    """Why this node must not become primary, empty if nothing speaks against it."""
    failing: str = ""
    """Why a primary must give up: its disk stalls, or a sync has failed."""


class ElectionOptions(msgspec.Struct, frozen=True):
    """Times in ms."""

    silence_ms: int = SILENCE_MS
    candidacy_ms: int = CANDIDACY_MS
    preferred: str = ""
    """Of nodes that are equally far this one comes first."""


class Suspicion(msgspec.Struct, frozen=True):
    """There is no primary that this node hears; `node` was it, or should be."""

    node: str
    why: str


Draw = Callable[[int], int]
"""A random number from 0 to the given one."""


class Election:
    """One node's view of who should be primary. `look` is called again and again, with a clock of the
    monitor that stands still while nobody looked."""

    def __init__(self, options: ElectionOptions, draw: Draw) -> None:
        self._options = options
        self._draw = draw
        self._since_ms = -1
        """Since when the turn is waited for; -1 while nobody is suspected."""
        self._drawn_ms = 0
        self._leaderless_ms = -1
        """Since when everybody is there and nobody is primary."""
        self._promise_seen = 0
        self._lost = 0

    def look(
        self, now_ms: int, own: Own, peers: Sequence[PeerHealth], unmonitored: frozenset[str] = frozenset()
    ) -> Action:
        """What to do now."""
        if own.is_primary:
            self._calm()
            if own.failing and own.config.sync_replicas and len(own.config.voters) > 1:
                return Action(Kind.STEP_DOWN, own.failing, own.node)
            return Action(Kind.NOTHING, f"primary of epoch {own.epoch}")
        suspicion = self._suspect(now_ms, own, peers)
        if isinstance(suspicion, str):
            self._calm()
            return Action(Kind.NOTHING, suspicion)
        if suspicion.node in unmonitored:
            self._calm()
            return Action(Kind.NOTHING, f"{suspicion.why}; it is not monitored", suspicion.node)
        why_not = obstacle(own, peers, suspicion)
        if why_not:
            self._since_ms = -1
            return Action(Kind.HOLD_BACK, f"{suspicion.why}; {why_not}", suspicion.node)
        return self._wait_turn(now_ms, own, peers, suspicion)

    def lost(self, now_ms: int) -> None:
        """The candidacy failed: wait longer each time, so that two candidates part."""
        self._lost += 1
        span_ms = min(self._options.candidacy_ms << min(self._lost, 8), BACKOFF_MS_MAX)
        self._begin_wait(now_ms + span_ms // 4 + self._draw(span_ms))

    # -- is there a primary? ---------------------------------------------------------------------

    def _suspect(self, now_ms: int, own: Own, peers: Sequence[PeerHealth]) -> Suspicion | str:
        """Why there is no primary, or (a text) why that cannot be said."""
        least = max(own.promise_epoch, own.epoch)
        leader = own.promise_candidate if own.promise_epoch > own.epoch else own.primary
        reigning = [peer for peer in peers if _reign(peer) >= max(1, least)]
        if reigning:
            best = max(reigning, key=_reign)
            leader = best.node
            if best.verdict.is_heard:
                self._leaderless_ms = -1
                if _is_failing(best):
                    return Suspicion(leader, f"{leader} says that it is failing")
                return f"hears {leader}, primary of epoch {_reign(best)}"
        if not leader:
            return "there is no log yet"
        if leader == own.node:
            return Suspicion(leader, f"{leader} is primary no more, and began no epoch since")
        found = next((peer for peer in peers if peer.node == leader), None)
        match found.verdict if found is not None else None:
            case Verdict.GONE:
                return Suspicion(leader, f"{leader} closed its connection and refuses a new one")
            case Verdict.SILENT:
                silence_ms = found.silence_ms if found is not None else 0
                return Suspicion(leader, f"{leader} was silent for {silence_ms} ms")
            case Verdict.NEW:
                return f"waits to hear from {leader}"
            case _:
                return self._leaderless(now_ms, leader, max([least, *map(_promised, peers)]))

    def _leaderless(self, now_ms: int, leader: str, newest: int) -> Suspicion | str:
        """Everybody is there and nobody is primary: whoever was promised an epoch has some time to begin."""
        if self._leaderless_ms < 0 or newest > self._promise_seen:
            self._leaderless_ms = now_ms
            self._promise_seen = newest
        for_ms = now_ms - self._leaderless_ms
        if for_ms < self._options.silence_ms:
            return f"nobody is primary of epoch {newest} yet"
        return Suspicion(leader, f"nobody has been primary for {for_ms} ms")

    def _calm(self) -> None:
        self._since_ms = -1
        self._lost = 0

    # -- whose turn is it? -----------------------------------------------------------------------

    def _wait_turn(self, now_ms: int, own: Own, peers: Sequence[PeerHealth], suspicion: Suspicion) -> Action:
        promised = max([own.promise_epoch, *map(_promised, peers)])
        has_rival = promised > max(self._promise_seen, own.promise_epoch)
        self._promise_seen = max(self._promise_seen, promised)
        if has_rival:
            self._begin_wait(now_ms + self._options.candidacy_ms)
        elif self._since_ms < 0:
            self._begin_wait(now_ms)
        first = candidates_before(own, peers, self._options.preferred)
        left_ms = self._since_ms + self._delay_ms(len(first)) - now_ms
        if left_ms > 0:
            behind = f" behind {', '.join(first)}" if first else ""
            return Action(Kind.HOLD_BACK, f"{suspicion.why}; stands in {left_ms} ms{behind}", suspicion.node)
        return Action(Kind.STAND, suspicion.why, suspicion.node)

    def _begin_wait(self, since_ms: int) -> None:
        self._since_ms = since_ms
        self._drawn_ms = self._draw(self._options.candidacy_ms)

    def _delay_ms(self, rank: int) -> int:
        """The best candidate hardly waits; each one behind it gives those before it a chance."""
        if rank == 0:
            return self._drawn_ms // FIRST_SHARE
        return rank * self._options.candidacy_ms + self._drawn_ms


def obstacle(own: Own, peers: Sequence[PeerHealth], suspicion: Suspicion) -> str:
    """Why this node must not stand, whenever; empty if nothing keeps it."""
    config = own.config
    if own.node not in config.data_voters:
        return f"{own.node} does not vote, or keeps no log"
    if own.fault:
        return own.fault
    if not own.lsn:
        return f"{own.node} has no log"
    if needs_consent(config, own.committed_lsn, alone=False):
        return "with sync_replicas = 0 a promotion may lose writes, so that a person decides"
    voters = {peer.node: peer for peer in peers if peer.node in config.voters}
    heard = {node: peer for node, peer in voters.items() if peer.verdict.is_heard and not _is_failing(peer)}
    electors = electors_in_force(config, own.committed_lsn)
    with_log = {node for node, peer in heard.items() if node not in config.witnesses and _is_fit(peer)}
    # A witness sends no heartbeats. Whether it is there shows when its promise is asked for.
    is_enough = all(
        is_majority(each, {own.node, *heard, *config.witnesses})
        and meets_acknowledged(each, {own.node, *with_log})
        for each in electors
    )
    if not is_enough:
        return f"too few voters are heard: {', '.join(sorted(heard)) or 'none'}"
    least = max(own.promise_epoch, own.epoch)
    hearing = [
        node
        for node, peer in heard.items()
        if node != suspicion.node
        and peer.beat
        and peer.beat.hears not in ("", own.node)
        and peer.beat.hears_epoch >= least
    ]
    is_failing = any(peer.node == suspicion.node and _is_failing(peer) for peer in peers)
    if hearing and not is_failing and len(hearing) + 1 > len(config.voters) // 2:
        return f"a majority hears a primary: {', '.join(sorted(hearing))}"
    return ""


def candidates_before(own: Own, peers: Sequence[PeerHealth], preferred: str = "") -> list[str]:
    """Voters that are heard and should stand before this node: further, preferred, or first by name."""

    def rank(node: str, epoch: int, lsn: int) -> tuple[int, int, bool]:
        return (epoch, lsn, node == preferred)

    mine = rank(own.node, own.epoch, own.lsn)
    first: list[str] = []
    for peer in peers:
        beat = peer.beat
        if beat is None or not peer.verdict.is_heard or peer.node not in own.config.data_voters:
            continue
        if not beat.is_fit or beat.is_failing or beat.is_primary:
            continue
        theirs = rank(peer.node, beat.epoch, beat.lsn)
        if theirs > mine or (theirs == mine and peer.node < own.node):
            first.append(peer.node)
    return first


def _promised(peer: PeerHealth) -> int:
    return max(peer.beat.promise_epoch, peer.beat.epoch) if peer.beat else 0


def _reign(peer: PeerHealth) -> int:
    """The epoch of which it says that it is primary, 0 if of none."""
    return peer.beat.epoch if peer.beat and peer.beat.is_primary else 0


def _is_fit(peer: PeerHealth) -> bool:
    return peer.beat is not None and peer.beat.is_fit


def _is_failing(peer: PeerHealth) -> bool:
    return peer.beat is not None and peer.beat.is_failing
