"""Named stores: several stores of one process, each with a log, limits and a status of its own.

Owns which of them are open. How one is opened is the caller's; a store is opened when it is first asked
for, once, whatever threads ask, and all that are open are closed together.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

from .config import Configuration
from .errors import ForkedError, PerdureError, StoreClosedError
from .sessions import SessionStore

StoreOpener = Callable[[str], SessionStore]


class Stores(Mapping[str, SessionStore]):
    """The named stores of a configuration, by name. Safe for threads; after a fork make it anew.

    `stores["web"]` opens it at its first use, and raises what opening it raises; a name that the
    configuration does not have is a KeyError.
    """

    def __init__(self, config: Configuration, opener: StoreOpener) -> None:
        self._config = config
        self._opener = opener
        self._opened: dict[str, SessionStore] = {}
        self._mutex = threading.Lock()
        self._is_closed = False
        self._pid = os.getpid()

    def __getitem__(self, name: str) -> SessionStore:
        if name not in self._config.stores:
            raise KeyError(name)
        self._check_process()
        with self._mutex:
            if self._is_closed:
                raise StoreClosedError("the named stores were closed", hint="Open them again.")
            store = self._opened.get(name)
            if store is None:
                store = self._opened[name] = self._opener(name)
            return store

    def __iter__(self) -> Iterator[str]:
        return iter(self._config.stores)

    def __len__(self) -> int:
        return len(self._config.stores)

    def __contains__(self, name: object) -> bool:
        return name in self._config.stores

    def status(self) -> dict[str, dict[str, Any]]:
        """What each store says of itself (see SessionStore.stats), with its path and whether it is open.

        One that is not open yet is not opened for that; asking a store that fails gives its `problem`.
        """
        self._check_process()
        with self._mutex:
            opened = dict(self._opened)
        said: dict[str, dict[str, Any]] = {}
        for name, path in self._config.stores.items():
            said[name] = {"path": str(path), "is_open": name in opened, "problem": ""}
            if name in opened:
                try:
                    said[name] |= opened[name].stats()
                except PerdureError as error:
                    said[name]["problem"] = str(error)
        return said

    def close(self) -> None:
        """Close every store that was opened; raises the first error once all of them are. Idempotent."""
        failed: Exception | None = None
        if self._pid != os.getpid():
            return  # in a child: all of it belongs to the parent
        with self._mutex:
            self._is_closed = True
            opened, self._opened = self._opened, {}
        for store in opened.values():
            try:
                store.close()
            except PerdureError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def __enter__(self) -> Stores:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise ForkedError("the named stores were opened before a fork", hint="Open them in the child.")
