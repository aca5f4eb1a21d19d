"""What schedules are about: the clusters they run on, and which faults come how often.

Owns the tables. The seed says which of them a schedule takes: so many seeds in a row share a shape, that
its cluster is set up once for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Final

BLOCK: Final = 25
"""So many seeds in a row have the same shape."""


@dataclass(frozen=True)
class Shape:
    """A cluster, and what happens to it."""

    number: int
    """Also the seed of its setting up."""
    flavour: str
    """The faults: one of FLAVOURS."""
    nodes: int
    sync_replicas: int
    has_electors: bool = False
    """Does it elect by itself? If not, somebody promotes by hand."""
    has_witness: bool = False
    """Does the last node keep promises only? The policy is then `available`."""

    def __str__(self) -> str:
        electors = " electors" if self.has_electors else ""
        witness = " witness" if self.has_witness else ""
        return f"{self.flavour} nodes={self.nodes} k={self.sync_replicas}{electors}{witness}"


FLAVOURS: Final[dict[str, dict[str, int]]] = {
    "mixed": {
        "promote": 3,
        "two_sides": 2,
        "rivals": 2,
        "overtaken": 2,
        "stillborn": 2,
        "left_alone": 2,
        "partition": 4,
        "crash": 2,
        "kill": 3,
        "power_cut": 3,
        "pause": 2,
        "stall": 2,
        "jump": 1,
        "change_member": 2,
    },
    "rivals": {
        "overtaken": 9,
        "promote": 2,
        "rivals": 3,
        "two_sides": 3,
        "partition": 2,
        "kill": 1,
        "pause": 1,
        "jump": 1,
    },
    "power": {
        "left_alone": 6,
        "stillborn": 4,
        "power_cut": 3,
        "crash": 1,
        "stall": 2,
        "partition": 1,
        "promote": 1,
    },
    "members": {
        "outvoted": 5,
        "two_sides": 2,
        "change_member": 3,
        "partition": 1,
        "crash": 1,
        "power_cut": 1,
    },
    "witness": {"left_alone": 5, "partition": 3, "crash": 3, "power_cut": 1, "pause": 1, "promote": 2},
}
"""How often each fault comes, by what a schedule is about."""


@dataclass(frozen=True)
class Pace:
    """How faults follow each other."""

    faults_ms: tuple[int, int]
    """From the first to the last: at least, at most."""
    gaps_ms: tuple[int, ...]
    """Between two of them, on average."""


_AIMED = Pace((250, 450), (60, 120))
"""What one fault begins is seldom disturbed by the next."""
PACES: Final = dict.fromkeys(FLAVOURS, _AIMED) | {"mixed": Pace((150, 400), (15, 30, 80))}

_ROWS: Final[list[tuple[str, int, int, bool, bool]]] = [
    ("mixed", 3, 1, False, False),
    ("rivals", 4, 2, False, False),
    ("power", 3, 1, False, False),
    ("witness", 3, 1, False, True),
    ("members", 5, 2, False, False),
    ("mixed", 5, 2, True, False),
    ("rivals", 3, 1, True, False),
    ("mixed", 3, 2, False, False),
    ("power", 5, 2, False, False),
    ("mixed", 3, 1, True, False),
    ("members", 4, 2, False, False),
    ("witness", 3, 1, False, True),
    ("mixed", 5, 2, False, False),
    ("rivals", 3, 1, False, False),
    ("power", 3, 1, True, False),
    ("mixed", 4, 1, True, False),
    ("rivals", 5, 2, False, False),
    ("power", 3, 2, False, False),
    ("mixed", 3, 1, False, False),
    ("members", 5, 1, True, False),
]
SHAPES: Final = tuple(Shape(number, *row) for number, row in enumerate(_ROWS))


def shape_of(seed: int) -> Shape:
    """What the schedule of a seed is about."""
    return SHAPES[seed // BLOCK % len(SHAPES)]


def seeds_about(flavour: str, count: int) -> list[int]:
    """The first seeds whose schedules are about that; any if `flavour` is empty."""
    found = (seed for seed in range(count * len(SHAPES)) if flavour in ("", shape_of(seed).flavour))
    return list(islice(found, count))
