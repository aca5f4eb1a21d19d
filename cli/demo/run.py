"""The demo from beginning to end: traffic, the death of the primary, a promotion, and the proof.

Owns the order of events. Each step uses what an operator or an application would use; nothing is simulated.
Invariant: however a demo ends, no process of it is left, and its directory is gone unless it was asked for.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

from ... import open as open_replicated
from ...store import BusyError, NoQuorumError, StorageError
from . import mapping, proof
from .accesslog import LineCounts, in_time_order, read_hits
from .audit import Audit
from .cluster import PRIMARY, REPLICAS, Cluster
from .expectation import Expected
from .failover import Promoted, promote_furthest
from .gauge import Count, Gauge, Stage
from .live import Screen
from .processes import Child
from .report import DemoOptions, Failover, Outcome, Traffic
from .watch import Watch
from .writer import Task

KILL_AT_PART = (0.75, 1.25)
"""With made-up traffic the primary dies after such a part of the seconds that were asked for."""
FILL_S_MAX = 10.0
"""A machine too slow to create all sessions in this time goes on creating them in the traffic's time."""
KILL_AT_SHARE = (0.35, 0.65)
"""With an access log the primary dies after such a part of its operations."""
LOG_S_MIN = 6.0
"""A short access log is driven slowly enough that there is a middle to kill it in."""
HOLD_AT_SHARE = 0.9
"""This far every writer may come with it before the kill."""
SNAPSHOT_AT = 0.5
"""The snapshots are taken after this part of the way to the kill."""
KILL_WITHIN_S = 0.05
CATCH_UP_S = 20.0
START_S = 30.0
PATIENCE_S = 20.0
TICK_S = 0.05
PROBE = "demo-probe"


class Demo:
    """One demo in a directory of its own. `run` may be called once."""

    def __init__(self, options: DemoOptions, root: Path, screen: Screen) -> None:
        self._options = options
        self._cluster = Cluster(root, backend=options.backend, sync_replicas=options.sync_replicas)
        self._screen = screen
        self._random = Random(f"perdure demo {options.plan.seed}")
        self._gauges: list[Gauge] = self._cluster.open_gauges(options.plan.writers)
        self._watch = Watch(self._gauges)
        self._started_s = time.monotonic()
        self._lines = LineCounts()
        self._implied: Expected | None = None
        self._operations: Counter[int] = Counter()
        self._allowed: set[Child] = set()

    def run(self) -> Outcome:
        """Play it. Raises PerdureError or OSError where something fails; everything is ended before."""
        try:
            group = self._begin()
            traffic = self._drive(group)
            failover = self._fail_over(group)
            self._go_on(failover.promoted.node)
            return self._prove(traffic, failover)
        finally:
            self._watch.close()
            self._cluster.processes.end()
            for gauge in self._gauges:
                gauge.close()

    # -- before ----------------------------------------------------------------------------------

    def _begin(self) -> int:
        """Start everything; answers the process group of the whole primary side."""
        options, cluster = self._options, self._cluster
        if options.access_log is not None:
            self._screen.step(f"reading {options.access_log}")
            self._implied = proof.expected_of(options.access_log, self._lines)
            hits = in_time_order(read_hits(options.access_log, LineCounts()))
            self._operations = Counter(
                int(operation.key[:32], 16) % options.plan.writers for operation in mapping.operations(hits)
            )
        self._screen.step(f"one primary and two replicas, each a real process, in {cluster.root}")
        cluster.make()
        cluster.start_receivers(REPLICAS)
        group = cluster.start_shipper(PRIMARY, REPLICAS).group
        self._watch.follow(cluster.directories, PRIMARY)
        self._start_writers(PRIMARY, group, is_first=True)
        self._screen.step(
            f"{options.plan.writers} app processes write; sync_replicas = {options.sync_replicas}"
        )
        return group

    def _start_writers(self, node: str, group: int, *, is_first: bool) -> None:
        """Start the app on a node. In its first life a short access log is stretched, held near its end."""
        options, cluster = self._options, self._cluster
        tasks: list[Task] = []
        for writer in range(options.plan.writers):
            self._gauges[writer][Count.STAGE] = Stage.STARTING
            operations = self._operations[writer]
            task = Task(
                store=str(cluster.directories[node]),
                ledger=str(cluster.ledger(writer)),
                gauge=str(cluster.gauge(writer)),
                writer=writer,
                plan=options.plan,
                access_log=str(options.access_log.resolve()) if options.access_log else None,
                pace_s=LOG_S_MIN / operations if is_first and operations else 0.0,
                hold_at=_hold_at(operations) if is_first and operations else None,
                sweeps=writer == 0 and options.access_log is not None,
            )
            tasks.append(task)
        cluster.start_writers(tasks, group)
        self._wait(
            lambda: all(stage > Stage.STARTING for stage in self._watch.stages()),
            START_S,
            "the writers to start",
        )

    # -- traffic ---------------------------------------------------------------------------------

    def _drive(self, group: int) -> Traffic:
        """Let the writers write until the moment of the kill; the replicas take snapshots on the way."""
        watch, filled_s = self._watch, time.monotonic()
        if self._implied is None:
            places = self._options.plan.sessions
            self._wait(
                lambda: watch.total(Count.SEQUENCE) >= places or time.monotonic() - filled_s > FILL_S_MAX,
                None,
                "",
            )
            self._screen.step(
                f"{watch.total(Count.WRITES):,} sessions were created in batches; now traffic like a web's"
            )
        running_s = time.monotonic()
        writes, reads = watch.total(Count.WRITES), watch.total(Count.READS)
        watch.meter(True)
        self._traffic_until_kill(running_s)
        watch.meter(False)
        span_s = time.monotonic() - running_s
        return Traffic(
            seconds=span_s,
            writes_per_s=(watch.total(Count.WRITES) - writes) / span_s,
            reads_per_s=(watch.total(Count.READS) - reads) / span_s,
            lag_p50_ms=max(meter.percentile_ms(50) for meter in watch.meters.values()),
            lag_p99_ms=max(meter.percentile_ms(99) for meter in watch.meters.values()),
            slowest_write_ms=max(gauge[Count.SLOWEST_US] for gauge in self._gauges) / 1000,
        )

    def _traffic_until_kill(self, running_s: float) -> None:
        """Wait for the moment of the kill: after a random time, or a random part of an access log."""
        watch = self._watch
        if self._operations:
            reachable = sum(_hold_at(operations) for operations in self._operations.values())
            wanted = self._random.uniform(*KILL_AT_SHARE) * reachable
            share: Callable[[], float] = lambda: watch.total(Count.SEQUENCE) / wanted  # noqa: E731
        else:
            after_s = self._random.uniform(*KILL_AT_PART) * self._options.seconds
            share = lambda: (time.monotonic() - running_s) / after_s  # noqa: E731
        self._wait(lambda: share() >= SNAPSHOT_AT, None, "")
        self._screen.step("both replicas take a snapshot while they follow")
        commands = self._cluster.processes
        taking = [
            commands.command(f"{node}-snapshot", ["snapshot", "create", str(directory), "--json"])
            for node, directory in self._cluster.directories.items()
            if node in REPLICAS
        ]
        self._wait(lambda: share() >= 1.0 and not any(child.is_alive for child in taking), None, "")
        time.sleep(self._random.uniform(0.0, KILL_WITHIN_S))

    # -- failover --------------------------------------------------------------------------------

    def _fail_over(self, group: int) -> Failover:
        cluster, screen = self._cluster, self._screen
        killed_s = time.monotonic()
        died = cluster.kill_machine(group, PRIMARY)
        self._allowed.update(died)
        in_full_run = [child for child in died if child.process.returncode == -signal.SIGKILL]
        screen.step(
            f"kill -9 of {len(in_full_run)} processes of {PRIMARY} in the middle of their work; it is gone"
        )
        promoted = promote_furthest(
            {node: cluster.directories[node] for node in REPLICAS},
            cluster.addresses,
            cluster_id=cluster.cluster_id,
            secret=cluster.secret.encode(),
            accept_data_loss=self._options.sync_replicas == 0,
        )
        promisers = ", ".join(promoted.promisers)
        screen.step(
            f"{promoted.node} is furthest (LSN {promoted.before_lsn:,}); "
            f"{promisers} promised it epoch {promoted.epoch}"
        )
        self._serve(promoted)
        confirmed_s = self._probe(cluster.directories[promoted.node])
        failover_ms = (confirmed_s - killed_s) * 1000
        screen.step(f"a write was confirmed again {failover_ms:,.0f} ms after the kill")
        audit_s = time.monotonic()
        audit = self._audit(promoted.node)
        screen.step(f"ledgers against {promoted.node}: {_said(audit)}")
        return Failover(
            promoted=promoted,
            killed=len(in_full_run),
            killed_at_s=killed_s - self._started_s,
            failover_ms=failover_ms,
            audit=audit,
            audit_ms=(time.monotonic() - audit_s) * 1000,
        )

    def _serve(self, promoted: Promoted) -> None:
        """The other replica follows the new primary; where two must confirm, a new machine takes the old
        one's place."""
        cluster = self._cluster
        replicas = [node for node in REPLICAS if node != promoted.node]
        if self._options.sync_replicas > len(replicas):
            cluster.replace_machine(PRIMARY)
            replicas.append(PRIMARY)
        cluster.start_shipper(promoted.node, replicas)
        self._watch.follow(
            {node: cluster.directories[node] for node in (promoted.node, *replicas)}, promoted.node
        )

    def _probe(self, store: Path) -> float:
        """Write and delete one session as an application does; answers when the write was confirmed."""
        end = time.monotonic() + PATIENCE_S
        with open_replicated(store, create=False) as opened:
            while True:
                try:
                    opened.put(PROBE, {"written": "after the failover"})
                    break
                except (BusyError, NoQuorumError):
                    if time.monotonic() > end:
                        raise
                    time.sleep(TICK_S / 10)
            confirmed_s = time.monotonic()
            opened.delete(PROBE)
        return confirmed_s

    # -- after -----------------------------------------------------------------------------------

    def _go_on(self, node: str) -> None:
        """The app follows: its writers take up their streams on the new primary, from their ledgers."""
        shipper = self._cluster.shipper
        self._watch.meter(True)
        self._start_writers(node, shipper.group if shipper else 0, is_first=False)
        if self._options.access_log is not None:
            self._screen.step(f"the app drives the rest of the log on {node}")
            self._wait(lambda: all(stage >= Stage.STOPPED for stage in self._watch.stages()), None, "")
            with open_replicated(self._cluster.directories[node], create=False) as opened:
                opened.cleanup_expired()
        else:
            self._screen.step(f"the app goes on writing on {node}")
            end = time.monotonic() + self._options.seconds / 2
            self._wait(lambda: time.monotonic() > end, None, "")
        self._cluster.processes.stop(self._cluster.writers, timeout_s=PATIENCE_S)
        self._check()
        self._watch.meter(False)

    # -- proof -----------------------------------------------------------------------------------

    def _prove(self, traffic: Traffic, failover: Failover) -> Outcome:
        cluster, node = self._cluster, failover.promoted.node
        primary = proof.standing_of(cluster.directories[node])
        follower = next(replica for replica in REPLICAS if replica != node)
        replica = proof.wait_for(cluster.directories[follower], primary, CATCH_UP_S)
        self._screen.step(
            f"{node} has {primary.sessions:,} sessions, digest {primary.digest}; {follower} {replica.digest}"
        )
        replayed = proof.replay(cluster.processes, cluster.directories[node], cluster.root / "replayed")
        self._screen.step(
            f"replay from {replayed.base or 'the first frame'} and log: digest {replayed.digest}"
        )
        self._screen.show(self._watch.sight())
        final = self._audit(node) if failover.audit.is_clean else None
        comparison = None
        if self._implied is not None:
            log = self._options.access_log or Path()
            comparison = proof.compare_with_log(
                cluster.directories[node], self._implied, log, self._ledgers()
            )
        return Outcome(
            options=self._options,
            traffic=traffic,
            failover=failover,
            final=final,
            primary=primary,
            replica=replica,
            replayed=replayed,
            comparison=comparison,
            lines=self._lines,
            mismatches=self._watch.total(Count.MISMATCHES),
            writes_confirmed=self._watch.total(Count.WRITES),
            elapsed_s=time.monotonic() - self._started_s,
        )

    # -- inside ----------------------------------------------------------------------------------

    def _audit(self, node: str) -> Audit:
        return proof.audit_of(self._cluster.directories[node], self._ledgers())

    def _ledgers(self) -> list[Path]:
        return [self._cluster.ledger(writer) for writer in range(self._options.plan.writers)]

    def _wait(self, until: Callable[[], bool], timeout_s: float | None, what: str) -> None:
        """Show what happens until something is so. Raises StorageError past a time limit, or if a process
        fails."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while not until():
            self._check()
            self._screen.show(self._watch.sight())
            if end is not None and time.monotonic() > end:
                raise StorageError(f"waited {timeout_s:.0f} s for {what}", path=self._cluster.root)
            time.sleep(TICK_S)

    def _check(self) -> None:
        self._cluster.processes.check(lambda child: child in self._allowed)


def _hold_at(operations: int) -> int:
    return max(1, int(operations * HOLD_AT_SHARE))


def _said(audit: Audit) -> str:
    return (
        f"{audit.acknowledged:,} writes acknowledged, {audit.lost:,} lost, {audit.phantom:,} phantom, "
        f"{audit.unknown:,} unanswered"
    )
