"""The options of perdure, as one table: name, type, default, limits with their unit, what each is for.

Owns the table. Checking, `perdure config`, the page docs/configuration.md and the messages of errors are made
from it; where values come from is config's. Invariant: an option of the section `store` is a keyword of
SessionStore.open with the same default.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypedDict

from .errors import UsageError
from .event import VALUE_BYTES_MAX
from .hot import HOT_BYTES, HOT_BYTES_MAX
from .keyring import Keyring
from .names import NODE_NAME_BYTES_MAX
from .option import (
    FLAG,
    INTEGER,
    KEYS,
    LIST,
    NODES,
    PATH,
    STORE,
    TEXT,
    Option,
    address_problem,
    name_problem,
    names_problem,
    nearest,
    nodes_problem,
    urls_problem,
)
from .sealer import COMPRESS_MIN_BYTES
from .session import DEFAULT_TIMEOUT_MS, LABEL_BYTES_MAX, REFRESH_WINDOW_MS_MAX, TIMEOUT_MS_MAX

NODE: Final = "node"
SHIPPING: Final = "shipping"
RECOVERY: Final = "recovery"
FAILOVER: Final = "failover"
SECTIONS: Final = (STORE, NODE, SHIPPING, RECOVERY, FAILOVER)
STORES: Final = "stores"
DAY_MS: Final = 86_400_000
AGE_MS_MAX: Final = 100 * 366 * DAY_MS
COUNT_MAX: Final = 1 << 40


class StoreOptions(TypedDict, total=False):
    """What `perdure.open` takes as keywords; `create` is no configuration."""

    backend: str | None
    durability: str
    interval_ms: int
    max_session_size_bytes: int
    write_timeout_ms: int
    refresh_window_ms: int | None
    sweep_interval_ms: int
    hot_bytes: int
    home_node: str
    max_sessions: int | None
    compression: str
    compress_min_bytes: int
    keys: Keyring | str | os.PathLike[str] | None
    hide_ids: bool | None
    default_timeout_ms: int | None
    create: bool


_OLD_BACKENDS: Final = MappingProxyType({"ets": "memory", "dets": "sqlite", "mnesia": "lmdb"})
OLD_TIMES: Final = MappingProxyType({"infinity": None, "infinite": None})

OPTIONS: Final[tuple[Option, ...]] = (
    # -- the keywords of SessionStore.open
    Option(
        STORE,
        "backend",
        TEXT,
        None,
        "Where a new store keeps its state: lmdb, sqlite, memory, or one that is installed. none: what the "
        "store was made with, lmdb for a new one.",
        1,
        64,
        "bytes",
        can_be_none=True,
        old_values=_OLD_BACKENDS,
    ),
    Option(
        STORE,
        "durability",
        TEXT,
        "os",
        "When a write is on disk: os leaves it to the system, interval says at the latest when, disk "
        "before the call returns; cache, when a store is made, makes one that keeps no log.",
        choices=("os", "interval", "disk", "cache"),
    ),
    Option(
        STORE,
        "interval_ms",
        INTEGER,
        1000,
        'With durability = "interval": on disk at the latest after so long.',
        1,
        DAY_MS,
        "ms",
    ),
    Option(
        STORE,
        "max_session_size_bytes",
        INTEGER,
        65_536,
        "A larger session is refused before anything is written.",
        1,
        VALUE_BYTES_MAX,
        "bytes",
    ),
    Option(
        STORE,
        "write_timeout_ms",
        INTEGER,
        5000,
        "How long a write waits for its turn, and for the replicas that must confirm it.",
        0,
        DAY_MS,
        "ms",
    ),
    Option(
        STORE,
        "refresh_window_ms",
        INTEGER,
        None,
        "A refresh is written once it moves the deadline by more than this. none: a tenth of the "
        "session's timeout, at most a minute.",
        0,
        REFRESH_WINDOW_MS_MAX,
        "ms",
        can_be_none=True,
    ),
    Option(
        STORE,
        "sweep_interval_ms",
        INTEGER,
        60_000,
        "What has expired is removed so often; 0 is never.",
        0,
        DAY_MS,
        "ms",
    ),
    Option(
        STORE,
        "hot_bytes",
        INTEGER,
        HOT_BYTES,
        "Sessions that are read often stay in the memory of the process that reads, checked, up to so much; "
        "0 is none.",
        0,
        HOT_BYTES_MAX,
        "bytes",
    ),
    Option(
        STORE,
        "home_node",
        TEXT,
        "",
        "The home node that new sessions get.",
        0,
        LABEL_BYTES_MAX,
        "bytes",
    ),
    Option(
        STORE,
        "max_sessions",
        INTEGER,
        None,
        "So many sessions at most: a new one evicts the least recently used. none: no limit.",
        1,
        COUNT_MAX,
        "sessions",
        can_be_none=True,
    ),
    Option(
        STORE,
        "compression",
        TEXT,
        "none",
        "How large metadata are stored.",
        choices=("none", "zstd"),
    ),
    Option(
        STORE,
        "compress_min_bytes",
        INTEGER,
        COMPRESS_MIN_BYTES,
        "Smaller metadata are not compressed.",
        1,
        VALUE_BYTES_MAX,
        "bytes",
    ),
    Option(
        STORE,
        "keys",
        KEYS,
        None,
        "What sessions are encrypted with. none: they are not encrypted.",
        1,
        can_be_none=True,
    ),
    Option(
        STORE,
        "hide_ids",
        FLAG,
        None,
        "With keys: ids and labels are not readable in log, state and snapshots either. none: as the "
        "store has it.",
        can_be_none=True,
    ),
    Option(
        STORE,
        "default_timeout_ms",
        INTEGER,
        DEFAULT_TIMEOUT_MS,
        "The idle timeout of a session that is created without one. none: infinite.",
        1,
        TIMEOUT_MS_MAX,
        "ms",
        can_be_none=True,
        old_values=OLD_TIMES,
    ),
    # -- what the commands of a node take
    Option(
        NODE,
        "name",
        TEXT,
        None,
        "The node's name, for `init`.",
        1,
        NODE_NAME_BYTES_MAX,
        "bytes",
        test=name_problem,
    ),
    Option(
        NODE,
        "listen",
        TEXT,
        None,
        "Where the node listens, HOST:PORT, for `node` and `receive`.",
        3,
        300,
        "bytes",
        test=address_problem,
    ),
    Option(
        NODE,
        "serve",
        TEXT,
        None,
        "Where the node serves other nodes, HOST:PORT. none: the port after that of `listen`.",
        3,
        300,
        "bytes",
        can_be_none=True,
        test=address_problem,
    ),
    Option(
        NODE,
        "monitor",
        TEXT,
        None,
        "Where the node takes heartbeats, HOST:PORT. none: the second port after that of `listen`.",
        3,
        300,
        "bytes",
        can_be_none=True,
        test=address_problem,
    ),
    Option(
        NODE,
        "peers",
        NODES,
        None,
        "Where every other node listens, for `node`, `ship`, `promote` and `status`.",
        test=nodes_problem,
    ),
    Option(
        NODE,
        "tls_cert",
        PATH,
        None,
        "This node's certificate (PEM): signed by the cluster's CA, and for the node's name.",
        1,
        4096,
        "bytes",
    ),
    Option(NODE, "tls_key", PATH, None, "The key of tls_cert, without a password.", 1, 4096, "bytes"),
    Option(
        NODE,
        "tls_ca",
        PATH,
        None,
        "The cluster's CA: who signs the certificate of every node.",
        1,
        4096,
        "bytes",
    ),
    Option(
        NODE,
        "allow_plain",
        FLAG,
        False,
        "A secret without TLS will do on addresses that are not loopback, too.",
    ),
    Option(NODE, "secret_file", PATH, None, "The file of the secret that all nodes share.", 1, 4096, "bytes"),
    Option(
        NODE,
        "voters",
        LIST,
        None,
        "The nodes that vote, for `init --primary`.",
        test=names_problem,
    ),
    Option(
        NODE,
        "witnesses",
        LIST,
        None,
        "Voters that keep promises only, for `init --primary`.",
        test=names_problem,
    ),
    Option(
        NODE,
        "sync_replicas",
        INTEGER,
        "auto",
        "How many replicas confirm each write, for `init --primary`; auto is a majority of the cluster.",
        0,
        64,
        "nodes",
        words=("auto",),
    ),
    Option(SHIPPING, "compress", FLAG, True, "Sealed segments go over the wire compressed with zstd."),
    Option(
        SHIPPING,
        "slot_budget_bytes",
        INTEGER,
        4 << 30,
        "So much log is kept for a replica that is away; one that lacks more gets a snapshot.",
        1 << 20,
        1 << 50,
        "bytes",
    ),
    Option(
        SHIPPING,
        "snapshot_bytes_per_s",
        INTEGER,
        0,
        "A replica is sent so much of a snapshot in a second; 0 is as fast as it goes.",
        0,
        1 << 40,
        "bytes",
    ),
    Option(
        RECOVERY,
        "snapshot_interval_ms",
        INTEGER,
        60_000,
        "A node process takes a snapshot so often; 0 is never.",
        0,
        AGE_MS_MAX,
        "ms",
    ),
    Option(
        RECOVERY,
        "snapshots_kept",
        INTEGER,
        3,
        "So many of the newest snapshots stay.",
        1,
        1_000_000,
        "snapshots",
    ),
    Option(
        RECOVERY,
        "retention_interval_ms",
        INTEGER,
        60_000,
        "A node process drops log and snapshots that nobody needs so often; 0 is never.",
        0,
        AGE_MS_MAX,
        "ms",
    ),
    Option(
        RECOVERY,
        "log_age_ms",
        INTEGER,
        DAY_MS,
        "Log that is younger stays, and a snapshot that is as old with the log behind it: a replay can end"
        " at any moment since then.",
        0,
        AGE_MS_MAX,
        "ms",
    ),
    Option(
        RECOVERY,
        "consumer_budget_bytes",
        INTEGER,
        4 << 30,
        "So much log is kept for a consumer of the event feed that is behind.",
        1 << 20,
        1 << 50,
        "bytes",
    ),
    Option(
        RECOVERY,
        "consumer_age_ms",
        INTEGER,
        7 * DAY_MS,
        "A consumer that is behind and has acknowledged nothing for so long holds no log.",
        0,
        AGE_MS_MAX,
        "ms",
    ),
    Option(
        RECOVERY,
        "snapshot_age_ms",
        INTEGER,
        0,
        "Snapshots that are younger stay, too.",
        0,
        AGE_MS_MAX,
        "ms",
    ),
    Option(
        FAILOVER,
        "coordinator",
        TEXT,
        "auto",
        "What decides about promotions. auto: quorum with three voters or more, manual with fewer.",
        choices=("auto", "manual", "quorum", "etcd"),
    ),
    Option(
        FAILOVER,
        "etcd_endpoints",
        LIST,
        None,
        "Where etcd answers, as URLs, for the coordinator etcd.",
        test=urls_problem,
    ),
    Option(
        FAILOVER,
        "etcd_lease_ms",
        INTEGER,
        2000,
        "So long after its last sign to etcd a primary keeps the key there; etcd takes whole seconds.",
        1000,
        600_000,
        "ms",
    ),
    Option(
        FAILOVER,
        "heartbeat_ms",
        INTEGER,
        100,
        "Nodes send each other heartbeats so often.",
        10,
        60_000,
        "ms",
    ),
    Option(
        FAILOVER,
        "silence_ms",
        INTEGER,
        1000,
        "A primary of which nothing was heard for so long is given up; one that refuses connections at once.",
        100,
        DAY_MS,
        "ms",
    ),
    Option(
        FAILOVER,
        "candidacy_ms",
        INTEGER,
        150,
        "A candidate waits up to so long, at random, so that two do not stand at once.",
        0,
        60_000,
        "ms",
    ),
    Option(
        FAILOVER,
        "disk_stall_ms",
        INTEGER,
        3000,
        "A primary whose disk does not answer for so long gives up.",
        100,
        DAY_MS,
        "ms",
    ),
    Option(
        FAILOVER,
        "alone_after_ms",
        INTEGER,
        2000,
        "With the policy available a primary goes on alone when too few replicas followed for so long.",
        100,
        DAY_MS,
        "ms",
    ),
    Option(
        FAILOVER,
        "rejoin",
        TEXT,
        "auto",
        "How a node whose history differs from the primary's becomes its replica: auto or by `rejoin` only.",
        choices=("auto", "manual"),
    ),
    Option(
        FAILOVER,
        "preferred",
        TEXT,
        None,
        "Of replicas that are equally far this node becomes primary. none: the first by name.",
        1,
        NODE_NAME_BYTES_MAX,
        "bytes",
        can_be_none=True,
        test=name_problem,
    ),
    Option(
        RECOVERY,
        "auto_reconcile",
        FLAG,
        True,
        "A node process whose replica has diverged makes its state anew from snapshot and log.",
    ),
)

_TABLE: Final = {(option.section, option.name): option for option in OPTIONS}
STORE_PATH: Final = Option(STORES, "path", PATH, None, "The directory of the store.", 1, 4096, "bytes")


def option(section: str, name: str) -> Option:
    """An option by its section and name. Raises UsageError, with the nearest one, if there is none."""
    found = _TABLE.get((section, name))
    if found is None:
        names = names_of(section)
        raise UsageError(f"there is no option {section}.{name}{nearest(name, names)}")
    return found


def find_option(section: str, name: str) -> Option | None:
    return _TABLE.get((section, name))


def names_of(section: str) -> list[str]:
    """The names of a section's options, in the table's order."""
    return [option.name for option in OPTIONS if option.section == section]


def home_path(text: str | os.PathLike[str]) -> Path:
    """A path as it is compared with others: absolute, links followed."""
    return Path(text).expanduser().resolve()
