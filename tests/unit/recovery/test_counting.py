"""Agreement, by brute force over every small cluster: what may begin an epoch meets what was acknowledged.

The rules under test are used as a candidate uses them; the sets that acknowledge come from the commit rule
itself. A rule that is wrong in a known way must be found wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Set

import pytest

from perdure.recovery.counting import electors_in_force, is_majority, meets_acknowledged
from perdure.shipping.progress import commit_lsn, electorate_of
from perdure.store import Config, Position
from perdure.store.control import Electors, auto_sync_replicas

NAMES = "abcdef"
CHANGE = 10
FRAME = 20
Nodes = frozenset[str]
Rule = Callable[[Electors, Set[str]], bool]


def clusters(nodes_max: int = 6) -> Iterator[Config]:
    """Every cluster of up to so many nodes, with every number of witnesses and every k >= 1."""
    for nodes in range(2, nodes_max + 1):
        voters = tuple(NAMES[:nodes])
        for witnesses in range(nodes - 1):
            for k in range(1, nodes - witnesses):
                yield Config(voters, k, witnesses=voters[nodes - witnesses :])


def subsets(of: tuple[str, ...]) -> list[Nodes]:
    return [frozenset(chosen) for size in range(len(of) + 1) for chosen in itertools.combinations(of, size)]


def granted(
    configs: tuple[Electors, ...], nodes: tuple[str, ...], majority: Rule = is_majority
) -> list[Nodes]:
    """The smallest sets, a candidate that keeps the log among them, that may begin an epoch."""
    data = set(configs[0].data_voters)
    found = [
        chosen
        for chosen in subsets(nodes)
        if chosen & data
        and all(majority(each, chosen) and meets_acknowledged(each, chosen) for each in configs)
    ]
    return [chosen for chosen in found if not any(other < chosen for other in found)]


def acknowledgers(config: Config, committed_lsn: int, nodes: tuple[str, ...]) -> list[Nodes]:
    """The smallest sets, the primary among them, whose disks make a frame at FRAME committed."""
    found = []
    for primary in config.data_voters:
        electorate = electorate_of(config, primary, 1, 1)
        for chosen in subsets(tuple(node for node in nodes if node != primary)):
            acked = dict.fromkeys(chosen, Position(1, FRAME, 7))
            if commit_lsn(electorate, acked, FRAME, committed_lsn) >= FRAME:
                found.append(chosen | {primary})
    return [chosen for chosen in found if not any(other < chosen for other in found)]


def strays(promised: list[Nodes], others: list[Nodes]) -> list[tuple[Nodes, Nodes]]:
    return [(one, other) for one in promised for other in others if not one & other]


def test_two_sets_that_may_begin_an_epoch_meet_and_meet_all_that_acknowledge() -> None:
    count = 0
    for config in clusters():
        sets = granted((config.electors,), config.voters)
        assert not strays(sets, sets), config
        assert not strays(sets, acknowledgers(config, 0, config.voters)), config
        count += 1
    assert count > 30


def test_a_granted_set_has_a_sound_log_of_each_acknowledged_write_without_its_primary() -> None:
    """The primary that was lost does not help: the candidate's set meets the k replicas with the write."""
    for config in clusters():
        for primary in config.data_voters:
            sets = [chosen for chosen in granted((config.electors,), config.voters) if primary not in chosen]
            for acked in acknowledgers(config, 0, config.voters):
                if primary in acked:
                    assert not strays(sets, [acked - set(config.witnesses) - {primary}]), config


def test_n_minus_k_alone_is_found_wrong_for_four_nodes() -> None:
    def without_majority(electors: Electors, agreeing: Set[str]) -> bool:
        return len(agreeing & set(electors.voters)) >= len(electors.voters) - electors.sync_replicas

    wrong = [
        config
        for config in clusters(4)
        if strays(*[granted((config.electors,), config.voters, without_majority)] * 2)
    ]
    assert Config(("a", "b", "c", "d"), 2) in wrong


def test_a_majority_alone_is_found_wrong_where_few_acknowledge() -> None:
    config = Config(("a", "b", "c", "d", "e"), 1)
    majorities = [chosen for chosen in subsets(config.voters) if is_majority(config.electors, chosen)]
    assert strays(majorities, acknowledgers(config, 0, config.voters))


def test_an_acknowledgement_of_a_witness_counts_for_nothing() -> None:
    for config in clusters(5):
        for acked in acknowledgers(config, 0, config.voters):
            assert not acked & set(config.witnesses)
            assert len(acked) == config.sync_replicas + 1


# -- changes ---------------------------------------------------------------------------------------


def changed(config: Config, **to: object) -> Config:
    values = {"voters": config.voters, "sync_replicas": config.sync_replicas, "witnesses": config.witnesses}
    return Config(**{**values, **to}, before=config.electors, changed_lsn=CHANGE)  # type: ignore[arg-type]


def changes(config: Config) -> Iterator[Config]:
    """Every change of one voter, with every k, and every change of k alone."""
    data = len(config.data_voters)
    for k in range(data):
        yield changed(config, sync_replicas=k)
    for k in range(data + 1):
        yield changed(config, voters=(*config.voters, "z"), sync_replicas=k)
        yield changed(
            config,
            voters=(*config.voters, "z"),
            sync_replicas=min(k, data - 1),
            witnesses=(*config.witnesses, "z"),
        )
    for gone in config.voters:
        left = tuple(voter for voter in config.voters if voter != gone)
        witnesses = tuple(voter for voter in config.witnesses if voter != gone)
        for k in range(len(left) - len(witnesses)):
            yield changed(config, voters=left, sync_replicas=k, witnesses=witnesses)


def is_acknowledging(electors: Electors) -> bool:
    """With k = 0 and several logs nothing is promised to be kept; every promotion needs consent."""
    return electors.sync_replicas >= 1 or len(electors.data_voters) == 1


def test_while_a_change_is_not_committed_its_sets_meet_those_of_before_and_the_other_way_round() -> None:
    count = 0
    for before in clusters(5):
        old_sets = granted((before.electors,), before.voters)
        old_acks = acknowledgers(before, 0, before.voters)
        for after in changes(before):
            if not is_acknowledging(after.electors):
                continue
            nodes = tuple(dict.fromkeys((*before.voters, *after.voters)))
            sets = granted(electors_in_force(after, 0), nodes)
            assert not strays(sets, sets + old_sets + old_acks), (before, after)
            assert not strays(old_sets, acknowledgers(after, 0, nodes)), (before, after)
            # Once the change is committed, whoever counts as before it meets a node that has it in its log,
            # and whoever has it meets what it acknowledges.
            assert not strays(granted((after.electors,), nodes), acknowledgers(after, CHANGE, nodes))
            count += 1
    assert count > 300


def test_without_those_before_a_change_of_one_voter_is_found_wrong() -> None:
    """With k below the majority one voter at a time is not enough; the case of five nodes and k = 1."""
    before = Config(("a", "b", "c", "d", "e"), 1)
    after = Config(("a", "b", "c", "d"), 1)
    assert strays(granted((after.electors,), before.voters), acknowledgers(before, 0, before.voters))
    lowered = Config(before.voters, 1)
    majority = Config(before.voters, 2)
    assert strays(granted((majority.electors,), before.voters), acknowledgers(lowered, 0, before.voters))


def test_two_nodes_that_change_the_voters_at_once_are_found_wrong_without_those_before() -> None:
    base = tuple("abcd")
    one, other = Config((*base, "x"), 2), Config((*base, "y"), 2)
    nodes = (*base, "x", "y")
    assert strays(granted((one.electors,), nodes), granted((other.electors,), nodes))
    safe = [
        Config(config.voters, 2, before=Config(base, 2).electors, changed_lsn=CHANGE)
        for config in (one, other)
    ]
    first, second = (granted(electors_in_force(config, 0), nodes) for config in safe)
    assert not strays(first, second)


@pytest.mark.parametrize("nodes", range(1, 8))
def test_k_of_the_clusters_size_lets_any_minority_be_lost(nodes: int) -> None:
    voters = tuple("abcdefg"[:nodes])
    config = Config(voters, auto_sync_replicas(voters))
    lost = (nodes - 1) // 2
    sets = granted((config.electors,), voters)
    for gone in itertools.combinations(voters, lost):
        assert any(not chosen & set(gone) for chosen in sets)
