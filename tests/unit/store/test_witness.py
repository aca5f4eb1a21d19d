"""What a witness keeps: one promise an epoch, and records that are neither taken twice nor late."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.store import (
    ForeignError,
    FormatError,
    Promise,
    PromiseRefusedError,
    StoreMissingError,
    UsageError,
    names,
)
from perdure.store.witness import (
    InSync,
    WitnessState,
    make_witness,
    promised,
    read_witness,
    recorded,
    write_witness,
)

CLUSTER = bytes(range(16))
NEW = WitnessState(CLUSTER, "w", 0)
FIRST = Promise(3, "a")


def test_an_epoch_is_promised_once() -> None:
    state = promised(NEW, FIRST)
    assert promised(state, FIRST) is state
    for late in (Promise(3, "b"), Promise(2, "a")):
        with pytest.raises(PromiseRefusedError, match="epoch 3 is promised to a"):
            promised(state, late)
    assert promised(state, Promise(4, "b")).promise == Promise(4, "b")


def test_a_record_is_taken_only_in_place_of_the_one_that_it_names() -> None:
    state = recorded(promised(NEW, FIRST), FIRST, InSync(), ("a",))
    assert state.in_sync == InSync(3, 1, ("a",))
    late = recorded(state, FIRST, InSync(), ("a", "b"))
    assert late == state  # sent before the one that is held
    cleared = recorded(state, FIRST, state.in_sync, ("a", "b"))
    assert cleared.in_sync == InSync(3, 2, ("a", "b"))
    assert recorded(cleared, FIRST, state.in_sync, ("a", "b")) == cleared  # the same message again


def test_a_record_that_was_on_its_way_when_the_primary_asked_comes_too_late() -> None:
    state = recorded(promised(NEW, FIRST), FIRST, InSync(), ("a",))
    asked = recorded(state, FIRST, InSync(), ())
    assert asked.in_sync == InSync(3, 2, ("a",))
    assert recorded(asked, FIRST, state.in_sync, ("a", "b")) == asked


def test_the_primary_of_a_later_epoch_is_promised_it_before_its_record_and_the_old_one_is_refused() -> None:
    state = recorded(NEW, FIRST, InSync(), ("a",))
    assert state.promise == Promise(3, "a", has_begun=True)
    state = recorded(state, Promise(5, "b"), InSync(9, 9), ("b",))
    assert (state.promise, state.in_sync.nodes) == (Promise(5, "b", has_begun=True), ("a",))
    with pytest.raises(PromiseRefusedError, match="epoch 5 is promised to b"):
        recorded(state, FIRST, state.in_sync, ("a", "b"))


def test_what_was_written_is_read_and_a_damaged_file_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "w"
    make_witness(place, "w", CLUSTER, 7)
    state = recorded(read_witness(place), FIRST, InSync(), ("a",))
    write_witness(place, state)
    assert read_witness(place) == state
    data = bytearray((place / names.WITNESS).read_bytes())
    data[-1] ^= 1
    (place / names.WITNESS).write_bytes(data)
    with pytest.raises(FormatError):
        read_witness(place)


def test_a_witness_is_never_made_anew_and_not_among_other_files(tmp_path: Path) -> None:
    make_witness(tmp_path / "w", "w", CLUSTER, 0)
    with pytest.raises(UsageError, match="there is a witness already"):
        make_witness(tmp_path / "w", "w", CLUSTER, 0)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "identity").write_bytes(b"")
    with pytest.raises(ForeignError):
        make_witness(tmp_path / "x", "w", CLUSTER, 0)
    with pytest.raises(UsageError):
        make_witness(tmp_path / "y", "W!", CLUSTER, 0)
    with pytest.raises(UsageError):
        make_witness(tmp_path / "y", "w", b"short", 0)
    with pytest.raises(StoreMissingError):
        read_witness(tmp_path)


def test_who_began_an_epoch_that_was_promised_to_a_loser_is_taken_and_the_loser_is_not_any_more() -> None:
    state = recorded(promised(NEW, FIRST), Promise(3, "b"), InSync(), ("b",))
    assert state.in_sync.nodes == ("b",)
    for late in (Promise(3, "a"), Promise(3, "c")):
        with pytest.raises(PromiseRefusedError):
            promised(state, late)
        with pytest.raises(PromiseRefusedError):
            recorded(state, late, state.in_sync, ("a",))
