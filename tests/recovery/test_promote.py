"""Promotion: who may, who is refused and why, two candidates at once, and death at every step."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from perdure.recovery import summarise, verify
from perdure.recovery.promises import Answer, VoterState, Why
from perdure.recovery.promote import SHIPPER_MS, PromotionRefusedError, PromotionReport, promote
from perdure.shipping.nodelog import take_process_lock
from perdure.shipping.replica_log import ReplicaLog
from perdure.shipping.slots import new_slot, write_slot
from perdure.store import (
    CorruptError,
    DivergedError,
    FencedError,
    ForeignError,
    NoQuorumError,
    PerdureError,
    PoisonedError,
    Position,
    PositionGoneError,
    Promise,
    PromiseRefusedError,
    WireError,
    names,
    read_promise,
)
from perdure.store.control import epoch_start_of
from perdure.store.cursor import list_segments
from perdure.store.page import Word
from perdure.store.promise import give_promise
from tests.recovery.kills import killed
from tests.recovery.nodes import (
    NOW_MS,
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


@pytest.mark.parametrize("has_shipper", [True, False])
def test_a_shipper_in_waiting_that_is_late_is_waited_for_and_none_is_not(
    tmp_path: Path, has_shipper: bool
) -> None:
    cluster = Cluster(tmp_path)
    lock = take_process_lock(cluster.at["b"], names.SHIPPER_LOCK) if has_shipper else None
    late: list[threading.Timer] = []

    def commit() -> None:
        with opened(cluster.at["b"]) as node:
            node.log.words[Word.COMMITTED] = node.log.cursor.at.lsn

    def on_step(step: str) -> None:
        if step == "commit":
            late.append(threading.Timer(4 * SHIPPER_MS / 1000, commit))
            if has_shipper:  # without one nothing is waited for, however long that takes here
                late[0].start()

    try:
        report = promote(cluster.at["b"], cluster.voters("c"), on_step=on_step, commit_timeout_ms=30_000)
    finally:
        if has_shipper:
            late[0].join()
        if lock is not None:
            lock.close()
    assert report.is_committed is has_shipper
    assert report.elapsed_ms < 15_000


def test_the_old_primary_that_promised_is_fenced(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    promote(cluster.at["b"], cluster.voters("a"))
    with pytest.raises(FencedError, match="epoch 2 was promised to b"):
        write(cluster.at["a"], 1)


def test_two_promotions_of_one_node_at_once_do_not_begin_an_epoch_twice(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    first: list[PromotionReport] = []

    def on_step(step: str) -> None:
        if step == "promise":  # the second has chosen its epoch, and the first is quicker from here on
            first.append(promote(cluster.at["b"], cluster.voters("c")))

    with pytest.raises(PerdureError, match="another promotion of b was promised epoch 2 meanwhile"):
        promote(cluster.at["b"], cluster.voters("c"), on_step=on_step)
    assert first[0].epoch == 2
    assert _end(cluster.at["b"]) == first[0].start
    write(cluster.at["b"], 1)


def test_what_a_voter_has_more_is_fetched_before_the_epoch_begins(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    end = write(cluster.at["a"], 5)
    replicate(cluster.at["a"], cluster.at["c"])
    report = promote(cluster.at["b"], cluster.voters("c"))
    assert (report.before, report.fetched_from, report.fetched_events) == (end, ("c",), 5)
    assert report.cut_from == 0
    assert report.keeps_acknowledged
    replicate(cluster.at["b"], cluster.at["c"])
    assert _end(cluster.at["b"]) == _end(cluster.at["c"])


def test_what_another_candidate_has_begun_in_the_same_epoch_is_not_fetched(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "abcde", k=2)
    end = write(cluster.at["a"], 5)
    for name in "cd":
        replicate(cluster.at["a"], cluster.at[name])
    reign = Promise(2, "d")

    class Lost(DirectoryVoters):
        """All say how they are, and only c hears more."""

        def promise(self, node: str, asked: Promise) -> Answer:
            if node != "c":
                raise WireError("connection reset", node=node)
            return super().promise(node, asked)

    def on_step(step: str) -> None:
        if step == "fetch":  # c promised epoch 2 to b, and follows d, which won it with the others
            promote(cluster.at["d"], cluster.voters("a", "e"))
            _follow(cluster.at["d"], cluster.at["c"], reign)

    with pytest.raises(NoQuorumError):
        promote(cluster.at["b"], Lost(cluster.at), on_step=on_step)
    assert _end(cluster.at["c"]).epoch == 2
    assert _end(cluster.at["b"]) == end, "not further than what c had when it promised"
    _follow(cluster.at["d"], cluster.at["b"], reign)
    assert _end(cluster.at["b"]) == _end(cluster.at["d"])


def _follow(primary: Path, replica: Path, reign: Promise) -> None:
    """What a receiver does with the frames of a primary."""
    with opened(primary) as giver, opened(replica) as taker:
        log = ReplicaLog(taker)
        cursor = giver.cursor()
        cursor.seek(log.accept_reign(reign).lsn)
        while run := cursor.read():
            log.append(reign, [run.raw])
        cursor.close()


def _torn_apart(tmp_path: Path) -> Cluster:
    """a has a tail that nobody else has; b began epoch 2 without it, and c follows b."""
    cluster = Cluster(tmp_path)
    write(cluster.at["a"], 5)
    promote(cluster.at["b"], cluster.voters("c"))
    give_promise(cluster.at["a"], Promise(2, "b"))
    write(cluster.at["b"], 3, prefix="b")
    replicate(cluster.at["b"], cluster.at["c"])
    return cluster


def test_frames_of_an_older_epoch_are_fetched_behind_the_start_of_one_that_came_to_nothing(
    tmp_path: Path,
) -> None:
    cluster = Cluster(tmp_path)
    write(cluster.at["a"], 5)
    promote(cluster.at["b"], cluster.voters("c"))  # epoch 2 behind LSN 11, and nobody has it
    give_promise(cluster.at["a"], Promise(2, "b"))
    assert promote(cluster.at["a"], cluster.voters("c")).epoch == 3  # epoch 1 went on behind that LSN here
    replicate(cluster.at["a"], cluster.at["c"])
    end = _end(cluster.at["c"])
    give_promise(cluster.at["b"], Promise(3, "a"))
    report = promote(cluster.at["b"], cluster.voters("c"))
    assert (report.epoch, report.before, report.fetched_from) == (4, end, ("c",))
    assert report.keeps_acknowledged
    replicate(cluster.at["b"], cluster.at["c"])
    assert _end(cluster.at["b"]) == _end(cluster.at["c"])


def test_a_tail_that_is_no_part_of_the_better_log_is_kept_aside_and_gives_way(tmp_path: Path) -> None:
    cluster = _torn_apart(tmp_path)
    better = _end(cluster.at["c"])
    report = promote(cluster.at["a"], cluster.voters("c"))
    assert (report.epoch, report.before) == (3, better)
    assert report.cut_from == cluster.end.lsn + 1
    assert report.fetched_events == better.lsn - cluster.end.lsn
    kept = list((cluster.at["a"] / names.DIVERGED).rglob("*.seg"))
    assert kept
    assert summarise(verify(cluster.at["a"], level="chain")).exit_code == 0
    replicate(cluster.at["a"], cluster.at["c"])
    assert _end(cluster.at["a"]) == _end(cluster.at["c"])


def test_a_tail_over_several_segments_is_cut_at_the_last_frame_in_common(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    shared = write(cluster.at["a"], 4)
    replicate(cluster.at["a"], cluster.at["c"], shared.lsn - 1)
    replicate(cluster.at["a"], cluster.at["b"], shared.lsn - 1)
    for _ in range(3):
        write(cluster.at["a"], 3)
        with opened(cluster.at["a"]) as node:
            node.log.lock()
            node.log.must_roll = True
            node.log.roll_if_due(NOW_MS)
            node.log.unlock()
    promote(cluster.at["b"], cluster.voters("c"))
    give_promise(cluster.at["a"], Promise(2, "b"))
    replicate(cluster.at["b"], cluster.at["c"])
    report = promote(cluster.at["a"], cluster.voters("c"))
    assert report.cut_from == shared.lsn
    replicate(cluster.at["a"], cluster.at["b"])
    assert _end(cluster.at["a"]) == _end(cluster.at["b"])


def test_without_confirming_replicas_a_tail_is_not_cut_by_itself(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, k=0)
    write(cluster.at["a"], 5)
    promote(cluster.at["b"], cluster.voters("c"), accept_data_loss=True)
    give_promise(cluster.at["a"], Promise(2, "b"))
    replicate(cluster.at["b"], cluster.at["c"])
    end = _end(cluster.at["a"])
    with pytest.raises(DivergedError, match="different frames behind LSN"):
        promote(cluster.at["a"], cluster.voters("c"), accept_data_loss=True)
    assert _end(cluster.at["a"]) == end


def test_a_better_log_that_no_longer_reaches_back_is_not_fetched_and_says_what_to_do(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    write(cluster.at["a"], 2)
    with opened(cluster.at["a"]) as node:
        node.log.lock()
        node.log.must_roll = True
        node.log.roll_if_due(NOW_MS)
        node.log.unlock()
    replicate(cluster.at["a"], cluster.at["c"])
    list_segments(cluster.at["c"] / "log")[0].path.unlink()
    with pytest.raises(NoQuorumError, match="nothing in common"):
        promote(cluster.at["b"], cluster.voters("c"))
    assert _end(cluster.at["b"]) == cluster.end


@pytest.mark.parametrize("error", [WireError("connection reset"), ForeignError("of another cluster")])
def test_a_further_log_that_cannot_be_had_is_done_without_if_the_others_are_enough(
    tmp_path: Path, error: PerdureError
) -> None:
    cluster = Cluster(tmp_path, "abcde", k=2)
    write(cluster.at["a"], 5)
    replicate(cluster.at["a"], cluster.at["c"])

    class Silent(DirectoryVoters):
        def fetch(self, node: str, after: Position, limit_bytes: int = 1 << 20) -> Iterator[bytes]:
            raise error

    places = {name: cluster.at[name] for name in "cde"}
    report = promote(cluster.at["b"], Silent(places))
    assert report.before == cluster.end  # what c has more was on two disks only: never acknowledged
    assert report.promisers == ("d", "e")
    assert "c" in report.unheard
    with pytest.raises(NoQuorumError, match=error.message):
        promote(cluster.at["d"], Silent({"c": places["c"], "e": places["e"]}))


@pytest.mark.parametrize("kind", [PromiseRefusedError, PositionGoneError, CorruptError])
def test_a_voter_whose_answer_makes_no_sense_is_one_that_was_not_heard(
    tmp_path: Path, kind: type[PerdureError]
) -> None:
    cluster = Cluster(tmp_path)

    class Confused(DirectoryVoters):
        def state(self, node: str) -> VoterState:
            if node == "a":
                raise kind("what was not asked", node=node)
            return super().state(node)

    report = promote(cluster.at["b"], Confused(cluster.at))
    assert (report.promisers, report.unheard) == (("c",), ("a",))


@pytest.mark.parametrize("is_needed", [False, True])
def test_a_voter_that_did_not_answer_is_asked_for_its_promise_only_where_the_others_are_not_enough(
    tmp_path: Path, is_needed: bool
) -> None:
    cluster = Cluster(tmp_path)

    class Slow(DirectoryVoters):
        """c does not answer the first question."""

        def state(self, node: str) -> VoterState:
            if node == "c":
                raise WireError("did not answer in time", node=node)
            return super().state(node)

        def promise(self, node: str, asked: Promise) -> Answer:
            if node == "a" and is_needed:
                self.asked.append(node)
                raise WireError("connection reset", node=node)
            return super().promise(node, asked)

    voters = Slow({name: cluster.at[name] for name in "ac"})
    report = promote(cluster.at["b"], voters)
    assert voters.asked == (["a", "c"] if is_needed else ["a"])
    assert report.promisers == (("c",) if is_needed else ("a",))
    assert report.unheard == (("a",) if is_needed else ("c",))


def test_a_damaged_slot_tells_nothing_and_stops_no_promotion(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, k=0)
    write_slot(cluster.at["b"], msgspec.structs.replace(new_slot("a"), lsn=cluster.end.lsn + 7))
    (cluster.at["b"] / names.SLOTS / "n9.slot").write_bytes(b"not a slot")
    report = promote(cluster.at["b"], cluster.voters("c"), accept_data_loss=True)
    assert report.epoch == 2
    assert report.at_risk_to == cluster.end.lsn + 7


def test_what_may_be_lost_stands_in_the_log_for_ever(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, k=0)
    write_slot(cluster.at["b"], msgspec.structs.replace(new_slot("a"), lsn=cluster.end.lsn + 7))
    report = promote(cluster.at["b"], cluster.voters("c"), accept_data_loss=True)
    assert (report.at_risk_from, report.at_risk_to) == (cluster.end.lsn + 1, cluster.end.lsn + 7)
    assert f"LSN {cluster.end.lsn + 7} was seen" in report.at_risk
    with opened(cluster.at["b"]) as node:
        cursor = node.cursor(is_sparse=False)
        cursor.open_segment(list_segments(cursor.log)[-1])
        run = cursor.read()
        assert run is not None
        start = epoch_start_of(run.events(*run.frames[0]))
        cursor.close()
    assert start is not None
    assert (start.at_risk_from, start.at_risk_to) == (report.at_risk_from, report.at_risk_to)
    assert start.reason == "promoted, data loss accepted"


def test_the_report_says_whether_the_epoch_is_committed(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    report = promote(cluster.at["b"], cluster.voters("c"))
    assert not report.is_committed  # nobody ships
    assert not promote(cluster.at["b"], cluster.voters("c")).is_committed
    with opened(cluster.at["b"]) as node:
        node.log.words[Word.COMMITTED] = report.start.lsn
    assert promote(cluster.at["b"], cluster.voters("c")).is_committed


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


def test_killed_at_any_system_call_of_a_cut_and_a_fetch_it_can_be_run_again(tmp_path: Path) -> None:
    points = 0
    while True:
        folder = tmp_path / str(points)
        folder.mkdir()
        cluster = _torn_apart(folder)
        if not killed(lambda c=cluster: promote(c.at["a"], c.voters("c")), points):  # type: ignore[misc]
            break
        report = promote(cluster.at["a"], cluster.voters("c"))
        assert report.epoch >= 3
        assert list((cluster.at["a"] / names.DIVERGED).rglob("*.seg"))
        write(cluster.at["a"], 1)
        replicate(cluster.at["a"], cluster.at["c"])
        assert _end(cluster.at["a"]) == _end(cluster.at["c"])
        assert summarise(verify(cluster.at["a"], level="chain")).exit_code == 0
        points += 1
    assert points >= 40


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


def test_with_k_0_a_drained_primary_goes_on_only_if_nobody_else_may_have_begun(
    tmp_path: Path,
) -> None:
    cluster = Cluster(tmp_path, k=0)
    for name in "abc":  # a handed over to b, which may have begun epoch 2, and is not heard
        with opened(cluster.at[name]) as node:
            node.log.lock_any()
            node.log.give_promise(Promise(2, "b"))
            node.log.unlock()
    with pytest.raises(PromotionRefusedError, match="2 was promised to b, which may have begun it") as caught:
        promote(cluster.at["a"], cluster.voters("c"), drained="a")
    assert caught.value.decision.why is Why.NEEDS_DATA_LOSS
    assert read_promise(cluster.at["c"]) == read_promise(cluster.at["a"]) == Promise(2, "b")
    report = promote(cluster.at["a"], cluster.voters("b", "c"), drained="a")
    assert (report.epoch, report.keeps_acknowledged, report.at_risk) == (3, True, "")


def test_with_k_0_what_somebody_acknowledged_who_was_promised_meanwhile_is_fetched(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, k=0)
    promote(cluster.at["b"], cluster.voters("a", "c"), drained="a")
    acknowledged = write(cluster.at["b"], 3)
    report = promote(cluster.at["a"], cluster.voters("b", "c"), drained="a")
    assert report.before == acknowledged
    assert report.keeps_acknowledged


def test_with_k_0_a_voter_whose_promise_before_is_not_known_is_not_enough(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, k=0)
    with opened(cluster.at["a"]) as node:
        node.log.lock_any()
        node.log.give_promise(Promise(2, "a"))
        node.log.unlock()
    voters = cluster.voters("c")
    voters.state = lambda node: (_ for _ in ()).throw(WireError("no answer", node=node))  # type: ignore[method-assign]
    with pytest.raises((PromotionRefusedError, NoQuorumError)):
        promote(cluster.at["a"], voters, drained="a")
    assert voters.asked == []


def test_a_switchover_hands_over_with_k_0_as_long_as_the_old_primary_promises(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, k=0)
    with pytest.raises(PromotionRefusedError, match="what a acknowledged is not known here"):
        promote(cluster.at["b"], cluster.voters("c"), drained="a")
    report = promote(cluster.at["b"], cluster.voters("a", "c"), drained="a")
    assert report.keeps_acknowledged and not report.at_risk
