"""Finding the primary while nodes are silent, slow, or in the middle of an election."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping

import pytest

from perdure.shipping import finding
from perdure.shipping.finding import Search
from perdure.shipping.messages import StatusReply
from perdure.store import NotPrimaryError, WireError

PATIENT_MS = 60_000
"""Longer than the test may take: who waits for a silent node fails by its time-out."""
Says = Callable[[], StatusReply]


def says(node: str, role: str, epoch: int) -> StatusReply:
    return StatusReply(node, 0, role, (epoch, 1, 1), 1, 1, epoch, "n9", ("n1",), 1, 1, "n9", 0, "", 1)


@pytest.fixture
def silence() -> Iterator[threading.Event]:
    """Set when the test ends: then the silent nodes give up."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Says]:
    """What each node answers; to be filled by the test."""
    answers: dict[str, Says] = {}

    class Client:
        def __init__(self, _host: str, _port: int, *, node: str, **_: object) -> None:
            self._node = node

        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None: ...

        def status(self) -> StatusReply:
            return answers[self._node]()

    monkeypatch.setattr(finding, "NodeClient", Client)
    return answers


def search(
    nodes: Mapping[str, Says], *, timeout_ms: int = PATIENT_MS, is_over: Callable[[], bool] = lambda: False
) -> tuple[str, int]:
    addresses = dict.fromkeys(nodes, ("127.0.0.1", 1))
    node, status = Search(addresses, bytes(16), b"", timeout_ms, is_over).run()
    return node, status.end[0]


def silent(silence: threading.Event) -> Says:
    def wait() -> StatusReply:
        silence.wait()
        raise WireError("it gave up")

    return wait


@pytest.mark.timeout(20)
def test_a_primary_that_is_elected_while_another_node_is_silent_is_found(
    nodes: dict[str, Says], silence: threading.Event
) -> None:
    asked: list[int] = []

    def elected_later() -> StatusReply:
        asked.append(1)
        return says("n3", "primary" if len(asked) > 3 else "replica", 2)

    nodes.update(n2=silent(silence), n3=elected_later)
    assert search(nodes) == ("n3", 2)
    assert len(asked) == 4


def test_the_primary_of_the_highest_epoch_is_taken(
    nodes: dict[str, Says], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "OTHERS_S", 60.0)  # both answer in it, however busy the machine is
    newer = threading.Event()

    def old() -> StatusReply:
        newer.set()
        return says("n1", "primary", 1)

    def new() -> StatusReply:
        newer.wait()
        return says("n3", "primary", 2)

    nodes.update(n1=old, n3=new)
    assert search(nodes) == ("n3", 2)


@pytest.mark.timeout(20)
def test_once_there_is_a_primary_a_silent_node_is_not_waited_for(
    nodes: dict[str, Says], silence: threading.Event
) -> None:
    nodes.update(n1=lambda: says("n1", "primary", 1), n2=silent(silence))
    assert search(nodes) == ("n1", 1)


def test_what_was_answered_in_time_counts_however_late_it_is_looked_at(
    nodes: dict[str, Says], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "OTHERS_S", 0.0)  # over as soon as the first answer was looked at
    found = Search(dict.fromkeys(("n1", "n3"), ("127.0.0.1", 1)), bytes(16), b"", PATIENT_MS, lambda: False)
    answers = found._answers

    def wait_for_answers(count: int) -> None:
        deadline = time.monotonic() + PATIENT_MS / 1000
        while answers.qsize() < count:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    class Held:
        """Nobody looks before both have answered."""

        put = staticmethod(answers.put)
        get_nowait = staticmethod(answers.get_nowait)

        @staticmethod
        def get(timeout: float) -> object:
            wait_for_answers(2)
            return answers.get(timeout=timeout)

    monkeypatch.setattr(found, "_answers", Held)

    def newer() -> StatusReply:
        wait_for_answers(1)  # the older one is looked at first
        return says("n3", "primary", 2)

    nodes.update(n1=lambda: says("n1", "primary", 1), n3=newer)
    assert found.run()[0] == "n3"


@pytest.mark.timeout(20)
def test_a_node_that_may_be_the_primary_itself_does_not_wait_for_a_silent_one(
    nodes: dict[str, Says], silence: threading.Event
) -> None:
    nodes.update(n2=silent(silence), n3=lambda: says("n3", "replica", 2))
    with pytest.raises(NotPrimaryError, match="no node says that it is the primary"):
        search(nodes, is_over=lambda: True)


def test_nobody_is_asked_again_where_all_have_answered(
    nodes: dict[str, Says], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "AGAIN_S", 5.0)  # a thread that is held up is not silent for so long
    asked: list[str] = []

    def replica() -> StatusReply:
        asked.append("n2")
        return says("n2", "replica", 1)

    def gone() -> StatusReply:
        asked.append("n3")
        raise WireError("refused")

    nodes.update(n2=replica, n3=gone)
    with pytest.raises(NotPrimaryError, match="refused"):
        search(nodes)
    assert sorted(asked) == ["n2", "n3"]


@pytest.mark.timeout(20)
def test_the_search_ends_with_its_time(nodes: dict[str, Says], silence: threading.Event) -> None:
    nodes.update(n2=silent(silence))
    with pytest.raises(NotPrimaryError):
        search(nodes, timeout_ms=1)
