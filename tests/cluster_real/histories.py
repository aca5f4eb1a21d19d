"""Histories that clients wrote, as operations on one clock.

Owns the reading of their files. A last line that was torn by a kill counts as not written.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from tests.support.linearizability import Operation

_KINDS = {"plain": "read"}


def read_histories(files: Iterable[Path]) -> list[Operation]:
    """All calls of all clients but those that were refused, which changed and said nothing."""
    return [operation for file in files for operation in _read(file)]


def _read(file: Path) -> list[Operation]:
    calls: dict[int, dict[str, Any]] = {}
    for line in file.read_bytes().split(b"\n")[:-1]:
        said: dict[str, Any] = msgspec.json.decode(line)
        calls.setdefault(said.pop("n"), {}).update(said)
    return [_operation(file.stem, call) for call in calls.values() if call.get("outcome") != "refused"]


def _operation(client: str, call: dict[str, Any]) -> Operation:
    kind = call["kind"]
    return Operation(
        client=client,
        kind=_KINDS.get(kind, kind),
        key=call["key"],
        start_ns=call["start_ns"],
        end_ns=call.get("end_ns"),
        value=call["value"] if kind in {"put", "create", "update"} else "",
        seen=call.get("seen"),
        was_there=call.get("was_there", True),
        version=call.get("version", 0),
        is_plain=kind == "plain",
    )


def is_acknowledged_write(operation: Operation) -> bool:
    return operation.end_ns is not None and operation.kind != "read"


def write_gap_ms(history: Iterable[Operation], fault_ns: int, from_ns: int) -> float:
    """From a fault to the first answered write that ended at `from_ns` or later; infinite if none did."""
    ends = [
        operation.end_ns
        for operation in history
        if is_acknowledged_write(operation) and operation.end_ns is not None and operation.end_ns >= from_ns
    ]
    return (min(ends) - fault_ns) / 1e6 if ends else float("inf")
