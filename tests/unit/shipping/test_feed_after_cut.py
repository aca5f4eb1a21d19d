"""The event feed of a replica whose log is cut, or goes on in a new epoch, while the feed is open."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.shipping.cut import cut_log
from perdure.shipping.replica_log import ReplicaLog
from perdure.store import DivergedError, OpenOptions, Position, SessionStore, open_store
from perdure.store.promise import Promise
from tests.support.machine import stop_background
from tests.unit.shipping.logs import begin_epoch, make_node, make_primary, opened, runs_of, write


class Replica:
    """A replica n2 of n1, which had five frames more than the n1 that goes on in epoch 2."""

    def __init__(self, folder: Path) -> None:
        self.winner = make_primary(folder / "winner")
        self.fork = write(self.winner, 10)
        loser = folder / "loser"
        shutil.copytree(self.winner, loser)
        write(loser, 5)
        self.path = make_node(folder / "n2", "n2")
        self._append(self.winner, 1, 0)
        options = OpenOptions()  # the state is made from what is there: nothing of the five frames
        self.store = SessionStore(open_store(self.path, options), options, None)
        stop_background(self.store)  # nothing may be folded, or the log can't be cut
        self._append(loser, 1, self.fork.lsn)

    def follow_the_winner(self) -> Position:
        """Cut what the winner does not have, and take what it wrote since; where the log then ends."""
        with opened(self.path) as node:
            cut_log(node, self.fork, node.log.promise)
        begin_epoch(self.winner, "n1", 2)
        end = write(self.winner, 3, roll=True)
        self._append(self.winner, 2, self.fork.lsn)
        return end

    def _append(self, source: Path, epoch: int, after_lsn: int) -> None:
        with opened(self.path) as node:
            log = ReplicaLog(node)
            log.accept_reign(Promise(epoch, "n1"))
            log.append(Promise(epoch, "n1"), [run.raw for run in runs_of(source, after_lsn)])


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    made = Replica(tmp_path)
    yield made
    made.store.close()


@pytest.mark.parametrize("told", [1, 6, 10])
def test_a_feed_that_told_nothing_of_what_was_cut_goes_on_in_the_new_history(
    replica: Replica, told: int
) -> None:
    feed = replica.store.feed(0, timeout_ms=200)
    before = [next(feed).id for _ in range(told)]
    assert feed.is_ready  # what is cut now was read already
    end = replica.follow_the_winner()
    found = list(feed)
    assert [event.position.epoch for event in found] == [1] * (10 - told) + [2] * 3
    assert len(before) == told
    assert found[-1].position == end
    with replica.store.feed(0, follow=False) as anew:
        assert before + [event.id for event in found] == [event.id for event in anew]


@pytest.mark.parametrize("consumer", [None, "c"])
def test_a_feed_that_told_what_was_cut_says_that_histories_diverged(
    replica: Replica, consumer: str | None
) -> None:
    feed = replica.store.feed(0, consumer=consumer, timeout_ms=100)
    last = list(feed)[-1]
    assert last.lsn == replica.fork.lsn + 5
    replica.follow_the_winner()
    for _ in range(2):  # it does not go on by being asked again
        with pytest.raises(DivergedError) as caught:
            next(feed)
        assert "from_lsn" in caught.value.hint
    feed.close()
    for place in (last.position, None if consumer else last.position):
        with pytest.raises(DivergedError):
            replica.store.feed(place, consumer=consumer)
    with replica.store.feed(replica.fork, consumer=consumer, follow=False) as anew:
        assert [event.position.epoch for event in anew] == [2] * 3


def test_subscribers_are_told_the_new_history_and_the_gap_is_counted(replica: Replica) -> None:
    seen: list[int] = []
    replica.store.on("*", lambda event: seen.append(event.position.epoch))
    end = replica.follow_the_winner()
    assert replica.store.drain_events()
    with opened(replica.path) as node:
        assert node.log.cursor.at.lsn == end.lsn
    stats = replica.store.stats()
    # What was committed when on() was called is gone: either it was noticed, or nothing was told.
    assert stats["subscriber_errors"] >= 1
    assert set(seen) <= {2}
