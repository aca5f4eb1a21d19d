"""Every file name inside a store's directory, and the way back from a name to its numbers."""

from __future__ import annotations

import re
from pathlib import Path

IDENTITY = "identity"
LOG = "log"
MARK = "mark"
CONTROL_PAGE = "control"
WRITE_LOCK = "write.lock"
SYNC_LOCK = "sync.lock"
FOLD_LOCK = "fold.lock"
USERS_LOCK = "users.lock"
POISON = "poison"
PROMISE = "promise"
WITNESS = "witness"
STATE = "state"
STATE_MARKER = "marker"
SNAPSHOTS = "snapshots"
SLOTS = "slots"
FEEDS = "feeds"
ASIDE = "aside"
DIVERGED = "diverged"
POKE_SOCKET = "poke.sock"
GATE_SOCKET = "gate.sock"
NODE_SOCKET = "node.sock"
SHIPPER_LOCK = "shipper.lock"
RECEIVER_LOCK = "receiver.lock"
CANDIDACY_LOCK = "candidacy.lock"
PORTS = "ports"
WAYS = "ways"
PROBE = "probe"
UNMONITORED = "unmonitored"
TAKEOVERS = "takeovers"
CUT_PLAN = "cut.plan"
INSTALL_PLAN = "install.plan"
INCOMING = "incoming"
REJOIN_PLAN = "rejoin.plan"
REJOIN = "rejoin"
REJOIN_ALLOWED = "rejoin.allowed"
FOLD_FAULT = "fold.fault"
LOG_FAULT = "log.fault"
REBUILD = "rebuild"
CONFIG_FILE = "perdure.toml"
SWITCH_PLAN = "switch.plan"
STATE_PREVIOUS = "state.previous"
MIGRATION = "migration"
MIGRATION_LOCK = "migration.lock"
AUDIT = "audit.log"
AUDIT_BEFORE = "audit.log.1"
TEMPORARY_SUFFIX = ".tmp"
CONSUMER_LOCK_SUFFIX = ".lock"

_SEGMENT = re.compile(r"([0-9]{20})-([0-9a-f]{8})\.seg\Z")
_SNAPSHOT = re.compile(r"([0-9]{20})-([0-9a-f]{8})\.snap\Z")
_SLOT = re.compile(r"([a-z0-9][a-z0-9._-]{0,31})\.slot\Z")
_CONSUMER = re.compile(r"([a-z0-9][a-z0-9._-]{0,63})\.feed\Z")
_NODE = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}\Z")

NODE_NAME_BYTES_MAX = 32


def segment_name(first_lsn: int, epoch: int) -> str:
    return f"{first_lsn:020d}-{epoch:08x}.seg"


def snapshot_name(lsn: int, epoch: int) -> str:
    return f"{lsn:020d}-{epoch:08x}.snap"


def slot_name(node: str) -> str:
    return f"{node}.slot"


def parse_segment_name(name: str) -> tuple[int, int] | None:
    """(first LSN, epoch) of a segment's file name, or None if it is no such name."""
    return _parse(_SEGMENT, name)


def parse_snapshot_name(name: str) -> tuple[int, int] | None:
    """(LSN, epoch) of a snapshot's file name, or None if it is no such name."""
    return _parse(_SNAPSHOT, name)


def parse_slot_name(name: str) -> str | None:
    """Node of a slot's file name, or None if it is no such name."""
    match = _SLOT.match(name)
    return match[1] if match else None


def consumer_name(consumer: str) -> str:
    return f"{consumer}.feed"


def parse_consumer_name(name: str) -> str | None:
    """Consumer of a progress file's name, or None if it is no such name."""
    match = _CONSUMER.match(name)
    return match[1] if match else None


def is_node_name(text: str) -> bool:
    """Node names are 1 to 32 characters of a-z, 0-9, dot, dash and underscore."""
    return _NODE.match(text) is not None


def log_path(store: str | Path) -> Path:
    return Path(store) / LOG


def state_path(store: str | Path) -> Path:
    return Path(store) / STATE


def _parse(pattern: re.Pattern[str], name: str) -> tuple[int, int] | None:
    match = pattern.match(name)
    return (int(match[1]), int(match[2], 16)) if match else None
