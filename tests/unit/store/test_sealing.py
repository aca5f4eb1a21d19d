"""Which segments are to be sealed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from perdure.store import CorruptError, SessionStore, sealing
from perdure.store.cursor import list_segments
from perdure.store.keeper import seal_all
from perdure.store.sealing import unsealed_segments
from tests.support.machine import stop_background
from tests.unit.shipping.logs import lose_frames


def test_a_segment_that_is_dropped_while_they_are_looked_at_is_not_to_be_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SessionStore.open(tmp_path / "store", sweep_interval_ms=0) as store:
        stop_background(store)  # nothing is sealed meanwhile
        for number in range(3):
            store._log.must_roll = True
            store.create({"n": number})
        log = store._log.cursor.log
        files = list_segments(log)
        assert len(files) == 4
        assert unsealed_segments(log) == files[:-1]
        files[0].path.unlink()
        monkeypatch.setattr(sealing, "list_segments", lambda _log: files)
        assert unsealed_segments(log) == files[1:-1]


def test_a_segment_that_is_cut_off_before_it_is_sealed_does_not_end_who_seals(tmp_path: Path) -> None:
    with SessionStore.open(tmp_path / "store", sweep_interval_ms=0) as store:
        stop_background(store)
        for number in range(3):
            store._log.must_roll = True
            store.create({"n": number})
        files = list_segments(store._log.cursor.log)

        def cut_meanwhile() -> None:
            for file in files[1:]:
                file.path.unlink()

        seal_all(store._log.cursor, cut_meanwhile)
        assert unsealed_segments(store._log.cursor.log) == []


def test_a_segment_that_cannot_be_sealed_holds_up_nothing_else_and_is_not_read_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, reads = tmp_path / "store", list[int]()
    with SessionStore.open(path, sweep_interval_ms=1) as store:
        keeper = store._keeper
        stop_background(store)
        for number in range(20):
            store.put(f"s{number}", {"n": number, "text": "x" * 100}, ttl_ms=1)
        store._log.must_roll = True
        store.put("last", {"n": 1})
        store.fold()
        lose_frames(path)

        def seal(*arguments: Any) -> int:
            reads.append(1)
            return seal_all(*arguments)

        monkeypatch.setattr("perdure.store.keeper.seal_all", seal)
        time.sleep(0.01)  # they expire
        for tick in range(1, 10):
            with pytest.raises(CorruptError, match="a segment ends"):
                keeper._tick(tick)
        assert store.count() == 1
        assert len(reads) == 1
