"""Sessions, every byte on disk, the back ends and the write path; imports nothing of the other rooms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .backends import BACKENDS, BackendKind, backend_kind, backend_names
from .batch import Batch
from .bulk import Bulk
from .commit import Durability
from .config import Configuration, Setting, inspect_config, load_config, with_keywords
from .consumers import Consumer
from .control import Config
from .errors import (
    BacklogError,
    BusyError,
    CorruptError,
    DivergedError,
    FencedError,
    ForeignError,
    ForkedError,
    FormatError,
    FormatVersionError,
    Indeterminate,
    InvalidIdError,
    KeyMissingError,
    LockTimeoutError,
    MetadataError,
    NoQuorumError,
    NotPrimaryError,
    PerdureError,
    PoisonedError,
    PositionGoneError,
    PositionLostError,
    PromiseRefusedError,
    ReentrantWriteError,
    SessionNotFoundError,
    SessionTooLargeError,
    StaleReadError,
    StorageError,
    StorageFullError,
    StoreClosedError,
    StoreInUseError,
    StoreMissingError,
    StoreReadOnlyError,
    UsageError,
    VersionConflictError,
    WireError,
    WrongKeyError,
)
from .export import ExportReport, Filter, export_sessions
from .feed import Feed
from .forwarded import ForwardedWrites
from .identity import Identity, has_identity, read_identity
from .ids import NOWHERE, Position, StatePosition
from .importing import ImportReport, import_lines, import_sessions
from .keyring import Keyring
from .log import EventLog
from .opening import OpenOptions, begin_cluster, init_store, open_store
from .outcome import Outcome
from .ports import Backend, Change, Deadline, Labelled, Record, Scan
from .promise import Promise, read_promise
from .session import Priority, Session
from .session_event import EventKind, SessionEvent
from .sessions import SessionStore
from .stores import Stores
from .subscribers import Subscription

if TYPE_CHECKING:
    from .async_calls import indeterminate_of
    from .async_feed import AsyncFeed
    from .async_sessions import AsyncBatch, AsyncSessionStore

__all__ = [
    "AsyncBatch",
    "AsyncFeed",
    "AsyncSessionStore",
    "BACKENDS",
    "Backend",
    "BackendKind",
    "BacklogError",
    "Batch",
    "Bulk",
    "BusyError",
    "Change",
    "Config",
    "Configuration",
    "Consumer",
    "CorruptError",
    "Deadline",
    "DivergedError",
    "Durability",
    "EventKind",
    "EventLog",
    "ExportReport",
    "Feed",
    "FencedError",
    "Filter",
    "ForeignError",
    "ForkedError",
    "FormatError",
    "FormatVersionError",
    "ForwardedWrites",
    "Identity",
    "ImportReport",
    "Indeterminate",
    "InvalidIdError",
    "KeyMissingError",
    "Keyring",
    "Labelled",
    "LockTimeoutError",
    "MetadataError",
    "NOWHERE",
    "NoQuorumError",
    "NotPrimaryError",
    "OpenOptions",
    "Outcome",
    "PerdureError",
    "PoisonedError",
    "Position",
    "PositionGoneError",
    "PositionLostError",
    "Priority",
    "Promise",
    "PromiseRefusedError",
    "Record",
    "ReentrantWriteError",
    "Scan",
    "Session",
    "SessionEvent",
    "SessionNotFoundError",
    "SessionStore",
    "SessionTooLargeError",
    "Setting",
    "StaleReadError",
    "StatePosition",
    "StorageError",
    "StorageFullError",
    "StoreClosedError",
    "StoreInUseError",
    "StoreMissingError",
    "StoreReadOnlyError",
    "Stores",
    "Subscription",
    "UsageError",
    "VersionConflictError",
    "WireError",
    "WrongKeyError",
    "backend_kind",
    "backend_names",
    "begin_cluster",
    "export_sessions",
    "has_identity",
    "import_lines",
    "import_sessions",
    "indeterminate_of",
    "init_store",
    "inspect_config",
    "load_config",
    "open_store",
    "read_identity",
    "read_promise",
    "with_keywords",
]


def __getattr__(name: str) -> Any:
    """What needs asyncio, which takes a third of the time that this room takes to load, on first use."""
    if name in ("AsyncBatch", "AsyncSessionStore"):
        from . import async_sessions  # noqa: PLC0415

        return getattr(async_sessions, name)
    if name == "AsyncFeed":
        from .async_feed import AsyncFeed  # noqa: PLC0415

        return AsyncFeed
    if name == "indeterminate_of":
        from .async_calls import indeterminate_of  # noqa: PLC0415

        return indeterminate_of
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
