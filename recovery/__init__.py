"""Snapshots, replay, verify, promotion, retention and log tools; imports the store and shipping rooms."""

from .cluster_status import ClusterStatus, PeerStatus, cluster_status
from .counting import promises_needed
from .drop import apply_retention, explain_retention
from .findings import Finding, Level, Summary, summarise
from .keyuse import KeyUse, key_use
from .logtool import EpochStat, LogStat, SegmentStat, dump, stat
from .members import (
    Membership,
    add_member,
    add_witness,
    list_members,
    remove_member,
    set_policy,
    set_sync_replicas,
)
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
from .reach import Reach
from .repair import RepairReport, repair
from .replay import ReplayReport, replay_to
from .report import Failover, NodeReport, ReplicaReport, report_node
from .retention import Line, Plan, Policy, plan_retention
from .sync_state import ClusterSync, SessionSync
from .syncing import (
    Lacking,
    SyncReport,
    Transfer,
    ensure_synced,
    flush,
    force_sync,
    transfers,
    wait_for_replicas,
)
from .take import SnapshotState, inspect_snapshots, prune_snapshots, take_snapshot
from .target import is_unfinished
from .verify import verify
from .verify_end import Depth
from .voters import WireVoters
from .waiting import Target, Waited, wait_for

__all__ = [
    "Answer",
    "ClusterStatus",
    "ClusterSync",
    "Decision",
    "Depth",
    "EpochStat",
    "Failover",
    "Finding",
    "KeyUse",
    "Lacking",
    "Level",
    "Line",
    "LogStat",
    "Membership",
    "MigrationReport",
    "MigrationState",
    "NodeReport",
    "PeerStatus",
    "Plan",
    "Policy",
    "PromotionRefusedError",
    "PromotionReport",
    "Reach",
    "RepairReport",
    "ReplayReport",
    "ReplicaReport",
    "SegmentStat",
    "SessionSync",
    "SnapshotState",
    "Summary",
    "SyncReport",
    "Target",
    "Transfer",
    "VoterState",
    "Voters",
    "Waited",
    "Why",
    "WireVoters",
    "abort_migration",
    "add_member",
    "add_witness",
    "apply_retention",
    "cluster_status",
    "count_promises",
    "drop_previous",
    "dump",
    "ensure_synced",
    "explain_retention",
    "flush",
    "force_sync",
    "inspect_snapshots",
    "is_unfinished",
    "key_use",
    "list_members",
    "migrate",
    "migrate_back",
    "migration_state",
    "plan_retention",
    "promises_needed",
    "promote",
    "prune_snapshots",
    "remove_member",
    "repair",
    "replay_to",
    "report_node",
    "set_policy",
    "set_sync_replicas",
    "stat",
    "summarise",
    "take_snapshot",
    "transfers",
    "verify",
    "wait_for",
    "wait_for_replicas",
]
