"""Slots: files that come back as they were, are damaged loudly, and are written no more often than said."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from perdure.shipping import slots
from perdure.shipping.slots import (
    Slot,
    SlotWriter,
    new_slot,
    read_slot,
    read_slots,
    remove_slot,
    slot_nodes,
    slot_or_new,
    write_slot,
)
from perdure.store import FormatError
from tests.unit.shipping.logs import make_node

SLOT = Slot("n2", 3, 40, 7, slots.STREAMING, 1_700_000_000_000, "", 39, 5, 80)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_node(tmp_path / "n1", "n1")


def test_a_slot_comes_back_as_it_was(store: Path) -> None:
    write_slot(store, SLOT)
    write_slot(store, new_slot("n3"))
    assert read_slot(store, "n2") == SLOT
    assert [slot.node for slot in read_slots(store)] == ["n2", "n3"]
    assert read_slot(store, "n4") is None
    remove_slot(store, "n2")
    remove_slot(store, "n2")
    assert [slot.node for slot in read_slots(store)] == ["n3"]


def test_every_flipped_byte_and_every_truncation_of_a_slot_is_named(store: Path) -> None:
    write_slot(store, SLOT)
    path = store / "slots" / "n2.slot"
    good = path.read_bytes()
    for at in range(len(good)):
        for damaged in (good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :], good[:at]):
            path.write_bytes(damaged)
            with pytest.raises(FormatError, match=r"n2\.slot"):
                read_slots(store)
            assert slot_or_new(store, "n2") == new_slot("n2")
            assert slot_nodes(store) == ["n2"]


@pytest.mark.parametrize(
    ("state", "keeps"),
    [(state, state not in (slots.SNAPSHOT, slots.DIVERGED)) for state in sorted(slots.STATES)],
)
def test_a_slot_keeps_the_log_unless_a_snapshot_comes_anyway(state: str, keeps: bool) -> None:
    assert msgspec.structs.replace(SLOT, state=state).keeps_log is keeps


def test_a_changed_state_is_written_at_once_and_a_position_no_more_often_than_said(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Slot] = []
    monkeypatch.setattr(slots, "write_slot", lambda _store, slot: written.append(slot))
    now = [100.0]
    monkeypatch.setattr("perdure.shipping.slots.time.monotonic", lambda: now[0])
    writer = SlotWriter(store)

    def put(**changes: object) -> None:
        writer.put(msgspec.structs.replace(SLOT, **changes))
        settle(writer)

    put(lsn=1)
    put(lsn=2)
    put(lsn=3, state=slots.CATCH_UP)
    now[0] += 0.3
    put(lsn=4, state=slots.CATCH_UP)
    put(lsn=4, state=slots.CATCH_UP, lag_ms=99)
    writer.close()
    assert [(slot.lsn, slot.state) for slot in written] == [
        (1, slots.STREAMING),
        (3, slots.CATCH_UP),
        (4, slots.CATCH_UP),
    ]


def settle(writer: SlotWriter) -> None:
    """Wait until the writer's thread has taken what it was given."""
    for _ in range(20_000):
        if not writer._newest:
            return
        time.sleep(0.001)
    pytest.fail("the writer's thread takes nothing")
