"""Looking up hosts: a thread asks for the addresses of names, so that no loop waits for a name server.

Owns the questions that wait, one a host at most, and the last good answer to each, which stands while a newer
one cannot be had. A numeric address is its own answer, at once and without a thread. The thread lives while
there is something to ask. Nobody waits for it: a question that hangs holds back neither the end of its loop
nor that of the process. A child of a fork has neither the loop nor the thread.
"""

from __future__ import annotations

import logging
import socket
import threading
from typing import Any, Final, NamedTuple

from ..store.errors import WireError
from .nodelog import monotonic_ms

logger = logging.getLogger(__name__)

FRESH_MS: Final = 1_000
"""Nobody asks for a host again whose answer, good or bad, is no older."""
HOSTS_MAX: Final = 256
"""So many hosts are asked for, and remembered; then the one that was answered first is forgotten."""


class _Answer(NamedTuple):
    address: str
    """The last good one, empty if there never was one."""
    error: str
    at_ms: int


class Lookup:
    """The addresses of hosts, for one loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[str, None] = {}
        """Hosts in the order of their questions; the thread is at the first one."""
        self._answers: dict[str, _Answer] = {}
        self._is_at_work = False

    def address(self, host: str) -> str | None:
        """The numeric address of a host, perhaps an old one while it is asked for anew; never blocks.

        None while there is no answer yet: it is there at a later call. Raises WireError if the host was not
        found now and never before.
        """
        if is_numeric(host):
            return host
        with self._lock:
            answer = self._answers.get(host)
            is_fresh = answer is not None and monotonic_ms() - answer.at_ms < FRESH_MS
            if not is_fresh:
                self._ask(host)
        if answer is None or (not answer.address and not is_fresh):
            return None
        if not answer.address:
            raise WireError(
                f"cannot look up {host}: {answer.error}",
                hint="See whether the host's name is right, and whether this machine's name server knows it.",
            )
        return answer.address

    def close(self) -> None:
        """Ask for nothing more. A question that is under way ends by itself."""
        with self._lock:
            self._asked.clear()

    def _ask(self, host: str) -> None:
        """The caller holds the lock."""
        if host in self._asked or len(self._asked) >= HOSTS_MAX:
            return
        if not self._is_at_work:
            try:
                threading.Thread(target=self._work, name="perdure-lookup", daemon=True).start()
            except RuntimeError as error:
                raise WireError(
                    f"cannot look up {host}: {error}", hint="Too many threads run; it is tried again."
                ) from error
            self._is_at_work = True
        self._asked[host] = None

    def _work(self) -> None:
        while True:
            with self._lock:
                host = next(iter(self._asked), None)
                if host is None:
                    self._is_at_work = False
                    return
            address = error = ""
            try:
                found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
                address = numeric_host(found[0][4])
            except (OSError, UnicodeError) as failure:
                error = (failure.strerror if isinstance(failure, OSError) else "") or str(failure)
                logger.debug("cannot be looked up: host=%s error=%s", host, error)
            with self._lock:
                self._asked.pop(host, None)
                self._keep(host, address, error)

    def _keep(self, host: str, address: str, error: str) -> None:
        old = self._answers.pop(host, None)
        if len(self._answers) >= HOSTS_MAX:
            del self._answers[next(iter(self._answers))]
        self._answers[host] = _Answer(address or (old.address if old else ""), error, monotonic_ms())


def is_numeric(host: str) -> bool:
    """Does nobody have to be asked for this host?"""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.partition("%")[0])
        except (OSError, ValueError):
            continue
        return True
    return False


def numeric_host(address: Any) -> str:
    """The host of a socket's address, with its zone where that is needed. Nobody is asked for a name."""
    return socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]
