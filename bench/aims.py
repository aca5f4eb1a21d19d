"""What perdure means to reach, as data: told in the report beside what the run measured.

Owns the file's form. An aim is a rate, an amount or a ratio of one row; a missed one says what bounds it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from .rows import Row

FILE: Final = Path(__file__).with_name("aims.toml")


class Aim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of the first row whose key begins with `row` and that is compared with `beside`. One bound is given."""

    what: str
    row: str
    why: str
    """What bounds it, where it is missed."""
    beside: str = ""
    """A part of what the row names as its limit or peer."""
    measure: Literal["figure", "ratio"] = "figure"
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"the aim {self.what!r} has one bound: at_least or at_most")

    def measured(self, rows: Sequence[Row]) -> float | None:
        """None if the run has no such row."""
        for row in rows:
            if row.key.startswith(self.row) and self.beside in row.limit:
                return row.figure if self.measure == "figure" else row.ratio_to_limit
        return None

    def is_reached(self, value: float) -> bool:
        return value >= self.at_least if self.at_least is not None else value <= (self.at_most or 0.0)

    @property
    def bound(self) -> str:
        if self.at_least is not None:
            return f"at least {number(self.at_least)}"
        return f"at most {number(self.at_most or 0.0)}"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2f}"


def read_aims(file: Path = FILE) -> list[Aim]:
    """Raises OSError, or ValueError if the file is not as it should be."""
    try:
        return msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")).get("aim", []), list[Aim])
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ValueError(f"{file}: {error}") from error
