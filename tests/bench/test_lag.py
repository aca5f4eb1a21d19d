"""The lag of a replica: every write counts."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bench import process_figures
from bench.process_figures import _sample_lags
from perdure.store.page import Word

SECONDS = 0.05


class Stalled:
    """A replica whose disk has nothing until the writer has ended; then, unless it is gone, everything."""

    def __init__(self, *, is_gone: bool = False) -> None:
        self.written = 0
        self._is_gone = is_gone
        self._ends_at = time.perf_counter() + 2 * SECONDS
        self._log = SimpleNamespace(cursor=SimpleNamespace(at=SimpleNamespace(lsn=0)))

    def create(self, _: object) -> None:
        self.written += 1
        self._log.cursor.at.lsn = self.written

    @property
    def words(self) -> dict[Word, int]:
        has_all = time.perf_counter() > self._ends_at and not self._is_gone
        return {Word.FLUSHED: self.written if has_all else 0}


def lags_of(stalled: Any) -> list[float]:
    return _sample_lags(cast(Any, stalled), cast(Any, stalled), 1_000, SECONDS)


def test_writes_that_are_on_their_way_at_the_end_count() -> None:
    stalled = Stalled()
    lags = lags_of(stalled)
    assert len(lags) == stalled.written > 0


def test_a_replica_that_never_has_them_is_an_error_and_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_figures, "WAIT_S", 0.05)
    with pytest.raises(TimeoutError, match="not on the replica's disk"):
        lags_of(Stalled(is_gone=True))
