"""Node states: the table of transitions, and the word that fits."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from perdure.recovery.node_state import (
    TRANSITIONS,
    IllegalTransitionError,
    NodeFacts,
    NodeState,
    NodeStates,
    state_of,
)

CALM = NodeFacts(is_primary=False, fault="", is_suspicious=False, is_standing=False, hears=True, lag_events=0)


def facts(**changes: object) -> NodeFacts:
    return msgspec.structs.replace(CALM, **changes)


@pytest.mark.parametrize(("before", "after"), list(itertools.product(NodeState, NodeState)))
def test_a_transition_is_legal_if_and_only_if_the_table_says_so(before: NodeState, after: NodeState) -> None:
    states = NodeStates()
    states.state = before
    if after is before:
        assert not states.become(after)
    elif after in TRANSITIONS[before]:
        assert states.become(after)
        assert states.state is after
    else:
        with pytest.raises(IllegalTransitionError):
            states.become(after)
        assert states.state is before


def test_a_node_never_begins_again_and_nothing_follows_its_end() -> None:
    assert all(NodeState.INITIALIZING not in following for following in TRANSITIONS.values())
    assert not TRANSITIONS[NodeState.TERMINATING]
    assert all(
        NodeState.TERMINATING in following
        for state, following in TRANSITIONS.items()
        if state is not NodeState.TERMINATING
    )


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        (facts(), NodeState.ACTIVE),
        (facts(is_primary=True, hears=False), NodeState.ACTIVE),
        (facts(lag_events=1_000), NodeState.ACTIVE),
        (facts(lag_events=1_001), NodeState.SYNCING),
        (facts(is_empty=True), NodeState.SYNCING),
        (facts(hears=False), NodeState.FAILOVER),
        (facts(is_suspicious=True), NodeState.FAILOVER),
        (facts(is_standing=True, fault="broken"), NodeState.FAILOVER),
        (facts(fault="broken"), NodeState.RECOVERING),
        (facts(fault="broken", is_primary=True), NodeState.RECOVERING),
        (facts(is_primary=True, lag_events=5_000), NodeState.ACTIVE),
    ],
)
def test_the_state_follows_from_the_facts(seen: NodeFacts, state: NodeState) -> None:
    assert state_of(seen) is state


def test_from_any_living_state_the_facts_are_reached_by_legal_steps() -> None:
    living = [state for state in NodeState if state is not NodeState.TERMINATING]
    for before, (seen, state) in itertools.product(
        living, [(facts(), NodeState.ACTIVE), (facts(fault="broken"), NodeState.RECOVERING)]
    ):
        states = NodeStates()
        states.state = before
        states.follow(seen)
        states.follow(seen)
        assert states.state is state


def test_what_was_put_right_syncs_before_it_is_active() -> None:
    states = NodeStates()
    states.become(NodeState.RECOVERING)
    seen: list[NodeState] = []
    while states.follow(facts()):
        seen.append(states.state)
    assert seen == [NodeState.SYNCING, NodeState.ACTIVE]
