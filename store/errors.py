"""The tree of errors that perdure raises.

    PerdureError
    |-- UsageError (ValueError)         an argument is wrong; nothing was changed
    |   |-- InvalidIdError              an id is empty, too long or not text
    |   |-- MetadataError               metadata holds what cannot be stored; names the path to it
    |   |-- SessionTooLargeError        over max_session_size_bytes; nothing was written
    |   `-- ReentrantWriteError         a write from inside an update function or a batch
    |-- SessionNotFoundError (KeyError) no such session, or it has expired
    |-- KeyMissingError                 a session is sealed, and its key is not at hand
    |   `-- WrongKeyError               the key of that id does not open it
    |-- VersionConflictError            if_version did not match; carries both versions
    |-- StoreClosedError                the handle was closed
    |   `-- ForkedError                 the handle was opened before a fork
    |-- NotPrimaryError                 this node does not accept writes
    |   `-- FencedError                 a newer epoch was promised; this node's epoch is over
    |-- BusyError                       refused before anything was written; try again later
    |   |-- LockTimeoutError            another process held the write lock past the deadline
    |   |-- BacklogError                too many frames wait for replicas, or for the fold
    |   `-- NoQuorumError               fewer voters than sync_replicas are connected
    |-- Indeterminate                   appended, but not known to be as durable as asked
    |-- StorageError                    the file system refused
    |   |-- StorageFullError            no space left; writing goes on once there is space
    |   |-- StoreReadOnlyError          the directory cannot be written
    |   |-- StoreMissingError           no store at this path
    |   |-- PoisonedError               a sync failed; final until every handle is closed
    |   `-- StoreInUseError             something needs the store to itself
    |-- FormatError                     bytes that are not what they should be
    |   |-- FormatVersionError          written by a newer version
    |   |-- ForeignError                belongs to another cluster, node or shard
    |   `-- CorruptError                damaged: names file, offset and LSN
    |-- DivergedError                   two histories under one position
    |-- PositionGoneError               the log no longer (or does not yet) hold this position
    |-- PositionLostError               a position that is in no history any more
    |-- StaleReadError                  this node is not as far as a read asks for
    |-- PromiseRefusedError             a promise was given to another candidate, or a higher epoch
    `-- WireError                       shipping: link, handshake, authentication, protocol

Every error carries what is known of `path`, `offset` (bytes), `lsn`, `node`, and a `hint` that says
what to do next.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import msgspec

DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All that msgspec raises for bytes that are not what they should be: bad text and endless nesting too."""


def names_node(message: str, node: str) -> bool:
    """Does a message name this node already?"""
    return re.search(rf"(?<![\w.-]){re.escape(node)}(?![\w-]|\.\w)", message) is not None


class PerdureError(Exception):
    """Base of every error that perdure raises on purpose."""

    def __init__(
        self,
        message: str,
        *,
        path: str | Path | None = None,
        offset: int | None = None,
        lsn: int | None = None,
        node: str | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = None if path is None else str(path)
        self.offset = offset
        self.lsn = lsn
        self.node = node
        self.hint = hint

    def __str__(self) -> str:
        where = [
            f"{name} {value}"
            for name, value in (
                ("file", self.path),
                ("offset", self.offset),
                ("lsn", self.lsn),
                ("node", None if self.node and names_node(self.message, self.node) else self.node),
            )
            if value is not None
        ]
        text = self.message
        if where:
            text += f" ({', '.join(where)})"
        if self.hint:
            text += f". {self.hint}"
        return text


class UsageError(PerdureError, ValueError):
    """An argument is wrong. Nothing was changed."""


class InvalidIdError(UsageError):
    """A session id is empty, longer than 1,024 bytes of UTF-8, or not text."""


class MetadataError(UsageError):
    """Metadata that cannot be stored; the message names the path to the value."""


class SessionTooLargeError(UsageError):
    """A session over the store's max_session_size_bytes. Nothing was written."""


class ReentrantWriteError(UsageError):
    """A write to the store from inside an update function."""


class SessionNotFoundError(PerdureError, KeyError):
    """The session is not there, or has expired."""

    __str__ = PerdureError.__str__


class KeyMissingError(PerdureError):
    """A session is sealed (encrypted), and the key with the id `key_id` is not at hand.

    The session is there and stays as it is. `key_id` is None where no keys were given at all.
    """

    def __init__(
        self, message: str, *, key_id: int | None = None, path: str | Path | None = None, hint: str = ""
    ) -> None:
        super().__init__(message, path=path, hint=hint)
        self.key_id = key_id


class WrongKeyError(KeyMissingError):
    """The key of that id does not open a sealed session: it is another key, or the bytes were changed."""


class VersionConflictError(PerdureError):
    """`if_version` was not the session's version."""

    def __init__(self, message: str, *, expected: int, actual: int | None) -> None:
        super().__init__(message, hint="Read the session again and repeat the change.")
        self.expected = expected
        self.actual = actual


class StoreClosedError(PerdureError):
    """The handle was closed."""


class ForkedError(StoreClosedError):
    """The handle was opened before a fork and belongs to the parent process."""


class NotPrimaryError(PerdureError):
    """This node does not accept writes."""


class FencedError(NotPrimaryError):
    """A newer epoch was promised to another candidate; this node's epoch is over."""


class BusyError(PerdureError):
    """Refused before anything was written; the same call may succeed later."""

    retry_after_ms: int = 100


class LockTimeoutError(BusyError):
    """The write lock was not free within the deadline."""


class BacklogError(BusyError):
    """Too many frames wait for replicas, or too many events for the fold."""


class NoQuorumError(BusyError):
    """Fewer voters are connected than sync_replicas asks for."""


class Indeterminate(PerdureError):
    """The write was appended, and it is not known whether it is as durable as asked.

    `position` is (epoch, lsn, chain) of its frame, `operation_id` its 16 bytes as hex. Ask
    `store.outcome(...)` later with either.
    """

    left_ms: int | None = None
    """What was left of the call's time; None: all of it."""

    def __init__(
        self,
        message: str,
        *,
        position: tuple[int, int, int] | None,
        operation_id: str | None,
        hint: str = "Ask outcome() with the position or the operation id before you repeat it.",
    ) -> None:
        super().__init__(message, lsn=position[1] if position else None, hint=hint)
        self.position = position
        self.operation_id = operation_id


class StorageError(PerdureError):
    """The file system refused what a store needs."""


class StorageFullError(StorageError):
    """No space left. Nothing of the call was kept; writing goes on once there is space."""


class StoreReadOnlyError(StorageError):
    """The store's directory cannot be written."""


class StoreMissingError(StorageError):
    """There is no store at this path."""


class PoisonedError(StorageError):
    """A sync to disk failed. Final until every handle is closed and the log was copied anew."""


class StoreInUseError(StorageError):
    """Something that needs the store to itself found another process in it."""


class FormatError(PerdureError):
    """Bytes that are not what the format says."""


class FormatVersionError(FormatError):
    """Written by a newer version of perdure."""


class ForeignError(FormatError):
    """The bytes belong to another cluster, node or shard, or to no store at all."""


class CorruptError(FormatError):
    """Damaged bytes where durable ones should be."""


class DivergedError(PerdureError):
    """Two histories under one position."""


class PositionGoneError(PerdureError):
    """The log does not hold the position that was asked for."""


class PositionLostError(PerdureError):
    """A position is in no history any more: what was written there was lost with its primary."""


class StaleReadError(PerdureError):
    """This node is not as far, or not as fresh, as a read asks for, and was not in time."""


class PromiseRefusedError(PerdureError):
    """The epoch was promised to another candidate, or a higher one was promised."""


class WireError(PerdureError):
    """Shipping failed: link, handshake, authentication or protocol."""
