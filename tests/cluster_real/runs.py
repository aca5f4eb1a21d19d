"""A run: applications that write on every machine, faults of whoever is primary, and what came of it.

Owns the order of a fault (wait until the cluster is whole, do it, see who takes over, mend it), the times
that are taken of it, and the checks at the end of a run. Invariant: the checks rest on what the applications
wrote down and on what the nodes' files hold, not on what the nodes say of themselves.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.cluster_real.client import Task
from tests.cluster_real.histories import is_acknowledged_write, read_histories, write_gap_ms
from tests.cluster_real.nodes import RealCluster, Standing, until
from tests.cluster_real.watching import Seen
from tests.support.linearizability import Operation, find_faults

TAKE_OVER_S = 20.0
AFTER_S = 1.0
REPORT_VARIABLE = "PERDURE_REPORT_DIR"
"""Where a run leaves its report as JSON; without it, it is only printed."""


class Failover(msgspec.Struct, frozen=True, kw_only=True):
    """One fault of a primary, and who took over. Times since the fault, in ms."""

    fault: str
    node: str
    taken_by: str
    epoch: int
    detection_ms: float
    """A node promised an epoch to itself."""
    promotion_ms: float
    """From then until that node's epoch was committed."""
    at_ns: int
    reign_ns: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a run."""

    name: str
    nodes: int
    coordinator: str
    operations: int
    acknowledged: int
    unknown: int
    sessions: int
    digest: int
    elapsed_s: float
    failovers: list[dict[str, object]]
    p50_ms: dict[str, float]
    p99_ms: dict[str, float]
    false_elections: int


class Run:
    """Faults of one cluster under load. `finish` ends it and checks everything."""

    def __init__(self, name: str, cluster: RealCluster, task: Task, *, each: int = 1) -> None:
        self._name = name
        self._cluster = cluster
        self._task = task
        self._each = each
        self._failovers: list[Failover] = []
        self._elections = 0
        self._started_s = time.monotonic()
        cluster.start()
        cluster.wait_whole()
        self._first = cluster.reign
        cluster.add_clients(task, each=each)

    # -- faults ----------------------------------------------------------------------------------

    def kill(self) -> None:
        """kill -9 of the primary's machine with its applications; it comes back when another reigns."""
        cluster, node = self._cluster, self._cluster.reign.node
        self._fail_over("kill", node, lambda: cluster.kill(node))
        cluster.start(node)
        cluster.add_clients(self._task, node, each=self._each)

    def partition(self, *, hears: bool = False, is_heard: bool = False) -> None:
        """Part the primary from the others, wholly or one way, until another reigns."""
        cluster, node = self._cluster, self._cluster.reign.node
        fault = "partition" + (", still hears" if hears else ", still heard" if is_heard else "")
        try:
            self._fail_over(
                fault, node, lambda: cluster.network.isolate(node, hears=hears, is_heard=is_heard)
            )
        finally:
            cluster.network.heal()

    def pause(self) -> None:
        """SIGSTOP of the primary's machine until another reigns, then SIGCONT."""
        cluster, node = self._cluster, self._cluster.reign.node
        try:
            self._fail_over("pause", node, lambda: cluster.network.pause(node))
        finally:
            cluster.network.resume(node)

    def _fail_over(self, fault: str, node: str, break_it: Callable[[], object]) -> None:
        cluster, watch = self._cluster, self._cluster.watch
        cluster.wait_whole()
        time.sleep(AFTER_S)
        before = cluster.reign
        assert before.node == node, f"{before.node} reigns instead of {node} without a fault"
        at_ns = time.monotonic_ns()
        break_it()
        if cluster.coordinator == "manual":
            self._promote_by_hand(node)
        reign = watch.wait_reign(before.epoch, TAKE_OVER_S)
        assert reign is not None, f"nobody took over from {node} ({fault})\n{cluster.describe()}"
        self._note(fault, node, before, reign, at_ns)
        time.sleep(AFTER_S)

    def _note(self, fault: str, node: str, before: Seen, reign: Seen, at_ns: int) -> None:
        candidacy_ns = self._cluster.watch.first_candidacy_ns(before.epoch, at_ns) or reign.at_ns
        self._failovers.append(
            Failover(
                fault=fault,
                node=node,
                taken_by=reign.node,
                epoch=reign.epoch,
                detection_ms=(candidacy_ns - at_ns) / 1e6,
                promotion_ms=(reign.at_ns - candidacy_ns) / 1e6,
                at_ns=at_ns,
                reign_ns=reign.at_ns,
            )
        )

    def _promote_by_hand(self, dead: str) -> None:
        """As an operator does: the first node that may be promoted is."""
        others = [name for name in self._cluster.names if name != dead]
        until(lambda: any(self._promoted(name) for name in others), "one of them may be promoted")

    def _promoted(self, name: str) -> bool:
        return self._cluster.command(name, "promote", self._cluster.path(name)) == 0

    def steady(self, seconds: float) -> None:
        """Load without faults."""
        time.sleep(seconds)

    # -- the end ---------------------------------------------------------------------------------

    def finish(self, *, operations_min: int = 0) -> Report:
        """Wait for so many operations, end the applications, and check all that must hold."""
        cluster = self._cluster
        until(lambda: self._count() >= operations_min, f"{operations_min:,} operations", 120.0)
        cluster.wait_whole()
        cluster.stop_clients()
        standing = cluster.wait_equal()
        history = read_histories(cluster.histories)
        problems = [str(fault) for fault in find_faults(history + self._final_reads(history))]
        problems += cluster.watch.find_acknowledged_twice(cluster.reign.node)
        assert not problems, "\n".join(problems[:10])
        assert len(history) >= operations_min
        report = self._report(history, standing)
        self._leave(report)
        return report

    def _count(self) -> int:
        """About how many operations were made."""
        return sum(file.read_bytes().count(b'"outcome":"ok"') for file in self._cluster.histories)

    def _final_reads(self, history: list[Operation]) -> list[Operation]:
        """What every node holds in the end, as reads after everything: an acknowledged write that is lost, or
        a session that nobody wrote, makes the history not linearizable."""
        keys = {operation.key for operation in history}
        now_ns = time.monotonic_ns()
        reads: list[Operation] = []
        for name in self._cluster.names:
            held = self._cluster.sessions(name)
            assert set(held) <= keys, f"{name} holds sessions that nobody made: {set(held) - keys}"
            for key in keys:
                seen = held.get(key)
                reads.append(
                    Operation(
                        client=f"end of {name}",
                        kind="read",
                        key=key,
                        start_ns=now_ns,
                        end_ns=now_ns + 1,
                        seen=None if seen is None else seen[0],
                        version=0 if seen is None else seen[1],
                    )
                )
        return reads

    def _report(self, history: list[Operation], standing: Standing) -> Report:
        rows: list[dict[str, object]] = []
        times: dict[str, list[float]] = {"detection": [], "promotion": [], "write_gap": []}
        for failover in self._failovers:
            gap_ms = write_gap_ms(history, failover.at_ns, failover.reign_ns)
            row = msgspec.to_builtins(failover)
            del row["at_ns"], row["reign_ns"]
            rows.append(row | {"write_gap_ms": gap_ms})
            times["detection"].append(failover.detection_ms)
            times["promotion"].append(failover.promotion_ms)
            times["write_gap"].append(gap_ms)
        expected = {failover.epoch for failover in self._failovers} | {self._first.epoch}
        return Report(
            name=self._name,
            nodes=len(self._cluster.names),
            coordinator=self._cluster.coordinator,
            operations=len(history),
            acknowledged=sum(is_acknowledged_write(operation) for operation in history),
            unknown=sum(operation.end_ns is None for operation in history),
            sessions=standing.sessions,
            digest=standing.digest,
            elapsed_s=time.monotonic() - self._started_s,
            failovers=rows,
            p50_ms={name: statistics.median(taken) for name, taken in times.items() if taken},
            p99_ms={name: _percentile(taken, 0.99) for name, taken in times.items() if taken},
            false_elections=len({seen.epoch for seen in self._cluster.watch.reigns()} - expected),
        )

    def _leave(self, report: Report) -> None:
        text = json.dumps(msgspec.to_builtins(report), indent=1)
        print(text)
        folder = os.environ.get(REPORT_VARIABLE)
        if folder:
            (Path(folder) / f"{self._name}.json").write_text(text)


def _percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
