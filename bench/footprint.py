"""What a session takes, in memory and on disk: rows of what the systems have grown by when they were
filled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from .contestants import Contestant, Growth, is_limit, is_ours
from .rows import Ratio, Row, with_ours
from .workloads import SMALL_BYTES

FOOTPRINT: Final = "footprint"
_PARTS: Final = ("memory", "disk", "disk: state", "disk: log", "disk: snapshots")
FOOTPRINT_CASES: Final = tuple(f"{FOOTPRINT}: {part}, a session" for part in _PARTS)
"""The names that rows can have, without class and system."""


def footprint_rows(contestants: Sequence[Contestant], growths: Mapping[str, Growth]) -> Iterator[Row]:
    """Bytes a session, in memory and on disk; ratios are those of one measurement."""
    ours = next((one.name for one in contestants if is_ours(one.name)), "")
    for one in contestants:
        if is_limit(one.name):
            continue
        growth = growths[one.name]
        parts = {"memory": growth.memory_bytes}
        if sum(growth.disk_bytes.values()):
            parts["disk"] = sum(growth.disk_bytes.values())
            parts |= {f"disk: {part}": size for part, size in growth.disk_bytes.items()}
        for part, size in parts.items():
            row = Row(
                group=FOOTPRINT,
                case=f"{part}, a session",
                system=one.name,
                durability=one.durability.value,
                value_bytes=SMALL_BYTES,
                sessions=growth.sessions,
                amount=size / growth.sessions,
                unit="bytes",
                rounds=1,
                setting=one.setting,
                version=one.version,
                note=f"{growth.before_bytes / 1e6:.1f} MB when empty" if part == "disk" else "",
            )
            if ours and one.name != ours and part in ("memory", "disk"):
                its = growths[ours]
                mine = its.memory_bytes if part == "memory" else sum(its.disk_bytes.values())
                if mine > 0 and size > 0:
                    ratio = (size / growth.sessions) / (mine / its.sessions)
                    row = with_ours(row, ours, Ratio(ratio, ratio, ratio, 0.0))
            yield row
