"""The ports between the comparison and what it compares.

Owns what every system must offer to be measured, and what a durability class means; no system is named here.

An application's view: sessions are dicts of plain values, an application gives one and gets one back. How a
system stores it is its own affair, and part of what is measured. A system that can't serve a Python client
(because it lives in another language's process) is a Driver instead, and times the calls itself.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

Fields = dict[str, Any]
"""What an application keeps in a session."""

Address = dict[str, str | int]
"""How a running system is reached from another process; JSON."""

LIFETIME_MS: Final = 3_600_000
"""Of every session: it ends so long after its last touch."""


class Durability(Enum):
    """What a change that was answered survives at least. A system may keep more than its class."""

    NONE = "none"
    """Nothing: it is in the memory of one process."""
    OS = "os"
    """The death of every process, not that of the machine: the kernel has it."""
    SECOND = "second"
    """On disk within a second."""
    DISK = "disk"
    """On this disk before the answer."""
    TWO = "two"
    """A second node has it before the answer, be it in memory."""
    TWO_DISKS = "two-disks"
    """On the disks of two nodes before the answer."""


class Sessions(Protocol):
    """One connection or handle, used by one thread at a time."""

    def create(self, fields: Fields) -> str:
        """Store a new session under a new random id of 128 bits; answers the id."""

    def get(self, id: str) -> Fields | None:
        """The fields, decoded; None if there is no such session or it has expired."""

    def update(self, id: str, changes: Fields) -> object:
        """Read-modify-write as one atomic step: set these fields of a session, leave the others."""

    def touch(self, id: str) -> object:
        """Let the session live LIFETIME_MS from now."""

    def delete(self, id: str) -> object: ...

    def create_many(self, many: list[Fields]) -> list[str]:
        """New sessions in one go, the way that this system does it best; all are kept when it returns."""

    def ids(self) -> Iterator[str]:
        """Every session's id."""

    def close(self) -> None: ...


class Expiring(Protocol):
    """What a cleanup needs."""

    def create_due(self, many: list[Fields]) -> list[str]:
        """As create_many, of sessions that expire at once, and that nothing removes before expire_due()."""

    def expire_due(self) -> int:
        """Remove all that has expired; answers how many."""


class Client(Sessions, Expiring, Protocol):
    """What each system's handle is."""


class Running(Protocol):
    """A system that was started in a folder of its own. Whoever started it closes it."""

    @property
    def address(self) -> Address:
        """For System.connect, in this process or another one."""

    @property
    def pids(self) -> tuple[int, ...]:
        """Its own processes, those of several nodes together; none if it lives in its clients' processes."""

    def disk_bytes(self) -> Mapping[str, int]:
        """What it takes on disk, by part: "state", "log", ..."""

    def stop(self) -> None:
        """End its processes in order; what is stored stays. Nothing to do where it has none."""

    def kill(self) -> None:
        """kill -9 of its processes (of a pair: the primary's)."""

    def start_again(self) -> None:
        """After stop() or kill(): returns when it answers again."""

    def close(self) -> None:
        """End everything. Idempotent; the folder is the caller's."""


class Pair(Running, Protocol):
    """Two nodes, of which the second confirms each write of the first."""

    def take_over(self) -> None:
        """After kill(): make the second node the one that takes writes; `address` then is where it does."""


class System(Protocol):
    """A system that Python clients use."""

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Mapping[Durability, str]:
        """The durability classes that it can be measured in, each with how it is set up for it."""

    def why_not(self) -> str:
        """Why it can't run here; empty if it can."""

    def version(self) -> str:
        """Of the system and of its client. Only where why_not() is empty."""

    def start(self, folder: Path, durability: Durability) -> Running:
        """Start it, empty, in a folder that is there and empty; servers listen on loopback only."""

    def connect(self, address: Address) -> Client:
        """A handle, in the process that calls."""


class DriverCase(NamedTuple):
    """What a driver is asked to do: so many calls by so many callers at once."""

    mix: Mapping[str, float]
    """Operations with their shares: create, get, update, touch, delete, create_many, ids or expire_due alone,
    or a mix of get, update and get_update, which is a get and then an update of what it got."""
    calls: int
    """In all; of create_many and expire_due: sessions."""
    callers: int = 1
    is_zipfian: bool = False
    """Sessions are chosen by Zipf's law with exponent 0.99, else evenly."""


class DriverRun(NamedTuple):
    """How a case went."""

    seconds: float
    units: int
    """Calls; of create_many, ids and expire_due: sessions."""
    latencies_ns: array[int]
    """Of each call."""


class Driving(Protocol):
    """A started driver, with a set of sessions that stays from run to run."""

    @property
    def pids(self) -> tuple[int, ...]: ...

    def fill(self, sessions: int, value_bytes: int) -> None:
        """Have exactly so many sessions, each about so large; what was there before is gone."""

    def run(self, case: DriverCase) -> DriverRun:
        """Gets, updates and touches choose among the sessions that fill() made; what a run adds or deletes
        leaves these as they are."""

    def disk_bytes(self) -> Mapping[str, int]: ...

    def close(self) -> None:
        """Idempotent."""


class RestartingDriving(Driving, Protocol):
    """What is there again after a restart, where its class keeps something."""

    def stop(self) -> None:
        """In order."""

    def kill(self) -> None:
        """kill -9 of its processes; another one is made ready for start_again()."""

    def start_again(self) -> float:
        """After stop() or kill(): s until it had opened what is there, and had got a session of fill()."""


class PairDriving(Driving, Protocol):
    """Two nodes, of which the second has each change of the first."""

    def kill(self) -> None:
        """kill -9 of the node that the cases run on."""

    def take_over(self) -> None:
        """Returns once the other node takes writes; cases run on it from then on."""


class Driver(Protocol):
    """A system that is driven from within: it times its calls itself."""

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Mapping[Durability, str]: ...

    def why_not(self) -> str: ...

    def version(self) -> str: ...

    def start(self, folder: Path, durability: Durability) -> Driving: ...


class RandomIds:
    """New ids for systems that leave that to the application: 128 random bits each, read 256 at a time."""

    def __init__(self) -> None:
        self._ids: list[str] = []

    def take(self) -> str:
        if not self._ids:
            data = os.urandom(16 * 256).hex()
            self._ids = [data[at : at + 32] for at in range(0, len(data), 32)]
        return self._ids.pop()
