"""Sessions, every byte on disk, the back ends and the write path; imports nothing of the other rooms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .backends import BACKENDS, BackendKind, backend_kind, backend_names
from .batch import Batch
from .bulk import Bulk
from .commit import Durability
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
    LockTimeoutError,
    MetadataError,
    NoQuorumError,
    NotPrimaryError,
    PerdureError,
    PoisonedError,
    PositionGoneError,
    PromiseRefusedError,
    ReentrantWriteError,
    SessionNotFoundError,
    SessionTooLargeError,
    StorageError,
    StorageFullError,
    StoreClosedError,
    StoreInUseError,
    StoreMissingError,
    StoreReadOnlyError,
    UsageError,
    VersionConflictError,
    WireError,
)
from .feed import Feed
from .identity import Identity, read_identity
from .ids import NOWHERE, Position, StatePosition
from .log import EventLog
from .opening import OpenOptions, begin_cluster, init_store, open_store
from .outcome import Outcome
from .ports import Backend, Change, Deadline, Labelled, Record, Scan
from .promise import Promise, read_promise
from .session import Priority, Session
from .session_event import EventKind, SessionEvent
from .sessions import SessionStore
from .subscribers import Subscription

if TYPE_CHECKING:
    from .async_feed import AsyncFeed

__all__ = [
    "AsyncFeed",
    "BACKENDS",
    "Backend",
    "BackendKind",
    "BacklogError",
    "Batch",
    "Bulk",
    "BusyError",
    "Change",
    "Config",
    "Consumer",
    "CorruptError",
    "Deadline",
    "DivergedError",
    "Durability",
    "EventKind",
    "EventLog",
    "Feed",
    "FencedError",
    "ForeignError",
    "ForkedError",
    "FormatError",
    "FormatVersionError",
    "Identity",
    "Indeterminate",
    "InvalidIdError",
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
    "StatePosition",
    "StorageError",
    "StorageFullError",
    "StoreClosedError",
    "StoreInUseError",
    "StoreMissingError",
    "StoreReadOnlyError",
    "Subscription",
    "UsageError",
    "VersionConflictError",
    "WireError",
    "backend_kind",
    "backend_names",
    "begin_cluster",
    "init_store",
    "open_store",
    "read_identity",
    "read_promise",
]


def __getattr__(name: str) -> Any:
    """What needs asyncio is loaded when it is first asked for: it would slow every import."""
    if name == "AsyncFeed":
        from .async_feed import AsyncFeed  # noqa: PLC0415

        return AsyncFeed
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
