"""Whole nodes elect a new primary by themselves; people can ask for one, and can say that nobody is to."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from perdure.recovery import read_takeovers
from perdure.store import PerdureError
from tests.cluster.elections import NODES, Nodes, family, until

pytestmark = [pytest.mark.xdist_group("elections"), pytest.mark.timeout(400)]

STALL_MS = 10_000
FAILOVER = f"disk_stall_ms = {STALL_MS}\nsilence_ms = 5000"
"""A primary that is killed is known to be gone without any silence; a new one has time to begin."""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """One cluster for all tests of this module: each finds who is primary, and leaves all nodes running."""
    found = Nodes(tmp_path_factory.mktemp("nodes"), failover=FAILOVER)
    try:
        for node in NODES:
            found.start(node)
        yield found
    finally:
        found.end()


@pytest.fixture
def primary(nodes: Nodes) -> str:
    until(nodes.is_well, "all nodes are well")
    return nodes.primary()


def sockets_of(pid: int) -> set[str]:
    """The sockets that a process has open, by inode."""
    found: set[str] = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return {link for link in found if link.startswith("socket:")}


def is_a_monitor(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text() == "perdure-monitor\n"


def test_a_primary_that_is_killed_is_replaced_and_comes_back_as_a_replica(nodes: Nodes, primary: str) -> None:
    kept = [nodes.write({"n": number}) for number in range(20)]
    epoch = nodes.epoch()
    nodes.kill(primary)
    killed_s = time.monotonic()
    kept.append(nodes.write({"n": "after"}))
    assert time.monotonic() - killed_s < 30  # a second where the machine has time; see the figures of bench
    after = nodes.primary()
    assert after != primary
    assert nodes.epoch() > epoch
    until(lambda: read_takeovers(nodes.root / after).newest, "the takeover is written down")
    last = read_takeovers(nodes.root / after).newest[-1]
    assert (last.before, last.epoch) == (primary, nodes.epoch())
    assert "refuses a new one" in last.why
    until(
        lambda: (nodes.health(after).get("last_takeover") or {}).get("recovery_ms") == last.recovery_ms,
        "the monitor of the new primary tells what is written down",
    )
    until(lambda: nodes.row(after, primary).get("verdict") == "gone", "its monitor refuses a connection")

    nodes.start(primary)
    until(nodes.is_well, "the old primary follows")
    assert nodes.primary() == after
    store = nodes.store(after)
    assert all(store.peek(id) is not None for id in kept)


@pytest.mark.lab
def test_a_node_that_is_not_monitored_is_not_replaced_until_it_is_again(nodes: Nodes, primary: str) -> None:
    other = next(node for node in NODES if node != primary)
    third = next(node for node in NODES if node not in (primary, other))
    assert nodes.command("unmonitor", other, primary)[1]["unmonitored"] == [primary]
    until(lambda: not nodes.row(third, primary)["is_monitored"], "all have heard of it")
    epoch = nodes.epoch()
    nodes.kill(primary)
    until(lambda: "not monitored" in nodes.health(third)["elector"], "its elector sees it, and does nothing")
    assert nodes.epoch() == epoch
    until(lambda: nodes.health(other).get("state") == "failover", "the others tell of it")

    assert nodes.command("monitor", third, primary)[1]["unmonitored"] == []
    until(lambda: nodes.primary() not in ("", primary), "a new primary")
    assert nodes.epoch() > epoch
    nodes.start(primary)


def test_a_person_says_who_takes_over_and_who_is_taken_out(nodes: Nodes, primary: str) -> None:
    other, third = (node for node in NODES if node != primary)
    code, said = nodes.command("failover", other, "--to", third)
    assert (code, said["node"], said["before"], said["was_primary"]) == (0, third, primary, False)
    assert nodes.primary() == third
    nodes.write({"n": "third"})
    until(nodes.is_well, "all follow")

    code, said = nodes.command("failover", other, "--from", primary)
    assert code == 2
    code, said = nodes.command("failover", primary, "--from", third)
    assert code == 0, said
    assert said["node"] in {primary, other}
    assert nodes.primary() == said["node"]
    code, again = nodes.command("failover", primary, "--to", said["node"])
    assert (code, again["was_primary"], again["epoch"]) == (0, True, said["epoch"])
    nodes.write({"n": "out"})


@pytest.mark.lab
def test_a_monitor_that_dies_alone_is_started_again_and_nobody_is_replaced(
    nodes: Nodes, primary: str
) -> None:
    epoch, other = nodes.epoch(), next(node for node in NODES if node != primary)
    supervisor = nodes.running[primary].pid
    held = sockets_of(supervisor)
    monitors = [pid for pid in family(supervisor)[1:] if is_a_monitor(pid) and held & sockets_of(pid)]
    assert len(monitors) == 1
    until(lambda: "last_seen_ms" in nodes.row(other, primary), "it is heard")
    seen_ms = nodes.row(other, primary).get("last_seen_ms", 0)
    os.kill(monitors[0], signal.SIGKILL)
    until(lambda: nodes.row(other, primary).get("last_seen_ms", 0) > seen_ms + 1_000, "it is heard again")
    until(nodes.is_well, "all is well")
    assert (nodes.primary(), nodes.epoch()) == (primary, epoch)


def test_a_primary_whose_disk_hangs_gives_up_and_is_replaced(nodes: Nodes, primary: str) -> None:
    epoch = nodes.epoch()
    probe = nodes.root / primary / "probe"
    pipe = nodes.root / "pipe"
    os.mkfifo(pipe)
    os.replace(pipe, probe)  # whoever opens it for writing hangs there, as on a disk that does not answer
    try:
        until(lambda: nodes.primary() not in ("", primary), "a new primary")
        assert nodes.epoch() > epoch
        until(lambda: nodes.row(primary, primary).get("is_failing"), "it says that it fails")
        with pytest.raises(PerdureError):
            nodes.store(primary).create({"n": "too late"})
        nodes.write({"n": "elsewhere"})
    finally:
        with open(probe, "rb"):  # lets the one that hangs go on
            probe.unlink()
    until(nodes.is_well, "its disk answers again, and it follows")
    assert nodes.primary() != primary


def test_a_node_without_a_directory_or_one_named_store_is_refused(tmp_path: Path) -> None:
    from tests.cli.runner import run_json

    (tmp_path / "none.toml").write_text("[node]\nlisten = '127.0.0.1:7001'\n")
    said = run_json("node", "--config", tmp_path / "none.toml", code=2)
    assert "named store" in said["error"]["message"]
