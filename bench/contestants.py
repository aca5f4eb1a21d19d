"""Started systems, ready to be measured in turn: the same few methods whether Python clients call them or
they drive themselves.

Owns a started system with its clients, and the end of both. No figures are compared here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from .crew import ClientError, Crew
from .latency import Histogram
from .limits import NAME as LIMIT
from .systems.memory import own_bytes
from .systems.ports import Driver, DriverCase, Durability, Pair, Running, System
from .worker import ADDED_MAX, CALLS_MAX, DUE_SHARE, FIRST_CALLS
from .workloads import ADDING, BATCH, Case

_REPLICATED: Final = (Durability.TWO, Durability.TWO_DISKS)


class Growth(NamedTuple):
    """What some sessions have added."""

    memory_bytes: int
    """Of the system's processes and of one client's."""
    disk_bytes: Mapping[str, int]
    """By part."""
    before_bytes: int
    """What was on disk already."""
    sessions: int
    """How many they are: fewer than asked for where the time was over."""


class Contestant(Protocol):
    """One system at one durability."""

    name: str
    durability: Durability
    version: str
    setting: str

    def why_not(self, case: Case) -> str:
        """Why this case can't be asked of it; empty if it can."""

    def fill(self, value_bytes: int, count: int, *, limit_s: float) -> Growth:
        """Have so many sessions of this size, or as many as can be stored in `limit_s`."""

    def sessions(self, value_bytes: int) -> int:
        """Of this size, that fill() has stored."""

    def make_ready(self, case: Case) -> None:
        """Have what the case needs, so that no slice has to wait for it. Raises as slice() does."""

    def slice(self, case: Case, number: int, seconds: float) -> tuple[float, Histogram]:
        """Units a second, and the latencies of calls. Raises ClientError or what a driver raises."""

    def close(self) -> None: ...


class Served:
    """A system that Python clients call."""

    def __init__(self, system: System, folder: Path, durability: Durability, *, name: str = "") -> None:
        """`name` is where client processes find the system; its own where it is registered."""
        self.name = system.name
        self.durability = durability
        self.version = system.version()
        self.setting = system.settings[durability]
        self._stored: dict[int, int] = {}
        data, lists = folder / "data", folder / "lists"
        data.mkdir()
        lists.mkdir()
        self.running: Running | Pair = system.start(data, durability)
        self.found_as = name or system.name
        self.crew = Crew(self.found_as, self.running.address, lists)

    def why_not(self, case: Case) -> str:
        return ""

    def fill(self, value_bytes: int, count: int, *, limit_s: float) -> Growth:
        memory, disk = self._memory_bytes(), self.running.disk_bytes()
        stored = self.crew.fill(count, value_bytes, limit_s=limit_s)
        growth = _growth(memory, self._memory_bytes(), disk, self.running.disk_bytes(), stored)
        self.crew.learn(value_bytes)
        self._stored[value_bytes] = stored
        return growth

    def sessions(self, value_bytes: int) -> int:
        return self._stored.get(value_bytes, 0)

    def _memory_bytes(self) -> int:
        return own_bytes(self.running.pids) + self.crew.memory_bytes()

    def make_ready(self, case: Case) -> None:
        try:
            self.crew.resize(case.clients)
        except ClientError:
            self.crew.close()
            raise

    def slice(self, case: Case, number: int, seconds: float) -> tuple[float, Histogram]:
        return self.crew.slice(case, number, seconds)

    def close(self) -> None:
        try:
            self.crew.close()
        finally:
            self.running.close()


class Bound(Served):
    """The limit. Several clients of class `disk` could share each sync: one client writes for all."""

    def why_not(self, case: Case) -> str:
        if case.clients == 1:
            return ""
        if self.durability in _REPLICATED:
            return "the bare chain takes one write at a time"
        if self.durability is Durability.DISK and not case.operation:
            return "there is no bare call for a mix of gets and shared syncs"
        return ""

    def slice(self, case: Case, number: int, seconds: float) -> tuple[float, Histogram]:
        if self.durability is not Durability.DISK or case.clients == 1 or case.operation == "get":
            return super().slice(case, number, seconds)
        together = case.clients
        if self.crew.address["together"] != together:
            self.crew.disconnect()
            self.crew.address = {**self.crew.address, "together": together}
        alone = Case(case.group, case.name, case.mix, value_bytes=case.value_bytes)
        rate, latencies = super().slice(alone, number, seconds)
        self.crew.disconnect()
        self.crew.address = {**self.crew.address, "together": 1}
        return rate * together, latencies


class Driven:
    """A system that times its calls itself."""

    def __init__(self, driver: Driver, folder: Path, durability: Durability) -> None:
        self.name = driver.name
        self.durability = durability
        self.version = driver.version()
        self.setting = driver.settings[durability]
        self._driving = driver.start(folder, durability)
        self._sizes: dict[int, int] = {}
        self._filled = 0
        self._rates: dict[str, float] = {}

    def why_not(self, case: Case) -> str:
        return "it has no arrivals at a rate" if case.rate_per_s else ""

    def fill(self, value_bytes: int, count: int, *, limit_s: float) -> Growth:
        memory, disk = own_bytes(self._driving.pids), self._driving.disk_bytes()
        self._sizes[value_bytes] = count
        self._have(value_bytes)
        return _growth(memory, own_bytes(self._driving.pids), disk, self._driving.disk_bytes(), count)

    def sessions(self, value_bytes: int) -> int:
        return self._sizes.get(value_bytes, 0)

    def make_ready(self, case: Case) -> None:
        self._have(case.value_bytes)

    def slice(self, case: Case, number: int, seconds: float) -> tuple[float, Histogram]:
        asked = DriverCase(case.mix, self._count(case, seconds), case.clients, case.is_zipfian)
        took_s, units, latencies_ns = self._driving.run(asked)
        latencies = Histogram()
        latencies.record(latencies_ns)
        rate = units / took_s
        self._rates[case.name] = rate
        return rate, latencies

    def close(self) -> None:
        self._driving.close()

    def _have(self, value_bytes: int) -> None:
        if self._filled != value_bytes:
            self._driving.fill(self._sizes[value_bytes], value_bytes)
            self._filled = value_bytes

    def _count(self, case: Case, seconds: float) -> int:
        if case.operation == "ids":
            return 1
        if case.operation == "expire_due":
            return max(1, self._sizes[case.value_bytes] // DUE_SHARE)
        most = ADDED_MAX if case.operation in (*ADDING, "delete") else CALLS_MAX
        rate = self._rates.get(case.name)
        wanted = FIRST_CALLS if rate is None else int(rate * seconds)
        unit = BATCH if case.operation == "create_many" else case.clients
        return max(unit, min(wanted, most) // unit * unit)


def _growth(
    memory: int, memory_then: int, disk: Mapping[str, int], disk_then: Mapping[str, int], sessions: int
) -> Growth:
    added = {part: size - disk.get(part, 0) for part, size in disk_then.items()}
    return Growth(memory_then - memory, added, sum(disk.values()), sessions)


def is_limit(name: str) -> bool:
    return name == LIMIT


def is_ours(name: str) -> bool:
    return name.startswith("perdure")


def takes(contestant: Contestant, case: Case) -> str:
    """Why a case is not for this contestant's class or for itself; empty if it is."""
    if contestant.durability.value not in case.classes:
        return "another class"
    return contestant.why_not(case)
