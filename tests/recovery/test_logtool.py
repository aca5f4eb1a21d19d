"""log dump and log stat: every event readable, damage in its place, nothing touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perdure.recovery import dump, stat
from perdure.store import SessionStore, StoreMissingError
from perdure.store.cursor import list_segments
from tests.recovery.stores import fingerprint, seal, small_segments


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with small_segments(tmp_path / "s", backend="sqlite") as store:
        store.put("user", {"name": "Ada"}, group="g", tags=["t"])
        store.touch("user")
        new = store.regenerate_id("user")
        store.delete(new)
        for n in range(40):
            store.create({"n": n})
        seal(store)
    return tmp_path / "s"


def test_every_event_comes_once_in_order_and_is_json(store: Path) -> None:
    events = list(dump(store))
    assert [event["lsn"] for event in events] == list(range(1, len(events) + 1))
    assert json.loads(json.dumps(events)) == events
    kinds = [event["kind"] for event in events[:6]]
    assert kinds == ["epoch_start", "config", "put", "touch", "rename", "delete"]
    assert events[0]["epoch_start"]["node"] == "local"
    assert events[2]["session"]["metadata"] == {"name": "Ada"}
    assert events[2]["session"]["tags"] == ["t"]
    assert len(events[2]["operation_id"]) == 32
    assert events[4]["new_key"] == events[5]["key"]


def test_a_range_and_one_session_are_chosen(store: Path) -> None:
    assert [event["lsn"] for event in dump(store, from_lsn=3, to_lsn=5)] == [3, 4, 5]
    assert [event["kind"] for event in dump(store, key="user")] == ["put", "touch", "rename"]
    new = next(event["new_key"] for event in dump(store) if event["kind"] == "rename")
    assert [event["kind"] for event in dump(store, key=new)] == ["rename", "delete"]


def test_one_segment_is_read_without_its_store(store: Path) -> None:
    file = list_segments(store / "log")[1]
    first = next(iter(dump(file.path)))
    assert first["lsn"] == file.first_lsn
    with pytest.raises(StoreMissingError):
        list(dump(store / "nothing"))


def test_damage_is_reported_in_its_place_and_the_next_segment_is_read(store: Path) -> None:
    file, following = list_segments(store / "log")[:2]
    data = bytearray(file.path.read_bytes())
    data[500] ^= 1
    file.path.write_bytes(data)
    entries = list(dump(store))
    damage = next(entry for entry in entries if "damage" in entry)
    assert damage["path"] == str(file.path)
    assert damage["offset"] <= 500
    behind = entries[entries.index(damage) + 1]
    assert behind["lsn"] == following.first_lsn
    assert entries[-1]["lsn"] == stat(store).end.lsn


def test_stat_adds_up_and_nothing_changes(store: Path) -> None:
    before = fingerprint(store)
    found = stat(store)
    events = list(dump(store))
    assert fingerprint(store) == before
    assert found.events == len(events) == found.end.lsn
    assert [segment.is_sealed for segment in found.segments[:-1]] == [True] * (len(found.segments) - 1)
    assert not any(segment.problem for segment in found.segments)
    assert [(epoch.epoch, epoch.first_lsn, epoch.last_lsn) for epoch in found.epochs] == [
        (1, 1, found.end.lsn)
    ]
    with SessionStore.open(store) as opened:
        assert f"{found.digest:016x}" == opened.stats()["digest"]
        assert found.session_count == opened.count()


def test_stat_says_which_segment_cannot_be_read(store: Path) -> None:
    file = list_segments(store / "log")[1]
    file.path.write_bytes(bytes(100))
    found = stat(store)
    assert "ends inside its header" in found.segments[1].problem
    assert found.segments[2].events > 0
