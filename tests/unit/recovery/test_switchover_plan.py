"""Who may take over in a switchover, and what is undone when it is broken off: without any process."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from perdure.recovery.switchover import (
    LAG_EVENTS_MAX,
    SwitchoverRefusedError,
    find_primary,
    reasons_against,
    switch_over,
)
from perdure.shipping.messages_switchover import (
    DrainAsk,
    Drained,
    SwitchReply,
    TakeOverAsk,
    TookOver,
    UndrainAsk,
    Undrained,
)
from perdure.store import DivergedError, NotPrimaryError, UsageError, WireError

END = (4, 100, 77, 88, 9)


def reply(node: str, **changes: object) -> SwitchReply:
    whole = SwitchReply(
        node=node,
        is_primary=node == "n1",
        end=END,
        committed_lsn=100,
        folded_lsn=100,
        promise_epoch=4,
        promise_candidate="n1",
        voters=("n1", "n2", "n3"),
        witnesses=(),
        sync_replicas=1,
        drained_ms=0,
        has_shipper=True,
        snapshot_age_ms=1000,
        fault="",
    )
    return msgspec.structs.replace(whole, **changes)


def looks(**changes: object) -> dict[str, SwitchReply]:
    """All three nodes; the changes are of n2."""
    return {"n1": reply("n1"), "n2": reply("n2", **changes), "n3": reply("n3")}


def test_a_fit_target_may_take_over() -> None:
    assert reasons_against("n1", "n2", looks()) == []
    assert reasons_against("n1", "n2", looks(end=(4, 100 - LAG_EVENTS_MAX, 1, 2, 3))) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"fault": "it diverged"}, "it diverged"),
        ({"has_shipper": False}, "no shipper"),
        ({"promise_epoch": 5, "promise_candidate": "n3"}, "promised epoch 5 to n3"),
    ],
)
def test_what_is_wrong_with_the_target_speaks_against_it(change: dict[str, object], told: str) -> None:
    (why,) = reasons_against("n1", "n2", looks(**change))
    assert told in why


def test_a_target_that_is_far_behind_is_not_waited_for() -> None:
    far = {"n1": reply("n1", end=(4, LAG_EVENTS_MAX + 101, 1, 2, 3)), "n2": reply("n2"), "n3": reply("n3")}
    (why,) = reasons_against("n1", "n2", far)
    assert f"lacks {LAG_EVENTS_MAX + 1} events" in why


def test_a_stranger_or_a_witness_cannot_take_over() -> None:
    known = looks()
    known["n1"] = reply("n1", witnesses=("n2",))
    assert "not among the voters that keep the log: n1, n3" in reasons_against("n1", "n2", known)[0]
    known["n1"] = reply("n1", voters=("n1", "n3"))
    assert "not among the voters" in reasons_against("n1", "n2", known)[0]


def test_a_witness_is_named_as_one_although_it_answers_no_such_question() -> None:
    heard = {"n1": reply("n1", witnesses=("n2",)), "n3": reply("n3", witnesses=("n2",))}
    assert reasons_against("n1", "n2", heard) == ["n2 is a witness: it keeps promises, and no log"]


def test_promises_of_a_majority_and_confirmations_must_be_there() -> None:
    five = ("n1", "n2", "n3", "n4", "n5")
    two = {"n1": reply("n1", voters=five), "n2": reply("n2")}
    assert "only 2 of 5 voters answer" in reasons_against("n1", "n2", two)[0]
    three = two | {"n3": reply("n3")}
    assert reasons_against("n1", "n2", three) == []
    three["n1"] = reply("n1", voters=five, sync_replicas=3)
    assert (
        "3 replica(s) must confirm writes, and 2 besides it answer" in reasons_against("n1", "n2", three)[0]
    )


def test_one_switchover_at_a_time() -> None:
    known = looks() | {"n1": reply("n1", drained_ms=500)}
    assert reasons_against("n1", "n2", known) == ["another switchover is under way"]


def test_the_primary_of_the_newest_epoch_hands_over() -> None:
    old = looks(is_primary=True, end=(5, 90, 1, 2, 3))
    assert find_primary(old) == "n2", "n1 has not heard yet that it was relieved"
    with pytest.raises(NotPrimaryError):
        find_primary({"n2": reply("n2")})


class FakeNodes:
    """Three nodes that do as they are told, or raise what a test says."""

    def __init__(self, **fails: BaseException) -> None:
        self.fails = fails
        self.asked: list[str] = []
        self.looks = looks()

    @property
    def names(self) -> Sequence[str]:
        return list(self.looks)

    def look(self, node: str, snapshot_ms: int = 0) -> SwitchReply:
        if snapshot_ms:
            self._note(f"snapshot {node}")
        return self.looks[node]

    def drain(self, node: str, asked: DrainAsk) -> Drained:
        self._note(f"drain {node}")
        return Drained(END, [])

    def undrain(self, node: str, asked: UndrainAsk) -> Undrained:
        self._note(f"undrain {node}")
        return Undrained(True)

    def take_over(self, node: str, asked: TakeOverAsk, timeout_ms: int) -> TookOver:
        self._note(f"take_over {node}")
        self.looks["n1"] = reply("n1", is_primary=node == "n1", end=(5, 102, 1, 88, 9))
        return TookOver(5, (5, 102, 1), END[:3], True, 1, 2)

    def _note(self, what: str) -> None:
        self.asked.append(what)
        error = self.fails.get(what.replace(" ", "_"))
        if error is not None:
            raise error


def test_a_switchover_goes_through_its_steps_in_order() -> None:
    nodes, steps = FakeNodes(), list[str]()
    report = switch_over(nodes, "n2", on_step=steps.append)
    assert nodes.asked == ["snapshot n2", "drain n1", "take_over n2", "undrain n1"]
    assert steps == ["check", "snapshot", "drain", "hand over", "check again"]
    assert (report.node, report.before, report.epoch, report.problems) == ("n2", "n1", 5, ())
    assert (report.sessions, report.digest) == (9, f"{88:016x}")


def test_a_refused_switchover_asks_nobody_for_anything() -> None:
    nodes = FakeNodes()
    nodes.looks["n2"] = reply("n2", fault="it diverged")
    with pytest.raises(SwitchoverRefusedError):
        switch_over(nodes, "n2")
    with pytest.raises(UsageError):
        switch_over(nodes, "n9")
    assert nodes.asked == []
    assert switch_over(nodes, "n1").was_primary


@pytest.mark.parametrize(
    ("at", "error"),
    [
        ("drain_n1", WireError("no answer")),
        ("drain_n1", KeyboardInterrupt()),
        ("take_over_n2", DivergedError("other sessions")),
        ("take_over_n2", WireError("no answer")),
        ("take_over_n2", KeyboardInterrupt()),
    ],
)
def test_what_fails_before_the_epoch_has_begun_lets_the_writers_go_on(at: str, error: BaseException) -> None:
    nodes = FakeNodes(**{at: error})
    with pytest.raises(type(error)):
        switch_over(nodes, "n2")
    assert nodes.asked[-1] == "undrain n1"


def test_where_promises_were_given_for_nothing_the_old_primary_begins_an_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("perdure.recovery.switchover.UNDO_MS", 0)
    nodes = FakeNodes(take_over_n2=DivergedError("in the middle"))
    nodes.looks["n3"] = reply("n3", promise_epoch=5, promise_candidate="n2")
    with pytest.raises(DivergedError):
        switch_over(nodes, "n2")
    assert nodes.asked[-2:] == ["undrain n1", "take_over n1"]


def test_what_cannot_be_undone_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.recovery.switchover.UNDO_MS", 0)
    nodes = FakeNodes(take_over_n2=WireError("no answer"), take_over_n1=DivergedError("n2 may have begun it"))
    nodes.looks["n3"] = reply("n3", promise_epoch=5, promise_candidate="n2")
    with pytest.raises(WireError) as caught:
        switch_over(nodes, "n2")
    assert "n1 could not go on either (n2 may have begun it)" in caught.value.hint


def test_an_answer_that_was_lost_is_looked_for() -> None:
    nodes = FakeNodes(take_over_n2=WireError("no answer"))

    def look(node: str, snapshot_ms: int = 0) -> SwitchReply:
        if node == "n2" and "take_over n2" in nodes.asked:
            return reply("n2", is_primary=True, end=(5, 102, 1, 88, 9), committed_lsn=102)
        if node == "n1" and "take_over n2" in nodes.asked:
            return reply("n1", is_primary=False, end=(5, 102, 1, 88, 9))
        return nodes.looks[node]

    nodes.look = look  # type: ignore[method-assign]
    report = switch_over(nodes, "n2")
    assert (report.node, report.epoch, report.is_committed) == ("n2", 5, True)
