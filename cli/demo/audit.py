"""What the writers' ledgers say about a recovered store: what was lost, and what appeared from nowhere.

Owns the comparison, which takes values and returns a value; reads no file and no store. Invariant: nothing
is called lost or phantom that one order of the unanswered calls could explain; and whatever no order can
explain is called one of them.

The order of the writes on a key is known without any clock, because each key belongs to one writer and a
writer calls one write at a time. So a key may be in the state that its last acknowledged write left, or in
that of any later write that was not answered, and in no other.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, TypeAlias

import msgspec

from .ledger import Answer, Attempt, Entry, LedgerError, Verdict
from .operations import Kind

EXAMPLES_MAX = 20

Trouble: TypeAlias = Literal["lost", "phantom", "hole"]
_UNKNOWN, _ACKNOWLEDGED, _REFUSED = 0, int(Verdict.ACKNOWLEDGED), int(Verdict.REFUSED)
_ENDS = (Kind.DELETE, Kind.EXPIRE)


class Example(msgspec.Struct, frozen=True):
    """One finding: `ledger` and `attempt` name the write that it is about, if any did."""

    trouble: Trouble
    reason: str
    key: str
    ledger: str = ""
    attempt: int | None = None
    kind: str = ""
    counter: int = 0


class Audit(msgspec.Struct, frozen=True):
    """The result of `compare`.

    `attempted` = `acknowledged` + `refused` + `unknown`, in writes. `lost` counts acknowledged writes that
    the recovered state does not show though nothing took their place, in `lost_sessions` sessions;
    `phantom` counts sessions that nobody may have left there. `holes` counts writers of whose writes an
    earlier one is lost and a later one there: loss that is no mere tail. `by_kind` counts acknowledged
    writes, without the deletes that found nothing. `examples` holds at most EXAMPLES_MAX of each trouble.
    """

    attempted: int
    acknowledged: int
    refused: int
    unknown: int
    lost: int
    lost_sessions: int
    phantom: int
    holes: int
    by_kind: Mapping[str, int]
    examples: tuple[Example, ...]

    @property
    def is_clean(self) -> bool:
        """Nothing acknowledged is lost, and nothing is there that should not be."""
        return not (self.lost or self.phantom or self.holes)


def compare(ledgers: Mapping[str, Iterable[Entry]], recovered: Iterable[tuple[str, int]]) -> Audit:
    """Hold a recovered store to the ledgers of all its writers, as they stood when it was recovered.

    `ledgers` gives each ledger's entries under a name for the examples; `recovered` the key and content hash
    of every session in the store. A deletion that was acknowledged and did not hold counts twice: as a lost
    write, and as a session that should not be there. About 60 bytes are kept for a write, and 250 for a key.
    Raises LedgerError when ledgers contradict themselves or each other, and what reading them raises.
    """
    book = _Book()
    for name, entries in ledgers.items():
        book.read(name, entries)
    return _Judge(book).judge(recovered)


class _Book:
    """All attempts, column by column: a *write* is one call, a *step* is what it does to one key."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.starts: list[int] = []  # number of each ledger's first write
        self.keys: dict[str, int] = {}
        self.key_names: list[str] = []
        self.owner = array("I")  # by key: its ledger
        self.last_step = array("q")  # by key
        self.kind = bytearray()  # by write
        self.counter = array("I")
        self.status = bytearray()
        self.effect = array("Q")  # by step: content hash
        self.leaves_session = bytearray()
        self.step_write = array("Q")
        self.step_key = array("Q")
        self.previous = array("q")
        self.regenerations = array("Q")  # steps on the old key; the one on the new key follows it
        self.in_vain = array("Q")  # steps that were to end a session and found none
        self.acknowledged = [0] * (max(Kind) + 1)  # by kind

    def read(self, name: str, entries: Iterable[Entry]) -> None:
        self.names.append(name)
        self.starts.append(len(self.kind))
        for entry in entries:
            if isinstance(entry, Attempt):
                self._attempted(entry)
            else:
                self._answered(entry)

    def ledger_of(self, write: int) -> int:
        return bisect_right(self.starts, write) - 1

    def steps_of(self, key: int) -> Iterator[int]:
        """The steps on a key that were not refused, the newest first."""
        step = self.last_step[key]
        while step >= 0:
            if self.status[self.step_write[step]] != _REFUSED:
                yield step
            step = self.previous[step]

    def owed_before(self, step: int) -> list[int]:
        """The acknowledged step that left the session which this step must have found; empty if none must."""
        step = self.previous[step]
        while step >= 0:
            status = self.status[self.step_write[step]]
            if status != _REFUSED and not self.leaves_session[step]:
                return []
            if status == _ACKNOWLEDGED:
                return [step]
            step = self.previous[step]
        return []

    def _attempted(self, attempt: Attempt) -> None:
        write = len(self.kind)
        if attempt.number != write - self.starts[-1]:
            raise LedgerError(f"attempt {attempt.number} of ledger {self.names[-1]} is out of its order")
        self.kind.append(attempt.kind)
        self.counter.append(attempt.counter)
        self.status.append(_UNKNOWN)
        if attempt.kind is Kind.REGENERATE:
            self.regenerations.append(len(self.effect))
            self._step(attempt.key, write, None)
            self._step(attempt.new_key, write, attempt.content_hash)
        else:
            self._step(attempt.key, write, None if attempt.kind in _ENDS else attempt.content_hash)

    def _step(self, name: str, write: int, effect: int | None) -> None:
        key = self.keys.setdefault(name, len(self.keys))
        if key == len(self.last_step):
            self.key_names.append(name)
            self.last_step.append(-1)
            self.owner.append(len(self.names) - 1)
        elif self.owner[key] != len(self.names) - 1:
            raise LedgerError(
                f"ledgers {self.names[self.owner[key]]} and {self.names[-1]} both wrote session {name!r}",
                hint="A session belongs to one writer, or the order of its writes is not known.",
            )
        self.effect.append(effect or 0)
        self.leaves_session.append(effect is not None)
        self.step_write.append(write)
        self.step_key.append(key)
        self.previous.append(self.last_step[key])
        self.last_step[key] = len(self.effect) - 1

    def _answered(self, answer: Answer) -> None:
        write = self.starts[-1] + answer.number
        if write >= len(self.kind) or self.status[write] not in (_UNKNOWN, answer.verdict):
            raise LedgerError(
                f"an answer to attempt {answer.number} of ledger {self.names[-1]} contradicts it"
            )
        if self.status[write] == _UNKNOWN and answer.verdict is Verdict.ACKNOWLEDGED:
            if answer.existed:
                self.acknowledged[self.kind[write]] += 1
            else:
                self.in_vain.append(bisect_left(self.step_write, write))
        self.status[write] = answer.verdict


class _Judge:
    """Compares each key's recovered state with the states that the book allows."""

    def __init__(self, book: _Book) -> None:
        self._book = book
        self._is_there = bytearray(len(book.keys))
        self._found = array("Q", bytes(8 * len(book.keys)))
        self._is_lost = bytearray(len(book.kind))  # by write
        self._lost_sessions = bytearray(len(book.keys))
        self._phantom = 0
        self._first_lost = [len(book.kind)] * len(book.names)
        self._last_kept = [-1] * len(book.names)
        self._examples: dict[Trouble, list[Example]] = {"lost": [], "phantom": [], "hole": []}

    def judge(self, recovered: Iterable[tuple[str, int]]) -> Audit:
        self._take_in(recovered)
        for key in range(len(self._book.key_names)):
            self._judge_key(key)
        self._judge_regenerations()
        self._judge_in_vain()
        holes = self._holes()
        status = Counter(self._book.status)
        return Audit(
            attempted=len(self._book.status),
            acknowledged=status[_ACKNOWLEDGED],
            refused=status[_REFUSED],
            unknown=status[_UNKNOWN],
            lost=sum(self._is_lost),
            lost_sessions=sum(self._lost_sessions),
            phantom=self._phantom,
            holes=holes,
            by_kind={kind.name.lower(): self._book.acknowledged[kind] for kind in Kind},
            examples=tuple(example for some in self._examples.values() for example in some),
        )

    def _take_in(self, recovered: Iterable[tuple[str, int]]) -> None:
        for name, content_hash in recovered:
            key = self._book.keys.get(name)
            if key is None:
                self._add_phantom("nobody attempted it", name)
            elif self._is_there[key]:
                self._add_phantom("it is there twice", name)
            else:
                self._is_there[key] = 1
                self._found[key] = content_hash

    def _is_state(self, key: int, step: int) -> bool:
        """Say whether the key was found as this step leaves it."""
        if not self._book.leaves_session[step]:
            return not self._is_there[key]
        return bool(self._is_there[key]) and self._found[key] == self._book.effect[step]

    def _judge_key(self, key: int) -> None:
        book = self._book
        name = book.key_names[key]
        overridden: list[int] = []  # acknowledged steps that should have shown, the newest first
        shown: int | None = None
        for step in book.steps_of(key):
            if self._is_state(key, step):
                shown = step
                break
            if book.status[book.step_write[step]] == _ACKNOWLEDGED:
                overridden.append(step)
        if not self._is_there[key]:
            self._add_lost(overridden)
        elif shown is None:
            self._add_phantom(self._why_unexplained(key), name)
            self._add_lost(overridden[:1])  # how far back the state fell cannot be told
        else:
            owner = book.owner[key]
            self._last_kept[owner] = max(self._last_kept[owner], book.step_write[shown])
            self._add_lost(overridden)
            ends = [step for step in overridden if not book.leaves_session[step]]
            if ends:
                self._add_phantom("it had ended, and is there again", name, book.step_write[ends[0]])

    def _why_unexplained(self, key: int) -> str:
        step = self._book.last_step[key]
        while step >= 0:
            if self._is_state(key, step):
                return "the store refused this content"
            step = self._book.previous[step]
        return "nobody attempted this content"

    def _judge_regenerations(self) -> None:
        """An unanswered change of id may have happened or not, but not by half."""
        book = self._book
        for step in book.regenerations:
            write, old, new = book.step_write[step], book.step_key[step], book.step_key[step + 1]
            is_last = book.last_step[old] == step and book.last_step[new] == step + 1
            if book.status[write] != _UNKNOWN or not is_last:
                continue
            is_gone, is_there = not self._is_there[old], self._is_state(new, step + 1)
            if is_there and not is_gone:
                name = book.key_names[old]
                self._add_phantom("its id was changed, and the old one is there too", name, write)
            elif is_gone and not is_there:
                self._add_lost(book.owed_before(step), "an unanswered change of its id left neither id")

    def _judge_in_vain(self) -> None:
        """A delete that found nothing says that the session was lost before, if nothing else ended it."""
        for step in self._book.in_vain:
            self._add_lost(self._book.owed_before(step), "a delete that came later found no session")

    def _add_lost(self, steps: list[int], reason: str = "it was acknowledged and does not show") -> None:
        book = self._book
        for step in steps:
            write, key = book.step_write[step], book.step_key[step]
            if self._is_lost[write]:  # a change of id shows under both ids and is lost once
                continue
            self._is_lost[write] = 1
            self._lost_sessions[key] = 1
            owner = book.owner[key]
            self._first_lost[owner] = min(self._first_lost[owner], write)
            self._add_example("lost", reason, book.key_names[key], write)

    def _add_phantom(self, reason: str, name: str, write: int | None = None) -> None:
        self._phantom += 1
        self._add_example("phantom", reason, name, write)

    def _holes(self) -> int:
        holes = 0
        for first_lost, last_kept in zip(self._first_lost, self._last_kept, strict=True):
            if first_lost < last_kept:
                holes += 1
                self._add_example(
                    "hole", "it is lost, and a later write of its writer is there", "", first_lost
                )
        return holes

    def _add_example(self, trouble: Trouble, reason: str, name: str, write: int | None) -> None:
        examples, book = self._examples[trouble], self._book
        if len(examples) == EXAMPLES_MAX:
            return
        if write is None:
            examples.append(Example(trouble, reason, name))
            return
        ledger = book.ledger_of(write)
        examples.append(
            Example(
                trouble,
                reason,
                name,
                ledger=book.names[ledger],
                attempt=write - book.starts[ledger],
                kind=Kind(book.kind[write]).name.lower(),
                counter=book.counter[write],
            )
        )
