"""Ports for processes that tests tell where to listen: chosen as a demo does it.

Invariant: of the tests that run side by side no two choose from the same ports, nor from those of a demo that
one of them runs, but where there are too few.
"""

from __future__ import annotations

import os

from perdure.cli.demo import ports
from perdure.cli.demo.ports import HOST

__all__ = ["HOST", "free_ports"]
WORKERS_MAX = 16


def free_ports(count: int, *, in_a_row: int = 1) -> list[int]:
    """So many ports on loopback, each the first of `in_a_row` that were free a moment ago."""
    lowest, above = ports.port_range()
    lowest = (lowest + above) // 2
    share = (above - lowest) // WORKERS_MAX
    lowest += int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % WORKERS_MAX * share
    return ports.free_ports(count, in_a_row=in_a_row, among=(lowest, lowest + share))
