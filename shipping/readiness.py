"""Readiness: waiting for many sockets at once, in one plain function.

Owns a selector that does what selectors.EpollSelector does, with less between a wake-up and the first
handler: a process that slept runs every line of it cold, and the shipper sleeps twice a synchronous write.
"""

from __future__ import annotations

import select
import selectors
from collections.abc import Mapping
from typing import Any, Final

_READ: Final = selectors.EVENT_READ
_WRITE: Final = selectors.EVENT_WRITE
_NOT_IN: Final = ~select.EPOLLIN
_NOT_OUT: Final = ~select.EPOLLOUT
READY_MAX: Final = 64
"""So many are told of at once; the others at the next call."""


class Readiness(selectors.BaseSelector):
    """A selector over epoll."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        number = _number(fileobj)
        self._epoll.register(number, _epoll_mask(events))
        key = self._keys[number] = selectors.SelectorKey(fileobj, number, events, data)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        number = _number(fileobj)
        self._epoll.modify(number, _epoll_mask(events))
        key = self._keys[number] = selectors.SelectorKey(fileobj, number, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        number = _number(fileobj)
        key = self._keys.pop(number)
        self._epoll.unregister(number)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As there; `timeout` in seconds. What was registered may have gone by the time it is looked at."""
        found: list[tuple[selectors.SelectorKey, int]] = []
        keys = self._keys
        for number, event in self._epoll.poll(timeout, READY_MAX):
            mask = (_READ if event & _NOT_OUT else 0) | (_WRITE if event & _NOT_IN else 0)
            found.append((keys[number], mask))
        return found

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """What is registered, by its descriptor."""
        return self._keys

    def close(self) -> None:
        self._epoll.close()
        self._keys.clear()


def _number(fileobj: Any) -> int:
    return fileobj if isinstance(fileobj, int) else int(fileobj.fileno())


def _epoll_mask(events: int) -> int:
    return (select.EPOLLIN if events & _READ else 0) | (select.EPOLLOUT if events & _WRITE else 0)
