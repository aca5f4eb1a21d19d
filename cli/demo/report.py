"""What a demo was told, what came of it, and whether that is what was promised.

Owns the report and its verdict; decides by values alone. Invariant: `is_proven` is true only if no write that
was acknowledged is lost, nothing is there that nobody wrote, every digest agrees, and an access log's result
is exactly what the log alone implies.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from .accesslog import LineCounts
from .audit import Audit
from .failover import Promoted
from .proof import Comparison, ReplayedCopy, Standing
from .traffic import Plan

EXAMPLES_SHOWN = 5


class DemoOptions(msgspec.Struct, frozen=True):
    """What a demo is told."""

    plan: Plan
    access_log: Path | None = None
    backend: str = "lmdb"
    sync_replicas: int = 1
    seconds: float = 5.0
    """About how long made-up traffic runs before the kill."""


class Traffic(msgspec.Struct, frozen=True):
    """How the cluster did until the kill. Lags are of the slower replica."""

    seconds: float
    writes_per_s: float
    reads_per_s: float
    lag_p50_ms: float
    lag_p99_ms: float
    slowest_write_ms: float


class Failover(msgspec.Struct, frozen=True):
    """What came of the promotion. `failover_ms` is from the kill to the first write that was confirmed
    again."""

    promoted: Promoted
    killed: int
    killed_at_s: float
    failover_ms: float
    audit: Audit
    audit_ms: float


class Outcome(msgspec.Struct, frozen=True):
    """Everything that a demo found out."""

    options: DemoOptions
    traffic: Traffic
    failover: Failover
    final: Audit | None
    """The ledgers once more, after the app went on; None if something was lost already."""
    primary: Standing
    replica: Standing
    replayed: ReplayedCopy
    comparison: Comparison | None
    """Only with an access log."""
    lines: LineCounts
    mismatches: int
    """Answers of the store that were not what a writer's own history implies."""
    writes_confirmed: int
    elapsed_s: float


def digests_agree(outcome: Outcome) -> bool:
    """Do the new primary, its replica and the replayed copy hold the same sessions?"""
    copy = outcome.replayed
    return outcome.primary == outcome.replica and (copy.lsn, copy.sessions, copy.digest) == (
        outcome.primary.lsn,
        outcome.primary.sessions,
        outcome.primary.digest,
    )


def is_proven(outcome: Outcome) -> bool:
    """Is everything as it was promised?"""
    audits = [outcome.failover.audit] + ([outcome.final] if outcome.final else [])
    return (
        all(audit.is_clean for audit in audits)
        and digests_agree(outcome)
        and outcome.mismatches == 0
        and (outcome.comparison is None or not outcome.comparison.differences)
    )


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The report under stable keys."""
    options, traffic, failover = outcome.options, outcome.traffic, outcome.failover
    audit, final, promoted = failover.audit, outcome.final, failover.promoted
    report: dict[str, Any] = {
        "acknowledged": audit.acknowledged,
        "lost": audit.lost + (final.lost if final else 0),
        "phantom": audit.phantom + (final.phantom if final else 0),
        "holes": audit.holes + (final.holes if final else 0),
        "unknown": audit.unknown,
        "refused": audit.refused,
        "lost_sessions": audit.lost_sessions,
        "mismatches": outcome.mismatches,
        "acknowledged_at_end": final.acknowledged if final else None,
        "digests_agree": digests_agree(outcome),
        "is_proven": is_proven(outcome),
        "sessions": outcome.primary.sessions,
        "digest": outcome.primary.digest,
        "epoch": outcome.primary.epoch,
        "lsn": outcome.primary.lsn,
        "replica": msgspec.structs.asdict(outcome.replica),
        "replayed": msgspec.structs.asdict(outcome.replayed),
        "failover_ms": round(failover.failover_ms),
        "promotion_ms": promoted.promotion_ms,
        "replay_ms": outcome.replayed.replay_ms,
        "audit_ms": round(failover.audit_ms),
        "elapsed_ms": round(outcome.elapsed_s * 1000),
        "killed_processes": failover.killed,
        "killed_at_ms": round(failover.killed_at_s * 1000),
        "new_primary": promoted.node,
        "at_risk": promoted.at_risk,
        "writes_per_s": round(traffic.writes_per_s),
        "reads_per_s": round(traffic.reads_per_s),
        "lag_p50_ms": round(traffic.lag_p50_ms, 3),
        "lag_p99_ms": round(traffic.lag_p99_ms, 3),
        "slowest_write_ms": round(traffic.slowest_write_ms, 3),
        "sync_replicas": options.sync_replicas,
        "backend": options.backend,
        "writers": options.plan.writers,
        "seed": options.plan.seed,
        "by_kind": dict(audit.by_kind),
        "examples": [msgspec.structs.asdict(example) for example in audit.examples],
    }
    if outcome.comparison is not None:
        report |= _log_as_json(outcome, outcome.comparison)
    return report


def summary(outcome: Outcome) -> Iterator[str]:
    """The report in lines for people."""
    options, traffic, failover = outcome.options, outcome.traffic, outcome.failover
    audit, promoted = failover.audit, failover.promoted
    yield (
        f"{options.plan.writers} app processes wrote for {traffic.seconds:.1f} s with sync_replicas = "
        f"{options.sync_replicas}: {traffic.writes_per_s:,.0f} writes/s, {traffic.reads_per_s:,.0f} reads/s, "
        f"replica lag p99 {traffic.lag_p99_ms:.1f} ms, slowest write {traffic.slowest_write_ms:.0f} ms"
    )
    yield (
        f"the primary died by kill -9 ({failover.killed} processes) after {failover.killed_at_s:.1f} s; "
        f"{promoted.node} took over in {failover.failover_ms:,.0f} ms, "
        f"of which the promotion took {promoted.promotion_ms:,} ms"
    )
    yield (
        f"of {audit.attempted:,} writes {audit.acknowledged:,} were acknowledged, "
        f"{audit.unknown:,} had no answer: {audit.lost:,} lost, {audit.phantom:,} phantom"
    )
    if outcome.final is not None:
        yield (
            f"the app went on: {outcome.final.acknowledged:,} acknowledged in the end, "
            f"{outcome.final.lost:,} lost, {outcome.final.phantom:,} phantom"
        )
    yield from _proof_summary(outcome)


def _proof_summary(outcome: Outcome) -> Iterator[str]:
    audit, copy = outcome.failover.audit, outcome.replayed
    yield (
        f"{outcome.primary.sessions:,} sessions; digests: primary {outcome.primary.digest}, replica "
        f"{outcome.replica.digest}, replay of {copy.base or 'the whole log'} + {copy.events:,} events "
        f"{copy.digest} in {copy.replay_ms:,} ms: {'they agree' if digests_agree(outcome) else 'they DIFFER'}"
    )
    if outcome.comparison is not None:
        yield from _log_summary(outcome, outcome.comparison)
    if outcome.mismatches:
        yield f"{outcome.mismatches:,} answers of the store were not what the writers' own history implies"
    for example in audit.examples[:EXAMPLES_SHOWN]:
        yield f"  {example.trouble}: session {example.key}, {example.kind}: {example.reason}"
    if audit.lost and outcome.options.sync_replicas == 0:
        yield (
            f"with sync_replicas = 0 a write is acknowledged before any replica has it: {audit.lost:,} such "
            "writes died with the primary, as the promotion had to accept"
        )
    yield (
        "proven: nothing that was acknowledged is lost"
        if is_proven(outcome)
        else "NOT as it should be, see above"
    )


def _log_as_json(outcome: Outcome, comparison: Comparison) -> dict[str, Any]:
    return {
        "expected_sessions": comparison.expected_sessions,
        "measured_sessions": comparison.measured_sessions,
        "expected_hits": comparison.expected_hits,
        "measured_hits": comparison.measured_hits,
        "expected_expirations": comparison.expected_expirations,
        "measured_expirations": comparison.measured_expirations,
        "expected_live": comparison.expected_live,
        "measured_live": comparison.measured_live,
        "log_agrees": not comparison.differences,
        "differences": list(comparison.differences),
        "requests": outcome.lines.hits,
        "malformed_lines": outcome.lines.malformed,
    }


def _log_summary(outcome: Outcome, comparison: Comparison) -> Iterator[str]:
    yield (
        f"the access log ({outcome.lines.hits:,} requests, {outcome.lines.malformed:,} malformed lines) "
        f"implies {comparison.expected_sessions:,} sessions, {comparison.expected_hits:,} hits and "
        f"{comparison.expected_expirations:,} expirations; measured {comparison.measured_sessions:,}, "
        f"{comparison.measured_hits:,} and {comparison.measured_expirations:,}"
    )
    for difference in comparison.differences[:EXAMPLES_SHOWN]:
        yield f"  {difference}"
