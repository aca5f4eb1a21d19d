"""A submission that its sender has given up is never carried out, however late it comes."""

from __future__ import annotations

import threading

import pytest

from perdure.shipping import forward_service
from perdure.shipping.forward_service import Submissions
from perdure.store import WireError

ONE = bytes(16)


def test_a_submission_that_was_given_up_does_not_begin() -> None:
    submissions = Submissions()
    submissions.give_up(ONE, 2, 0)
    for attempt in (1, 2):
        with pytest.raises(WireError), submissions.working(ONE, attempt):
            pytest.fail("it began")
    with submissions.working(ONE, 3):
        pass
    with submissions.working(bytes(15) + b"x", 1):
        pass


def test_giving_up_waits_for_the_submission_that_is_at_work() -> None:
    submissions = Submissions()
    begun, ended = threading.Event(), threading.Event()
    order: list[str] = []

    def work() -> None:
        with submissions.working(ONE, 1):
            begun.set()
            ended.wait(10)
            order.append("worked")

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(10)
    with pytest.raises(WireError):
        submissions.give_up(ONE, 1, 10)
    ended.set()
    submissions.give_up(ONE, 1, 10_000)
    order.append("given up")
    thread.join(10)
    assert order == ["worked", "given up"]


def test_an_operation_is_at_work_once() -> None:
    submissions = Submissions()
    with submissions.working(ONE, 1), pytest.raises(WireError), submissions.working(ONE, 2):
        pytest.fail("it began")


def test_what_was_given_up_is_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_service, "GIVEN_UP_MAX", 3)
    submissions = Submissions()
    for number in range(10):
        submissions.give_up(bytes([number]) * 16, 1, 0)
    assert len(submissions._given_up) == 3
    with pytest.raises(WireError), submissions.working(bytes([9]) * 16, 1):
        pytest.fail("it began")
