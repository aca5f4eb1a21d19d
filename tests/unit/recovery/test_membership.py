"""Changes of a CONFIG: each kind, and each refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.recovery import known_reach
from perdure.recovery.membership import (
    next_config,
    with_member,
    with_policy,
    with_sync_replicas,
    with_voter,
    with_witness,
    without_node,
    without_vote,
)
from perdure.shipping import open_node_log
from perdure.shipping.roster import node_addresses, replica_addresses
from perdure.store import Config, NoQuorumError, UsageError, begin_cluster, init_store
from perdure.store.control import Electors

THREE = Config(("a", "b", "c"), 1, is_auto=True)
PAIR = Config(("a", "b", "w"), 1, {"w": "h:3"}, ("w",), is_auto=True, policy="available")
GONE = Config(("a", "b", "w"), 0, {"w": "h:3"}, ("w",), True, "available", degraded_from=1)


def change(config: Config, wanted: Config, *, committed: int = 0, streaming: str = "bc") -> Config:
    return next_config(
        config, wanted, "a", committed_lsn=committed, at_lsn=20, streaming=frozenset(streaming)
    )


def test_each_change_keeps_k_in_step_and_names_those_before() -> None:
    four = change(THREE, with_voter(with_member(THREE, "d", "h:1"), "d"), streaming="bcd")
    assert (four.voters, four.sync_replicas, four.members) == (("a", "b", "c", "d"), 2, {"d": "h:1"})
    assert (four.before, four.changed_lsn) == (THREE.electors, 21)
    three = change(four, without_node(four, "d"), committed=21)
    assert (three.voters, three.sync_replicas, three.members) == (("a", "b", "c"), 1, {})
    assert three.before == four.electors
    fixed = change(THREE, with_sync_replicas(THREE, 2))
    assert (fixed.sync_replicas, fixed.is_auto) == (2, False)
    assert with_voter(fixed, "d").sync_replicas == 2
    assert without_node(fixed, "c").sync_replicas == 1
    assert with_sync_replicas(fixed, None).sync_replicas == 1
    witness = change(THREE, with_witness(THREE, "w", "h:2"))
    assert (witness.voters, witness.witnesses, witness.sync_replicas) == (("a", "b", "c", "w"), ("w",), 2)


def test_a_store_on_its_own_counts_as_its_only_voter_before() -> None:
    alone = Config(("a",), is_auto=True)
    assert next_config(
        Config(), with_voter(alone, "b"), "a", committed_lsn=0, at_lsn=5, streaming=frozenset("b")
    ) == Config(("a", "b"), 1, is_auto=True, before=Electors(("a",), 0), changed_lsn=6)


def test_nothing_is_changed_before_the_change_before_is_committed() -> None:
    four = change(THREE, with_voter(THREE, "d"), streaming="bcd")
    for committed in (0, 20):
        with pytest.raises(NoQuorumError, match="at LSN 21, is not committed"):
            change(four, without_node(four, "d"), committed=committed)


@pytest.mark.parametrize(
    ("config", "wanted", "why"),
    [
        (THREE, without_node(THREE, "a"), "is the primary"),
        (THREE, with_voter(with_voter(THREE, "d"), "e"), "one voter at a time"),
        (THREE, with_sync_replicas(THREE, 3), "there are 2"),
        (THREE, with_policy(THREE, "available"), "needs a witness"),
        (THREE, with_policy(THREE, "lax"), "no policy"),
        (PAIR, without_node(PAIR, "w"), "needs a witness"),
        (GONE, without_node(with_policy(GONE, "strict"), "w"), "goes on without its replicas"),
        (GONE, with_voter(GONE, "c"), "goes on without its replicas"),
        (GONE, with_policy(GONE, "strict"), "goes on without its replicas"),
        (GONE, with_sync_replicas(GONE, None), "goes on without its replicas"),
        (GONE, with_sync_replicas(GONE, 1), "goes on without its replicas"),
    ],
)
def test_what_cannot_be_is_refused(config: Config, wanted: Config, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        change(config, wanted)


def test_a_change_that_the_old_or_the_new_replicas_cannot_confirm_is_refused() -> None:
    with pytest.raises(NoQuorumError, match="1 of the 2"):
        change(THREE, with_voter(THREE, "d"), streaming="b")
    two = Config(("a", "b"), 1)
    with pytest.raises(NoQuorumError, match="0 of the 1") as caught:
        change(two, without_node(two, "b"), streaming="")
    assert "--alone" in caught.value.hint


def test_while_the_primary_goes_on_alone_the_node_that_is_away_may_be_taken_out() -> None:
    left = change(GONE, without_node(GONE, "b"), streaming="")
    assert (left.voters, left.sync_replicas, left.degraded_from, left.before) == (("a", "w"), 0, 0, None)


@pytest.mark.parametrize("edit", [with_member, with_witness])
def test_the_address_of_another_node_is_refused(edit: Callable[[Config, str, str], Config]) -> None:
    told = with_member(THREE, "b", "h:1")
    with pytest.raises(UsageError, match="h:1 is the address of b"):
        edit(told, "w", "h:1")
    assert with_member(told, "b", "h:1") == told
    assert edit(told, "w", "h:2").members["w"] == "h:2"


@pytest.mark.parametrize("edit", [with_member, with_witness])
@pytest.mark.parametrize("address", ["h", "h..lan:1", f"{'h' * 64}.lan:1"])
def test_what_is_no_address_does_not_get_into_the_log(
    edit: Callable[[Config, str, str], Config], address: str
) -> None:
    with pytest.raises(UsageError, match="is no address"):
        change(THREE, edit(THREE, "w", address))


def test_an_impossible_name_that_is_in_the_log_already_hides_no_other_node_and_can_be_taken_out() -> None:
    told = Config(("a", "b", "c"), 1, {"b": "b..lan:1", "c": "h:2"})
    assert node_addresses(told, "a", {}) == {"b": ("b..lan", 1), "c": ("h", 2)}
    left = change(told, without_vote(told, "b"), streaming="c")
    assert (left.voters, left.members) == (("a", "c"), told.members)
    assert without_node(left, "b").members == {"c": "h:2"}


def test_nodes_are_found_where_the_log_says_else_where_the_configuration_does() -> None:
    configured = {"b": ("x", 1), "c": ("x", 2), "d": ("x", 3)}
    assert node_addresses(THREE, "a", configured) == configured  # the log names no address at all
    told = with_member(THREE, "b", "h:1")
    assert node_addresses(told, "a", configured) == {"b": ("h", 1), "c": ("x", 2)}  # d was taken out
    witness = with_witness(told, "w", "h:9")
    assert node_addresses(witness, "b", configured) == {"c": ("x", 2), "w": ("h", 9)}
    assert replica_addresses(witness, "b", configured) == {"c": ("x", 2)}


def test_a_command_asks_where_it_is_told_then_where_the_log_says_then_where_the_configuration_does(
    tmp_path: Path,
) -> None:
    init_store(tmp_path, node="a", cluster_id=bytes(16), backend="memory", now_ms=1)
    node = open_node_log(tmp_path, [])
    try:
        node.log.lock_any()
        begin_cluster(node.log, Config(("a", "b", "c"), 1, {"b": "log:1", "c": "log:2"}))
        node.log.unlock()
    finally:
        node.close()
    stale = {"b": ("stale", 1), "c": ("stale", 2), "d": ("stale", 3)}
    reach = known_reach(tmp_path, {"c": ("told", 5)}, configured=stale)
    assert reach.peers == {"b": ("log", 1), "c": ("told", 5)}
