"""A state that no other process shares: made in each handle, from snapshot and log, when it opens.

Owns how such a state is made while others write: outside the write lock, from what was in the log when it
began; what came meanwhile is followed like any other frames. Should retention take a file away under it,
it begins again. There is no marker and nothing to set aside: what cannot be shared cannot be stale.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

from . import names
from .backends import open_backend
from .cursor import LogCursor, list_segments
from .errors import FormatError, StorageError
from .files import translated
from .ids import StatePosition
from .log import EventLog
from .page import Word
from .placing import place
from .ports import Backend
from .view import View

TRIES: Final = 5

Fill: TypeAlias = Callable[[Backend, int], StatePosition]
"""Fills an empty back end with what the log holds up to an LSN; answers where it then stands."""


def own_maker(log: EventLog, backend_name: str, fill: Fill) -> Callable[[], Backend]:
    """What makes a state of this handle alone, from what the log then holds. Raises as `fill`."""

    def make() -> Backend:
        backend = open_backend(backend_name, log.store)
        try:
            fill(backend, _reached(log))
        except BaseException:
            backend.close()
            raise
        return backend

    return make


def open_own(log: EventLog, store: Path, backend_name: str, fill: Fill) -> View:
    """The view of a log whose end was found, over a state of its own. Raises as `fill`."""
    make = own_maker(log, backend_name, fill)
    for left in reversed(range(TRIES)):
        files = _files(store)
        backend: Backend | None = None
        try:
            backend = make()
            view = View(log, backend, make)
            with view.mutex:
                state = view.reset()
                if state != log.cursor.at:  # else what was read to find the log's end need not be read again
                    place(log, state, is_shared=False)
                view.catch_up()
            return view
        except (FormatError, StorageError):
            if backend is not None:
                backend.close()
            if not left or _files(store) == files:
                raise
        except BaseException:
            if backend is not None:
                backend.close()
            raise
    raise AssertionError("unreachable: the last try returns or raises")


def _files(store: Path) -> list[str]:
    """The names of what a state is made from."""
    with translated("cannot list the log and its snapshots", store):
        return sorted(os.listdir(store / names.LOG) + os.listdir(store / names.SNAPSHOTS))


def _reached(log: EventLog) -> int:
    """Up to where the log can be folded: what is committed, where the page knows of that, else all of it."""
    appended, committed = log.words[Word.APPENDED], log.words[Word.COMMITTED]
    if not appended:
        return _end_of_files(log)
    return int(min(appended, committed) if committed else appended)


def _end_of_files(log: EventLog) -> int:
    """The last LSN in the files: the log was cut or made anew, and nobody has said yet where it ends."""
    cursor = LogCursor(
        log.cursor.log, log.identity.cluster_id, log.key, log.identity.shard, is_writable=False
    )
    try:
        files = list_segments(cursor.log)
        if files:
            cursor.open_segment(files[-1])
            while cursor.read() is not None:
                continue
        return cursor.at.lsn
    finally:
        cursor.close()
