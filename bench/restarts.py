"""From start to first answer, and from the death of a primary to the next write.

Owns these two measurements; both are amounts, of which less is better. What is timed is the system: a client
process is there already, and has used the system before, so that no import is in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from .comparison import Plan
from .contestants import Served
from .crew import ClientProcess
from .rows import Row, ratio_of, with_ours
from .systems.ports import Driver, DriverCase, Durability, Pair, PairDriving, RestartingDriving, System
from .worker import First, Learn
from .workloads import SMALL_BYTES

KEPT = (Durability.DISK, Durability.SECOND, Durability.OS)
"""Classes that keep something over a restart, in the order in which one of them is chosen for a system."""
REPLICATED = (Durability.TWO, Durability.TWO_DISKS)

AFTER_STOP = "after a stop"
AFTER_KILL = "after kill -9"
_SOME_PART = 50
"""So small a part of the sessions shows how long all of them would take."""
TAKE_OVER = "the order to take over until a write is answered"

Starter = Callable[[System, Durability], Served]
"""Starts a system in a folder of its own."""


class Named(NamedTuple):
    """What a row says of a system."""

    name: str
    durability: Durability
    setting: str
    version: str


class Times(Protocol):
    """Measures one round of something; answers s by what was measured."""

    def round(self) -> dict[str, float]: ...


class Reopened:
    """A filled system that is stopped and killed in turn."""

    def __init__(self, served: Served, sessions: int, limit_s: float) -> None:
        self.served = served
        served.crew.fill(sessions, SMALL_BYTES, limit_s=limit_s, is_all=True)
        self._client = ClientProcess()
        self._client.ask(Learn(SMALL_BYTES, str(served.crew.file_of(SMALL_BYTES))))
        self._first()
        served.crew.close()
        served.running.stop()

    def round(self) -> dict[str, float]:
        """It is stopped before and afterwards."""
        served = self.served
        after_stop = self._started()
        served.crew.address = served.running.address
        served.crew.fill(100, SMALL_BYTES + 1, limit_s=10.0)  # so that there is something to recover
        served.crew.kill()
        served.running.kill()
        after_kill = self._started()
        served.running.stop()
        return {AFTER_STOP: after_stop, AFTER_KILL: after_kill}

    def close(self) -> None:
        self._client.close()
        self.served.close()

    def _started(self) -> float:
        started = time.perf_counter()
        self.served.running.start_again()
        return time.perf_counter() - started + self._first()

    def _first(self) -> float:
        taken = self._client.ask(First(self.served.found_as, self.served.running.address))
        assert isinstance(taken, float)
        return taken


class DriverReopened:
    """The same of a driver, within the processes that it has."""

    def __init__(
        self, driver: Driver, durability: Durability, folder: Path, sessions: int, limit_s: float
    ) -> None:
        self._driving = cast(RestartingDriving, driver.start(folder, durability))
        try:
            some = max(1, sessions // _SOME_PART)
            started = time.perf_counter()
            self._driving.fill(some, SMALL_BYTES)
            needed_s = (time.perf_counter() - started) * sessions / some
            if needed_s > limit_s:
                raise TimeoutError(f"{sessions:,} would take {needed_s:.0f} s, of {limit_s:.0f} at most")
            self._driving.fill(sessions, SMALL_BYTES)
            self._driving.stop()
        except BaseException:
            self._driving.close()
            raise

    def round(self) -> dict[str, float]:
        """It is stopped before and afterwards."""
        driving = self._driving
        after_stop = driving.start_again()
        driving.run(DriverCase({"create": 1.0}, 100))
        driving.kill()
        after_kill = driving.start_again()
        driving.stop()
        return {AFTER_STOP: after_stop, AFTER_KILL: after_kill}

    def close(self) -> None:
        self._driving.close()


def reopening(
    systems: Sequence[System],
    drivers: Sequence[Driver],
    sessions: int,
    plan: Plan,
    start: Starter,
    folder: Callable[[], Path],
    skip: Callable[[str, str], None],
) -> Iterator[Row]:
    """Rows of starts with so many sessions, of each system in one class that keeps them. `folder` makes an
    empty one."""
    with ExitStack() as stack:
        reopened: dict[str, Times] = {}
        named: dict[str, Named] = {}
        for driver in drivers:
            durability = class_of(driver, KEPT)
            if durability is None:
                continue
            try:
                driven = DriverReopened(driver, durability, folder(), sessions, plan.reopen_fill_s)
            except Exception as error:  # noqa: BLE001  what a system can't do is part of the result
                skip(f"start with {sessions:,} sessions, {driver.name}", str(error))
                continue
            stack.callback(driven.close)
            reopened[driver.name], named[driver.name] = driven, named_of(driver, durability)
        for system in systems:
            durability = class_of(system, KEPT)
            if durability is None:
                continue
            try:
                its = start(system, durability)
                stack.callback(its.close)
                again = Reopened(its, sessions, plan.reopen_fill_s)
                stack.callback(again.close)
            except Exception as error:  # noqa: BLE001  what a system can't do is part of the result
                skip(f"start with {sessions:,} sessions, {system.name}", str(error))
                continue
            reopened[system.name], named[system.name] = again, named_of(system, durability)
        case = f"first answer, {sessions:,} sessions"
        yield from _rows("start", case, reopened, named, plan.rounds, plan.slow_s, skip)


class TakenOver:
    """Pairs whose primary is killed; each round has a new one."""

    def __init__(self, system: System, durability: Durability, start: Starter) -> None:
        self._start = partial(start, system, durability)

    def round(self) -> dict[str, float]:
        served = self._start()
        client = ClientProcess()
        try:
            served.fill(SMALL_BYTES, 100, limit_s=30.0)
            client.ask(Learn(SMALL_BYTES, str(served.crew.file_of(SMALL_BYTES))))
            client.ask(First(served.found_as, served.running.address))
            served.crew.close()
            pair = cast(Pair, served.running)
            pair.kill()
            started = time.perf_counter()
            pair.take_over()
            took = time.perf_counter() - started
            first = client.ask(First(served.found_as, pair.address, is_write=True))
        finally:
            client.close()
            served.close()
        assert isinstance(first, float)
        return {TAKE_OVER: took + first}


class DriverTakenOver:
    """The same of a pair that drives itself: its take-over ends with a write."""

    def __init__(self, driver: Driver, durability: Durability, folder: Callable[[], Path]) -> None:
        self._driver = driver
        self._durability = durability
        self._folder = folder

    def round(self) -> dict[str, float]:
        pair = cast(PairDriving, self._driver.start(self._folder(), self._durability))
        try:
            pair.fill(100, SMALL_BYTES)
            pair.kill()
            started = time.perf_counter()
            pair.take_over()
            return {TAKE_OVER: time.perf_counter() - started}
        finally:
            pair.close()


def taking_over(
    systems: Sequence[System],
    drivers: Sequence[Driver],
    plan: Plan,
    start: Starter,
    folder: Callable[[], Path],
    skip: Callable[[str, str], None],
) -> Iterator[Row]:
    """Rows of take-overs by hand, after a kill -9 of the primary. `folder` makes an empty one."""
    times: dict[str, Times] = {}
    named: dict[str, Named] = {}
    for driver in drivers:
        durability = class_of(driver, REPLICATED)
        if durability is not None:
            times[driver.name] = DriverTakenOver(driver, durability, folder)
            named[driver.name] = named_of(driver, durability)
    for system in systems:
        durability = class_of(system, REPLICATED)
        if durability is not None:
            times[system.name] = TakenOver(system, durability, start)
            named[system.name] = named_of(system, durability)
    yield from _rows("failover", "kill -9", times, named, plan.take_overs, plan.slow_s, skip)


def _rows(
    group: str,
    case: str,
    times: dict[str, Times],
    named: dict[str, Named],
    count: int,
    slow_s: float,
    skip: Callable[[str, str], None],
) -> Iterator[Row]:
    """Round by round, all in turn; one that fails is left out, and one that takes longer than `slow_s` has no
    further round."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in times}
    slow: set[str] = set()
    for _ in range(count):
        for name in [name for name in taken if name not in slow]:
            started = time.perf_counter()
            try:
                taken[name].append(times[name].round())
            except Exception as error:  # noqa: BLE001  as above
                skip(f"{group}, {case}, {name}", str(error))
                del taken[name]
            if time.perf_counter() - started > slow_s:
                slow.add(name)
    for name, rounds in taken.items():
        for what in rounds[0]:
            its = named[name]
            row = _amount(group, f"{case}, {what}", its, [one[what] for one in rounds])
            peers = [other for other in taken if other.startswith("perdure")]
            if peers and not name.startswith("perdure") and what in taken[peers[0]][0]:
                ours = next((one for one in peers if named[one].durability is its.durability), None)
                if ours is not None:
                    pairs = zip(rounds, taken[ours], strict=False)  # a slow one has fewer rounds
                    row = with_ours(row, ours, ratio_of([a[what] / b[what] for a, b in pairs]))
            yield row


def class_of(one: System | Driver, classes: Sequence[Durability]) -> Durability | None:
    """The first of these classes that it has: the one in which it is measured here."""
    return next((durability for durability in classes if durability in one.settings), None)


def named_of(system: System | Driver, durability: Durability) -> Named:
    return Named(system.name, durability, system.settings[durability], system.version())


def _amount(group: str, case: str, its: Named, taken_s: Sequence[float]) -> Row:
    ratio = ratio_of(taken_s)
    return Row(
        group=group,
        case=case,
        system=its.name,
        durability=its.durability.value,
        value_bytes=SMALL_BYTES,
        amount=ratio.median * 1000,
        spread=ratio.spread,
        unit="ms",
        rounds=len(taken_s),
        setting=its.setting,
        version=its.version,
    )
