"""Counting promises: every row of the rule, and that two candidates never both win an epoch."""

from __future__ import annotations

import itertools
import random

import pytest

from perdure.recovery.counting import meets_acknowledged, promises_needed
from perdure.recovery.promises import Answer, Decision, Why
from perdure.recovery.promises import count_promises as count_by_config
from perdure.store import Config, Position

THREE = ("a", "b", "c")
PAIR = Config(("a", "b", "w"), 1, witnesses=("w",))


def count_promises(
    voters: tuple[str, ...], k: int, own: Answer, answers: list[Answer], **asked: bool
) -> Decision:
    return count_by_config(Config(voters, k), own, answers, **asked)


def answer(
    node: str, lsn: int, *, epoch: int = 1, chain: int = 7, fault: str = "", refusal: str = ""
) -> Answer:
    return Answer(node, Position(epoch, lsn, chain), not refusal, fault, refusal)


@pytest.mark.parametrize(
    ("nodes", "k", "needed", "relaxed"),
    [
        (1, 0, 0, 0),
        (2, 0, 1, 1),
        (2, 1, 1, 1),
        (3, 0, 1, 1),
        (3, 1, 1, 1),
        (3, 2, 1, 1),
        (4, 1, 2, 2),
        (4, 2, 2, 2),
        (5, 1, 3, 2),
        (5, 2, 2, 2),
        (5, 4, 2, 2),
    ],
)
def test_promises_needed_are_those_of_the_design(nodes: int, k: int, needed: int, relaxed: int) -> None:
    assert promises_needed(nodes, k) == needed
    assert promises_needed(nodes, k, accept_data_loss=True) == relaxed
    assert promises_needed(nodes, k, alone=True) == 0


def test_with_enough_promises_and_the_furthest_log_it_is_granted() -> None:
    decision = count_promises(THREE, 1, answer("b", 10), [answer("c", 10)])
    assert decision.is_granted
    assert decision.promisers == ("c",)
    assert decision.keeps_acknowledged


def test_a_further_promiser_is_named() -> None:
    decision = count_promises(THREE, 1, answer("b", 10), [answer("c", 11)])
    assert (decision.why, decision.node) == (Why.FURTHER, "c")


def test_a_higher_epoch_is_further_than_any_lsn() -> None:
    decision = count_promises(THREE, 1, answer("b", 99), [answer("c", 11, epoch=2)])
    assert (decision.why, decision.node) == (Why.FURTHER, "c")


def test_two_histories_under_one_position_are_diverged() -> None:
    decision = count_promises(THREE, 1, answer("b", 10), [answer("c", 10, chain=8)])
    assert (decision.why, decision.node) == (Why.DIVERGED, "c")


def test_a_refusal_that_leaves_too_few_is_named() -> None:
    decision = count_promises(THREE, 1, answer("b", 10), [answer("c", 9, refusal="promised epoch 3 to a")])
    assert (decision.why, decision.node) == (Why.REFUSED, "c")
    assert "promised epoch 3 to a" in decision.message


def test_silence_is_too_few() -> None:
    decision = count_promises(THREE, 1, answer("b", 10), [])
    assert decision.why is Why.TOO_FEW
    assert "a did not answer, c did not answer" in decision.message


def test_a_node_that_does_not_vote_neither_counts_nor_is_promoted() -> None:
    assert count_promises(THREE, 1, answer("b", 10), [answer("x", 10)]).why is Why.TOO_FEW
    assert count_promises(THREE, 1, answer("x", 10), [answer("c", 10)]).why is Why.NO_VOTER


def test_a_faulty_candidate_is_refused_and_a_faulty_promiser_does_not_vouch_for_acknowledged_writes() -> None:
    faulty = Answer("b", Position(1, 10, 7), True, fault="its log is corrupt")
    assert count_promises(THREE, 1, faulty, [answer("c", 10)]).why is Why.FAULTY
    decision = count_promises(THREE, 1, answer("b", 10), [answer("c", 2, fault="rebuilt from nothing")])
    assert decision.why is Why.TOO_FEW
    assert "rebuilt from nothing" in decision.message


def test_an_empty_promiser_may_have_lost_what_it_acknowledged_and_vouches_for_nothing() -> None:
    decision = count_promises(THREE, 1, answer("b", 10), [answer("c", 0, epoch=0)])
    assert decision.why is Why.TOO_FEW
    assert "its log is empty" in decision.message
    accepted = count_promises(THREE, 1, answer("b", 10), [answer("c", 0, epoch=0)], accept_data_loss=True)
    assert accepted.is_granted
    assert not accepted.keeps_acknowledged


def test_an_empty_log_is_never_promoted() -> None:
    own = Answer("b", Position(0, 0, 0), True)
    assert count_promises(THREE, 1, own, [answer("c", 0, epoch=0)]).why is Why.EMPTY


def test_without_confirming_replicas_consent_is_always_needed() -> None:
    ask = [answer("c", 10)]
    assert count_promises(THREE, 0, answer("b", 10), ask).why is Why.NEEDS_DATA_LOSS
    decision = count_promises(THREE, 0, answer("b", 10), ask, accept_data_loss=True)
    assert decision.is_granted
    assert not decision.keeps_acknowledged


def test_of_two_nodes_one_goes_on_alone_without_loss_if_each_write_needed_both() -> None:
    two = ("a", "b")
    decision = count_promises(two, 1, answer("b", 10), [], alone=True)
    assert decision.is_granted
    assert decision.keeps_acknowledged
    assert count_promises(two, 1, answer("b", 10), []).why is Why.TOO_FEW
    assert count_promises(two, 0, answer("b", 10), [], alone=True).why is Why.NEEDS_DATA_LOSS
    assert count_promises(two, 0, answer("b", 10), [], alone=True, accept_data_loss=True).is_granted


def test_alone_among_three_needs_consent_and_no_refusal() -> None:
    assert count_promises(THREE, 1, answer("b", 10), [], alone=True).why is Why.NEEDS_DATA_LOSS
    assert count_promises(THREE, 1, answer("b", 10), [], alone=True, accept_data_loss=True).is_granted
    refused = [answer("c", 10, refusal="promised epoch 5 to c")]
    decision = count_promises(THREE, 1, answer("b", 10), refused, alone=True, accept_data_loss=True)
    assert (decision.why, decision.node) == (Why.REFUSED, "c")


def test_a_single_voter_needs_nobody() -> None:
    assert count_promises(("a",), 0, answer("a", 10), []).is_granted


def witness(*in_sync: str) -> Answer:
    return Answer("w", Position(0, 0, 0), True, in_sync=in_sync)


def test_of_two_nodes_and_a_witness_the_witness_makes_the_majority() -> None:
    decision = count_by_config(PAIR, answer("b", 10), [witness()])
    assert decision.is_granted
    assert decision.keeps_acknowledged
    assert count_by_config(PAIR, answer("b", 10), []).why is Why.TOO_FEW
    assert count_by_config(PAIR, answer("b", 10), [], alone=True).why is Why.NEEDS_DATA_LOSS


def test_a_witness_is_never_promoted_and_holds_no_log() -> None:
    assert count_by_config(PAIR, answer("w", 10), [answer("b", 10)]).why is Why.NO_VOTER
    three = Config(("a", "b", "c", "w"), 1, witnesses=("w",))
    decision = count_by_config(three, answer("b", 10), [witness()])
    assert decision.why is Why.TOO_FEW  # d - k = 1: another replica has to say how far it is
    assert count_by_config(three, answer("b", 10), [witness(), answer("c", 10)]).is_granted


def test_a_candidate_that_the_witness_knows_to_lack_writes_needs_consent() -> None:
    decision = count_by_config(PAIR, answer("b", 10), [witness("a")])
    assert decision.why is Why.NOT_IN_SYNC
    assert "only a has every acknowledged write" in decision.message
    lost = count_by_config(PAIR, answer("b", 10), [witness("a")], accept_data_loss=True)
    assert lost.is_granted
    assert not lost.keeps_acknowledged
    assert count_by_config(PAIR, answer("a", 10), [witness("a")]).is_granted
    assert count_by_config(PAIR, answer("b", 10), [witness("a"), answer("a", 10)]).is_granted


def test_where_a_primary_may_go_on_alone_somebody_must_say_that_it_did_not() -> None:
    available = Config(("a", "b", "w"), 1, witnesses=("w",), policy="available")
    assert count_by_config(available, answer("b", 10), [witness()]).is_granted
    assert count_by_config(available, answer("b", 10), [answer("a", 10)]).is_granted
    decision = count_by_config(available, answer("b", 10), [answer("a", 0, epoch=0)])
    assert decision.why is Why.NOT_IN_SYNC  # a majority, but the old primary comes back with an empty log
    degraded = Config(("a", "b", "w"), 0, witnesses=("w",), policy="available", degraded_from=1)
    assert count_by_config(degraded, answer("a", 10), [witness("a")]).keeps_acknowledged


def test_a_config_that_is_not_committed_asks_for_those_before_as_well() -> None:
    before = Config(("a", "b", "c", "d", "e"), 1).electors  # q = 3
    config = Config(("a", "b", "c", "d"), 1, before=before, changed_lsn=9)  # q = 2
    answers = [answer("c", 10), answer("d", 10)]
    assert count_by_config(config, answer("b", 10), answers, committed_lsn=8).why is Why.TOO_FEW
    assert count_by_config(config, answer("b", 10), answers, committed_lsn=9).is_granted
    assert count_by_config(config, answer("b", 10), [*answers, answer("e", 3)], committed_lsn=8).is_granted


@pytest.mark.parametrize("nodes", [2, 3, 4, 5, 6])
def test_two_sets_of_promisers_always_meet_and_meet_every_set_of_acknowledgers(nodes: int) -> None:
    everyone = set(range(nodes))
    for k in range(1, nodes):
        q = promises_needed(nodes, k)
        sets = [set(chosen) for chosen in itertools.combinations(everyone, q + 1)]
        assert all(one & other for one in sets for other in sets)
        for primary in everyone:
            for acked in itertools.combinations(everyone - {primary}, k):
                assert all(promised & {primary, *acked} for promised in sets)
                # What matters when the primary is the one that was lost:
                assert all(promised & set(acked) for promised in sets if primary not in promised)


def test_whoever_is_granted_holds_every_acknowledged_write(seed: int) -> None:
    """Random histories: k replicas acknowledged `acked`; any granted candidate's log reaches it."""
    chance = random.Random(seed)
    granted = 0
    for _ in range(5_000):
        nodes = chance.randint(2, 5)
        voters = tuple("abcde"[:nodes])
        k = chance.randint(1, nodes - 1)
        acked = chance.randint(1, 50)
        ends = {node: chance.randint(1, 60) for node in voters}
        for node in chance.sample(voters[1:], k):
            ends[node] = max(ends[node], acked)
        ends["a"] = max(ends["a"], acked)
        candidate = chance.choice(voters[1:])
        answers = [
            Answer(node, Position(1, ends[node], ends[node]), chance.random() < 0.7, refusal="no")
            for node in voters
            if node != candidate and chance.random() < 0.8
        ]
        own = Answer(candidate, Position(1, ends[candidate], ends[candidate]), True)
        decision = count_promises(voters, k, own, answers)
        if decision.is_granted:
            granted += 1
            assert ends[candidate] >= acked
            assert decision.keeps_acknowledged
            assert meets_acknowledged(Config(voters, k).electors, {candidate, *decision.promisers})
    assert granted > 100
