"""Promotion over the network: real receivers answer for the voters, the candidate's own one runs on."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.recovery import PromotionRefusedError, promote
from perdure.shipping import spawn_receiver
from perdure.store import NoQuorumError, Promise, init_store, read_promise
from tests.recovery.nodes import make_node, make_primary, replicate, write

SECRET = b"0123456789abcdef-secret"


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
    with (
        spawn_receiver(at["b"], secret=SECRET) as winner,
        pytest.raises(PromotionRefusedError, match="b is further"),
    ):
        promote(at["c"], {"b": ("127.0.0.1", winner.port)}, SECRET)


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
