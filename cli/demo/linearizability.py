"""Is a history of calls linearizable, key by key? The search of Wing and Gong with Lowe's memo.

Owns the verdicts on histories that clients recorded; recording is others'. A key is one register: absent, or
holding the value of the last write. Every write writes a value that no other write of the history writes. A
call without an answer may have taken effect at any time after it began, or never. Sources: Wing and Gong,
"Testing and Verifying Concurrent Objects" (1993); Lowe, "Testing for Linearizability" (2017).

Invariant: a verdict is exact. What is left out before the search (see _simplified) changes none, and a search
over its budget raises instead of guessing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal, TypeAlias

import msgspec

STEPS_MAX: Final = 5_000_000
"""Of one key's search. A history of thousands of calls takes about two steps a call."""

Kind: TypeAlias = Literal["read", "put", "create", "update", "delete"]
State: TypeAlias = str | None


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One call of one client, on a clock that all clients share."""

    client: str
    """One handle: what it reads may not go backwards."""
    kind: Kind
    key: str
    start_ns: int
    end_ns: int | None
    """None: it got no answer, and may have happened, may yet happen, or not at all."""
    value: str = ""
    """What a put, create or update writes."""
    seen: State = None
    """What a read answered, or what an update found and built on; None: there was no session."""
    was_there: bool = True
    """What a delete answered."""
    version: int = 0
    """The session's version as the call answered it; 0: unknown."""
    is_plain: bool = False
    """A read that may be stale; it is no part of what must be linearizable."""


class Fault(msgspec.Struct, frozen=True):
    """Something in a history that no right store does."""

    key: str
    problem: str
    operation: Operation

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}: {self.operation}"


class UndecidedError(Exception):
    """The search took more steps than it may. Neither verdict is known."""


def find_faults(history: Iterable[Operation], initial: State = None) -> list[Fault]:
    """All that is wrong: keys that are not linearizable, and plain reads that are more than stale.

    `initial` is what each key held before. Raises UndecidedError.
    """
    by_key: dict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        by_key[operation.key].append(operation)
    faults: list[Fault] = []
    for operations in by_key.values():
        strict = [operation for operation in operations if not operation.is_plain]
        stuck = check_register(strict, initial)
        if stuck is not None:
            faults.append(stuck)
        faults += find_phantoms(operations, initial)
        faults += find_backward_steps(operations)
    return faults


def find_phantoms(operations: Sequence[Operation], initial: State = None) -> Iterator[Fault]:
    """Reads of one key that saw what nobody had begun to write yet, plain ones included."""
    begun = {operation.value: operation.start_ns for operation in operations if operation.value}
    for operation in operations:
        seen = operation.seen
        if seen is None or seen == initial or operation.end_ns is None:
            continue
        if begun.get(seen, operation.end_ns + 1) > operation.end_ns:
            yield Fault(operation.key, "saw a value that nobody had begun to write", operation)


def find_backward_steps(operations: Sequence[Operation]) -> Iterator[Fault]:
    """Calls of one handle on one key that answered an older version than one before did, and versions
    that stand for two values.

    Says nothing about a key that was deleted or made anew: its versions begin again.
    """
    if any(operation.kind in {"delete", "create"} for operation in operations):
        return
    newest: dict[str, int] = {}
    value_of: dict[int, str] = {}
    answered = [operation for operation in operations if operation.end_ns is not None and operation.version]
    for operation in sorted(answered, key=lambda one: (one.start_ns, one.end_ns or 0)):
        if operation.version < newest.get(operation.client, 0):
            yield Fault(operation.key, f"went back from version {newest[operation.client]}", operation)
        newest[operation.client] = max(operation.version, newest.get(operation.client, 0))
        value = operation.value or operation.seen or ""
        if value_of.setdefault(operation.version, value) != value:
            yield Fault(operation.key, f"that version was {value_of[operation.version]} before", operation)


def check_register(operations: Sequence[Operation], initial: State = None) -> Fault | None:
    """None if the calls on one key are linearizable; otherwise the call that the longest prefix could not
    take in. Raises UndecidedError."""
    return _Search(_simplified(operations), initial).run() if operations else None


def _simplified(operations: Sequence[Operation]) -> list[Operation]:
    """Without the unanswered calls that cannot matter; those that somebody saw get an end.

    An unanswered write that was seen took effect before the first call that saw it ended. An unanswered
    update that nobody saw leaves a session where one was, for the next call as if it had not been.
    """
    first_seen: dict[str, int] = {}
    for operation in operations:
        if operation.seen is not None and operation.end_ns is not None:
            end_ns = first_seen.get(operation.seen, operation.end_ns)
            first_seen[operation.seen] = min(end_ns, operation.end_ns)
    kept: list[Operation] = []
    for operation in operations:
        if operation.end_ns is not None:
            kept.append(operation)
        elif operation.value in first_seen and operation.value:
            end_ns = max(first_seen[operation.value], operation.start_ns)
            kept.append(msgspec.structs.replace(operation, seen=None, end_ns=end_ns))
        elif operation.kind not in {"read", "update"}:
            kept.append(operation)
    return kept


class _Search:
    """Of one key. Calls and returns stand in one list by time; a call that took effect is lifted out of it
    with its return, and put back when the search backs up."""

    def __init__(self, operations: list[Operation], initial: State) -> None:
        self._operations = operations
        self._initial = initial
        self._is_guess = {
            id(operation) for operation in operations if operation.kind == "update" and operation.seen is None
        }
        events = sorted(
            [(operation.start_ns, 0, number) for number, operation in enumerate(operations)]
            + [
                (operation.end_ns, 1, number)
                for number, operation in enumerate(operations)
                if operation.end_ns is not None
            ]
        )
        # Entry 0 is the head; the entry behind the last one is the end.
        self._owner = [-1] + [number for _, _, number in events] + [-1]
        self._is_call = [False] + [kind == 0 for _, kind, _ in events] + [False]
        self._next = list(range(1, len(events) + 3))
        self._before = list(range(-1, len(events) + 1))
        self._return_of = [0] * len(operations)
        for place, (_, kind, number) in enumerate(events, 1):
            if kind == 1:
                self._return_of[number] = place
        self._answered = sum(operation.end_ns is not None for operation in operations)

    def run(self) -> Fault | None:
        state, done, mask, steps = self._initial, 0, 0, 0
        seen: set[tuple[int, State]] = set()
        stack: list[tuple[int, State, int, int]] = []
        place, best, stuck = self._next[0], -1, 0
        while done < self._answered:
            steps += 1
            if steps > STEPS_MAX:
                raise UndecidedError(f"{self._operations[0].key}: not decided in {STEPS_MAX:,} steps")
            number = self._owner[place]
            if self._is_call[place]:
                is_possible, after = self._step(state, self._operations[number])
                taken = mask | 1 << number
                if is_possible and (taken, after) not in seen:
                    seen.add((taken, after))
                    stack.append((place, state, mask, done))
                    self._lift(place)
                    done += self._return_of[number] > 0
                    state, mask, place = after, taken, self._next[0]
                else:
                    place = self._next[place]
                continue
            if done > best:
                best, stuck = done, number
            if not stack:
                problem = f"not linearizable: {best} of {self._answered} calls fit, then this one does not"
                return Fault(self._operations[stuck].key, problem, self._operations[stuck])
            place, state, mask, done = stack.pop()
            self._unlift(place)
            place = self._next[place]
        return None

    def _step(self, state: State, operation: Operation) -> tuple[bool, State]:
        """(can it take effect on `state`, what is there afterwards)."""
        match operation.kind:
            case "read":
                return operation.seen == state, state
            case "put":
                return True, operation.value
            case "create":
                return state is None, operation.value
            case "update":
                is_guess = id(operation) in self._is_guess
                return state is not None and (is_guess or state == operation.seen), operation.value
            case "delete":
                return operation.end_ns is None or operation.was_there == (state is not None), None

    def _lift(self, place: int) -> None:
        following, before = self._next, self._before
        following[before[place]], before[following[place]] = following[place], before[place]
        other = self._return_of[self._owner[place]]
        if other:
            following[before[other]], before[following[other]] = following[other], before[other]

    def _unlift(self, place: int) -> None:
        following, before = self._next, self._before
        other = self._return_of[self._owner[place]]
        if other:
            following[before[other]] = before[following[other]] = other
        following[before[place]] = before[following[place]] = place
