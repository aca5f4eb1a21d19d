"""A run: applications that write on every machine, faults of whoever is primary, and what came of it.

Owns the order of a fault (wait until the cluster is whole, do it, see who takes over, mend it), the times
that are taken of it, and the checks at the end of a run. Invariant: the checks rest on what the applications
wrote down and on what the nodes' files hold, not on what the nodes say of themselves.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping

import msgspec

from ...store import StorageError
from ..exits import Exit
from .caller import CallerTask
from .histories import (
    count_lost,
    final_reads,
    is_acknowledged_write,
    longest_pause_ms,
    read_histories,
    write_gap_ms,
)
from .linearizability import Operation, find_faults, find_phantoms
from .nodes import NodeCluster, Standing, until
from .reigns import Seen

TAKE_OVER_S = 30.0
SETTLE_S = 1.0
"""The load goes on for so long before a fault, and after another node has taken over."""
PROBLEMS_SHOWN = 10
SWITCHOVER = "switchover"
AROUND_NS = 3_000_000_000
"""How far from its reign the pause of a switchover is looked for."""


class Failover(msgspec.Struct, frozen=True, kw_only=True):
    """One fault of a primary, and who took over. Times in ms."""

    fault: str
    node: str
    taken_by: str
    epoch: int
    detection_ms: float
    """From the fault until a node promised an epoch to itself."""
    promotion_ms: float
    """From then until that epoch was committed."""
    write_gap_ms: float = 0.0
    """From the fault to the first write that was acknowledged in that epoch; of a switchover the longest time
    about it in which no write was acknowledged."""


class FailoverReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a run."""

    nodes: int
    coordinator: str
    operations: int
    acknowledged: int
    """Writes that were."""
    unknown: int
    """Calls without an answer."""
    lost: int
    phantom: int
    linearizable: bool
    digests_agree: bool
    """All nodes have the same log to its end, and the same sessions."""
    problems: list[str]
    """The first of what is wrong, in words."""
    sessions: int
    digest: int
    epoch: int
    lsn: int
    elapsed_s: float
    false_elections: int
    """Reigns that began without a fault."""
    failovers: list[Failover]
    p50_ms: dict[str, float]
    p99_ms: dict[str, float]

    @property
    def is_proven(self) -> bool:
        """Is everything as it was promised?"""
        return self.linearizable and self.digests_agree and not (self.problems or self.lost or self.phantom)


class FailoverRun:
    """Faults of one cluster under load. `finish` ends it and checks everything."""

    def __init__(
        self,
        cluster: NodeCluster,
        task: CallerTask,
        *,
        each: int = 1,
        on_step: Callable[[str], object] = lambda text: None,
    ) -> None:
        """Start nodes and applications, `each` on every machine. Raises StorageError."""
        self.cluster = cluster
        self._task = task
        self._each = each
        self._say = on_step
        self.known: list[Operation] = []
        """Calls that were made beside the applications, for the checks."""
        self._failovers: list[tuple[Failover, int, int]] = []
        """With the moments of the fault and of the reign, ns."""
        self._started_s = time.monotonic()
        cluster.start()
        cluster.wait_whole()
        self._first = cluster.reign
        cluster.add_callers(task, each=each)
        self._say(
            f"{len(cluster.names)} nodes run, {self._first.node} is primary; applications on each write"
        )

    # -- faults ----------------------------------------------------------------------------------

    def kill(self) -> Failover:
        """kill -9 of the primary's machine with its applications; it comes back when another reigns."""
        cluster, node = self.cluster, self.primary()
        failover = self.fail_over("kill", lambda: cluster.kill(node))
        cluster.start(node)
        cluster.add_callers(self._task, node, each=self._each)
        self._say(f"{node} is started again")
        return failover

    def switch_over(self, to: str) -> Failover:
        """`perdure switchover` to a node. Raises StorageError if it refuses."""
        cluster, node = self.cluster, self.primary()

        def hand_over() -> None:
            code = cluster.command(node, "switchover", cluster.path(node), to, "--json")
            if code not in {
                Exit.FINE,
                Exit.FINDINGS,
            }:  # a finding, such as a replica that is late, is no refusal
                said = cluster.tail(f"{node}.commands")
                raise StorageError(f"switchover from {node} to {to}: exit code {code}\n{said}")

        return self.fail_over(SWITCHOVER, hand_over)

    def take_out(self) -> Failover:
        """`perdure failover` of whoever is primary."""
        cluster, node = self.cluster, self.primary()
        other = next(name for name in cluster.names if name != node)
        words = ("failover", cluster.path(other), "--from", node, "--json")
        return self.fail_over("perdure failover", lambda: cluster.command(other, *words))

    def primary(self) -> str:
        """Who reigns, once all follow it. Raises StorageError."""
        self.cluster.wait_whole()
        return self.cluster.reign.node

    def fail_over(self, fault: str, break_it: Callable[[], object]) -> Failover:
        """Break the primary, and wait until another node reigns. Raises StorageError if none does."""
        cluster, watch = self.cluster, self.cluster.watch
        time.sleep(SETTLE_S)
        before = cluster.reign
        at_ns = time.monotonic_ns()
        break_it()
        if cluster.coordinator == "manual":
            self._promote_by_hand(before.node)
        reign = watch.wait_reign(before.epoch, TAKE_OVER_S)
        if reign is None:
            raise StorageError(f"nobody took over from {before.node} ({fault})\n{cluster.describe()}")
        failover = self._note(fault, before, reign, at_ns)
        self._say(
            f"{fault} of {failover.node}: {failover.taken_by} reigns after "
            f"{failover.detection_ms + failover.promotion_ms:,.0f} ms"
        )
        time.sleep(SETTLE_S)
        return failover

    def _note(self, fault: str, before: Seen, reign: Seen, at_ns: int) -> Failover:
        candidacy_ns = self.cluster.watch.first_candidacy_ns(before.epoch, at_ns) or reign.at_ns
        failover = Failover(
            fault=fault,
            node=before.node,
            taken_by=reign.node,
            epoch=reign.epoch,
            detection_ms=(candidacy_ns - at_ns) / 1e6,
            promotion_ms=(reign.at_ns - candidacy_ns) / 1e6,
        )
        self._failovers.append((failover, at_ns, reign.at_ns))
        return failover

    def _promote_by_hand(self, dead: str) -> None:
        """As an operator does: the first node that may be promoted is."""
        others = [name for name in self.cluster.names if name != dead]
        until(lambda: any(self._promoted(name) for name in others), "one of them may be promoted")

    def _promoted(self, name: str) -> bool:
        return self.cluster.command(name, "promote", self.cluster.path(name)) == 0

    # -- the end ---------------------------------------------------------------------------------

    def finish(self, *, operations_min: int = 0, timeout_s: float = 120.0) -> FailoverReport:
        """Wait for so many operations, end the applications, and check all that must hold.

        Raises StorageError where the cluster does not come to rest.
        """
        cluster = self.cluster
        until(lambda: self.operations() >= operations_min, f"{operations_min:,} operations", timeout_s)
        cluster.wait_whole()
        cluster.stop_callers()
        standing = cluster.wait_equal()
        self._say("all logs are equal; checking the histories")
        return self._report(self.known + read_histories(cluster.histories), standing)

    def operations(self) -> int:
        """How many calls were answered until now."""
        return sum(file.read_bytes().count(b'"outcome":"ok"') for file in self.cluster.histories)

    def _report(self, history: list[Operation], standing: Standing) -> FailoverReport:
        cluster = self.cluster
        held = {name: cluster.sessions(name) for name in cluster.names}
        whole = history + final_reads(history, held, time.monotonic_ns())
        problems = [str(fault) for fault in find_faults(whole)]
        twice = cluster.watch.find_acknowledged_twice(cluster.reign.node)
        failovers = [
            msgspec.structs.replace(failover, write_gap_ms=_gap_ms(failover, history, at_ns, reign_ns))
            for failover, at_ns, reign_ns in self._failovers
        ]
        times = times_of(failovers)
        expected = {failover.epoch for failover in failovers} | {self._first.epoch}
        reigns = {seen.epoch for seen in cluster.watch.reigns()}
        return FailoverReport(
            nodes=len(cluster.names),
            coordinator=cluster.coordinator,
            operations=len(history),
            acknowledged=sum(is_acknowledged_write(operation) for operation in history),
            unknown=sum(operation.end_ns is None for operation in history),
            lost=count_lost(history, held[cluster.names[0]]),
            phantom=_count_phantoms(whole, held),
            linearizable=not problems,
            digests_agree=len(set(map(cluster.standing, cluster.names))) == 1,
            problems=(problems + twice)[:PROBLEMS_SHOWN],
            sessions=standing.sessions,
            digest=standing.digest,
            epoch=standing.epoch,
            lsn=standing.lsn,
            elapsed_s=time.monotonic() - self._started_s,
            false_elections=len(reigns - expected),
            failovers=failovers,
            p50_ms={name: statistics.median(taken) for name, taken in times.items()},
            p99_ms={name: percentile(taken, 0.99) for name, taken in times.items()},
        )


def times_of(failovers: Iterable[Failover]) -> dict[str, list[float]]:
    """The times of failovers by what they are; what was not measured is left out."""
    times: dict[str, list[float]] = {}
    for failover in failovers:
        for name in ("detection_ms", "promotion_ms", "write_gap_ms"):
            times.setdefault(name.removesuffix("_ms"), []).append(getattr(failover, name))
    return times


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _gap_ms(failover: Failover, history: list[Operation], at_ns: int, reign_ns: int) -> float:
    if failover.fault == SWITCHOVER:
        return longest_pause_ms(history, reign_ns - AROUND_NS, reign_ns + AROUND_NS)
    return write_gap_ms(history, at_ns, reign_ns)


def _count_phantoms(history: list[Operation], held: Mapping[str, Mapping[str, object]]) -> int:
    """Values that somebody saw and nobody wrote, and sessions that nobody made."""
    by_key: dict[str, list[Operation]] = {}
    for operation in history:
        by_key.setdefault(operation.key, []).append(operation)
    seen = {fault.operation.seen for operations in by_key.values() for fault in find_phantoms(operations)}
    return len(seen) + len({key for sessions in held.values() for key in sessions} - by_key.keys())
