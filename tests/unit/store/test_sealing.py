"""Which segments are to be sealed."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.store import SessionStore, sealing
from perdure.store.cursor import list_segments
from perdure.store.keeper import seal_all
from perdure.store.sealing import unsealed_segments


def test_a_segment_that_is_dropped_while_they_are_looked_at_is_not_to_be_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SessionStore.open(tmp_path / "store", sweep_interval_ms=0) as store:
        store._keeper._stopping.set()  # nothing is sealed meanwhile
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
        store._keeper._stopping.set()
        for number in range(3):
            store._log.must_roll = True
            store.create({"n": number})
        files = list_segments(store._log.cursor.log)

        def cut_meanwhile() -> None:
            for file in files[1:]:
                file.path.unlink()

        seal_all(store._log.cursor, cut_meanwhile)
        assert unsealed_segments(store._log.cursor.log) == []
