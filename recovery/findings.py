"""Findings: what a check says, one at a time, and what they add up to.

Owns the levels and the exit class. A check that could not be made is a finding of its own level,
UNKNOWN: it never counts as good, and never as damage.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

import msgspec

from ..store.errors import PerdureError


class Level(Enum):
    """What a finding means for the store."""

    OK = "ok"
    """Checked, and right."""
    NOTICE = "notice"
    """Right, and worth knowing: a torn tail that the next opening puts aside, say."""
    UNKNOWN = "unknown"
    """Could not be checked; neither good nor bad."""
    WARNING = "warning"
    """Something is not as it should be, and no session is wrong or lost by it."""
    CORRUPT = "corrupt"
    """Damaged, missing or contradicting bytes where durable ones should be."""


_EXIT = {Level.OK: 0, Level.NOTICE: 0, Level.UNKNOWN: 1, Level.WARNING: 1, Level.CORRUPT: 4}


class Finding(msgspec.Struct, frozen=True):
    """One result of a check."""

    level: Level
    kind: str
    """What was looked at and how it came out, in a fixed word: `segment-gap`, `mark-behind`, ..."""
    message: str
    path: str | None = None
    offset: int | None = None
    """Bytes into the file."""
    lsn: int | None = None
    hint: str = ""

    def __str__(self) -> str:
        where = [
            f"{name} {value}"
            for name, value in (("file", self.path), ("offset", self.offset), ("lsn", self.lsn))
            if value is not None
        ]
        text = f"{self.level.value} {self.kind}: {self.message}"
        if where:
            text += f" ({', '.join(where)})"
        return f"{text}. {self.hint}" if self.hint else text


class Summary:
    """What findings add up to; `add` each as it comes."""

    def __init__(self) -> None:
        self.counts: dict[Level, int] = dict.fromkeys(Level, 0)

    def add(self, finding: Finding) -> None:
        self.counts[finding.level] += 1

    @property
    def exit_code(self) -> int:
        """0 if all is well, 1 with findings (UNKNOWN among them), 4 with corruption."""
        return max((_EXIT[level] for level, count in self.counts.items() if count), default=0)

    @property
    def verdict(self) -> Level:
        """The worst level that was found: CORRUPT, then WARNING, UNKNOWN, NOTICE, OK."""
        found = [level for level in Level if self.counts[level]]
        return found[-1] if found else Level.OK

    def __str__(self) -> str:
        return ", ".join(f"{count} {level.value}" for level, count in self.counts.items() if count) or "none"


def summarise(findings: Iterable[Finding]) -> Summary:
    """Read a stream of findings to its end; answers what they add up to."""
    summary = Summary()
    for finding in findings:
        summary.add(finding)
    return summary


def finding_of(error: PerdureError, level: Level, kind: str) -> Finding:
    """The finding that an error of the store's decoders is."""
    return Finding(level, kind, error.message, error.path, error.offset, error.lsn, error.hint)
