"""The arithmetic of agreement: which sets of nodes may begin an epoch. Pure.

Owns two rules over the electors of a CONFIG: `nodes` voters, of which d + 1 keep the log (the others are
witnesses, which keep promises only), and k = sync_replicas.

    | rule               | asks for                                    | so that                          |
    |--------------------|---------------------------------------------|----------------------------------|
    | is_majority        | floor(nodes / 2) promises besides one's own | one primary an epoch: two such   |
    |                    |                                             | sets always meet                 |
    | meets_acknowledged | d - k promises of replicas besides one's    | the furthest log among them has  |
    |                    | own, whose logs are to be relied on         | every acknowledged write: k + 1  |
    |                    |                                             | of d + 1 logs have it            |

Without witnesses these are q = max(n - k, floor(nodes / 2)) promises of the n = nodes - 1 others. n - k alone
is not enough: of four nodes with k = 2 two pairs do not meet. While a CONFIG is not known to be committed,
both rules are asked of it and of the one before, so that whoever counts by either meets the other.
"""

from __future__ import annotations

from collections.abc import Set

from ..store.control import Config, Electors


def electors_in_force(config: Config, committed_lsn: int) -> tuple[Electors, ...]:
    """Those that have to agree: the newest, and the ones before unless it is known that they need not."""
    before = config.before
    if before is None or config.is_committed(committed_lsn):
        return (config.electors,)
    return (config.electors, before)


def is_majority(electors: Electors, agreeing: Set[str]) -> bool:
    """Do `agreeing`, the candidate among them, meet every other set that may begin the same epoch?"""
    voters = set(electors.voters)
    return len(voters & agreeing) > len(voters) // 2


def meets_acknowledged(electors: Electors, holders: Set[str]) -> bool:
    """Do `holders`, nodes with a log to be relied on, meet every set that acknowledged a write?

    With k = 0 a write is acknowledged by the primary alone, whose last ones may have come after its answer
    to the candidate as well: nobody's promise shows that nothing is lost, unless there is one log only.
    """
    data = set(electors.data_voters)
    if electors.sync_replicas == 0:
        return len(data) <= 1 and data <= holders
    return len(data & holders) >= len(data) - electors.sync_replicas


def promises_needed(
    nodes: int, k: int, *, witnesses: int = 0, accept_data_loss: bool = False, alone: bool = False
) -> int:
    """q: the promises that a candidate needs besides its own, of `nodes` voters in all."""
    if alone or nodes <= 1:
        return 0
    majority = nodes // 2
    if k == 0 or accept_data_loss:
        return majority
    return max(nodes - 1 - witnesses - k, majority)


def needs_consent(config: Config, committed_lsn: int, *, alone: bool) -> bool:
    """Can the promotion lose acknowledged writes, or make a second primary, so that it must be accepted?

    Alone is safe for one thing only: two nodes of which each write needs both.
    """
    electors = electors_in_force(config, committed_lsn)
    if any(each.sync_replicas == 0 and len(each.data_voters) > 1 for each in electors):
        return True
    if not alone:
        return False
    pair = len(electors) == 1 and len(config.voters) == len(config.data_voters) == 2
    return not (len(config.voters) <= 1 or pair)
