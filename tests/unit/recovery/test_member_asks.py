"""A member that is waited for by the primary's server is waited for no longer than was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perdure.recovery import members
from perdure.recovery.member_asks import FOLLOW_MS, Members, MemberService
from perdure.shipping.messages_members import MemberAsk, MemberStep
from perdure.store.errors import NoQuorumError


@pytest.mark.parametrize(
    ("asked_ms", "waited_ms"), [(0, 0), (90, 90), (5 * FOLLOW_MS, FOLLOW_MS), (None, FOLLOW_MS)]
)
def test_the_server_waits_as_long_as_it_is_asked_to_and_a_second_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_ms: int | None, waited_ms: int
) -> None:
    waited: list[int] = []

    def await_following(_store: Path, name: str, *, timeout_ms: int) -> None:
        waited.append(timeout_ms)
        raise NoQuorumError(f"{name} does not follow closely", node=name)

    monkeypatch.setattr(members, "await_following", await_following)
    take = MemberService(tmp_path).handlers()[MemberAsk]
    with pytest.raises(NoQuorumError):
        take(MemberAsk(MemberStep.FOLLOW, "n4", wait_ms=asked_ms), b"")
    assert waited == [waited_ms]


def test_no_step_is_asked_to_wait_beyond_the_time_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    asked: list[int | None] = []

    def ask(_members: Members, question: MemberAsk) -> Any:
        nonlocal now_s
        asked.append(question.wait_ms)
        now_s += (question.wait_ms or 0) / 1000
        raise NoQuorumError("n4 does not follow closely", node="n4")

    monkeypatch.setattr("perdure.recovery.member_asks.time.monotonic", lambda: now_s)
    monkeypatch.setattr(Members, "_ask", ask)
    for timeout_ms, expected in ((250, [250]), (0, [0]), (2500, [1000, 1000, 500])):
        asked.clear()
        with pytest.raises(NoQuorumError, match=f"waited {timeout_ms} ms"):
            Members(tmp_path)._await_following("n4", timeout_ms)
        assert asked == expected
