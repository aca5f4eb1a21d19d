"""Why a row shows that perdure is not ahead: what has been found out, kept beside the bench as text.

Owns the file's form. A reason is told only where a measured row needs one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from .rows import Row

FILE: Final = Path(__file__).with_name("reasons.toml")


class Reason(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fits rows of a system; of a case whose `group: case` holds a text, and of one class, where they are
    given."""

    why: str
    system: str
    case: str = ""
    durability: str = msgspec.field(default="", name="class")

    def fits(self, row: Row) -> bool:
        return (
            self.system == row.system
            and self.case in f"{row.group}: {row.case}"
            and self.durability in ("", row.durability)
        )


def read_reasons(file: Path = FILE) -> list[Reason]:
    """Raises OSError, or ValueError if the file is not as it should be."""
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8")).get("reason", [])
        return msgspec.convert(found, list[Reason])
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ValueError(f"{file}: {error}") from error


def reason_for(row: Row, reasons: Sequence[Reason]) -> str:
    """The one that says most about the row: of the longest case, then of its class. Empty: there is none."""
    fitting = [reason for reason in reasons if reason.fits(row)]
    best = max(fitting, key=lambda reason: (len(reason.case), bool(reason.durability)), default=None)
    return "" if best is None else best.why
