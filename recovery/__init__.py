"""Snapshots, replay, verify, promotion, retention and log tools; imports the store and shipping rooms."""

from .counting import promises_needed
from .drop import apply_retention, explain_retention
from .findings import Finding, Level, Summary, summarise
from .keyuse import KeyUse, key_use
from .logtool import EpochStat, LogStat, SegmentStat, dump, stat
from .migrate import (
    MigrationReport,
    MigrationState,
    abort_migration,
    drop_previous,
    migrate,
    migrate_back,
    migration_state,
)
from .promises import Answer, Decision, Voters, VoterState, Why, count_promises
from .promote import PromotionRefusedError, PromotionReport, promote
from .repair import RepairReport, repair
from .replay import ReplayReport, replay_to
from .retention import Line, Plan, Policy, plan_retention
from .take import SnapshotState, inspect_snapshots, prune_snapshots, take_snapshot
from .target import is_unfinished
from .verify import verify
from .verify_end import Depth
from .voters import WireVoters

__all__ = [
    "Answer",
    "Decision",
    "Depth",
    "EpochStat",
    "Finding",
    "KeyUse",
    "Level",
    "Line",
    "LogStat",
    "MigrationReport",
    "MigrationState",
    "Plan",
    "Policy",
    "PromotionRefusedError",
    "PromotionReport",
    "RepairReport",
    "ReplayReport",
    "SegmentStat",
    "SnapshotState",
    "Summary",
    "VoterState",
    "Voters",
    "Why",
    "WireVoters",
    "abort_migration",
    "apply_retention",
    "count_promises",
    "drop_previous",
    "dump",
    "explain_retention",
    "inspect_snapshots",
    "is_unfinished",
    "key_use",
    "migrate",
    "migrate_back",
    "migration_state",
    "plan_retention",
    "promises_needed",
    "promote",
    "prune_snapshots",
    "repair",
    "replay_to",
    "stat",
    "summarise",
    "take_snapshot",
    "verify",
]
