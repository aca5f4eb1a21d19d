"""The options of the session replicator and session manager that perdure replaces, by their own names.

Owns what each old name means here: the option that it gives, or why it has no effect and what to do
instead. Pure; config reads the values and says the notes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .option import FLAG, INTEGER, LIST, STORE, TEXT, Kind, Option, parse_address
from .options import NODE, OLD_TIMES, RECOVERY, STORES, find_option

_MOST: Final = 1 << 40
Values = Mapping[tuple[str, str], Any]
"""What an old option gives: values of ours by (section, name)."""


@dataclass(frozen=True)
class OldOption:
    """An old option: what its values look like, what they give, and what there is to say of it."""

    name: str
    kind: Kind
    gives: Callable[[Any], Values]
    """Raises ValueError for a value that gives nothing; its text is why."""
    ours: str
    """How it is spelt now, or why it has no effect."""
    has_effect: bool = True

    @property
    def shape(self) -> Option:
        """Its values, to be checked as those of any option."""
        least, most = (0, _MOST) if self.kind is INTEGER else (None, None)
        times = OLD_TIMES if self.name == "default_timeout_ms" else {}
        return Option(
            "old",
            self.name,
            self.kind,
            None,
            self.ours,
            least,
            most,
            can_be_none=bool(times),
            old_values=times,
        )


def _same(section: str, name: str) -> Callable[[Any], Values]:
    return lambda value: {(section, name): value}


def _nothing(_value: Any) -> Values:
    return {}


def _compression(value: bool) -> Values:
    return {(STORE, "compression"): "zstd" if value else "none"}


def _auto_save(value: int) -> Values:
    return {(STORE, "durability"): "interval", (STORE, "interval_ms"): value}


def _peers(value: list[Any]) -> Values:
    """Old node names say no port: they give peers only where they are spelt NODE=HOST:PORT."""
    peers: dict[str, str] = {}
    for text in value:
        node, equals, address = str(text).partition("=")
        if not equals:
            raise ValueError(f"{text!r} names no address; list it under [node] peers as NODE=HOST:PORT")
        parse_address(address)
        peers[node] = address
    return {(NODE, "peers"): peers} if peers else {}


def _backend(value: str) -> Values:
    if value == "redis":
        raise ValueError("there is no back end redis; the store keeps the one it was made with")
    return {(STORE, "backend"): value}


def _moved(name: str, section: str, ours: str, kind: Kind = INTEGER) -> OldOption:
    return OldOption(name, kind, _same(section, ours), f"{section}.{ours}")


def _idle(name: str, kind: Kind, why: str) -> OldOption:
    return OldOption(name, kind, _nothing, why, has_effect=False)


_BACKEND: Final = "store.backend (ets: memory, dets: sqlite, mnesia: lmdb, with replicas by `perdure node`)"

OLD_OPTIONS: Final = {
    old.name: old
    for old in (
        _idle("enabled", FLAG, "replication runs where `perdure node` or `perdure ship` does"),
        OldOption("replica_nodes", LIST, _peers, "node.peers"),
        OldOption("nodes", LIST, _peers, "node.peers"),
        _idle("batch_size", INTEGER, "the shipper sends whatever is there, as soon as it is committed"),
        _idle("batch_timeout_ms", INTEGER, "the shipper sends at once and waits for no batch to fill"),
        _moved("replication_rpc_timeout_ms", STORE, "write_timeout_ms"),
        _idle("health_check_interval_ms", INTEGER, "nodes are not watched yet; use `perdure status`"),
        _idle("failure_threshold", INTEGER, "nodes are not watched yet; promotion is `perdure promote`"),
        _moved("cleanup_interval", STORE, "sweep_interval_ms"),
        _moved("cleanup_interval_ms", STORE, "sweep_interval_ms"),
        OldOption("enable_compression", FLAG, _compression, 'store.compression = "zstd" or "none"'),
        _moved("max_session_size_bytes", STORE, "max_session_size_bytes"),
        _moved("default_timeout_ms", STORE, "default_timeout_ms"),
        _idle(
            "replication_factor",
            INTEGER,
            "every node has a copy: list as many under [node] peers; sync_replicas says how many confirm",
        ),
        _idle("sync_interval", INTEGER, "replicas are sent each change at once"),
        _moved("snapshot_interval", RECOVERY, "snapshot_interval_ms"),
        _idle("max_pending_syncs", INTEGER, "a replica follows the log; nothing queues per session"),
        _idle(
            "enable_state_persistence",
            FLAG,
            "sessions are always written to the log; store.durability says when it is on disk",
        ),
        _moved("enable_auto_reconciliation", RECOVERY, "auto_reconcile", FLAG),
        OldOption("auto_save", INTEGER, _auto_save, 'store.durability = "interval" with store.interval_ms'),
        _idle("disc_copies", LIST, "every node keeps its copy on disk"),
        OldOption("table_name", TEXT, _nothing, "the name of a store is NAME of its section [stores.NAME]"),
        OldOption("file_path", TEXT, _same(STORES, "path"), "stores.NAME.path"),
        OldOption("storage_mode", TEXT, _backend, _BACKEND),
        OldOption("backend", TEXT, _backend, _BACKEND),
    )
}  # fmt: skip
"""By name. `table_name` and `file_path` together make a named store; config puts them together."""


def is_only_old(section: str, name: str) -> bool:
    """Is it an old name, and no option of this section by the same name?"""
    return name in OLD_OPTIONS and find_option(section, name) is None
