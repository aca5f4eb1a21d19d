"""Messages of a node's server: the answer that is an error. What each room asks stands with that room."""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from .wire_types import WirePosition


class Failed(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer is an error: its class by name, and its fields."""

    kind: str
    message: str
    path: str | None = None
    offset: int | None = None
    lsn: int | None = None
    node: str | None = None
    hint: str = ""
    position: WirePosition | None = None
    operation_id: str | None = None
    expected: int | None = None
    actual: int | None = None
    key_id: int | None = None


ServerMessage: TypeAlias = Failed

KINDS: Final[dict[int, type]] = {60: Failed}
WITH_PAYLOAD: Final[frozenset[int]] = frozenset()
