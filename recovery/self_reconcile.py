"""A replica that has diverged puts itself right: its state is made anew from its own snapshot and log.

Owns that step, and the word in the audit file about it. The new state is checked frame by frame as it is
made; the one before is kept in `aside/`. If the log itself does not come out, the fault stays: then not the
state is wrong, and folding must not go on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import msgspec

from ..shipping.faults import PARTED, Fault, clear_fault, fault_of
from ..store.backends import shares_state
from ..store.errors import PerdureError
from ..store.identity import read_identity
from .audit import AuditLine, append_audit, now_text
from .repair import RepairReport, repair

Store: TypeAlias = "str | os.PathLike[str]"


class SelfReconciled(msgspec.Struct, frozen=True):
    """What became of a replica's fault."""

    fault: Fault
    report: RepairReport | None
    """None where each process keeps a state of its own: it is made anew when the folder starts again."""


def reconcile_self(store: Store) -> SelfReconciled | None:
    """Make a replica's state anew if its fold stopped with a fault; None if there is none, or one of the log.

    Running processes go over to the new state. Afterwards the fault is gone, and the folder may be started
    again. Raises CorruptError, DivergedError or PositionGoneError, with the fault as it was, if snapshot and
    log do not give a state; and as repair.
    """
    path = Path(store)
    fault = fault_of(path)
    if fault is None or fault.kind == PARTED:
        return None
    node = read_identity(path).node
    _write(path, node, "began", f"folding stopped: {fault.text}", fault.lsn)
    report: RepairReport | None = None
    try:
        if shares_state(read_identity(path).backend):
            report = repair(path, unchecked=True)
        else:
            clear_fault(path)
    except PerdureError as error:
        _write(path, node, "ended", f"not put right: {error.message}", fault.lsn)
        raise
    what = "the state is made anew by each process"
    if report is not None:
        what = (
            f"the state was made anew: {report.sessions} sessions, digest {report.digest}; the one before is"
        )
        what += f" in {report.aside}" if report.aside else " gone"
    _write(path, node, "rebuilt", what, report.lsn if report else fault.lsn)
    return SelfReconciled(fault, report)


def _write(store: Path, node: str, action: str, what: str, lsn: int) -> None:
    append_audit(store, [AuditLine(time=now_text(), node=node, action=action, what=what, lsn=lsn)])
