"""What a node was told about its rejoin: a small file, from the command until it streams again.

Owns the file `rejoin.allowed`. A node that rejoins by command only waits for it; any node may be told to give
up what was committed only there, or to be made anew as a whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from ..store import names
from ..store.files import remove_durably
from ..store.smallfile import publish_small, read_small_file

MAGIC: Final = b"PDRRJOK1"
VERSION: Final = 1
AUTO: Final = "auto"
MANUAL: Final = "manual"


class Permission(msgspec.Struct, frozen=True):
    """It may rejoin."""

    is_forced: bool = False
    """Also if what is committed there is not in the primary's history: it is exported like all else."""
    is_anew: bool = False
    """By a snapshot, whatever its log and state are."""


def give_permission(store: Path, permission: Permission) -> None:
    publish_small(store / names.REJOIN_ALLOWED, MAGIC, VERSION, permission)


def read_permission(store: Path) -> Permission | None:
    """None if there is none. Raises FormatError for a damaged file."""
    return read_small_file(store / names.REJOIN_ALLOWED, MAGIC, VERSION, Permission)


def end_permission(store: Path) -> None:
    """It streams, or nobody waits any more. Nothing happens if there is none."""
    remove_durably(store / names.REJOIN_ALLOWED)
