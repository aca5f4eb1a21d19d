"""Which segments are to be sealed."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.store import SessionStore, sealing
from perdure.store.cursor import list_segments
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
