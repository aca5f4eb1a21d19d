"""One schedule: a cluster, faults at random, then quiet; everything from one seed.

Owns what a schedule is made of and how long it takes. The same seed gives the same schedule, step by step.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field

from .checks import Violation
from .cluster import Cluster
from .faults import Faults
from .kernel import MS, START_NS, Spinning
from .shapes import PACES, Shape

QUIET_MS = 4_000
"""Within so much simulated time after the last fault the cluster works again."""
LOOK_MS = 15
PATIENCE = 5
"""So many looks without a primary, and somebody promotes another node."""


@dataclass
class Outcome:
    """What became of a schedule."""

    seed: int
    rule: str = ""
    """The invariant that was broken; empty if none was."""
    text: str = ""
    hash: int = 0
    steps: int = 0
    simulated_ms: int = 0
    elapsed_ms: float = 0.0
    """Of processor time."""
    counts: dict[str, int] = field(default_factory=dict[str, int])


def run_schedule(
    cluster: Cluster, shape: Shape, seed: int, *, timeout_s: int = 0, began_s: float = 0.0
) -> Outcome:
    """Run one schedule, in a process that does nothing else afterwards; never raises for what it finds.

    `began_s` is the processor time of this process at which the schedule is taken to have begun.
    """
    signal.alarm(timeout_s)
    kernel = cluster.kernel
    kernel.random.seed(seed)
    outcome = Outcome(seed)
    try:
        Schedule(cluster, shape.flavour).run()
    except Violation as violation:
        outcome.rule, outcome.text = violation.rule, str(violation)
    except Spinning as spinning:
        outcome.rule, outcome.text = "the schedule ends", str(spinning)
    if outcome.rule:
        kernel.note("broken", outcome.text)
    outcome.counts = cluster.counts()
    outcome.hash, outcome.steps = kernel.hash, kernel.steps
    outcome.simulated_ms = (kernel.now_ns - START_NS) // MS
    outcome.elapsed_ms = (time.process_time() - began_s) * 1000
    return outcome


class Schedule:
    """The faults of one schedule, and the quiet behind them."""

    def __init__(self, cluster: Cluster, flavour: str) -> None:
        self.cluster = cluster
        self.flavour = flavour
        self.faults = Faults(cluster, flavour)
        self.kernel = cluster.kernel
        self.random = cluster.kernel.random
        self._over_ns = 0

    def run(self) -> None:
        cluster, kernel, random = self.cluster, self.kernel, self.random
        ways = cluster.network.ways
        if random.random() < 0.5:
            ways.loss = random.choice((0.0, 0.01, 0.05))
            ways.breaks = random.choice((0.0, 0.001, 0.01))
            ways.twice = random.choice((0.0, 0.0, 0.002))
            ways.jitter_ns = random.choice((100_000, 2 * MS, 10 * MS))
        kernel.preempt = random.choice((0.0, 0.02, 0.1))
        cluster.think_ms = random.choice((4.0, 10.0, 30.0))
        pace = PACES[self.flavour]
        self._over_ns = kernel.now_ns + random.randint(*pace.faults_ms) * MS
        kernel.run(kernel.now_ns + random.randint(5, 60) * MS)
        self._look_after()
        gap_ms = random.choice(pace.gaps_ms)
        while kernel.now_ns < self._over_ns:
            self.faults.next()
            kernel.run(kernel.now_ns + int(random.expovariate(1 / gap_ms)) * MS + 2 * MS)
        self.faults.heal()
        self._settle()

    def _look_after(self) -> None:
        """A person who soon sees that there is no primary, and promotes some node."""
        if self.kernel.now_ns < self._over_ns:
            is_left_alone = not self.cluster.has_electors and self.cluster.primary() is None
            if is_left_alone and self.random.random() < 0.6:
                self.faults.promote(self.random.choice(self.faults.nodes))
            self.faults.later(15, 100, self._look_after)

    # -- quiet -----------------------------------------------------------------------------------

    def _settle(self) -> None:
        """The cluster works again by itself, but for who becomes primary if that is for a person."""
        cluster, kernel = self.cluster, self.kernel
        deadline_ns = kernel.now_ns + QUIET_MS * MS
        wanted = cluster.acknowledged + 2
        without = turn = 0
        while kernel.now_ns < deadline_ns:
            kernel.run(kernel.now_ns + LOOK_MS * MS)
            cluster.is_writing = cluster.acknowledged < wanted
            voters = self._voters()
            if not cluster.is_writing and self._agree(voters):
                cluster.checker.final(voters)
                return
            without = without + 1 if cluster.primary() is None else 0
            if without >= PATIENCE and not cluster.has_electors:
                cluster.promote(cluster.data_nodes()[turn % len(cluster.data_nodes())])
                without, turn = 0, turn + 1
        views = {node.name: node.view for node in cluster.data_nodes()}
        ends = {name: (view.end, view.epoch, view.committed) for name, view in views.items()}
        raise Violation(
            "the cluster works again",
            f"{QUIET_MS} ms after the last fault {cluster.acknowledged} of {wanted} writes, and {ends}",
        )

    def _voters(self) -> list[str]:
        """Who votes, as the primary's log says."""
        primary = self.cluster.primary()
        return list(primary.view.config.data_voters) if primary is not None else []

    def _agree(self, voters: list[str]) -> bool:
        views = [self.cluster.nodes[name].view for name in voters]
        ends = {(view.end, view.epoch, view.committed) for view in views}
        return len(ends) == 1 and all(view.end == view.committed for view in views)
