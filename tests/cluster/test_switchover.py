"""Switchovers of real processes: writers wait for a moment, nothing is lost, each step can be broken off."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from perdure.recovery import SwitchoverRefusedError, add_member
from perdure.store import DivergedError
from perdure.store.page import Word
from tests.cluster.nodes import HOST
from tests.cluster.switching import Switching, switching
from tests.cluster.test_shipping_faults import lose_silently


@pytest.mark.parametrize(("nodes", "k"), [(3, 1), (2, 1), (2, 0)])
def test_nothing_is_lost_by_switchovers_under_load(tmp_path: Path, nodes: int, k: int) -> None:
    with switching(tmp_path, nodes, sync_replicas=k) as cluster:
        cluster.start()
        names = cluster.cluster.names
        cluster.begin_writing(2)
        pauses: list[int] = []
        for round_ in range(10 if nodes == 3 else 4):
            report = cluster.to(names[(round_ + 1) % nodes], timeout_ms=20_000)
            assert report.problems == ()
            assert report.is_committed
            assert report.epoch == round_ + 2
            pauses.append(report.pause_ms)
            cluster.await_writes()
        ids, gaps = cluster.stop_writing()
        print(f"pauses_ms={pauses} longest_gaps_ms={gaps} acknowledged={len(ids)}")
        assert len(ids) > 10 * len(pauses)
        cluster.check(ids)


def test_what_speaks_against_a_target_is_said_and_nothing_is_changed(tmp_path: Path) -> None:
    with switching(tmp_path, 3) as cluster:
        cluster.start()
        nodes = cluster.cluster
        with nodes.open("n1", write_timeout_ms=20_000) as store:
            store.create({})
            nodes.kill("shipper:n3")
            with pytest.raises(SwitchoverRefusedError, match="no shipper waits there"):
                cluster.to("n3")
            nodes.kill("receiver:n2")
            with pytest.raises(SwitchoverRefusedError) as refused:
                cluster.to("n2")
            assert refused.value.reasons == ("n2 does not answer",)
            store.create({})
        assert cluster.primary() == "n1"
        report = cluster.to("n1")
        assert (report.was_primary, report.epoch) == (True, 1)


def test_promises_are_gathered_where_the_log_says_that_the_members_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, dead = socket.create_server((HOST, 0)), socket.create_server((HOST, 0))
    stale = {"n1": closed.getsockname()[1], "n2": dead.getsockname()[1], "n9": 1}
    closed.close()
    dead.close()
    monkeypatch.setattr(Switching, "configured", lambda _self: stale)
    with switching(tmp_path, 2) as cluster:
        cluster.start()
        nodes = cluster.cluster
        with nodes.open("n1", write_timeout_ms=20_000) as store:
            store.create({})
        for name in ("n1", "n2"):
            add_member(nodes.path("n1"), name, f"{HOST}:{nodes.ports[name]}")
        report = cluster.to("n2")
        assert (report.node, report.problems, report.is_committed) == ("n2", (), True)


class BreaksOff(Exception):
    """What a test raises in the middle of a switchover, as Ctrl-C would."""


@pytest.mark.parametrize("at", ["snapshot", "drain", "hand over"])
def test_a_switchover_that_is_broken_off_lets_the_writers_go_on(tmp_path: Path, at: str) -> None:
    def step(name: str) -> None:
        if name == at:
            raise BreaksOff

    with switching(tmp_path, 2) as cluster:
        cluster.start()
        with cluster.cluster.open("n1", write_timeout_ms=20_000) as store:
            store.create({})
            with pytest.raises(BreaksOff):
                cluster.to("n2", timeout_ms=60_000, on_step=step)
            began = time.monotonic()
            store.create({})
            assert time.monotonic() - began < 15, "nobody waits for the drain's deadline"
        assert cluster.primary() == "n1"
        assert cluster.to("n2").problems == ()


def test_a_target_with_other_sessions_does_not_take_over(tmp_path: Path) -> None:
    with switching(tmp_path, 2) as cluster:
        cluster.start()
        nodes = cluster.cluster
        with nodes.open("n1", write_timeout_ms=20_000) as store:
            ids = [store.create({"n": number}) for number in range(5)]
            store.fold()
            nodes.wait_applied(nodes.word("n1", Word.APPENDED), "n2")
            for id in ids:
                lose_silently(nodes, "n2", id)
            with pytest.raises(DivergedError, match="sampled sessions"):
                cluster.to("n2", snapshot_ms=0)
            store.create({})
        assert cluster.primary() == "n1"
