"""Histories that callers wrote, as operations on one clock.

Owns the reading of their files. A last line that was torn by a kill counts as not written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from .linearizability import Operation

_KINDS = {"plain": "read"}


def read_histories(files: Iterable[Path]) -> list[Operation]:
    """All calls of all callers but those that were refused, which changed and said nothing."""
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


def longest_pause_ms(history: Iterable[Operation], from_ns: int, to_ns: int) -> float:
    """The longest time in which no write was acknowledged, among those that ended in a span of time."""
    ends = sorted(
        operation.end_ns
        for operation in history
        if is_acknowledged_write(operation)
        and operation.end_ns is not None
        and from_ns <= operation.end_ns <= to_ns
    )
    return max(((after - before) / 1e6 for before, after in pairwise(ends)), default=float("inf"))


def final_reads(
    history: Iterable[Operation], held: Mapping[str, Mapping[str, tuple[str, int]]], now_ns: int
) -> list[Operation]:
    """What every node holds in the end, as reads after everything: (value, version) by id, by node.

    An acknowledged write that is lost, or a session that came back, then makes the history not linearizable.
    """
    keys = {operation.key for operation in history}
    return [
        Operation(
            client=f"end of {node}",
            kind="read",
            key=key,
            start_ns=now_ns,
            end_ns=now_ns + 1,
            seen=sessions[key][0] if key in sessions else None,
            version=sessions[key][1] if key in sessions else 0,
        )
        for node, sessions in held.items()
        for key in keys
    ]


def count_lost(history: Iterable[Operation], held: Mapping[str, tuple[str, int]]) -> int:
    """Acknowledged writes that the last state can't rest on: their version is beyond it, or of two writes.

    Of sessions that are never deleted: each write makes the next version.
    """
    by_version: dict[tuple[str, int], set[str]] = {}
    brief = {operation.key for operation in history if operation.kind in {"create", "delete"}}
    for operation in history:
        if is_acknowledged_write(operation) and operation.version and operation.key not in brief:
            by_version.setdefault((operation.key, operation.version), set()).add(operation.value)
    lost = 0
    for (key, version), values in by_version.items():
        value, last = held.get(key, ("", 0))
        is_kept = version < last or (version == last and value in values)
        lost += len(values) - is_kept
    return lost
