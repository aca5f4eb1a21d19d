"""Promotion over the network: real receivers answer for the voters, the candidate's own one runs on."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path

import pytest

from perdure.recovery import promote
from perdure.recovery.voters import WireVoters
from perdure.shipping import spawn_receiver
from perdure.shipping.asking import NodeClient
from perdure.store import NoQuorumError, Position, Promise, UsageError, init_store, read_promise
from perdure.store.promise import give_promise
from tests.recovery.nodes import CLUSTER, DirectoryVoters, make_node, make_primary, replicate, write

SECRET = b"0123456789abcdef-secret"
promote_module = importlib.import_module(
    "perdure.recovery.promote"
)  # its name in the package is the function


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs here answers, however busy the machine is; who does not run refuses at once."""
    monkeypatch.setattr(promote_module, "WireVoters", partial(WireVoters, timeout_ms=60_000))


def cluster(folder: Path) -> dict[str, Path]:
    at = {name: folder / name for name in "abc"}
    make_primary(at["a"], "a", "abc", 1)
    write(at["a"], 5)
    for name in "bc":
        make_node(at[name], name)
        replicate(at["a"], at[name])
    return at


def test_with_receivers_running_on_both_replicas_the_candidate_is_promoted(tmp_path: Path) -> None:
    at = cluster(tmp_path)
    with spawn_receiver(at["b"], secret=SECRET), spawn_receiver(at["c"], secret=SECRET) as other:
        peers = {"c": ("127.0.0.1", other.port), "a": ("127.0.0.1", 1)}
        report = promote(at["b"], peers, SECRET)
        assert (report.epoch, report.promisers, report.unheard) == (2, ("c",), ("a",))
        assert read_promise(at["c"]) == Promise(2, "b")
        assert promote(at["b"], peers, SECRET).was_primary
    with spawn_receiver(at["b"], secret=SECRET) as winner:
        report = promote(at["c"], {"b": ("127.0.0.1", winner.port)}, SECRET)
        assert (report.epoch, report.fetched_from, report.fetched_events) == (3, ("b",), 2)


def test_a_candidate_that_cuts_and_fetches_while_its_receiver_runs_is_what_its_receiver_then_tells(
    tmp_path: Path,
) -> None:
    at = cluster(tmp_path)
    shared = replicate(at["a"], at["b"])
    write(at["a"], 4)
    promote(at["b"], DirectoryVoters({"c": at["c"]}))
    give_promise(at["a"], Promise(2, "b"))
    write(at["b"], 30, prefix="b")
    end = replicate(at["b"], at["c"])
    with spawn_receiver(at["a"], secret=SECRET) as own, spawn_receiver(at["c"], secret=SECRET) as other:
        client = NodeClient("127.0.0.1", own.port, cluster_id=CLUSTER, secret=SECRET)
        assert client.status().end[1] == shared.lsn + 4
        report = promote(at["a"], {"c": ("127.0.0.1", other.port)}, SECRET)
        assert (report.cut_from, report.before) == (shared.lsn + 1, end)
        status = client.status()
        client.close()
    assert (status.role, Position(*status.end)) == ("primary", report.start)


def test_a_secret_that_will_not_do_is_said_and_no_voter_is_blamed(tmp_path: Path) -> None:
    at = cluster(tmp_path)
    with pytest.raises(UsageError, match="secret"):
        promote(at["b"], {"c": ("127.0.0.1", 1)}, b"short")
    assert read_promise(at["b"]).epoch == 1


def test_a_wrong_secret_another_cluster_and_a_wrong_address_count_for_nothing(tmp_path: Path) -> None:
    at = cluster(tmp_path)
    init_store(tmp_path / "x", node="c", now_ms=0)
    for store, secret, why in (
        (at["c"], b"another secret, as long", "c: .*closed the connection"),
        (tmp_path / "x", SECRET, "another cluster"),
        (at["a"], SECRET, "is node a, not c"),
    ):
        with spawn_receiver(store, secret=secret) as other, pytest.raises(NoQuorumError, match=why):
            promote(at["b"], {"c": ("127.0.0.1", other.port)}, SECRET)
    assert read_promise(at["c"]).epoch == 1
