"""Promotion: who may, who is refused and why, two candidates at once, and death at every step."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from perdure.recovery import summarise, verify
from perdure.recovery.promises import Why
from perdure.recovery.promote import PromotionRefusedError, PromotionReport, promote
from perdure.store import (
    FencedError,
    NoQuorumError,
    PerdureError,
    PoisonedError,
    Position,
    Promise,
    names,
    read_promise,
)
from perdure.store.cursor import list_segments
from perdure.store.promise import give_promise
from tests.recovery.kills import killed
from tests.recovery.nodes import (
    DirectoryVoters,
    make_node,
    make_primary,
    opened,
    replicate,
    write,
)


class Cluster:
    """A primary a and replicas, each a directory."""

    def __init__(self, folder: Path, nodes: str = "abc", k: int = 1) -> None:
        self.at = {name: folder / name for name in nodes}
        make_primary(self.at["a"], "a", list(nodes), k)
        for name in nodes[1:]:
            make_node(self.at[name], name)
        self.end = write(self.at["a"], 10)
        for name in nodes[1:]:
            replicate(self.at["a"], self.at[name])

    def voters(self, *alive: str) -> DirectoryVoters:
        return DirectoryVoters({name: self.at[name] for name in alive})


def test_a_replica_with_the_furthest_log_is_promoted_by_the_other_one(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    report = promote(cluster.at["b"], cluster.voters("c"))
    assert (report.node, report.epoch, report.before) == ("b", 2, cluster.end)
    assert report.start.lsn == cluster.end.lsn + 2  # EPOCH_START, CONFIG
    assert report.promisers == ("c",)
    assert report.unheard == ("a",)
    assert (report.voters, report.sync_replicas) == (("a", "b", "c"), 1)
    assert report.keeps_acknowledged and not report.at_risk
    assert read_promise(cluster.at["c"]) == Promise(2, "b")
    write(cluster.at["b"], 3)  # it is primary: it takes writes, and its replica takes its log
    replicate(cluster.at["b"], cluster.at["c"])
    with opened(cluster.at["c"]) as node:
        assert node.log.cursor.at.epoch == 2


def test_the_old_primary_that_promised_is_fenced(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    promote(cluster.at["b"], cluster.voters("a"))
    with pytest.raises(FencedError, match="epoch 2 was promised to b"):
        write(cluster.at["a"], 1)


def test_a_voter_that_is_further_is_named_and_nobody_is_fenced(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    write(cluster.at["a"], 5)
    replicate(cluster.at["a"], cluster.at["c"])
    voters = cluster.voters("c")
    with pytest.raises(PromotionRefusedError, match="c is further") as caught:
        promote(cluster.at["b"], voters)
    assert caught.value.decision.why is Why.FURTHER
    assert "Promote c instead" in caught.value.hint
    assert voters.asked == []
    assert read_promise(cluster.at["b"]).epoch == 1
    write(cluster.at["a"], 1)
    assert promote(cluster.at["c"], cluster.voters("b")).epoch == 2


def test_too_few_voters_is_refused_and_says_how_to_go_on(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    with pytest.raises(NoQuorumError, match="a did not answer, c did not answer") as caught:
        promote(cluster.at["b"], cluster.voters())
    assert "connection refused" in str(caught.value)


def test_a_higher_epoch_promised_elsewhere_refuses(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)

    class Racing(DirectoryVoters):
        def promise(self, node: str, asked: Promise):  # type: ignore[no-untyped-def]
            if node in self.places:
                give_promise(self.places[node], Promise(asked.epoch, "a"))
            return super().promise(node, asked)

    with pytest.raises(PromotionRefusedError, match="epoch 2 is promised to a") as caught:
        promote(cluster.at["b"], Racing({"c": cluster.at["c"]}))
    assert caught.value.decision.why is Why.REFUSED
    with opened(cluster.at["b"]) as node:
        assert not node.log.is_primary


def test_without_confirming_replicas_data_loss_must_be_accepted_and_is_named(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, k=0)
    write(cluster.at["a"], 5)
    with pytest.raises(PromotionRefusedError, match="accept") as caught:
        promote(cluster.at["b"], cluster.voters("c"))
    assert caught.value.decision.why is Why.NEEDS_DATA_LOSS
    assert f"above LSN {cluster.end.lsn}" in caught.value.hint
    report = promote(cluster.at["b"], cluster.voters("c"), accept_data_loss=True)
    assert not report.keeps_acknowledged
    assert f"above LSN {cluster.end.lsn}" in report.at_risk


def test_of_two_nodes_the_replica_goes_on_alone_and_says_so(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "ab")
    with pytest.raises(NoQuorumError, match="--alone"):
        promote(cluster.at["b"], cluster.voters())
    report = promote(cluster.at["b"], cluster.voters(), alone=True)
    assert (report.voters, report.sync_replicas, report.is_alone) == (("b",), 0, True)
    assert report.keeps_acknowledged
    assert read_promise(cluster.at["b"]) == Promise(report.epoch, "b", alone=True)
    with opened(cluster.at["b"]) as node:
        assert node.log.is_primary
        assert node.log.config.voters == ("b",)


def test_alone_among_three_needs_consent(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    with pytest.raises(PromotionRefusedError, match="others may hold acknowledged writes"):
        promote(cluster.at["b"], cluster.voters(), alone=True)
    assert promote(cluster.at["b"], cluster.voters(), alone=True, accept_data_loss=True).is_alone


def test_a_primary_in_force_stays_and_nothing_is_done(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    voters = cluster.voters("b", "c")
    report = promote(cluster.at["a"], voters)
    assert report.was_primary
    assert report.epoch == 1
    assert report.start.lsn == 2
    assert voters.asked == []


def test_a_primary_that_was_fenced_comes_back_in_the_next_epoch(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    for name in "ac":
        give_promise(cluster.at[name], Promise(7, "b"))
    assert promote(cluster.at["a"], cluster.voters("c")).epoch == 8


def test_a_node_without_a_log_and_a_node_in_the_middle_of_its_bootstrap_are_refused(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    make_node(tmp_path / "new", "b")
    with pytest.raises(PerdureError, match="no log"):
        promote(tmp_path / "new", cluster.voters("c"))
    (cluster.at["b"] / names.INSTALL_PLAN).write_bytes(b"plan")
    with pytest.raises(PromotionRefusedError, match="being made anew from a snapshot") as caught:
        promote(cluster.at["b"], cluster.voters("c"))
    assert caught.value.decision.why is Why.FAULTY


def test_a_poisoned_candidate_that_others_have_open_is_refused(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    with opened(cluster.at["b"]) as node:
        node.log.flusher.poison("a test")
        with pytest.raises(PoisonedError):
            promote(cluster.at["b"], cluster.voters("c"))


def test_a_corrupt_candidate_is_refused(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    segment = list_segments(cluster.at["b"] / "log")[-1].path
    data = bytearray(segment.read_bytes())
    data[-30] ^= 1
    segment.write_bytes(data)
    (cluster.at["b"] / names.CONTROL_PAGE).unlink()  # else the page's own word for the end is followed
    with pytest.raises(PerdureError, match="damaged"):
        promote(cluster.at["b"], cluster.voters("c"))
    assert read_promise(cluster.at["c"]).epoch == 1


def test_two_candidates_at_once_never_begin_one_epoch(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "abcde", k=2)
    won: list[PromotionReport] = []
    refused: list[PerdureError] = []
    barrier = threading.Barrier(2)

    def run(name: str) -> None:
        others = [other for other in "bcde" if other != name]
        barrier.wait()
        try:
            won.append(promote(cluster.at[name], cluster.voters(*others)))
        except PerdureError as error:
            refused.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in "bc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) + len(refused) == 2
    assert len({report.epoch for report in won}) == len(won)
    primaries = []
    for name in "bc":
        with opened(cluster.at[name]) as node:
            if node.log.is_primary:
                primaries.append(name)
    assert len(primaries) <= 1  # the one that lost was fenced by the other's promise


@pytest.mark.parametrize("step", ["ask", "promise", "gather", "begin"])
def test_a_second_candidate_inside_any_step_of_the_first_leaves_one_primary(
    tmp_path: Path, step: str
) -> None:
    cluster = Cluster(tmp_path)
    inner: list[PromotionReport | PerdureError] = []

    def between(name: str) -> None:
        if name == step:
            try:
                inner.append(promote(cluster.at["c"], cluster.voters("b")))
            except PerdureError as error:
                inner.append(error)

    try:
        outer: PromotionReport | PerdureError = promote(cluster.at["b"], cluster.voters("c"), on_step=between)
    except PerdureError as error:
        outer = error
    epochs = [result.epoch for result in (outer, *inner) if isinstance(result, PromotionReport)]
    assert len(epochs) == len(set(epochs))
    primaries = 0
    for name in "bc":
        with opened(cluster.at[name]) as node:
            primaries += node.log.is_primary
    assert primaries <= 1
    # Whatever happened, somebody can be promoted afterwards.
    best = max("bc", key=lambda name: _end(cluster.at[name])[:2])
    other = "c" if best == "b" else "b"
    report = promote(cluster.at[best], cluster.voters(other))
    assert report.epoch > max(epochs, default=1) or report.was_primary


def test_killed_at_any_system_call_it_can_be_run_again(tmp_path: Path) -> None:
    """SIGKILL before the n-th call that changes files, for every n: then the same command succeeds."""
    points = 0
    number = 0
    while True:
        folder = tmp_path / str(number)
        folder.mkdir()
        cluster = Cluster(folder)
        if not killed(lambda c=cluster: promote(c.at["b"], c.voters("c")), number):  # type: ignore[misc]
            break
        points += 1
        _check_after_death(cluster)
        number += 1
    assert points >= 15


def _check_after_death(cluster: Cluster) -> None:
    with opened(cluster.at["b"]) as node:
        was_primary = node.log.is_primary
        assert _prefix_intact(node.log.cursor.at.position, cluster.end)
    assert summarise(verify(cluster.at["b"], level="chain")).exit_code == 0
    report = promote(cluster.at["b"], cluster.voters("c"))
    assert report.was_primary == was_primary
    assert report.epoch >= 2
    write(cluster.at["b"], 1)
    replicate(cluster.at["b"], cluster.at["c"])
    assert _end(cluster.at["b"]) == _end(cluster.at["c"])
    for name in "bc":
        assert summarise(verify(cluster.at[name], level="chain")).exit_code == 0
    with opened(cluster.at["b"]) as node:
        cursor = node.cursor()
        cursor.open_segment(list_segments(cursor.log)[0])
        for _ in cursor.runs():
            pass
        assert cursor.at == node.log.cursor.at
        cursor.close()


def _prefix_intact(found: Position, end: Position) -> bool:
    return found == end or (found.lsn == end.lsn + 2 and found.epoch > end.epoch)


def _end(path: Path) -> Position:
    with opened(path) as node:
        return node.log.cursor.at.position
