"""A writer's own ledger: what it is about to do, and what it was told had been done.

Owns the format of the witness's files: one JSON object a line, one write a line, appended, so that it
outlives a kill -9 of its writer. A file is called ACK or ACK.<writer>, and the fault shim records its
lines in the order of everything else. Invariant: an attempt's line is written before the call, the
answer's line after it; so what stands under no attempt was never asked for.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

ANY_KEY = "*"
"""As the key of an expire: a sweep that may end any session that is due."""
ERASING = frozenset({"delete", "expire"})
"""Kinds after which a key is gone. Every other kind leaves its digest as the key's value."""
UNTOUCHING = frozenset({"touch"})
"""Kinds that leave the value as it was."""
FOREVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Item:
    """One change: kind (put, update, delete, expire, touch), key, and a digest of the new value."""

    kind: str
    key: str
    digest: str = ""


@dataclass(slots=True)
class Attempt:
    """One operation as its caller saw it.

    began, ended: moments on the clock that all writers share (ended: FOREVER while there is no answer).
    result: "acknowledged", "refused" (certainly not done), or "unknown". lsn: as acknowledged, if told.
    """

    op: str
    writer: str
    items: tuple[Item, ...]
    began: int
    ended: int = FOREVER
    result: str = "unknown"
    lsn: int | None = None

    @property
    def is_acknowledged(self) -> bool:
        return self.result == "acknowledged"


class Ledger:
    """Appends to one ledger. One per writer; threads of a writer may share it."""

    def __init__(self, path: Path, writer: str) -> None:
        if not (path.name == "ACK" or path.name.startswith("ACK.")):
            raise ValueError(f"{path}: a ledger is called ACK or ACK.<writer>, or the shim does not see it")
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._writer = writer

    def attempt(self, op: str, items: Sequence[Item]) -> None:
        """Before the call. op: unique in the whole run; items: in the order of the batch."""
        self._write("attempt", op, items=[[item.kind, item.key, item.digest] for item in items])

    def acknowledge(self, op: str, lsn: int | None = None) -> None:
        """The call returned: done."""
        self._write("acknowledged", op, lsn=lsn)

    def refuse(self, op: str) -> None:
        """The call failed in a way that promises that nothing was done."""
        self._write("refused", op)

    def unknown(self, op: str) -> None:
        """The call failed in a way that promises nothing."""
        self._write("unknown", op)

    def close(self) -> None:
        os.close(self._descriptor)

    def _write(self, word: str, op: str, **more: object) -> None:
        line = {"word": word, "op": op, "writer": self._writer, "t": time.monotonic_ns(), **more}
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        if os.write(self._descriptor, data) != len(data):
            raise OSError(f"the ledger of {self._writer} could not be written")


@dataclass
class History:
    """Everything that was attempted, in the order in which it began."""

    attempts: dict[str, Attempt] = field(default_factory=dict[str, Attempt])

    @classmethod
    def of(cls, lines: Iterable[bytes]) -> History:
        """From ledger lines in any order; a line cut short by a kill is left out."""
        words = [word for line in lines if (word := _parse(line)) is not None]
        words.sort(key=lambda word: word.t)
        history = cls()
        for word in words:
            if word.word == "attempt":
                if word.op in history.attempts:
                    raise ValueError(f"operation {word.op} was attempted twice: ids must be unique")
                history.attempts[word.op] = Attempt(word.op, word.writer, word.items, word.t)
            elif (attempt := history.attempts.get(word.op)) is not None:
                attempt.result, attempt.ended, attempt.lsn = word.word, word.t, word.lsn
        return history

    @classmethod
    def read(cls, paths: Iterable[Path]) -> History:
        """From ledger files."""
        return cls.of(line for path in paths for line in path.read_bytes().splitlines(keepends=True))

    @property
    def acknowledged(self) -> int:
        return sum(attempt.is_acknowledged for attempt in self.attempts.values())


@dataclass(frozen=True, slots=True)
class _Word:
    word: str
    op: str
    writer: str
    t: int
    lsn: int | None
    items: tuple[Item, ...]


@lru_cache(maxsize=200_000)
def _parse(line: bytes) -> _Word | None:
    if not line.endswith(b"\n"):
        return None
    found = json.loads(line)
    items = tuple(Item(*item) for item in found.get("items", ()))
    return _Word(found["word"], found["op"], found["writer"], found["t"], found.get("lsn"), items)
