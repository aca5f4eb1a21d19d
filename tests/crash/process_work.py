"""The programs of process_programs, receive_program and rejoin_program under one name.

So one process that is started ahead of the runs serves them all. Owns the names of the programs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.crash.process_programs import go_on, migration, promotion, rebuild, roll, snapshots
from tests.crash.receive_program import receive
from tests.crash.rejoin_program import rejoin

PROGRAMS: dict[str, Callable[..., int]] = {
    "roll": roll,
    "snapshots": snapshots,
    "migration": migration,
    "rebuild": rebuild,
    "go_on": go_on,
    "receive": receive,
    "rejoin": rejoin,
    "promotion": promotion,
}


def work(directory: Path, ledger: Path, program: str, *arguments: str) -> int:
    """Run one of the programs; its exit code."""
    return PROGRAMS[program](directory, ledger, *arguments)
