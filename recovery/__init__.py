"""Snapshots, replay, verify, rejoin, retention and failover; imports the store and shipping rooms."""

from .findings import Finding, Level, Summary, summarise
from .promises import Answer, Decision, Voters, VoterState, Why, count_promises, promises_needed
from .promote import PromotionRefusedError, PromotionReport, promote
from .replay import ReplayReport, is_unfinished, replay_to
from .take import SnapshotState, inspect_snapshots, prune_snapshots, take_snapshot
from .verify import verify
from .verify_log import Depth
from .voters import WireVoters

__all__ = [
    "Answer",
    "Decision",
    "Depth",
    "Finding",
    "Level",
    "PromotionRefusedError",
    "PromotionReport",
    "ReplayReport",
    "SnapshotState",
    "Summary",
    "VoterState",
    "Voters",
    "Why",
    "WireVoters",
    "count_promises",
    "inspect_snapshots",
    "is_unfinished",
    "promises_needed",
    "promote",
    "prune_snapshots",
    "replay_to",
    "summarise",
    "take_snapshot",
    "verify",
]
