"""The fold's fault: a small file that says why a replica stopped folding.

Owns the file `fold.fault`. A replica whose sessions do not come out as the primary's frames say has
diverged: it says so at once, folds no further, and must not become primary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from ..store import names
from ..store.errors import FormatError
from ..store.files import remove_durably
from ..store.smallfile import publish_small, read_small_file

MAGIC: Final = b"PDRFALT1"
VERSION: Final = 1
PARTED: Final = "parted"
"""Two primaries have committed, or one position has two histories."""
NO_END: Final = (0, 0, 0)


class Fault(msgspec.Struct, frozen=True):
    """Why folding stopped, and at which frame's end."""

    lsn: int
    text: str
    time_ms: int
    kind: str = ""
    """PARTED, or empty for all else."""
    end: tuple[int, int, int] = NO_END
    """PARTED: where the log ended then; zeros if that does not hold all that the node had."""


def write_fault(store: Path, fault: Fault) -> None:
    """Record a fault durably."""
    publish_small(store / names.FOLD_FAULT, MAGIC, VERSION, fault)


def fault_of(store: Path) -> Fault | None:
    """The fault, None if there is none; of one whose file is damaged, that it is."""
    try:
        return read_small_file(store / names.FOLD_FAULT, MAGIC, VERSION, Fault)
    except FormatError as error:
        return Fault(0, f"a fault was recorded, and its file is damaged: {error}", 0)


def read_fault(store: Path) -> str:
    """The text of the fault, empty if there is none."""
    fault = fault_of(store)
    return fault.text if fault else ""


def clear_fault(store: Path) -> None:
    """What was wrong is put right: forget the fault."""
    remove_durably(store / names.FOLD_FAULT)


def fault_of_log(store: Path) -> str:
    """The text of a fault that no new state puts right, empty if there is none."""
    fault = fault_of(store)
    return fault.text if fault is not None and fault.kind == PARTED else ""


def clear_state_fault(store: Path) -> None:
    """The state was made anew: forget the fault, unless it is the log's."""
    if not fault_of_log(store):
        clear_fault(store)
