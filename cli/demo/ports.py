"""Ports for processes that are told where to listen.

Owns the choice: below the range from which the system takes the ports of outgoing connections, so that no
connection of anybody, open or in TIME_WAIT, has the port when a process is started there, again and again.
"""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from ...store import WireError

HOST: Final = "127.0.0.1"
LOWEST: Final = 10_000
WITHOUT_RANGE: Final = 60_000
"""Where the system gives nearly all ports to connections."""
TRIES_MAX: Final = 1_000
RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def port_range() -> tuple[int, int]:
    """The lowest port to choose from, and the one behind the highest."""
    above = int(RANGE.read_text().split()[0]) if RANGE.exists() else 32_768
    return LOWEST, above if above >= LOWEST + 1_000 else WITHOUT_RANGE


def free_ports(count: int, *, in_a_row: int = 1, among: tuple[int, int] | None = None) -> list[int]:
    """So many ports on loopback, each the first of `in_a_row` that were free a moment ago.

    `among` is the lowest and the one behind the highest to choose from (port_range). Raises WireError if
    none is found.
    """
    lowest, above = among or port_range()
    choice = random.SystemRandom()
    found: list[int] = []
    for _ in range(TRIES_MAX + count):
        if len(found) == count:
            return found
        first = choice.randrange(lowest, above - in_a_row)
        if any(abs(first - other) < in_a_row for other in found):
            continue
        with suppress(OSError), ExitStack() as stack:
            for port in range(first, first + in_a_row):
                stack.enter_context(socket.socket()).bind((HOST, port))
            found.append(first)
    raise WireError(
        f"found only {len(found)} of {count} free ports between {lowest} and {above}",
        hint="See what holds the others: ss -tlnp",
    )
