"""What becomes of an engine's handles when the process forks: the child lets go of them, untouched.

Owns the list of what holds an engine's files open. An LMDB environment, its reader slots and an SQLite
connection belong to the process that opened them: a child that used them, or even closed them, would
write into the parent's lock table. So right after a fork every watched handle is severed in the child:
it raises ForkedError from then on, and what it held is kept alive here, never freed or closed.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Protocol

from .errors import ForkedError


class Severable(Protocol):
    """A handle that can let go of what it inherited. Must not call the engine, must not raise."""

    def sever(self) -> object:
        """Make every later call raise ForkedError; returns what must be kept from being freed."""
        ...


_watched: weakref.WeakSet[Severable] = weakref.WeakSet()
_registries: list[Callable[[], object]] = []
_inherited: list[object] = []


def watch_forks(handle: Severable) -> None:
    """Have `handle` severed in every child that is forked while it lives."""
    _watched.add(handle)


def forget_in_children(forget: Callable[[], object]) -> None:
    """Call `forget` in every child; what it returns is kept from being freed. For a module's registry."""
    _registries.append(forget)


def raise_forked(path: Path) -> NoReturn:
    """Refuse the use of a handle that belongs to the parent process."""
    raise ForkedError(
        "this handle was opened before a fork and belongs to the parent process",
        path=path,
        hint="Open the store again in the child.",
    )


def _sever_all() -> None:
    _inherited.extend((handle, handle.sever()) for handle in list(_watched))
    _watched.clear()
    _inherited.extend(forget() for forget in _registries)


os.register_at_fork(after_in_child=_sever_all)
