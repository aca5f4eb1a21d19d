"""What a promotion says: its report, and the errors of one that was refused. Pure.

Owns the words; the steps are promote's, the decision is promises'.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from ..store.control import Config
from ..store.errors import DivergedError, NoQuorumError, PerdureError, PromiseRefusedError
from ..store.ids import Position
from .counting import promises_needed
from .promises import Decision, Why


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
    """Where the log ended when the epoch began."""
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
    fetched_from: tuple[str, ...] = ()
    """Nodes whose log was further, and is now in this one."""
    fetched_events: int = 0
    cut_from: int = 0
    """First LSN of an own tail that was never committed and gave way to what was fetched; 0: none."""
    is_committed: bool = False
    """The EPOCH_START is on the disks that sync_replicas asks for: writes are confirmed from now on. If not,
    they will be once the replicas are there."""
    at_risk_from: int = 0
    """First LSN of what may be lost, 0 if nothing can be."""
    at_risk_to: int = 0
    """Highest LSN of it that any node was known to have."""


class AtRisk(msgspec.Struct, frozen=True):
    """What of the history before may be lost: LSNs from `first` on, of which `last` was seen somewhere."""

    first: int = 0
    last: int = 0

    @property
    def words(self) -> str:
        if not self.first:
            return ""
        text = (
            f"writes above LSN {self.first - 1} that the old primary acknowledged are lost, if there were any"
        )
        return f"{text}; LSN {self.last} was seen" if self.last >= self.first else text


NOTHING_AT_RISK = AtRisk()


def at_risk_of(decision: Decision, end: Position, seen_lsns: Iterable[int]) -> AtRisk:
    """What a promotion of a log that ends at `end` may lose; `seen_lsns` are where other logs ended."""
    if decision.keeps_acknowledged:
        return NOTHING_AT_RISK
    last = max(seen_lsns, default=0)
    return AtRisk(end.lsn + 1, last if last > end.lsn else 0)


def refusal(
    decision: Decision,
    node: str,
    *,
    path: Path,
    config: Config,
    end_lsn: int,
    unheard: Mapping[str, str],
) -> PerdureError:
    """The error of a promotion that `decision` refused; `unheard` says why voters did not answer."""
    text = f"{node} cannot become primary: {decision.message}"
    if decision.why is Why.TOO_FEW:
        heard = "; ".join(f"{name}: {why}" for name, why in sorted(unheard.items()))
        return NoQuorumError(
            f"{text} ({heard})" if heard else text,
            node=node,
            hint=f"Bring back enough voters. If they are gone for good: {_way_out(decision, config)}.",
        )
    risk = f"What was written above LSN {end_lsn}, where {node}'s log ends, would be lost."
    hints = {
        Why.FURTHER: f"Promote {decision.node} instead.",
        Why.NEEDS_DATA_LOSS: f"{risk} Accept that (--accept-data-loss) to go on.",
        Why.NO_VOTER: "Promote one of the voters.",
        Why.EMPTY: "Promote a node that has a log, or begin a cluster with `perdure init`.",
        Why.FAULTY: "Promote another node, or bootstrap this one anew.",
        Why.DIVERGED: "See `perdure verify` on both; one of them must be bootstrapped anew.",
        Why.NOT_IN_SYNC: f"Promote one that has them. {risk} --accept-data-loss accepts that.",
        Why.REFUSED: "Another candidate is at work; see who is primary before you try again.",
    }
    if decision.why is Why.DIVERGED:
        return DivergedError(text, node=node, hint=hints[Why.DIVERGED])
    return PromotionRefusedError(text, decision=decision, path=path, node=node, hint=hints[decision.why])


def _way_out(decision: Decision, config: Config) -> str:
    """Which options would let the promotion go on, with what it has."""
    nodes, k = len(config.voters), config.electors.sync_replicas
    relaxed = promises_needed(nodes, k, accept_data_loss=True)
    if len(decision.promisers) >= relaxed:
        return "--accept-data-loss"
    return "--alone" if nodes == 2 and k >= 1 and not config.witnesses else "--alone --accept-data-loss"
