"""The seven checks of every recovered state. Pure: values in, violations out.

1. Nothing acknowledged is lost.
2. Nothing that was never attempted, or was refused, appears.
3. What is there is a prefix of the commit order, without holes or repeats; a batch is whole or absent.
4. Nothing deleted or expired comes back.
5. Recovering twice, or crashing during recovery, gives the same.
6. The state equals the replay of the log.
7. Recovery ends within bounded time, or with a named error.

The order of commits need not be known: what was acknowledged before another call began must stand before
it. Invariant: a violation is certain; whatever the history leaves open is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .ledger import ANY_KEY, ERASING, FOREVER, UNTOUCHING, Attempt, History, Item

ABSENT = None


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the recovered log. op: id of the operation, "" for the store's own control events."""

    lsn: int
    op: str
    kind: str
    key: str
    digest: str = ""


@dataclass
class Recovered:
    """What recovery gave.

    state: key -> digest of its value. events: the log from LSN base_lsn + 1 on, None if it can't be read
    as such. base_state: the state at base_lsn (a snapshot), if base_lsn > 0. error: name of the error
    with which recovery ended, "" if it succeeded. seconds: how long it took.
    """

    state: Mapping[str, str] = field(default_factory=dict[str, str])
    events: Sequence[Event] | None = None
    base_lsn: int = 0
    base_state: Mapping[str, str] = field(default_factory=dict[str, str])
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken check: its number, and what broke it."""

    check: int
    text: str

    def __str__(self) -> str:
        return f"({self.check}) {self.text}"


def check_all(
    history: History,
    recovered: Recovered,
    *,
    again: Recovered | None = None,
    order: Sequence[str] | None = None,
    named_errors: frozenset[str] = frozenset(),
    limit_s: float = 10.0,
    initial: Mapping[str, str] | None = None,
    own_kinds: frozenset[str] = frozenset(),
) -> list[Violation]:
    """All checks that the values allow.

    again: a second recovery of the same directory. order: ids of all operations in their commit order,
    where it is known (a replica's primary). named_errors: errors with which recovery may end; then only 7
    is judged. limit_s: bound of check 7. initial: the state before the history began. own_kinds: kinds of
    event that the store makes on its own account, under ids that no ledger has (expirations).
    """
    found = check_end(recovered, named_errors, limit_s)
    if recovered.error:
        return found
    found += check_keys(history, recovered.state, initial or {}, own_kinds)
    if recovered.events is not None:
        found += check_events(history, recovered, order, own_kinds)
        found += check_replay(recovered)
    if again is not None:
        found += check_same(recovered, again)
    return found


def check_end(recovered: Recovered, named_errors: frozenset[str], limit_s: float) -> list[Violation]:
    """Check 7."""
    found: list[Violation] = []
    if recovered.seconds > limit_s:
        found.append(Violation(7, f"recovery took {recovered.seconds:.1f} s, more than {limit_s:g} s"))
    if recovered.error and recovered.error not in named_errors:
        found.append(Violation(7, f"recovery ended with {recovered.error}, which is not expected here"))
    return found


def check_keys(
    history: History,
    state: Mapping[str, str],
    initial: Mapping[str, str],
    own_kinds: frozenset[str] = frozenset(),
) -> list[Violation]:
    """Checks 1, 2 and 4 as far as the state alone can tell."""
    changes: dict[str, list[tuple[Attempt, Item]]] = {key: [] for key in initial}
    may_expire = bool(own_kinds & ERASING)
    for attempt in history.attempts.values():
        if attempt.result == "refused":
            continue
        for item in attempt.items:
            if item.key == ANY_KEY:
                may_expire = True
            elif item.kind not in UNTOUCHING:
                changes.setdefault(item.key, []).append((attempt, item))
    found = [
        Violation(2, f"key {key!r} is there, but nobody ever wrote it") for key in state if key not in changes
    ]
    for key, done in changes.items():
        violation = _judge_key(key, state.get(key), done, initial.get(key), may_expire)
        if violation is not None:
            found.append(violation)
    return found


def _judge_key(
    key: str,
    value: str | None,
    done: list[tuple[Attempt, Item]],
    before: str | None,
    may_expire: bool,
) -> Violation | None:
    last: tuple[Attempt, Item] | None = None
    for attempt, item in done:
        if attempt.is_acknowledged and (last is None or attempt.began >= last[0].began):
            last = (attempt, item)
    since = last[0].began if last is not None else -1
    # Of a batch with several changes of one key only its last counts, unless another stands behind it.
    final = {attempt.op: item for attempt, item in done}
    allowed = {
        _result(final[attempt.op])
        for attempt, _ in done
        if last is None or attempt.op == last[0].op or _may_follow(attempt, since)
    }
    if last is None:
        allowed.add(before)
    if may_expire:
        allowed.add(ABSENT)
    if value in allowed:
        return None
    known = {ABSENT, before, *(_result(item) for _, item in done)}
    if last is None or value not in known:
        return Violation(2, f"key {key!r} holds {_shown(value)}, which nobody ever wrote")
    told = f"acknowledged {last[1].kind} of {key!r} by {last[0].op}"
    if last[1].kind in ERASING:
        return Violation(4, f"{told} came back as {_shown(value)}")
    return Violation(1, f"{told} is lost: the key holds {_shown(value)}")


def _may_follow(attempt: Attempt, since: int) -> bool:
    ended = attempt.ended if attempt.is_acknowledged else FOREVER
    return ended > since


def _result(item: Item) -> str | None:
    return ABSENT if item.kind in ERASING else item.digest


def _shown(value: str | None) -> str:
    return "nothing" if value is ABSENT else repr(value)


def check_events(
    history: History,
    recovered: Recovered,
    order: Sequence[str] | None = None,
    own_kinds: frozenset[str] = frozenset(),
) -> list[Violation]:
    """Checks 1, 2, 3 and 4 on the recovered log."""
    events = recovered.events or ()
    found = _check_density(events, recovered.base_lsn)
    runs, own = _runs(events, history, own_kinds)
    found += own
    places: dict[str, list[Event]] = {}
    for run in runs:
        op = run[0].op
        if op in places:
            text = f"operation {op} is there twice, at {places[op][0].lsn} and {run[0].lsn}"
            found.append(Violation(3, text))
        places.setdefault(op, run)
        found += _check_run(history.attempts.get(op), run)
    for attempt in history.attempts.values():
        found += _check_acknowledged(attempt, places.get(attempt.op), recovered)
    found += _check_order(history, [run[0].op for run in runs])
    if order is not None:
        found += _check_prefix(order, [run[0].op for run in runs])
    return found


def _check_density(events: Iterable[Event], base_lsn: int) -> list[Violation]:
    expected = base_lsn + 1
    for event in events:
        if event.lsn != expected:
            word = "a hole" if event.lsn > expected else "a repeat"
            return [Violation(3, f"{word} in the log: LSN {event.lsn} where {expected} belongs")]
        expected += 1
    return []


def _runs(
    events: Iterable[Event], history: History, own_kinds: frozenset[str]
) -> tuple[list[list[Event]], list[Violation]]:
    runs: list[list[Event]] = []
    found: list[Violation] = []
    may_expire = any(item.key == ANY_KEY for a in history.attempts.values() for item in a.items)
    current = ""
    for event in events:
        if not event.op:
            current = ""
        elif event.op not in history.attempts:
            current = ""
            if event.kind not in own_kinds and not (may_expire and event.kind == "expire"):
                text = f"LSN {event.lsn}: {event.kind} of {event.key!r} was never attempted"
                found.append(Violation(2, text))
        elif event.op == current:
            runs[-1].append(event)
        else:
            runs.append([event])
            current = event.op
    return runs, found


def _check_run(attempt: Attempt | None, run: list[Event]) -> list[Violation]:
    assert attempt is not None, "runs hold known operations only"
    if attempt.result == "refused":
        return [Violation(2, f"operation {attempt.op} was refused, yet stands at LSN {run[0].lsn}")]
    asked = [item for item in attempt.items if item.key != ANY_KEY]
    if not asked:
        return []  # a sweep: which keys were due is not the ledger's to say
    got = [Item(event.kind, event.key, event.digest) for event in run]
    if got == asked:
        return []
    if len(got) < len(asked) and got == asked[: len(got)]:
        return [Violation(3, f"batch {attempt.op}: only {len(got)} of its {len(asked)} changes are there")]
    return [Violation(2, f"operation {attempt.op} at LSN {run[0].lsn} is {got}, but {asked} was attempted")]


def _check_acknowledged(attempt: Attempt, run: list[Event] | None, recovered: Recovered) -> list[Violation]:
    if not attempt.is_acknowledged:
        return []
    if run is None:
        in_base = recovered.base_lsn > 0 and (attempt.lsn is None or attempt.lsn <= recovered.base_lsn)
        if in_base or not attempt.items or attempt.items[0].key == ANY_KEY:
            return []
        at = f" at LSN {attempt.lsn}" if attempt.lsn is not None else ""
        what = ", ".join(f"{item.kind} of {item.key!r}" for item in attempt.items)
        return [Violation(1, f"acknowledged {attempt.op} ({what}){at} is not in the log")]
    if attempt.lsn is not None and attempt.lsn not in {event.lsn for event in run}:
        text = f"{attempt.op} was acknowledged at LSN {attempt.lsn}, it stands at {run[0].lsn}"
        return [Violation(3, text)]
    return []


def _check_order(history: History, ops: Iterable[str]) -> list[Violation]:
    latest = -1
    latest_op = ""
    for op in ops:
        attempt = history.attempts[op]
        if attempt.is_acknowledged and attempt.ended < latest:
            return [Violation(3, f"{op} was acknowledged before {latest_op} began, yet stands behind it")]
        if attempt.began > latest:
            latest, latest_op = attempt.began, op
    return []


def _check_prefix(order: Sequence[str], ops: Sequence[str]) -> list[Violation]:
    for index, op in enumerate(ops):
        if index >= len(order) or order[index] != op:
            wanted = order[index] if index < len(order) else "the end"
            return [Violation(3, f"not a prefix of the commit order: {op} where {wanted} belongs")]
    return []


def check_replay(recovered: Recovered) -> list[Violation]:
    """Check 6, and 4 where an update changes what a delete or an expiry had ended."""
    replayed = dict(recovered.base_state)
    found: list[Violation] = []
    for event in recovered.events or ():
        if event.kind in ERASING:
            replayed.pop(event.key, None)
        elif event.kind in ("update", "touch") and event.key not in replayed:
            found.append(Violation(4, f"LSN {event.lsn}: {event.kind} of {event.key!r}, which is not there"))
        elif event.kind not in UNTOUCHING and event.op:
            replayed[event.key] = event.digest
    return found + _differences(6, replayed, recovered.state, "the replay of the log", "the state")


def check_same(first: Recovered, second: Recovered) -> list[Violation]:
    """Check 5. Control events are left out: recovery may add its own."""
    if first.error != second.error:
        ends = f"{first.error or 'well'!r}, the second {second.error or 'well'!r}"
        return [Violation(5, f"the first recovery ended {ends}")]
    found = _differences(5, first.state, second.state, "the first recovery", "the second")
    if first.events is not None and second.events is not None and not found:
        bases = (first.base_lsn, second.base_lsn)
        one, two = ([e for e in r.events or () if e.op and e.lsn > max(bases)] for r in (first, second))
        if one != two:
            text = f"the first recovery has {len(one)} events, the second {len(two)}, or others"
            found.append(Violation(5, text))
    return found


def _differences(
    check: int, one: Mapping[str, str], two: Mapping[str, str], name_one: str, name_two: str
) -> list[Violation]:
    if one == two:
        return []
    keys = [key for key in sorted({*one, *two}) if one.get(key) != two.get(key)]
    key = keys[0]
    text = f"{name_one} has {_shown(one.get(key))} under {key!r}, {name_two} {_shown(two.get(key))}"
    return [Violation(check, f"{text} ({len(keys)} keys differ)")]
