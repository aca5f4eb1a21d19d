"""The systems that are compared: an adapter each, behind the ports of this package.

Owns the list of them. Packages and programs that an adapter needs are looked for only when it is asked.
"""

from __future__ import annotations

from .diskcache import DiskCache
from .django import DjangoDb, DjangoFile
from .erlang import DRIVERS
from .perdure import Perdure
from .perdure_pair import PerdurePair
from .ports import System
from .postgresql import PostgreSql, PostgreSqlApplying, PostgreSqlPair
from .redis import Redis, RedisPair
from .sqlite import Sqlite

__all__ = ["DRIVERS", "OURS", "PEERS", "SYSTEMS", "system_named"]

OURS: tuple[System, ...] = (Perdure("lmdb"), Perdure("sqlite"), Perdure("memory"), PerdurePair())
PEERS: tuple[System, ...] = (
    Sqlite(),
    Redis(),
    PostgreSql(),
    DiskCache(),
    DjangoDb(),
    DjangoFile(),
    RedisPair(),
    PostgreSqlPair(),
    PostgreSqlApplying(),
)
SYSTEMS: tuple[System, ...] = OURS + PEERS


def system_named(name: str) -> System:
    """Raises KeyError if there is none."""
    return {system.name: system for system in SYSTEMS}[name]
