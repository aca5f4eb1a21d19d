"""A whole comparison: class by class, every system that can run here, every case that was chosen.

Owns what is started when, and its end. Invariant: all systems of one durability class are up and filled
before the first of its cases, and gone before the next class begins.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path

import msgspec

from .comparison import Plan, measure, rows_of
from .contestants import Bound, Contestant, Driven, Growth, Served, is_ours
from .footprint import FOOTPRINT_CASES, footprint_rows
from .limit_rows import LIMIT_NAMES, LIMITS, class_of_limit, limit_rows
from .limits import Limit
from .log_scaling import log_rows
from .replica_scaling import replica_rows
from .restarts import AFTER_KILL, AFTER_STOP, KEPT, REPLICATED, TAKE_OVER, class_of, reopening, taking_over
from .rows import Row
from .scaling import scaling_rows
from .systems.ports import Driver, Durability, System
from .workloads import CASES, LARGE_BYTES, ONE_NODE, SMALL_BYTES, Case


class Choice(msgspec.Struct, frozen=True):
    """What of it is measured. Empty: all."""

    only: str = ""
    """A part of a row's key."""
    systems: tuple[str, ...] = ()
    """Peers; ours and the limit are measured with them."""
    durabilities: tuple[str, ...] = ()

    def has(self, key: str, system: str = "", durability: str = "") -> bool:
        return (
            self.only in key
            and (not self.systems or not system or system in self.systems)
            and (not self.durabilities or not durability or durability in self.durabilities)
        )

    def has_any(self, keys: Iterable[str]) -> bool:
        """Of rows that are of no system: there are none where systems or classes are named."""
        return not self.systems and not self.durabilities and any(self.only in key for key in keys)


class Suite:
    """One run. `skipped` says afterwards what was left out, and why."""

    def __init__(
        self,
        systems: Sequence[System],
        drivers: Sequence[Driver],
        plan: Plan,
        choice: Choice,
        directory: str | None,
        say: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._choice = choice
        self._directory = directory
        self._say = say
        self.skipped: dict[str, str] = {}
        self._systems = [one for one in systems if self._can(one)]
        self._drivers = [one for one in drivers if self._can(one)]
        self._all: list[System | Driver] = [*self._systems, *self._drivers]
        self._numbers = count()

    def rows(self) -> Iterator[Row]:
        """Row after row, as they are measured."""
        yield from self._limits()
        for durability in Durability:
            with ExitStack() as stack:
                yield from self._class(durability, stack)
        yield from self._restarts()

    def scaling(self, sessions: Sequence[int]) -> list[Iterator[Row]]:
        """How the costs of ours grow: with sessions up to the last of these numbers, with replicas, with the
        log. Each can fail by itself."""
        ours = next(one for one in self._systems if is_ours(one.name))
        only = self._choice.only
        sources = (
            scaling_rows(ours, self._plan, sessions, self._folder, only),
            replica_rows(ours, self._plan, self._folder, only),
            log_rows(ours, self._plan, self._folder, self._skip, only),
        )
        return [filter(lambda row: only in row.key, rows) for rows in sources]

    def _can(self, one: System | Driver) -> bool:
        reason = one.why_not()
        if reason:
            self._skip(one.name, reason)
        return not reason

    def _skip(self, what: str, reason: str) -> None:
        self.skipped[what] = reason
        self._say(f"left out: {what}: {reason}")

    def _limits(self) -> Iterator[Row]:
        if self._choice.has_any(
            f"{LIMITS}: {name}, {class_of_limit(name)}, {Limit.name}" for name in LIMIT_NAMES
        ):
            with tempfile.TemporaryDirectory(prefix="perdure-bench-", dir=self._directory) as folder:
                yield from limit_rows(Path(folder), self._plan)

    def _class(self, durability: Durability, stack: ExitStack) -> Iterator[Row]:
        asked = [(case, names) for case in self._cases if (names := self._names(case, durability))]
        sized = self._sized(durability)
        contestants = self._contestants(durability, set(sized).union(*(names for _, names in asked)), stack)
        growths: dict[str, Growth] = {}
        for one in list(contestants):
            try:
                growths[one.name] = self._filled(one, [case for case, _ in asked])
            except Exception as error:  # noqa: BLE001  what a system can't do is part of the result
                self._skip(f"{one.name}, {durability.value}", str(error))
                contestants.remove(one)
        if sized:
            yield from footprint_rows(contestants, growths)
        always = {self._reference(durability), Limit.name}
        for case, names in asked:
            taking = [one for one in contestants if one.name in always.union(names)]
            yield from rows_of(case, taking, measure(case, taking, self._plan), self._plan)

    def _filled(self, one: Contestant, cases: Iterable[Case]) -> Growth:
        plan = self._plan
        growth = one.fill(SMALL_BYTES, plan.sessions, limit_s=plan.fill_s)
        if any(case.value_bytes == LARGE_BYTES for case in cases):
            one.fill(LARGE_BYTES, plan.large_sessions, limit_s=plan.fill_s)
        return growth

    @property
    def _cases(self) -> list[Case]:
        return [case for case in CASES if case.is_quick or not self._plan.is_quick]

    def _names(self, case: Case, durability: Durability) -> list[str]:
        """The systems that were asked for in this case. Our other back ends are for single calls, in runs
        that are not quick."""
        key = f"{case.group}: {case.name}, {durability.value}"
        reference = self._reference(durability)
        is_told = case.group == "single" and not self._plan.is_quick
        return [
            one.name
            for one in self._all
            if durability in one.settings
            and durability.value in case.classes
            and (is_told or not is_ours(one.name) or one.name == reference)
            and self._choice.has(f"{key}, {one.name}", one.name, durability.value)
        ]

    def _reference(self, durability: Durability) -> str:
        """The system of ours that the others of a class are compared with."""
        return next(
            (one.name for one in self._systems if durability in one.settings and is_ours(one.name)), ""
        )

    def _sized(self, durability: Durability) -> list[str]:
        return [
            one.name
            for one in self._all
            if durability in one.settings
            and durability.value in ONE_NODE
            and any(
                self._choice.has(f"{key}, {durability.value}, {one.name}", one.name, durability.value)
                for key in FOOTPRINT_CASES
            )
        ]

    def _contestants(self, durability: Durability, asked: set[str], stack: ExitStack) -> list[Contestant]:
        """Those that were asked for, and with them ours and the limit."""
        if not asked:
            return []
        reference = self._reference(durability)
        starters: list[tuple[str, Callable[[Path], Contestant]]] = [
            (one.name, partial(Served, one, durability=durability))
            for one in self._systems
            if durability in one.settings and one.name in (*asked, reference)
        ]
        starters += [
            (one.name, partial(Driven, one, durability=durability))
            for one in self._drivers
            if durability in one.settings and one.name in asked
        ]
        starters.append((Limit.name, partial(Bound, Limit(), durability=durability)))
        contestants: list[Contestant] = []
        for name, starter in starters:
            self._say(f"starting {name}, {durability.value}")
            try:
                one = starter(self._folder(stack))
            except Exception as error:  # noqa: BLE001  what can't be started is left out, and said
                self._skip(f"{name}, {durability.value}", str(error))
                continue
            stack.callback(one.close)
            contestants.append(one)
        return contestants

    def _folder(self, stack: ExitStack) -> Path:
        prefix = f"perdure-bench-{next(self._numbers)}-"
        folder = tempfile.TemporaryDirectory(prefix=prefix, dir=self._directory, ignore_cleanup_errors=True)
        return Path(stack.enter_context(folder))

    def _restarts(self) -> Iterator[Row]:
        with ExitStack() as stack:

            def start(system: System, durability: Durability) -> Served:
                return Served(system, self._folder(stack), durability)

            folder = partial(self._folder, stack)
            for sessions in self._plan.reopened:
                cases = [
                    f"start: first answer, {sessions:,} sessions, {what}" for what in (AFTER_STOP, AFTER_KILL)
                ]
                systems, drivers = self._restarted(cases, KEPT)
                if sessions > self._plan.reopened[0]:  # our other back ends are for the first number
                    ours = self._first_of_ours(KEPT)
                    systems = [one for one in systems if one is ours or not is_ours(one.name)]
                yield from reopening(systems, drivers, sessions, self._plan, start, folder, self._skip)
            systems, drivers = self._restarted([f"failover: kill -9, {TAKE_OVER}"], REPLICATED)
            yield from taking_over(systems, drivers, self._plan, start, folder, self._skip)

    def _restarted(
        self, cases: Sequence[str], classes: Sequence[Durability]
    ) -> tuple[list[System], list[Driver]]:
        """Those that were asked for in the class in which each is measured, and ours with them."""
        choice = self._choice

        def has(one: System | Driver) -> bool:
            its = class_of(one, classes)
            return its is not None and any(
                choice.has(f"{case}, {its.value}, {one.name}", one.name, its.value) for case in cases
            )

        systems = [one for one in self._systems if has(one)]
        drivers = [one for one in self._drivers if has(one)]
        if systems or drivers:
            ours = self._first_of_ours(classes)
            systems = [one for one in self._systems if one in systems or one is ours]
        return systems, drivers

    def _first_of_ours(self, classes: Sequence[Durability]) -> System | None:
        ours = [one for one in self._systems if is_ours(one.name)]
        chosen = self._choice.durabilities
        its = ((one, class_of(one, classes)) for one in ours)
        return next(
            (one for one, its in its if its is not None and (not chosen or its.value in chosen)), None
        )
