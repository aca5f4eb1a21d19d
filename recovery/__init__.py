"""Snapshots, replay, verify, promotion, retention and log tools; imports the store and shipping rooms."""

from .availability import ALONE_AFTER_MS
from .cluster_status import ClusterStatus, PeerStatus, cluster_status
from .consistency import check_consistency, reconcile
from .coordinators import Coordinator, Manual, Quorum
from .counting import promises_needed
from .degrading import AvailabilityKeeper, WireWitnesses, Witnesses, keep_available
from .diverged import (
    Applied,
    Change,
    DivergedTail,
    apply_diverged,
    changes_in,
    diverged_events,
    list_diverged,
)
from .drop import apply_retention, explain_retention
from .election import ElectionOptions
from .elector import run_elector
from .failover import FailoverReport, fail_over
from .findings import Finding, Level, Summary, summarise
from .health import ask_health, order_to_stand
from .keyuse import KeyUse, key_use
from .locate import LastChange, Located, SessionHolder, locate, wait_synced
from .logtool import EpochStat, LogStat, SegmentStat, dump, stat
from .member_asks import Members, MemberService
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
from .node_state import NodeState
from .ops_service import OpsService
from .primary import Primary
from .promises import Answer, Decision, Voters, VoterState, Why, count_promises
from .promote import PromotionRefusedError, PromotionReport, promote
from .reach import Reach, known_reach, node_names
from .rebuild_log import rebuild_log
from .reconcile import Comparison, Difference, NodeVerdict
from .rejoin import RejoinReport, plan_rejoin, rejoin
from .repair import RepairReport, repair
from .replay import ReplayReport, replay_to
from .report import Failover, NodeReport, ReplicaReport, report_node
from .retention import Line, Plan, Policy, plan_retention
from .self_reconcile import SelfReconciled, reconcile_self
from .switch_nodes import WireNodes
from .switch_service import SwitchService
from .switchover import SwitchoverRefusedError, SwitchoverReport, switch_over
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
from .takeovers import Takeover, TakeoverRecord, read_takeovers
from .target import is_unfinished
from .transferring import TransferReport, force_transfer
from .verify import verify
from .verify_end import Depth
from .voters import WireVoters
from .waiting import Target, Waited, wait_for

__all__ = [
    "ALONE_AFTER_MS",
    "Answer",
    "Applied",
    "AvailabilityKeeper",
    "Change",
    "ClusterStatus",
    "ClusterSync",
    "Comparison",
    "Coordinator",
    "Decision",
    "Depth",
    "Difference",
    "DivergedTail",
    "ElectionOptions",
    "EpochStat",
    "Failover",
    "FailoverReport",
    "Finding",
    "KeyUse",
    "Lacking",
    "LastChange",
    "Level",
    "Line",
    "Located",
    "LogStat",
    "Manual",
    "MemberService",
    "Members",
    "Membership",
    "MigrationReport",
    "MigrationState",
    "NodeReport",
    "NodeState",
    "NodeVerdict",
    "OpsService",
    "PeerStatus",
    "Plan",
    "Policy",
    "Primary",
    "PromotionRefusedError",
    "PromotionReport",
    "Quorum",
    "Reach",
    "RejoinReport",
    "RepairReport",
    "ReplayReport",
    "ReplicaReport",
    "SegmentStat",
    "SelfReconciled",
    "SessionHolder",
    "SessionSync",
    "SnapshotState",
    "Summary",
    "SwitchService",
    "SwitchoverRefusedError",
    "SwitchoverReport",
    "SyncReport",
    "Takeover",
    "TakeoverRecord",
    "Target",
    "Transfer",
    "TransferReport",
    "VoterState",
    "Voters",
    "Waited",
    "Why",
    "WireNodes",
    "WireVoters",
    "WireWitnesses",
    "Witnesses",
    "abort_migration",
    "add_member",
    "add_witness",
    "apply_diverged",
    "apply_retention",
    "ask_health",
    "changes_in",
    "check_consistency",
    "cluster_status",
    "count_promises",
    "diverged_events",
    "drop_previous",
    "dump",
    "ensure_synced",
    "explain_retention",
    "fail_over",
    "flush",
    "force_sync",
    "force_transfer",
    "inspect_snapshots",
    "is_unfinished",
    "keep_available",
    "key_use",
    "known_reach",
    "list_diverged",
    "list_members",
    "locate",
    "migrate",
    "migrate_back",
    "migration_state",
    "node_names",
    "order_to_stand",
    "plan_rejoin",
    "plan_retention",
    "promises_needed",
    "promote",
    "prune_snapshots",
    "read_takeovers",
    "rebuild_log",
    "reconcile",
    "reconcile_self",
    "rejoin",
    "remove_member",
    "repair",
    "replay_to",
    "report_node",
    "run_elector",
    "set_policy",
    "set_sync_replicas",
    "stat",
    "summarise",
    "switch_over",
    "take_snapshot",
    "transfers",
    "verify",
    "wait_for",
    "wait_for_replicas",
    "wait_synced",
]
