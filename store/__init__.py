"""Sessions, every byte on disk, the back ends and the write path; imports nothing of the other rooms."""

from typing import TYPE_CHECKING, Any

from .batch import Batch
from .commit import Durability
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
from .identity import Identity, read_identity
from .ids import NOWHERE, Position, StatePosition
from .log import EventLog
from .opening import OpenOptions, begin_cluster, init_store, open_store
from .outcome import Outcome
from .promise import Promise, read_promise
from .session import Priority, Session
from .sessions import SessionStore

if TYPE_CHECKING:
    from .async_calls import indeterminate_of
    from .async_sessions import AsyncBatch, AsyncSessionStore

__all__ = [
    "AsyncBatch",
    "AsyncSessionStore",
    "BacklogError",
    "Batch",
    "BusyError",
    "Config",
    "CorruptError",
    "DivergedError",
    "Durability",
    "EventLog",
    "FencedError",
    "ForeignError",
    "ForkedError",
    "FormatError",
    "FormatVersionError",
    "Identity",
    "Indeterminate",
    "InvalidIdError",
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
    "ReentrantWriteError",
    "Session",
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
    "UsageError",
    "VersionConflictError",
    "WireError",
    "begin_cluster",
    "indeterminate_of",
    "init_store",
    "open_store",
    "read_identity",
    "read_promise",
]


def __getattr__(name: str) -> Any:
    """What needs asyncio, which takes a third of the time that this room takes to load, on first use."""
    if name in ("AsyncBatch", "AsyncSessionStore"):
        from . import async_sessions  # noqa: PLC0415

        return getattr(async_sessions, name)
    if name == "indeterminate_of":
        from .async_calls import indeterminate_of  # noqa: PLC0415

        return indeterminate_of
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
