"""Two nodes and a witness as a person runs them: a primary that goes on alone, and one that is replaced."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.recovery import list_members
from perdure.store import PerdureError, SessionStore
from perdure.store.witness import read_witness
from tests.cli.runner import process, run, run_json
from tests.support.ports import free_ports

pytestmark = pytest.mark.xdist_group("demo")

ALONE_AFTER_MS = 3_000
PATIENCE_S = 90.0
HOST = "127.0.0.1"


def until(is_so: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end, f"waited {PATIENCE_S} s for {what}"
        time.sleep(0.05)


class Pair:
    """n1 and n2 as `perdure node`, w as `perdure witness`; where they are stands in the log."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.secret = root / "secret"
        self.secret.write_text("a secret that all nodes share")
        self.ports = dict(zip(("n1", "n2", "w"), free_ports(3, in_a_row=3), strict=True))
        self.running: dict[str, subprocess.Popen[str]] = {}
        members = [word for name in self.ports for word in ("--member", f"{name}={HOST}:{self.ports[name]}")]
        made = run_json(
            *("init", root / "n1", "--node", "n1", "--primary", "--voter", "n1", "--voter", "n2"),
            *("--witness", "w", "--policy", "available", *members),
        )
        run_json("init", root / "n2", "--node", "n2", "--cluster-id", made["cluster_id"])
        said = run_json("init", root / "w", "--node", "w", "--witness-of", made["cluster_id"])
        assert said["is_witness"]

    def start(self, name: str) -> None:
        kind = ("witness",) if name == "w" else ("node",)
        more = () if name == "w" else ("--coordinator", "quorum")
        place = f"{HOST}:{self.ports[name]}"
        words = (self.root / name, "--listen", place, "--secret-file", self.secret, "--json", *more)
        self.running[name] = process(*kind, *words)
        stdout = self.running[name].stdout
        assert stdout is not None
        assert json.loads(stdout.readline())["listening"] == place

    def kill(self, name: str) -> None:
        running = self.running.pop(name)
        running.kill()
        running.communicate(timeout=PATIENCE_S)

    def members(self, name: str) -> dict[str, Any]:
        return run_json("member", "list", self.root / name)

    def end(self) -> None:
        for running in self.running.values():
            running.send_signal(signal.SIGTERM)
        for running in self.running.values():
            with suppress(subprocess.TimeoutExpired):
                running.communicate(timeout=PATIENCE_S)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    found = Pair(tmp_path)
    try:
        yield found
    finally:
        found.end()


def test_either_of_two_nodes_may_be_lost_and_no_acknowledged_write_is(pair: Pair) -> None:
    (pair.root / "n1" / "perdure.toml").write_text(f"[failover]\nalone_after_ms = {ALONE_AFTER_MS}\n")
    for name in ("w", "n1", "n2"):
        pair.start(name)
    until(lambda: "n2" in pair.members("n1")["streaming"], "n2 follows")
    with perdure.open(pair.root / "n1", create=False, write_timeout_ms=60_000) as store:
        kept = [store.create({"n": number}) for number in range(10)]
        # A start that takes long has the primary go on alone as well.
        until(lambda: list_members(pair.root / "n1").degraded_from == 0, "n2 is needed again")
        # Who decides about going alone looks now and then: it asks the witness once it has seen n2.
        until(lambda: read_witness(pair.root / "w").promise.candidate == "n1", "n1 knows that n2 follows")
        until(lambda: set(read_witness(pair.root / "w").in_sync.nodes) != {"n1"}, "w knows it, too")
        began = time.monotonic()
        pair.running["n2"].kill()
        until(lambda: list_members(pair.root / "n1").degraded_from == 1, "n1 goes on alone")
        assert time.monotonic() - began > ALONE_AFTER_MS / 1000
        pair.kill("n2")
        kept += [store.create({"n": number, "alone": True}) for number in range(5)]
        assert read_witness(pair.root / "w").in_sync.nodes == ("n1",)
        pair.start("n2")
        until(lambda: pair.members("n1")["degraded_from"] == 0, "n1 waits for n2 again")
        until(lambda: set(read_witness(pair.root / "w").in_sync.nodes) == {"n1", "n2"}, "w is told")
        kept += [store.create({"n": "both"})]
    pair.kill("n1")
    until(lambda: pair.members("n2")["role"] == "primary", "n2 takes over by itself")
    with perdure.open(pair.root / "n2", create=False, write_timeout_ms=60_000) as store:
        until(lambda: _wrote(store), "n2 goes on alone")  # the last of them may be committed by that alone
        assert [id for id in kept if store.peek(id) is None] == []
    assert read_witness(pair.root / "w").in_sync.nodes == ("n2",)


def _wrote(store: SessionStore) -> bool:
    try:
        store.create({"n": "after"})
    except PerdureError:
        return False
    return True


def test_a_witness_is_no_store_and_is_not_made_twice(pair: Pair) -> None:
    identity = read_witness(pair.root / "w").cluster_id.hex()
    again = ("init", pair.root / "w", "--node", "w", "--witness-of", identity)
    assert run(*again).exit_code == 2
    assert run("init", pair.root / "x", "--node", "x", "--witness-of", "abc").exit_code == 2
    assert run(*again, "--primary").exit_code == 2
    said = run_json("status", pair.root / "w", code=5)["error"]
    assert "here is a witness" in said["message"] and "perdure init" not in said["hint"]
    assert run("witness", pair.root / "n1", "--listen", f"{HOST}:0").exit_code != 0
