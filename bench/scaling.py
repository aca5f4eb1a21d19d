"""How the cost of a call grows: with the sessions that are there, with their size, with the processes that
call.

Owns these runs, and how any such run is measured and fitted: `replica_scaling.py` and `log_scaling.py` have
more of them. All points of a line are measured in turn, as systems are elsewhere, and a line's slope is the
exponent with which the time of a call grows: 0 does not grow, 1 grows in proportion.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from .comparison import Plan
from .contestants import Served
from .plots import Point, slope_of
from .restarts import AFTER_KILL, Reopened
from .rows import Row, ratio_of, spread_of
from .systems.ports import Durability, System
from .workloads import SMALL_BYTES, Case

GROUP: Final = "scaling"
SIZES: Final = (100, 1_000, 10_000, 60_000)
CLIENTS: Final = (1, 2, 4, 8, 16)
_SESSIONS_OF_A_SIZE: Final = 200
_FILLED_PER_S: Final = 10_000
"""Fewer would be too slow for a run with many sessions."""
_CALLS: Final = ("get", "update", "create")


Taken = TypeVar("Taken")
Line = Mapping[int, Sequence[float]]
"""By point: us a call of each round."""
Lines = Iterator[tuple[str, Line]]
Rounds = Callable[[int], float]
"""Measures one round of a point: us a call."""


def scaling_rows(
    system: System,
    plan: Plan,
    sessions: Sequence[int],
    folder: Callable[[ExitStack], Path],
    only: str = "",
) -> Iterator[Row]:
    """Rows of each point, and one of each line's slope. `folder` makes an empty one that ends with the
    stack; `only` may name a factor, which is then measured alone."""
    for factor, run in (("sessions", _by_sessions), ("bytes a session", _by_size), ("clients", _by_clients)):
        if not may_hold(only, factor):
            continue
        with ExitStack() as stack:
            lines = run(system, plan, sessions, lambda stack=stack: folder(stack), stack)  # type: ignore[misc]
            for what, line in lines:
                yield from line_rows(system, f"{what} against {factor}", line)


def may_hold(only: str, factor: str) -> bool:
    """May rows of this factor have this text in their key?"""
    _, against, named = only.partition("against ")
    return not against or f"{factor}: ".startswith(named) or named.startswith(f"{factor}:")


def _by_sessions(
    system: System, plan: Plan, sessions: Sequence[int], folder: Callable[[], Path], stack: ExitStack
) -> Lines:
    filled = {count: _started(system, folder, stack) for count in sessions}
    for count, served in filled.items():
        served.fill(SMALL_BYTES, count, limit_s=_fill_s(plan, count))
    for operation in _CALLS:
        case = Case(GROUP, operation, {operation: 1.0})
        yield operation, in_turn(plan, {count: _slices(its, case, plan) for count, its in filled.items()})
    starts: dict[int, Rounds] = {}
    for count in sessions:
        reopened = Reopened(_started(system, folder, stack), count, _fill_s(plan, count))
        stack.callback(reopened.close)
        starts[count] = partial(_start_us, reopened)
    yield "start after kill -9", in_turn(plan, starts)


def _by_size(
    system: System, plan: Plan, sessions: Sequence[int], folder: Callable[[], Path], stack: ExitStack
) -> Lines:
    served = _started(system, folder, stack)
    for size in SIZES:
        served.fill(size, min(_SESSIONS_OF_A_SIZE, *sessions), limit_s=plan.reopen_fill_s)
    for operation in _CALLS:
        cases = {
            size: Case(GROUP, f"{operation} {size}", {operation: 1.0}, value_bytes=size) for size in SIZES
        }
        yield operation, in_turn(plan, {size: _slices(served, its, plan) for size, its in cases.items()})


def _by_clients(
    system: System, plan: Plan, sessions: Sequence[int], folder: Callable[[], Path], stack: ExitStack
) -> Lines:
    served = _started(system, folder, stack)
    served.fill(SMALL_BYTES, min(sessions), limit_s=plan.reopen_fill_s)
    for operation in _CALLS:
        cases = {
            clients: Case(GROUP, f"{operation} {clients}", {operation: 1.0}, clients=clients)
            for clients in CLIENTS
        }
        line = in_turn(plan, {clients: _slices(served, its, plan) for clients, its in cases.items()})
        yield f"{operation}, time over all clients", line


def _started(system: System, folder: Callable[[], Path], stack: ExitStack) -> Served:
    served = Served(system, folder(), Durability.OS)
    stack.callback(served.close)
    return served


def _fill_s(plan: Plan, sessions: int) -> float:
    return max(plan.reopen_fill_s, sessions / _FILLED_PER_S)


def _slices(served: Served, case: Case, plan: Plan) -> Rounds:
    def measure(number: int) -> float:
        served.make_ready(case)
        rate, _ = served.slice(case, number, plan.slice_s)
        return 1e6 / rate

    return measure


def _start_us(reopened: Reopened, _: int) -> float:
    return reopened.round()[AFTER_KILL] * 1e6


def in_turn(plan: Plan, points: Mapping[int, Callable[[int], Taken]]) -> dict[int, list[Taken]]:
    """Round by round, each point once. The first round is a warm-up; one that takes too long then is
    measured in no other."""
    taken: dict[int, list[Taken]] = {point: [] for point in points}
    slow: set[int] = set()
    for number in range(plan.rounds + 1):
        for point, measure in points.items():
            if point in slow:
                continue
            started = time.monotonic()
            its = measure(number)
            if number == 0 and time.monotonic() - started > plan.slow_s:
                slow.add(point)
            if number or point in slow:
                taken[point].append(its)
    return taken


def line_rows(system: System, case: str, line: Line, durability: Durability = Durability.OS) -> Iterator[Row]:
    """A row of each point of a line, and one of its slope if it has several."""
    row = partial(_row, system, durability)
    middles = {point: ratio_of(taken).median for point, taken in line.items()}
    for point, taken in line.items():
        yield row(f"{case}: {point:,}", middles[point], "us", spread_of(taken), len(taken))
    slope = slope_of([Point(float(point), us) for point, us in middles.items()])
    if slope is not None:
        yield row(f"{case}: slope", slope, "", 0.0, min(len(taken) for taken in line.values()))


def _row(
    system: System, durability: Durability, case: str, amount: float, unit: str, spread: float, rounds: int
) -> Row:
    return Row(
        group=GROUP,
        case=case,
        system=system.name,
        durability=durability.value,
        amount=amount,
        unit=unit,
        spread=spread,
        rounds=rounds,
        version=system.version(),
    )
