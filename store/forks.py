"""What becomes of an engine's handles when the process forks: the child lets go of them, untouched.

Owns the list of what holds an engine's files open. An LMDB environment, its reader slots and an SQLite
connection belong to the process that opened them: a child that used them, or even closed them, would
write into the parent's lock table. So right after a fork every watched handle is severed in the child:
it raises ForkedError from then on, and what it held is kept alive here, never freed or closed.

SQLite needs more: it keeps in memory, by file, what a process has locked. A child that was forked in the
middle of a transaction would believe for ever that another connection of its own is writing. So a fork waits
until the locks given to quiet_in_forks() are free, and the child closes what is then at rest.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn, Protocol

from .errors import ForkedError


class Severable(Protocol):
    """A handle that can let go of what it inherited.

    Must not raise, and not call the engine unless is_at_rest() and the engine allows that.
    """

    def sever(self) -> object:
        """Make every later call raise ForkedError; returns what must be kept from being freed."""
        ...


QUIET_S: Final = 2.0
"""How long a fork waits for each lock; who holds it longer may be the forking thread itself."""


class Quietable(Protocol):
    """A lock that says by being held that what it guards is not at rest."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...

    def release(self) -> None: ...


_quieted: list[weakref.WeakKeyDictionary[object, Quietable]] = [
    weakref.WeakKeyDictionary(),
    weakref.WeakKeyDictionary(),
]
_registering = threading.Lock()
_forking = threading.Lock()
_held: list[Quietable] = []
_at_rest = True
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


def quiet_in_forks(owner: object, lock: Quietable, *, is_inner: bool = False) -> None:
    """Hold `lock` during every fork while `owner` lives. An inner one is taken while an outer one is held."""
    with _registering:
        _quieted[is_inner][owner] = lock


def is_at_rest() -> bool:
    """In sever(): was everything at rest that quiet_in_forks() was told of?"""
    return _at_rest


def _quiet() -> None:
    global _at_rest  # noqa: PLW0603 - of one fork at a time
    _forking.acquire()
    _at_rest = True
    with _registering:
        found = [lock for locks in _quieted for lock in list(locks.values())]
    for lock in found:
        if lock.acquire(timeout=QUIET_S):
            _held.append(lock)
        else:
            _at_rest = False


def _go_on() -> None:
    while _held:
        _held.pop().release()
    _forking.release()


def _sever_all() -> None:
    for lock in (_forking, _registering, *_held):
        getattr(lock, "_at_fork_reinit")()  # noqa: B009 - it has no typed name
    _held.clear()
    _inherited.extend((handle, handle.sever()) for handle in list(_watched))
    _watched.clear()
    _inherited.extend(forget() for forget in _registries)


os.register_at_fork(before=_quiet, after_in_parent=_go_on, after_in_child=_sever_all)
