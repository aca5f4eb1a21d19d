"""Sessions, every byte on disk, the back ends and the write path; imports nothing of the other rooms."""

from .batch import Batch
from .bulk import Bulk
from .commit import Durability
from .config import Configuration, Setting, inspect_config, load_config, with_keywords
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
from .export import ExportReport, Filter, export_sessions
from .identity import Identity, has_identity, read_identity
from .ids import NOWHERE, Position, StatePosition
from .importing import ImportReport, import_lines, import_sessions
from .log import EventLog
from .opening import OpenOptions, begin_cluster, init_store, open_store
from .outcome import Outcome
from .promise import Promise, read_promise
from .session import Priority, Session
from .sessions import SessionStore
from .stores import Stores

__all__ = [
    "BacklogError",
    "Batch",
    "Bulk",
    "BusyError",
    "Config",
    "Configuration",
    "CorruptError",
    "DivergedError",
    "Durability",
    "EventLog",
    "ExportReport",
    "FencedError",
    "Filter",
    "ForeignError",
    "ForkedError",
    "FormatError",
    "FormatVersionError",
    "Identity",
    "ImportReport",
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
    "Setting",
    "StatePosition",
    "StorageError",
    "StorageFullError",
    "StoreClosedError",
    "StoreInUseError",
    "StoreMissingError",
    "StoreReadOnlyError",
    "Stores",
    "UsageError",
    "VersionConflictError",
    "WireError",
    "begin_cluster",
    "export_sessions",
    "has_identity",
    "import_lines",
    "import_sessions",
    "init_store",
    "inspect_config",
    "load_config",
    "open_store",
    "read_identity",
    "read_promise",
    "with_keywords",
]
