"""Ports for processes that are told where to listen.

Owns the choice: below the range from which the system takes the ports of outgoing connections, so that no
connection of anybody, open or in TIME_WAIT, has the port when a process is started there, again and again.
"""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

HOST = "127.0.0.1"
LOWEST = 10_000
RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int, *, in_a_row: int = 1) -> list[int]:
    """So many ports on loopback, each the first of `in_a_row` that were free a moment ago."""
    above = int(RANGE.read_text().split()[0]) if RANGE.exists() else 32_768
    if above < LOWEST + 1_000:
        above = 60_000
    random_ = random.SystemRandom()
    found: list[int] = []
    while len(found) < count:
        first = random_.randrange(LOWEST, above - in_a_row)
        if any(abs(first - other) < in_a_row for other in found):
            continue
        with suppress(OSError), ExitStack() as stack:
            for port in range(first, first + in_a_row):
                stack.enter_context(socket.socket()).bind((HOST, port))
            found.append(first)
    return found
