"""A fault of two primaries goes once whom the node follows has committed all that it had, and not before."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from perdure.shipping.faults import MAGIC, NO_END, PARTED, VERSION, Fault, fault_of, write_fault
from perdure.shipping.parted_fault import PartedFault
from perdure.store import names
from perdure.store.promise import Promise
from perdure.store.smallfile import publish_small
from tests.unit.shipping.logs import begin_epoch, make_primary, opened, write

REIGN = Promise(2, "n1")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A log of epoch 1 up to LSN 12; the fault was found there. Epoch 2 begins behind it."""
    path = make_primary(tmp_path / "n1", k=1)
    end = write(path, 10)
    with opened(path) as node:
        PartedFault(path).note(node, end.lsn, "two primaries", kept_lsn=end.lsn)
    begin_epoch(path, "n1", 2, k=1)
    return path


def look(store: Path, committed_lsn: int, reign: Promise = REIGN) -> Fault | None:
    with opened(store) as node:
        PartedFault(store).look(node, reign, committed_lsn)
    return fault_of(store)


def test_the_fault_goes_once_the_beginning_of_the_primary_is_committed(store: Path) -> None:
    fault = fault_of(store)
    assert fault is not None and fault.kind == PARTED
    with opened(store) as node:
        start = node.epochs()[-1][1]
    assert fault.end[1] == start - 1
    assert look(store, start - 1) == fault
    assert look(store, start, Promise(3, "n1")) == fault  # nothing of that epoch is here yet
    assert look(store, start) is None


def test_the_fault_stays_where_the_log_has_another_frame_in_that_place(store: Path) -> None:
    fault = fault_of(store)
    assert fault is not None
    epoch, lsn, chain = fault.end
    changed = msgspec.structs.replace(fault, end=(epoch, lsn, chain ^ 1))
    write_fault(store, changed)
    assert look(store, 1000) == changed


@pytest.mark.parametrize("fault", [Fault(7, "folding stopped", 1), Fault(7, "parted", 1, PARTED, NO_END)])
def test_other_faults_stay(store: Path, fault: Fault) -> None:
    write_fault(store, fault)
    assert look(store, 1000) == fault


def test_a_fault_that_was_replaced_by_another_one_meanwhile_stays(store: Path) -> None:
    with opened(store) as node:
        watched = PartedFault(store)
        other = Fault(9, "folding stopped", 2)
        write_fault(store, other)
        watched.look(node, REIGN, 1000)
    assert fault_of(store) == other


def test_what_is_not_in_the_log_is_never_said_to_be_in_the_primary_s(store: Path) -> None:
    with opened(store) as node:
        watched = PartedFault(store)
        watched.note(node, 1, "two primaries", kept_lsn=node.log.cursor.at.lsn + 1)
        watched.look(node, REIGN, 1000)
    fault = fault_of(store)
    assert fault is not None and fault.end == NO_END


class _OldFault(msgspec.Struct):
    lsn: int
    text: str
    time_ms: int


def test_a_file_from_before_there_were_kinds_is_read_and_stays(store: Path) -> None:
    publish_small(store / names.FOLD_FAULT, MAGIC, VERSION, _OldFault(7, "two primaries", 1))
    assert look(store, 1000) == Fault(7, "two primaries", 1)
