"""Membership: what a change of the voters, of k or of the policy makes of a CONFIG. Pure.

Owns which changes there are and when one may be made. Invariants: one voter at a time; none before the CONFIG
in force is committed; the primary stays a voter; while a primary goes on alone (`degraded_from`) only a node
that is not in sync may be taken out. Each new CONFIG names the electors before it, whose acknowledgements and
promises count as well until it is committed (see counting and shipping's progress).
"""

from __future__ import annotations

from collections.abc import Set

import msgspec

from ..store.control import AVAILABLE, Config, Electors, auto_sync_replicas, config_problem
from ..store.errors import NoQuorumError, UsageError

WAIT_HINT = "Wait until the replicas have confirmed it (`perdure member list`), then try again."


def with_member(config: Config, node: str, address: str) -> Config:
    """A node that keeps a copy and does not vote; or another address of a node.

    UsageError if another node has that address: what is meant for one would reach the other.
    """
    for name, known in config.members.items():
        if known == address and name != node:
            raise UsageError(
                f"{address} is the address of {name}",
                hint=f"Look at the address, or take {name} out first (`perdure member remove`).",
            )
    return msgspec.structs.replace(config, members={**config.members, node: address})


def with_voter(config: Config, node: str) -> Config:
    """A member votes. UsageError if it does already."""
    if node in config.voters:
        raise UsageError(f"{node} votes already")
    return _with_voters(config, (*config.voters, node), config.witnesses)


def with_witness(config: Config, node: str, address: str) -> Config:
    """A voter that keeps promises only. UsageError if the node keeps the log."""
    if node in config.voters or node in config.members:
        raise UsageError(f"{node} is a node of the cluster already")
    config = with_member(config, node, address)
    return _with_voters(config, (*config.voters, node), (*config.witnesses, node))


def without_vote(config: Config, node: str) -> Config:
    """A voter votes no more, and is still told of: until this is committed its acknowledgements and promises
    may be needed, so that it is shipped to and asked. UsageError if it does not vote.
    """
    if node not in config.voters:
        raise UsageError(f"{node} does not vote")
    voters = tuple(name for name in config.voters if name != node)
    return _with_voters(config, voters, tuple(name for name in config.witnesses if name != node))


def without_node(config: Config, node: str) -> Config:
    """Take a node out. UsageError if there is no such node."""
    if node not in config.voters and node not in config.members:
        raise UsageError(f"there is no node {node}: {', '.join(sorted({*config.voters, *config.members}))}")
    members = {name: address for name, address in config.members.items() if name != node}
    config = msgspec.structs.replace(config, members=members)
    return without_vote(config, node) if node in config.voters else config


def with_sync_replicas(config: Config, sync_replicas: int | None) -> Config:
    """Another k; None: as many as the cluster's size asks for, from now on."""
    if sync_replicas is None:
        auto = auto_sync_replicas(config.voters, config.witnesses)
        return msgspec.structs.replace(config, sync_replicas=auto, is_auto=True)
    return msgspec.structs.replace(config, sync_replicas=sync_replicas, is_auto=False)


def with_policy(config: Config, policy: str) -> Config:
    return msgspec.structs.replace(config, policy=policy)


def next_config(
    config: Config,
    wanted: Config,
    primary: str,
    *,
    committed_lsn: int,
    at_lsn: int,
    streaming: Set[str],
    has_etcd: bool = False,
) -> Config:
    """The CONFIG to append behind `at_lsn` so that `wanted` is in force instead of `config`.

    `streaming` are the replicas that follow closely at the moment. Raises UsageError for what can't be,
    and NoQuorumError, with nothing changed, if the one before is not committed or the new one could not be.
    """
    if not config.is_committed(committed_lsn):
        raise NoQuorumError(
            f"the change before, at LSN {config.changed_lsn}, is not committed yet", hint=WAIT_HINT
        )
    problem = _problem(config, wanted, primary, has_etcd)
    if problem:
        raise UsageError(problem[0], node=primary, hint=problem[1])
    before = config.electors if config.voters else Electors((primary,), 0)
    if config.degraded_from:
        # Whoever counts by the one before asks a witness, which was told that only the primary is in sync.
        return msgspec.structs.replace(wanted, before=None, changed_lsn=at_lsn + 1)
    changed = msgspec.structs.replace(wanted, before=before, changed_lsn=at_lsn + 1)
    for electors in (changed.electors, before):
        there = (streaming & set(electors.data_voters)) - {primary}
        if len(there) < electors.sync_replicas:
            raise NoQuorumError(
                f"{len(there)} of the {electors.sync_replicas} replica(s) that must confirm it follow",
                node=primary,
                hint="Start the replicas. If one of two nodes is gone for good: `perdure promote --alone`.",
            )
    return changed


def _with_voters(config: Config, voters: tuple[str, ...], witnesses: tuple[str, ...]) -> Config:
    data = max(0, len(set(voters) - set(witnesses)) - 1)
    k = auto_sync_replicas(voters, witnesses) if config.is_auto else min(config.electors.sync_replicas, data)
    degraded_from = k if config.degraded_from else 0
    return msgspec.structs.replace(
        config,
        voters=voters,
        witnesses=witnesses,
        sync_replicas=0 if config.degraded_from else k,
        degraded_from=degraded_from,
    )


def _problem(config: Config, wanted: Config, primary: str, has_etcd: bool) -> tuple[str, str] | None:
    """What speaks against a change, and what to do about it."""
    if config.voters and primary not in wanted.voters:
        return (
            f"{primary} is the primary, and cannot be taken out",
            "Make another node the primary first: `perdure switchover NODE`.",
        )
    if len(set(wanted.voters) ^ set(config.voters or (primary,))) > 1:
        return ("only one voter at a time may come or go", "Make one change, wait until it is committed.")
    # What the log says already is taken as it is: a bad address would else hinder its node's own removal.
    news = {node: address for node, address in wanted.members.items() if config.members.get(node) != address}
    problem = config_problem(msgspec.structs.replace(wanted, members=news), primary)
    if problem:
        return (problem, "See `perdure member list`.")
    if wanted.policy == AVAILABLE and not wanted.witnesses and not has_etcd:
        return ("the policy available needs a witness, or etcd as coordinator", "Add a witness first.")
    if config.degraded_from and not _may_change_degraded(config, wanted):
        return (
            "the primary goes on without its replicas at the moment; only a data node that is away may go",
            "Bring the replicas back first (`perdure member list` shows it).",
        )
    return None


def _may_change_degraded(config: Config, wanted: Config) -> bool:
    return (
        set(wanted.voters) <= set(config.voters)
        and wanted.witnesses == config.witnesses
        and wanted.policy == config.policy
        and wanted.is_auto == config.is_auto
        and wanted.sync_replicas == config.sync_replicas
    )
