"""The faults: what happens to a cluster in a schedule, and how it ends.

Owns each kind of fault, by its name in the tables of `shapes`. Which comes, when, and to whom is drawn from
the schedule's random source.
"""

from __future__ import annotations

from collections.abc import Callable

from .cluster import Cluster, Node
from .kernel import MS, SECOND
from .shapes import FLAVOURS


class Faults:
    """All of them, for one schedule."""

    def __init__(self, cluster: Cluster, flavour: str) -> None:
        self.cluster = cluster
        self.kernel = cluster.kernel
        self.random = cluster.kernel.random
        self.nodes = list(cluster.nodes.values())
        self._kinds = FLAVOURS[flavour]
        self._doomed: set[str] = set()
        cluster.checker.on_begin = self._begun

    def next(self) -> None:
        name = self.random.choices(list(self._kinds), list(self._kinds.values()))[0]
        self.cluster.faults[name] += 1
        fault: Callable[[Node], None] = getattr(self, name)
        fault(self.random.choice(self.nodes))

    def later(self, low_ms: int, high_ms: int, action: Callable[[], None]) -> None:
        self.kernel.at(self.random.randint(low_ms, high_ms) * MS, action)

    def promote(self, node: Node) -> None:
        self.kernel.note("promote", node.name)
        self.cluster.promote(node)
        if self.random.random() < 0.2:
            self.cluster.promote(self.random.choice(self.nodes))

    def two_sides(self, node: Node) -> None:
        """The cluster falls apart into two, and each side tries to have a primary of its own."""
        others = [other for other in self.nodes if other is not node]
        side = [node, *self.random.sample(others, (len(others) - 1) // 2 or self.random.randint(0, 1))]
        rest = [other for other in self.nodes if other not in side]
        self.cut({(one.name, other.name) for one in side for other in rest})
        if self.random.random() < 0.4:
            self.change_member(self.random.choice(rest))
        for candidate in (self.but_primary(side), self.but_primary(rest)):
            self.kernel.note("promote", candidate.name)
            self.cluster.promote(candidate)

    def rivals(self, node: Node) -> None:
        """Two nodes that do not hear each other, and both want to be primary, or one of them is."""
        other = self.random.choice([other for other in self.nodes if other is not node])
        self.cut({(node.name, other.name)})
        for candidate in (node, other):
            self.kernel.note("promote", candidate.name)
            self.cluster.promote(candidate)

    def overtaken(self, node: Node) -> None:
        """A candidate that the primary alone does not hear is promised, and then slow to begin."""
        primary = self._primary()
        others = self._others(primary)
        candidate = self.random.choice(others)
        self.cut({(primary.name, candidate.name)}, least_ms=200)
        self.kernel.note("promote", candidate.name)
        self.cluster.promote(candidate)
        self.cluster.slow_winners[candidate.name] = self.random.randint(10, 60) * MS

    def stillborn(self, node: Node) -> None:
        """A candidate loses its power as it begins its epoch, and tries again when it is back."""
        candidate = self.random.choice(self._others(self._primary()))
        self._doomed.add(candidate.name)
        self.promote(candidate)

    def _begun(self, name: str) -> None:
        if name in self._doomed:
            self._doomed.remove(name)
            self.kernel.at(int(self.random.random() * 0.2 * MS), self._fall, self.cluster.nodes[name])

    def _fall(self, node: Node) -> None:
        if node.host.is_up:
            node.power_cut()
            self.later(5, 100, node.come_back)
            self.later(101, 200, lambda: self.promote(node))

    def left_alone(self, node: Node) -> None:
        """Replicas lose their power, and the primary the others; then one of these becomes primary."""
        primary = self._primary()
        others = self._others(primary)
        is_sudden = self.random.random() < 0.5
        count = len(others) if is_sudden else self.random.randint(0, len(others))
        for other in self.random.sample(others, count):
            if other.host.is_up:
                other.power_cut()
                self.later(5, 150, other.come_back)
        away = self.nodes if self.random.random() < 0.7 else others
        cut = {(primary.name, other.name) for other in away if other is not primary}
        self.later(0, 2 if is_sudden else 80, lambda: self.cut(cut, least_ms=400))
        candidate = self.random.choice(others)
        self.later(60, 350, lambda: self.promote(candidate))

    def outvoted(self, node: Node) -> None:
        """The primary is left with some of the others and changes the voters, and the rest elect."""
        primary = self._primary()
        others = self._others(primary)
        self.random.shuffle(others)
        count = self.random.randint(0, len(others) // 2)
        side, rest = [primary, *others[:count]], others[count:]
        self.cut({(one.name, other.name) for one in side for other in rest}, least_ms=300)
        self.change_member(rest[0])
        candidate = self.random.choice(rest)
        self.later(5, 60, lambda: self.promote(candidate))

    def _primary(self) -> Node:
        return self.cluster.primary() or self.cluster.data_nodes()[0]

    def _others(self, primary: Node) -> list[Node]:
        return [other for other in self.cluster.data_nodes() if other is not primary]

    def but_primary(self, nodes: list[Node]) -> Node:
        primary = self.cluster.primary()
        return self.random.choice([node for node in nodes if node is not primary] or nodes)

    def partition(self, node: Node) -> None:
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
        self.cut(cut, both=False)

    def cut(self, cut: set[tuple[str, str]], *, both: bool = True, least_ms: int = 30) -> None:
        """Block ways for a while."""
        ways = self.cluster.network.ways
        if both:
            cut = cut | {(target, source) for source, target in cut}
        self.kernel.note("partition", sorted(cut))
        ways.blocked |= cut

        def heal() -> None:
            ways.blocked -= cut
            self.cluster.network.changed()

        self.later(least_ms, max(600, least_ms), heal)

    def crash(self, node: Node) -> None:
        self.kernel.note("crash", node.name)
        node.crash()
        self.later(10, 500, node.come_back)

    def kill(self, node: Node) -> None:
        names = sorted(node.host.processes)
        if names:
            name = self.random.choice(names)
            self.kernel.note("kill", node.name, name)
            node.kill(name)

    def power_cut(self, node: Node) -> None:
        if node.host.is_up:
            node.power_cut()
            self.later(20, 600, node.come_back)

    def pause(self, node: Node) -> None:
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

        self.later(15, 900, go_on)

    def stall(self, node: Node) -> None:
        self.kernel.note("disk stall", node.name)
        node.host.stalled_until_ns = self.kernel.now_ns + self.random.randint(30, 700) * MS

    def jump(self, node: Node) -> None:
        """The wall clock is set, by a little or by much."""
        node.host.wall_skew_ns += self.random.choice((-3_600, -10, -1, 1, 10, 3_600)) * SECOND
        self.kernel.note("clock jump", node.name, node.host.wall_skew_ns)

    def change_member(self, node: Node) -> None:
        """A voter goes, or comes back."""
        primary = self.cluster.primary()
        if primary is not None and len(self.nodes) > 3:
            self.cluster.change_member(primary, node)

    def heal(self) -> None:
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
