"""The election: every row of its table, with clock and random numbers given."""

from __future__ import annotations

import msgspec
import pytest

from perdure.recovery.election import Action, Election, ElectionOptions, Kind, Own, candidates_before
from perdure.shipping.detection import PeerHealth, Verdict
from perdure.shipping.messages_health import Beat
from perdure.store import Config

VOTERS = ("n1", "n2", "n3")
FIVE = ("n1", "n2", "n3", "n4", "n5")
CANDIDACY_MS = 150
SILENCE_MS = 1000


def own(**changes: object) -> Own:
    """n2, which follows n1, primary of epoch 1."""
    base = Own("n2", False, 1, 100, "n1", 1, "n1", Config(VOTERS, 1))
    return msgspec.structs.replace(base, **changes)


def beat(node: str, **changes: object) -> Beat:
    base = Beat(node, False, 1, 100, 1, "n1", "n1", 1, False, True, "active")
    return msgspec.structs.replace(base, **changes)


def peer(node: str, verdict: Verdict = Verdict.ALIVE, **said: object) -> PeerHealth:
    silence_ms = {Verdict.SILENT: SILENCE_MS, Verdict.LATE: 400}.get(verdict, 20)
    told = None if verdict is Verdict.NEW else beat(node, **said)
    return PeerHealth(node, verdict, silence_ms, silence_ms // 100, 1_000, told)


def primary(verdict: Verdict = Verdict.ALIVE, **said: object) -> PeerHealth:
    return peer("n1", verdict, **{"is_primary": True, **said})


def without(node: str = "n3", verdict: Verdict = Verdict.ALIVE, **said: object) -> PeerHealth:
    """A peer that hears no primary."""
    return peer(node, verdict, **{"hears": "", "hears_epoch": 0, **said})


def election(drawn_ms: int = 0) -> Election:
    return Election(ElectionOptions(SILENCE_MS, CANDIDACY_MS), lambda most: min(drawn_ms, most))


ROWS: list[tuple[str, Own, list[PeerHealth], Kind, str]] = [
    ("the primary is heard", own(), [primary(), peer("n3")], Kind.NOTHING, "hears n1"),
    ("it is late", own(), [primary(Verdict.LATE), peer("n3")], Kind.NOTHING, "hears n1"),
    (
        "it was never heard, and not for long",
        own(),
        [peer("n1", Verdict.NEW), without()],
        Kind.NOTHING,
        "waits",
    ),
    ("it refuses", own(), [primary(Verdict.GONE), without()], Kind.STAND, "refuses a new one"),
    ("it is silent", own(), [primary(Verdict.SILENT), without()], Kind.STAND, "silent for 1000 ms"),
    ("it says that it fails", own(), [primary(is_failing=True), peer("n3")], Kind.STAND, "failing"),
    (
        "this node has no log",
        own(epoch=0, lsn=0, primary="", promise_epoch=0, promise_candidate=""),
        [without("n1", epoch=0, promise_epoch=0), without(epoch=0, promise_epoch=0)],
        Kind.NOTHING,
        "no log yet",
    ),
    (
        "this node is primary",
        own(node="n1", is_primary=True),
        [peer("n2"), peer("n3")],
        Kind.NOTHING,
        "primary of",
    ),
    (
        "it is, and hears nobody",
        own(node="n1", is_primary=True),
        [peer("n2", Verdict.SILENT), peer("n3", Verdict.SILENT)],
        Kind.NOTHING,
        "primary of",
    ),
    (
        "it is, and its disk stalls",
        own(node="n1", is_primary=True, failing="its disk stalls"),
        [peer("n2"), peer("n3")],
        Kind.STEP_DOWN,
        "disk stalls",
    ),
    (
        "this node hears nobody at all",
        own(),
        [primary(Verdict.SILENT), without(verdict=Verdict.SILENT)],
        Kind.HOLD_BACK,
        "too few voters are heard",
    ),
    (
        "the other still hears the primary",
        own(),
        [primary(Verdict.SILENT), peer("n3")],
        Kind.HOLD_BACK,
        "a majority hears",
    ),
    (
        "the other did not see yet that it ended",
        own(),
        [primary(Verdict.GONE), peer("n3")],
        Kind.HOLD_BACK,
        "a majority hears",
    ),
    (
        "the other hears a newer primary",
        own(),
        [primary(Verdict.SILENT), peer("n3", hears="n4", hears_epoch=2)],
        Kind.HOLD_BACK,
        "a majority hears",
    ),
    (
        "the other's disk stalls, too",
        own(),
        [primary(Verdict.GONE), without(is_failing=True)],
        Kind.HOLD_BACK,
        "too few voters are heard",
    ),
    (
        "this node does not vote",
        own(config=Config(("n1", "n3"), 1)),
        [primary(Verdict.GONE), without()],
        Kind.HOLD_BACK,
        "does not vote",
    ),
    (
        "its state is broken",
        own(fault="folding stopped"),
        [primary(Verdict.GONE), without()],
        Kind.HOLD_BACK,
        "folding stopped",
    ),
    ("it holds nothing", own(lsn=0), [primary(Verdict.GONE), without()], Kind.HOLD_BACK, "no log"),
    (
        "writes are confirmed by nobody",
        own(config=Config(VOTERS, 0)),
        [primary(Verdict.GONE), without()],
        Kind.HOLD_BACK,
        "a person decides",
    ),
    ("the other is further", own(), [primary(Verdict.GONE), without(lsn=101)], Kind.HOLD_BACK, "behind n3"),
    (
        "the other has a newer epoch",
        own(promise_epoch=2, epoch=2, primary="n1"),
        [primary(Verdict.GONE, epoch=2), without(epoch=3, lsn=2)],
        Kind.HOLD_BACK,
        "behind n3",
    ),
    (
        "the further one is not fit",
        own(config=Config(FIVE, 2)),
        [primary(Verdict.GONE), without(lsn=101, is_fit=False), without("n4"), without("n5")],
        Kind.STAND,
        "",
    ),
    (
        "two nodes, one gone",
        own(config=Config(("n1", "n2"), 1)),
        [primary(Verdict.GONE)],
        Kind.HOLD_BACK,
        "too few voters",
    ),
    (
        "another candidate was promised more",
        own(),
        [primary(Verdict.GONE), without(promise_epoch=2)],
        Kind.HOLD_BACK,
        "stands in",
    ),
    (
        "this node promised to a candidate that is there",
        own(promise_epoch=2, promise_candidate="n3"),
        [primary(Verdict.GONE), without(promise_epoch=2)],
        Kind.NOTHING,
        "nobody is primary of epoch 2 yet",
    ),
    (
        "this node promised to a candidate that is gone",
        own(lsn=101, promise_epoch=2, promise_candidate="n3"),
        [without("n1"), without(verdict=Verdict.GONE)],
        Kind.STAND,
        "n3 closed",
    ),
    (
        "this node's own candidacy came to nothing",
        own(promise_epoch=2, promise_candidate="n2"),
        [primary(Verdict.GONE), without()],
        Kind.STAND,
        "began no epoch",
    ),
    (
        "the old primary still believes in its epoch",
        own(promise_epoch=2, promise_candidate="n3"),
        [primary(), peer("n3", Verdict.SILENT)],
        Kind.STAND,
        "n3 was silent",
    ),
    (
        "a primary of which this node's log knows nothing",
        own(),
        [without("n1"), peer("n3", is_primary=True, epoch=2, promise_epoch=2)],
        Kind.NOTHING,
        "hears n3",
    ),
    (
        "such a primary has gone",
        own(),
        [without("n1"), peer("n3", Verdict.GONE, is_primary=True, epoch=2, promise_epoch=2)],
        Kind.HOLD_BACK,
        "",
    ),
    (
        "a primary that lost its epoch in a power loss",
        own(node="n1", primary="n1"),
        [without("n2"), without("n3")],
        Kind.STAND,
        "primary no more",
    ),
]


@pytest.mark.parametrize(
    ("who", "others", "kind", "why"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_a_situation_leads_to_its_action(who: Own, others: list[PeerHealth], kind: Kind, why: str) -> None:
    action = election().look(1_000, who, others)
    assert action.kind is kind, action.why
    assert why in action.why


def test_of_five_nodes_one_that_hears_the_primary_is_no_majority_and_two_are() -> None:
    others = [primary(Verdict.SILENT), without("n3"), without("n4"), peer("n5")]
    voting = own(config=Config(FIVE, 2))
    assert election().look(1, voting, others).kind is Kind.STAND
    assert election().look(1, voting, [*others[:2], peer("n4"), peer("n5")]).kind is Kind.HOLD_BACK


def test_a_node_that_is_not_monitored_has_no_failover() -> None:
    action = election().look(1, own(), [primary(Verdict.GONE), without()], frozenset({"n1"}))
    assert (action.kind, action.suspect) == (Kind.NOTHING, "n1")
    assert "not monitored" in action.why


def test_the_first_candidate_waits_for_a_fifth_of_what_was_drawn() -> None:
    deciding = election(drawn_ms=100)
    others = [primary(Verdict.GONE), without()]
    assert _stands_at(deciding, own(lsn=101), others) == 20


def test_the_candidate_behind_gives_the_first_one_time() -> None:
    deciding = election(drawn_ms=100)
    assert _stands_at(deciding, own(), [primary(Verdict.GONE), without(lsn=101)]) == CANDIDACY_MS + 100


def test_a_node_that_was_first_steps_back_when_another_turns_out_to_be_further() -> None:
    deciding = election(drawn_ms=100)
    assert deciding.look(0, own(), [primary(Verdict.GONE), without()]).kind is Kind.HOLD_BACK
    later = [primary(Verdict.GONE), without(lsn=101)]
    assert deciding.look(30, own(), later).kind is Kind.HOLD_BACK
    assert deciding.look(CANDIDACY_MS + 100, own(), later).kind is Kind.STAND


def test_a_rival_that_is_seen_while_waiting_begins_the_wait_anew() -> None:
    deciding = election(drawn_ms=100)
    assert deciding.look(0, own(), [primary(Verdict.GONE), without()]).kind is Kind.HOLD_BACK
    rivals = [primary(Verdict.GONE), without(promise_epoch=2)]
    assert deciding.look(25, own(), rivals).kind is Kind.HOLD_BACK
    assert deciding.look(CANDIDACY_MS + 40, own(), rivals).kind is Kind.HOLD_BACK
    assert deciding.look(CANDIDACY_MS + 46, own(), rivals).kind is Kind.STAND


def test_a_failed_candidacy_is_tried_again_after_pauses_that_grow_and_end() -> None:
    deciding = election(drawn_ms=10_000)
    others = [primary(Verdict.GONE), without()]
    failed = own(promise_epoch=2, promise_candidate="n2")
    now_ms, pauses = 0, []
    for _ in range(8):
        deciding.lost(now_ms)
        until = next(ms for ms in range(now_ms, now_ms + 20_000) if _stands(deciding, ms, failed, others))
        pauses.append(until - now_ms)
        now_ms = until
    assert pauses == sorted(pauses)
    assert pauses[0] < 500
    assert 2_000 <= pauses[-1] <= 3_000


def test_a_primary_that_is_heard_again_ends_the_wait() -> None:
    deciding = election(drawn_ms=100)
    gone, back = [primary(Verdict.GONE), without()], [primary(), peer("n3")]
    assert deciding.look(0, own(), gone).kind is Kind.HOLD_BACK
    assert deciding.look(10, own(), back).kind is Kind.NOTHING
    assert deciding.look(30, own(), gone).kind is Kind.HOLD_BACK
    assert deciding.look(50, own(), gone).kind is Kind.STAND


def test_a_candidate_that_does_not_begin_is_waited_for_as_long_as_a_silent_primary() -> None:
    deciding = election()
    who = own(promise_epoch=2, promise_candidate="n3")
    others = [primary(Verdict.GONE), without(promise_epoch=2)]
    assert deciding.look(0, who, others).kind is Kind.NOTHING
    assert deciding.look(SILENCE_MS - 1, who, others).kind is Kind.NOTHING
    newer = [primary(Verdict.GONE), without(promise_epoch=3)]
    assert deciding.look(SILENCE_MS, who, newer).kind is Kind.NOTHING
    action = deciding.look(2 * SILENCE_MS, who, newer)
    assert action.kind is Kind.STAND
    assert "nobody has been primary" in action.why


def test_of_nodes_that_are_equally_far_the_preferred_one_comes_first_then_the_first_by_name() -> None:
    others = [primary(Verdict.GONE), without("n3"), without("n4", lsn=99)]
    voting = own(config=Config(FIVE, 2))
    assert candidates_before(voting, others) == []
    assert candidates_before(voting, others, "n3") == ["n3"]
    assert candidates_before(voting, others, "n4") == []
    assert candidates_before(msgspec.structs.replace(voting, node="n5"), others) == ["n3"]


def _stands(deciding: Election, now_ms: int, who: Own, others: list[PeerHealth]) -> bool:
    action: Action = deciding.look(now_ms, who, others)
    return action.kind is Kind.STAND


def _stands_at(deciding: Election, who: Own, others: list[PeerHealth]) -> int:
    return next(ms for ms in range(5_000) if _stands(deciding, ms, who, others))
