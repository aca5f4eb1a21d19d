"""What a command's exit code says, and how an error becomes one clear message.

Owns the codes and the mapping from the tree of errors; every command runs inside `reporting`. Invariant: a
command that fails says what, where and what to do next, on stderr or (with --json) as one JSON object on
stdout, and never shows a traceback unless PERDURE_TRACEBACK is set.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import Any, ParamSpec, TypeVar

import typer

from ..store import (
    BusyError,
    DivergedError,
    FormatError,
    Indeterminate,
    KeyMissingError,
    NotPrimaryError,
    PerdureError,
    PromiseRefusedError,
    SessionNotFoundError,
    StoreInUseError,
    UsageError,
    VersionConflictError,
)
from . import render

TRACEBACK_VARIABLE = "PERDURE_TRACEBACK"

P = ParamSpec("P")
R = TypeVar("R")


class Exit(IntEnum):
    """The exit codes of every command."""

    FINE = 0
    FINDINGS = 1
    """The command did its work, and what it found is not as it should be (or is not there)."""
    USAGE = 2
    """The command line is wrong; nothing was done."""
    REFUSED = 3
    """This node is not the primary, is fenced, or somebody else holds what the command needs."""
    CORRUPT = 4
    """Bytes that are damaged, foreign or newer than this program."""
    IO = 5
    """A disk or a network refused."""
    INDETERMINATE = 6
    """It is not known whether what was asked for has happened."""
    INTERNAL = 70
    """A fault in perdure itself."""
    INTERRUPTED = 130


_CODES: tuple[tuple[type[PerdureError], Exit], ...] = (
    (UsageError, Exit.USAGE),
    (KeyMissingError, Exit.USAGE),
    (SessionNotFoundError, Exit.FINDINGS),
    (VersionConflictError, Exit.FINDINGS),
    (NotPrimaryError, Exit.REFUSED),
    (BusyError, Exit.REFUSED),
    (StoreInUseError, Exit.REFUSED),
    (PromiseRefusedError, Exit.REFUSED),
    (FormatError, Exit.CORRUPT),
    (DivergedError, Exit.CORRUPT),
    (Indeterminate, Exit.INDETERMINATE),
)


def code_of(error: BaseException) -> Exit:
    """The exit code that an error stands for."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    if isinstance(error, (PerdureError, OSError)):
        return Exit.IO
    return Exit.INTERRUPTED if isinstance(error, KeyboardInterrupt) else Exit.INTERNAL


def leave(code: Exit) -> None:
    """End the command with a code that is not FINE, after it has said why."""
    if code is not Exit.FINE:
        raise typer.Exit(int(code))


def reporting(command: Callable[P, R]) -> Callable[P, R]:
    """Run a command so that whatever it raises becomes a message and an exit code.

    The command's parameter `as_json`, where it has one, decides the form of the message.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except BrokenPipeError:
            # Whoever read our output has gone: there is nobody left to tell, and no more to write.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(128 + signal.SIGPIPE) from None
        except (PerdureError, OSError, KeyboardInterrupt) as error:
            raise _failed(error, bool(kwargs.get("as_json"))) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:  # the last line of defence: a user never reads a traceback
            if _is_of_click(error):
                raise
            raise _failed(error, bool(kwargs.get("as_json"))) from None

    return run


def _failed(error: BaseException, as_json: bool) -> typer.Exit:
    code = code_of(error)
    if os.environ.get(TRACEBACK_VARIABLE):
        import traceback

        traceback.print_exception(error)
    render.failure(failure_of(error, code), as_json=as_json)
    return typer.Exit(int(code))


def failure_of(error: BaseException, code: Exit) -> dict[str, Any]:
    """What is known of an error, under stable keys."""
    known: dict[str, Any] = {"error": type(error).__name__, "message": str(error), "code": int(code)}
    if isinstance(error, PerdureError):
        known |= {
            "message": error.message,
            "path": error.path,
            "offset": error.offset,
            "lsn": error.lsn,
            "node": error.node,
            "hint": error.hint,
        }
        if isinstance(error, Indeterminate):
            known |= {"position": error.position, "operation_id": error.operation_id}
    elif isinstance(error, OSError):
        known |= {"message": error.strerror or str(error), "path": error.filename}
    elif isinstance(error, KeyboardInterrupt):
        known["message"] = "interrupted"
    else:
        known["message"] = f"{type(error).__name__}: {error}"
        known["hint"] = (
            f"This is a fault in perdure. Set {TRACEBACK_VARIABLE}=1 and run it again to see where."
        )
    return {name: value for name, value in known.items() if value not in (None, "")}


def _is_of_click(error: Exception) -> bool:
    """Errors that typer itself turns into a usage message and exit code 2."""
    return hasattr(error, "exit_code") and hasattr(error, "show")
