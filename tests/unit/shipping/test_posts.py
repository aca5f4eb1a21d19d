"""A post starts what should run, waits longer each time it dies, and ends what should not run any more."""

from __future__ import annotations

from perdure.shipping.posts import RESTART_S_MAX, RESTART_S_MIN, STEADY_S, Post
from perdure.store import WireError

TICK_S = 1 / 16  # a binary fraction, so that no sum of them is rounded


class FakeChild:
    """A child that runs until the test ends it."""

    def __init__(self) -> None:
        self.is_running = True
        self.was_stopped = False

    def stop(self) -> int:
        self.is_running = False
        self.was_stopped = True
        return 0


class Bench:
    """A post with a clock of the test's own, and the children that it started."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.children: list[FakeChild] = []
        self.refuses = False
        self.post = Post("child", self.start, lambda: self.now_s)

    def start(self) -> FakeChild:
        if self.refuses:
            raise WireError("refused")
        self.children.append(FakeChild())
        return self.children[-1]

    def die(self) -> None:
        self.children[-1].is_running = False


def test_a_post_starts_its_child_once() -> None:
    bench = Bench()
    for _ in range(3):
        bench.post.tend(True)
    assert len(bench.children) == 1
    assert bench.post.is_running


def test_a_child_that_dies_is_started_again_after_pauses_that_grow() -> None:
    bench = Bench()
    bench.post.tend(True)
    pauses: list[float] = []
    for _ in range(9):
        bench.die()
        bench.post.tend(True)
        died_s, count = bench.now_s, len(bench.children)
        while len(bench.children) == count:
            bench.now_s += TICK_S
            bench.post.tend(True)
        pauses.append(bench.now_s - died_s)
    assert RESTART_S_MIN <= pauses[0] < 2 * RESTART_S_MIN
    assert pauses == sorted(pauses)
    assert RESTART_S_MAX <= pauses[-1] <= RESTART_S_MAX + TICK_S


def test_a_child_that_lived_long_is_started_again_at_once() -> None:
    bench = Bench()
    bench.post.tend(True)
    for _ in range(8):
        bench.die()
        bench.post.tend(True)
        bench.now_s += RESTART_S_MAX
        bench.post.tend(True)
    bench.now_s += STEADY_S
    bench.die()
    bench.post.tend(True)
    count = len(bench.children)
    bench.now_s += 1.1 * RESTART_S_MIN
    bench.post.tend(True)
    assert len(bench.children) == count + 1


def test_a_child_that_should_not_run_any_more_is_ended_in_order() -> None:
    bench = Bench()
    bench.post.tend(True)
    bench.post.tend(False)
    assert bench.children[0].was_stopped
    assert not bench.post.is_running
    bench.post.tend(False)
    assert len(bench.children) == 1


def test_a_start_that_is_refused_is_tried_again_later_and_raises_nothing() -> None:
    bench = Bench()
    bench.refuses = True
    bench.post.tend(True)
    bench.refuses = False
    bench.post.tend(True)
    assert not bench.children
    bench.now_s += 1.1 * RESTART_S_MIN
    bench.post.tend(True)
    assert len(bench.children) == 1
