"""A replica whose log is damaged is made anew by the primary, and vouches for nothing before it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import perdure
from perdure.recovery import PromotionRefusedError, Reach, promote, rebuild_log, rejoin, take_snapshot
from perdure.recovery.rebuild_log import reason_against
from perdure.shipping import NodeClient, serve_receiver
from perdure.shipping.messages import StatusReply
from perdure.shipping.nodelog import is_running
from perdure.shipping.rebuild import (
    Rebuilding,
    keep_floor,
    note_log_fault,
    read_log_fault,
    read_rebuild,
    why_unfit,
)
from perdure.store import (
    Config,
    CorruptError,
    NotPrimaryError,
    SessionStore,
    StaleReadError,
    names,
)
from perdure.store.cursor import list_segments
from tests.cluster.nodes import CLUSTER, HOST, SECRET, Cluster, cluster_of, until


def flip(store: Path, *, segment: int = -1) -> Path:
    """Flip a byte within the frames of a segment; answers which file."""
    path = Path(list_segments(names.log_path(store))[segment].path)
    data = bytearray(path.read_bytes())
    data[(256 + len(data)) // 2] ^= 0x40
    path.write_bytes(data)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Cluster]:
    """n1 with k = 1, and n2, which is down with a damaged log and a state that was lost."""
    with cluster_of(tmp_path, 2, sync_replicas=1) as cluster:
        cluster.serve_here("n2")
        cluster.fold_here("n2")
        ship(cluster)
        with cluster.open("n1") as store:
            for number in range(50):
                store.create({"n": number})
        until(lambda: cluster.end("n2") == cluster.end("n1"), "n2 has everything")
        for stopping, future in (cluster._here[0], cluster._here[1]):
            stopping.set()
            future.result(30)
        mark = names.log_path(cluster.path("n2")) / names.MARK
        (cluster.path("n2") / names.CONTROL_PAGE).unlink()  # as after a power cut
        assert mark.exists()
        flip(cluster.path("n2"))
        yield cluster


def ship(cluster: Cluster) -> None:
    cluster.ship_here("n1", make_snapshot=lambda: take_snapshot(cluster.path("n1")).path)


def reach(cluster: Cluster) -> Reach:
    return Reach({"n1": (HOST, cluster.ports["n1"])}, SECRET)


def begin(cluster: Cluster, name: str) -> None:
    """Try to start a receiver, which finds the damage."""
    with pytest.raises(CorruptError) as caught:
        serve_receiver(cluster.path(name), HOST, 0, secret=SECRET)
    assert "--anew" in caught.value.hint


def test_a_damaged_log_is_made_anew_and_vouches_for_nothing_until_it_is_whole(pair: Cluster) -> None:
    two = pair.path("n2")
    begin(pair, "n2")
    assert "damaged" in why_unfit(two)
    with pytest.raises(NotPrimaryError, match="no other node that answers"):
        rebuild_log(two, reach_of_nobody())
    assert list_segments(names.log_path(two))  # nothing was changed

    pair.serve_here("n1")
    before = {file.path.name: Path(file.path).read_bytes() for file in list_segments(names.log_path(two))}
    assert "n1 makes the log anew" in rebuild_log(two, reach(pair))
    kept = two / names.ASIDE / "damaged-log"
    assert {name: (kept / name).read_bytes() for name in before} == before
    assert not list_segments(names.log_path(two))
    assert not read_log_fault(two)
    assert "made anew" in why_unfit(two)
    with pytest.raises(StaleReadError):
        perdure.open(two)
    with SessionStore.open(two, create=False) as empty, pytest.raises(NotPrimaryError):
        empty.create({})
    with pytest.raises(PromotionRefusedError, match="made anew"):
        promote(two, {"n1": (HOST, pair.ports["n1"])}, SECRET)
    assert rebuild_log(two, reach(pair)) == ""

    pair.serve_here("n2")
    pair.fold_here("n2")
    until(lambda: read_rebuild(two) is None, "its log is whole again")
    assert why_unfit(two) == ""
    until(lambda: pair.end("n2") == pair.end("n1"), "n2 follows")
    with pair.open("n1") as store:
        store.create({"n": "after"})
        wanted = store.stats()["digest"]
    until(lambda: digest(two) == wanted, "n2 has the same sessions")


def digest(store: Path) -> str:
    with SessionStore.open(store, create=False) as opened:
        return str(opened.stats()["digest"])


def reach_of_nobody() -> Reach:
    return Reach({"n1": (HOST, 1)}, SECRET)


def test_a_node_that_rejoins_by_command_only_is_made_anew_by_it(pair: Cluster) -> None:
    two = pair.path("n2")
    begin(pair, "n2")
    pair.serve_here("n1")
    peers = {"n1": (HOST, pair.ports["n1"])}
    waiting = pair._threads.submit(rejoin, two, peers, SECRET, anew=True)

    def is_out_of_the_way() -> bool:
        found = read_rebuild(two)
        return found is not None and not found.folder and not is_running(two, names.RECEIVER_LOCK)

    until(is_out_of_the_way, "the damaged log is out of the way")
    pair.serve_here("n2", rejoin="manual")
    report = waiting.result(30)
    assert (report.way, report.is_done) == ("bootstrap", True)
    until(lambda: why_unfit(two) == "", "its log is whole again")


def test_a_promise_of_a_node_that_is_made_anew_says_so(pair: Cluster) -> None:
    two = pair.path("n2")
    begin(pair, "n2")
    pair.serve_here("n1")
    rebuild_log(two, reach(pair))
    shipper = next(i for i, (_, future) in enumerate(pair._here) if not future.done())
    stopping, ended = pair._here.pop(shipper)
    stopping.set()
    ended.result(30)
    pair.serve_here("n2")
    with NodeClient(HOST, pair.ports["n2"], cluster_id=CLUSTER, secret=SECRET) as client:
        assert "short of what it acknowledged" in client.status().fault


def test_a_receiver_that_runs_lets_the_primary_replace_the_log(tmp_path: Path) -> None:
    with cluster_of(tmp_path, 2, sync_replicas=1) as cluster:
        cluster.serve_here("n1", "n2")
        ship(cluster)
        two = cluster.path("n2")
        with cluster.open("n1") as store:
            kept = [store.create({"n": number}) for number in range(20)]
            until(lambda: cluster.slot_state("n1", "n2")[0] == "streaming", "n2 follows")
            error = CorruptError("a frame fails its check", path=flip(two), lsn=3)
            assert note_log_fault(two, error, 1)
            assert "n1 replaces the log" in rebuild_log(two, reach(cluster))
            until(lambda: not read_log_fault(two), "the log was replaced")
            until(lambda: not why_unfit(two), "it is whole again")
            assert list((two / names.ASIDE).glob("replaced-*/*.seg"))
            kept.append(store.create({"n": "after"}))
            until(lambda: cluster.end("n2") == cluster.end("n1"), "n2 follows")


def test_other_damage_is_not_taken_for_the_logs(tmp_path: Path) -> None:
    assert not note_log_fault(tmp_path, CorruptError("x", path=tmp_path / names.PROMISE), 1)
    assert not note_log_fault(tmp_path, CorruptError("x"), 1)
    assert read_log_fault(tmp_path) == ""


def test_the_floor_is_where_the_first_primarys_log_ends_and_ends_the_rebuild(tmp_path: Path) -> None:
    keep_floor(tmp_path, "why", 0, 0, 1)
    rebuilding = Rebuilding(tmp_path)
    rebuilding.look(9, 999)
    assert rebuilding.is_under_way  # no primary was met yet
    rebuilding.meet(3, 100)
    Rebuilding(tmp_path).meet(4, 50)  # the first one counts, also after a restart
    again = Rebuilding(tmp_path)
    again.look(3, 99)
    assert why_unfit(tmp_path)
    again.look(4, 60)  # of a later epoch, which has all that was committed before it
    assert not again.is_under_way
    assert why_unfit(tmp_path) == ""


@pytest.mark.parametrize(
    ("wrote_last", "config", "is_allowed"),
    [
        ("n1", Config(), True),
        ("n2", Config(("n1", "n2"), 1), True),
        ("n3", Config(("n1", "n2", "n3"), 1), True),
        ("n2", Config(("n1", "n2"), 0), False),
        ("n3", Config(("n1", "n2", "n3"), 0), False),
        ("", Config(), False),
    ],
)
def test_what_only_this_node_may_have_is_not_given_up(
    wrote_last: str, config: Config, is_allowed: bool
) -> None:
    position = (1, 5, 9)
    primary = StatusReply("n1", 0, "primary", position, 1, 1, 1, "n1", ("n1",), 0, 1, "n1", -1, "")
    assert (reason_against("n2", wrote_last, config, primary) == "") is is_allowed
