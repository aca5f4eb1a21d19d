"""One candidacy of a node at a time: an elector does not stand while a switchover has its node promoted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.recovery.candidacy import candidacy, is_candidate
from perdure.recovery.coordinators.quorum import Quorum
from perdure.recovery.election import ElectionOptions
from perdure.recovery.elector import Elector
from perdure.recovery.promote import promote
from perdure.recovery.takeovers import read_takeovers
from perdure.shipping import cut
from perdure.shipping.detection import PeerHealth, Verdict
from perdure.shipping.messages_health import Beat
from perdure.shipping.monitor_pipe import Pipe, Report, pipe_pair
from perdure.shipping.unmonitored import NOBODY
from perdure.store import LockTimeoutError, Promise, StoreMissingError, names, read_promise
from perdure.store.smallfile import publish_small
from tests.recovery.nodes import DirectoryVoters, make_node, make_primary, opened, replicate, write


@pytest.fixture
def nodes(tmp_path: Path) -> dict[str, Path]:
    """A primary a and its replicas b and c."""
    found = {name: tmp_path / name for name in "abc"}
    make_primary(found["a"], "a", list("abc"), 1)
    for name in "bc":
        make_node(found[name], name)
    write(found["a"], 10)
    for name in "bc":
        replicate(found["a"], found[name])
    return found


@pytest.fixture
def elector(nodes: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Elector]:
    """Of node b, which hears that a and c are there, and that a is primary no more."""
    voters = DirectoryVoters({name: nodes[name] for name in "ac"})
    monkeypatch.setattr("perdure.recovery.elector.WireVoters", lambda *_rest, **_named: voters)
    coordinator = Quorum(ElectionOptions(), lambda _most: 0)
    one, other = pipe_pair()
    end_lsn = 11
    beats = [Beat(name, False, 1, end_lsn, 2, "b", "", 0, False, True, "active") for name in "ac"]
    monitor = Pipe(other)
    monitor.send(
        Report(10_000, "", [PeerHealth(beat.node, Verdict.ALIVE, 10, 0, 1, beat) for beat in beats], NOBODY)
    )
    found = Elector(nodes["b"], {}, b"", Pipe(one), coordinator)
    try:
        yield found
    finally:
        found.close()
        monitor.close()


def test_an_elector_does_not_take_the_epoch_from_a_promotion_of_its_own_node(
    nodes: dict[str, Path], elector: Elector
) -> None:
    voters = DirectoryVoters({name: nodes[name] for name in "ac"})
    steps: list[str] = []
    elector._take_all()
    with candidacy(nodes["b"]) as end_turn:

        def on_step(step: str) -> None:
            end_turn(step)
            steps.append(step)
            if step == "begin":  # everybody has promised, and nobody is primary yet
                elector._look()
                elector._look()

        report = promote(nodes["b"], voters, on_step=on_step)
    elector._look()
    assert steps[-2:] == ["begin", "commit"]
    assert report.epoch == 2
    assert read_promise(nodes["b"]) == read_promise(nodes["a"]) == Promise(2, "b")
    with opened(nodes["b"]) as node:
        assert node.log.is_primary
    assert read_takeovers(nodes["b"]).failed == 0


def test_an_elector_stands_once_a_promotion_of_its_node_came_to_nothing(
    nodes: dict[str, Path], elector: Elector
) -> None:
    voters = DirectoryVoters({name: nodes[name] for name in "ac"})

    def on_step(step: str) -> None:
        if step == "begin":
            raise KeyboardInterrupt

    elector._take_all()
    with pytest.raises(KeyboardInterrupt), candidacy(nodes["b"]):
        promote(nodes["b"], voters, on_step=on_step)
    elector._look()
    assert read_promise(nodes["b"]) == Promise(3, "b")
    with opened(nodes["b"]) as node:
        assert node.log.is_primary


def test_a_cut_that_a_promotion_left_when_it_was_killed_does_not_keep_the_node_from_standing(
    nodes: dict[str, Path], elector: Elector
) -> None:
    with opened(nodes["b"]) as node:
        cursor = node.cursor()
        cursor.seek(5)
        plan = cut.CutPlan(*cursor.at.position, committed_lsn=0, folder="a-plan", is_open=True)
        cursor.close()
    publish_small(nodes["b"] / names.CUT_PLAN, cut.MAGIC, cut.VERSION, plan)
    own = elector._own()
    assert not (nodes["b"] / names.CUT_PLAN).exists()
    assert (own.fault, own.epoch, own.lsn) == ("", 1, 5)  # it may stand, and fetches what it lacks


def test_a_candidacy_waits_for_the_one_before_it_until_its_epoch_has_begun(
    nodes: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.recovery.candidacy.TURN_MS", 50)
    with candidacy(nodes["b"]) as end_turn:
        assert is_candidate(nodes["b"])
        end_turn("begin")
        with pytest.raises(LockTimeoutError, match="another promotion of this node"), candidacy(nodes["b"]):
            pass
        end_turn("commit")
        assert not is_candidate(nodes["b"])
        with candidacy(nodes["b"]):
            pass
    assert not is_candidate(nodes["b"])


def test_no_lock_is_left_where_there_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreMissingError), candidacy(tmp_path):
        pass
    assert not (tmp_path / names.CANDIDACY_LOCK).exists()
