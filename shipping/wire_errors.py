"""Errors over the wire: what a handler raised is raised again by whoever asked, as the same class.

Owns the way from an error to a Failed message and back. Only errors of the tree go over; the class of one
that this version does not know becomes WireError.
"""

from __future__ import annotations

from typing import Any, Final

from ..store import errors
from ..store.errors import Indeterminate, KeyMissingError, PerdureError, VersionConflictError, WireError
from .messages_server import Failed

TEXT_CHARS_MAX: Final = 2000


def _tree(kind: type[PerdureError]) -> dict[str, type[PerdureError]]:
    found = {kind.__name__: kind}
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            found.update(_tree(child))
    return found


_CLASSES: Final = _tree(PerdureError)
_NAMES: Final = {kind: name for name, kind in _CLASSES.items()}


def failed(error: PerdureError) -> Failed:
    """The message that says what was raised."""
    kind = next(known for known in type(error).__mro__ if known in _NAMES)
    fields: dict[str, Any] = {}
    for name in ("position", "operation_id", "expected", "actual", "key_id"):
        if (value := getattr(error, name, None)) is not None:
            fields[name] = value
    return Failed(
        _NAMES[kind],
        error.message[:TEXT_CHARS_MAX],
        path=error.path,
        offset=error.offset,
        lsn=error.lsn,
        node=error.node,
        hint=error.hint[:TEXT_CHARS_MAX],
        **fields,
    )


def error_of(answer: Failed) -> PerdureError:
    """The error that an answer stands for."""
    kind = _CLASSES.get(answer.kind, WireError)
    error: PerdureError
    if issubclass(kind, VersionConflictError):
        error = kind(answer.message, expected=answer.expected or 0, actual=answer.actual)
    elif issubclass(kind, Indeterminate):
        error = kind(answer.message, position=answer.position, operation_id=answer.operation_id)
    elif issubclass(kind, KeyMissingError):
        error = kind(answer.message, key_id=answer.key_id)
    else:
        error = kind(answer.message)
    error.path, error.offset, error.lsn = answer.path, answer.offset, answer.lsn
    error.node, error.hint = answer.node, answer.hint
    return error
