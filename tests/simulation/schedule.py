"""One schedule: a cluster, faults at random, then quiet; everything from one seed.

Owns what a schedule is made of and how long it takes. The same seed gives the same schedule, step by step.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .checks import Violation
from .cluster import Cluster, Node
from .kernel import MS, SECOND, START_NS, Spinning
from .shapes import FLAVOURS, Shape

FAULTS_MS = (150, 450)
QUIET_MS = 10_000
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
        self.kinds = FLAVOURS[flavour]
        self.kernel = cluster.kernel
        self.random = cluster.kernel.random
        self.nodes = list(cluster.nodes.values())
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
        cluster.think_ms = random.choice((8.0, 20.0, 50.0))
        self._over_ns = kernel.now_ns + random.randint(*FAULTS_MS) * MS
        kernel.run(kernel.now_ns + random.randint(5, 60) * MS)
        self._look_after()
        while kernel.now_ns < self._over_ns:
            self._fault()
            kernel.run(kernel.now_ns + int(random.expovariate(1 / 30)) * MS + 2 * MS)
        self._heal()
        self._settle()

    def _look_after(self) -> None:
        """A person who soon sees that there is no primary, and promotes some node."""
        if self.kernel.now_ns < self._over_ns:
            is_left_alone = not self.cluster.has_electors and self.cluster.primary() is None
            if is_left_alone and self.random.random() < 0.6:
                self._promote(self.random.choice(self.nodes))
            self._later(15, 100, self._look_after)

    # -- faults ----------------------------------------------------------------------------------

    def _fault(self) -> None:
        name = self.random.choices(list(self.kinds), list(self.kinds.values()))[0]
        self.cluster.faults[name] += 1
        fault: Callable[[Node], None] = getattr(self, f"_{name}")
        fault(self.random.choice(self.nodes))

    def _later(self, low_ms: int, high_ms: int, action: Callable[[], None]) -> None:
        self.kernel.at(self.random.randint(low_ms, high_ms) * MS, action)

    def _promote(self, node: Node) -> None:
        self.kernel.note("promote", node.name)
        self.cluster.promote(node)
        if self.random.random() < 0.2:
            self.cluster.promote(self.random.choice(self.nodes))

    def _two_sides(self, node: Node) -> None:
        """The cluster falls apart into two, and each side tries to have a primary of its own."""
        others = [other for other in self.nodes if other is not node]
        side = [node, *self.random.sample(others, (len(others) - 1) // 2 or self.random.randint(0, 1))]
        rest = [other for other in self.nodes if other not in side]
        self._cut({(one.name, other.name) for one in side for other in rest})
        if self.random.random() < 0.3:
            self._change_member(node)
        for candidate in (self._but_primary(side), self._but_primary(rest)):
            self.kernel.note("promote", candidate.name)
            self.cluster.promote(candidate)

    def _rivals(self, node: Node) -> None:
        """Two nodes that do not hear each other, and both want to be primary, or one of them is."""
        other = self.random.choice([other for other in self.nodes if other is not node])
        self._cut({(node.name, other.name)})
        for candidate in (node, other):
            self.kernel.note("promote", candidate.name)
            self.cluster.promote(candidate)

    def _left_alone(self, node: Node) -> None:
        """Replicas lose their power, and the primary the others; then one of these becomes primary."""
        primary = self.cluster.primary() or self.cluster.data_nodes()[0]
        others = [other for other in self.cluster.data_nodes() if other is not primary]
        for other in self.random.sample(others, min(len(others), max(1, primary.view.sync_replicas))):
            if other.host.is_up and self.random.random() < 0.7:
                other.power_cut()
                self._later(5, 200, other.come_back)
        self._later(
            0, 80, lambda: self._cut({(primary.name, other.name) for other in others}, least_ms=300)
        )
        candidate = self.random.choice(others)
        self._later(120, 400, lambda: self.cluster.promote(candidate))

    def _but_primary(self, nodes: list[Node]) -> Node:
        primary = self.cluster.primary()
        return self.random.choice([node for node in nodes if node is not primary] or nodes)

    def _partition(self, node: Node) -> None:
        """Cut some ways, in one direction or both, for a while."""
        kind = self.random.choice(("in", "out", "both", "pair", "split"))
        others = [other for other in self.nodes if other is not node]
        if kind == "pair":
            others = [self.random.choice(others)]
        elif kind == "split":
            others = self.random.sample(others, self.random.randint(1, len(others)))
        cut = set()
        for other in others:
            if kind != "out":
                cut.add((other.name, node.name))
            if kind != "in":
                cut.add((node.name, other.name))
        self._cut(cut, both=False)

    def _cut(self, cut: set[tuple[str, str]], *, both: bool = True, least_ms: int = 30) -> None:
        """Block ways for a while."""
        ways = self.cluster.network.ways
        if both:
            cut = cut | {(target, source) for source, target in cut}
        self.kernel.note("partition", sorted(cut))
        ways.blocked |= cut

        def heal() -> None:
            ways.blocked -= cut
            self.cluster.network.changed()

        self._later(least_ms, 800, heal)

    def _crash(self, node: Node) -> None:
        self.kernel.note("crash", node.name)
        node.crash()
        self._later(10, 500, node.come_back)

    def _kill(self, node: Node) -> None:
        names = sorted(node.host.processes)
        if names:
            name = self.random.choice(names)
            self.kernel.note("kill", node.name, name)
            node.kill(name)

    def _power_cut(self, node: Node) -> None:
        if node.host.is_up:
            node.power_cut()
            self._later(20, 600, node.come_back)

    def _pause(self, node: Node) -> None:
        """SIGSTOP of one process, or of all of a node, and SIGCONT later."""
        processes = list(node.host.processes.values())
        if not processes:
            return
        if self.random.random() < 0.5:
            processes = [self.random.choice(processes)]
        self.kernel.note("pause", node.name, *(process.name for process in processes))
        for process in processes:
            process.pause()

        def go_on() -> None:
            for process in processes:
                process.resume()

        self._later(15, 900, go_on)

    def _stall(self, node: Node) -> None:
        self.kernel.note("disk stall", node.name)
        node.host.stalled_until_ns = self.kernel.now_ns + self.random.randint(30, 700) * MS

    def _jump(self, node: Node) -> None:
        """The wall clock is set, by a little or by much."""
        node.host.wall_skew_ns += self.random.choice((-3_600, -10, -1, 1, 10, 3_600)) * SECOND
        self.kernel.note("clock jump", node.name, node.host.wall_skew_ns)

    def _change_member(self, node: Node) -> None:
        """A voter goes, or comes back."""
        primary = self.cluster.primary()
        if primary is not None and len(self.nodes) > 3 and not self.cluster.witness:
            self.cluster.change_member(primary, node)

    # -- quiet -----------------------------------------------------------------------------------

    def _heal(self) -> None:
        self.kernel.note("heal")
        ways = self.cluster.network.ways
        ways.blocked.clear()
        ways.loss = ways.breaks = ways.twice = 0.0
        ways.jitter_ns = 100_000
        for node in self.nodes:
            node.host.stalled_until_ns = 0
            for process in list(node.host.processes.values()):
                process.resume()
            node.come_back()
        self.cluster.network.changed()

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
